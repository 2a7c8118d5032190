"""A made-up plan of two layers of four key/value heads, with a curve at every second budget."""

from __future__ import annotations

from workbench.heads import KVHead, LayerInfo
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
