"""Plans written by hand, for tests of what becomes of them."""

from __future__ import annotations

from dataclasses import replace

from workbench import KVHead, LayerInfo, Plan
from workbench.store.plan_file import CurvePoint, RankedHead

NAN = float("nan")
FULL = LayerInfo(0, "full", "softmax", None, False, 4, 2, 16)
SLIDING = replace(FULL, kind="sliding", window=8)
LINEAR = LayerInfo(0, "linear", "lightning", None, False, 4, 4, 16)


def layers_of(*infos: LayerInfo) -> tuple[LayerInfo, ...]:
    return tuple(replace(info, index=i) for i, info in enumerate(infos))


def plan_of(layers: tuple[LayerInfo, ...], keep: list[tuple[int, int]], **others) -> Plan:
    """A plan that keeps these heads; the ranking has them first, and is of every softmax head."""
    heads = [KVHead(i.index, h) for i in layers if i.mixer == "softmax" for h in range(i.n_kv_heads)]
    kept = [KVHead(*head) for head in keep]
    order = [*kept, *(head for head in heads if head not in kept)]
    ranking = tuple(RankedHead(*head, 1.0 - i, NAN, NAN) for i, head in enumerate(order))
    points = [CurvePoint("m", "p", n, 4.0 - n / 2, n / len(heads), n / len(heads), NAN) for n in range(len(heads) + 1)]
    given = dict(
        model="small",
        layers=layers,
        window=16,
        sink=0,
        unit="head",
        method="m",
        units="nats",
        probe="p",
        probe_digest="d",
        seed=0,
        context=64,
        keep=tuple(sorted(kept)),
        ranking=ranking,
        curve=tuple(points),
        evidence={"completeness_error": 0.01, "gap": NAN},
    )
    return Plan(**{**given, **others})
