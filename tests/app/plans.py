"""A made-up plan of two layers of four key/value heads, with a curve at every second budget."""

from __future__ import annotations

from workbench.heads import KVHead, LayerInfo
from workbench.store.length_verdict import VerdictCell
from workbench.store.plan_file import CurvePoint, Plan, RankedHead


def made_plan() -> Plan:
    """Heads in the order of scores 0.8, 0.7, ... 0.1; two are kept."""
    layers = tuple(
        LayerInfo(
            index=i,
            kind="full",
            mixer="softmax",
            window=None,
            has_sinks=False,
            n_heads=4,
            n_kv_heads=4,
            d_head=16,
        )
        for i in range(2)
    )
    order = [KVHead(*pair) for pair in ((1, 1), (0, 2), (1, 3), (0, 0), (0, 1), (1, 0), (1, 2), (0, 3))]
    ranking = tuple(
        RankedHead(head.layer, head.kv_head, 0.8 - 0.1 * i, 0.75 - 0.1 * i, 0.85 - 0.1 * i)
        for i, head in enumerate(order)
    )
    curve = tuple(
        CurvePoint(method, "held_out", n, 4.0 - 0.4 * n * worth, n / 8 * worth, n / 8, 1 - n / 8)
        for method, worth in (("window_gates", 1.0), ("random", 0.6))
        for n in range(0, 9, 2)
    )
    return Plan(
        model="made-up",
        layers=layers,
        window=8,
        sink=1,
        unit="head",
        method="window_gates",
        units="nats",
        probe="needles",
        probe_digest="0" * 32,
        seed=0,
        context=64,
        keep=tuple(sorted(order[:2])),
        ranking=ranking,
        curve=curve,
        evidence={"full": 0.5, "windowed": 4.1},
    )


def cells_of_verdict() -> tuple[VerdictCell, ...]:
    """Needles at three lengths, which the plan does not lose at 16 tokens and loses from 32 on; and words left out."""
    cells = []
    for length, lost in ((16, 0.01), (32, 0.4), (64, 0.9)):
        for arm, right, nats in (("full", 0.9, 0.1), ("planned", 0.9 - lost / 2, 0.1 + lost), ("windowed", 0.1, 3.0)):
            scores = (right, right - 0.05, right + 0.05, nats, nats - 0.02, nats + 0.02)
            more = nats - 0.1
            cells.append(VerdictCell("needles", length, arm, *scores, more, more - 0.02, more + 0.02, 8, 2))
    few = (0.2, 0.1, 0.3, 2.0, 1.5, 2.5, 0.0, 0.0, 0.0, 8, 2)
    cells.append(VerdictCell("common words", 16, "full", *few, left_out="the model gets 0.20 of its answers right"))
    return tuple(cells)
