"""Score a model's heads as the published figures about it were scored, one pass for all figures of a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from workbench.detectors import find_detectors, score
from workbench.experiments.parity.parity_scores import Own, Parity, compare
from workbench.experiments.parity.published import Figure, Published
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning import METHODS, Game, rank
from workbench.probes import build, split

# DuoAttention's streaming heads see so many last and first tokens.
WINDOW, SINK = 256, 128


def hold_against(
    m: HookedModel,
    published: Published,
    *,
    detectors: Sequence[str] | None = None,
    probe: str | None = None,
    seed: int = 0,
    on_figure: Callable[[Figure], None] = lambda _: None,
) -> list[Parity]:
    """Every figure about a model beside our own scores.

    Args:
        detectors: of the figures; default all.
        probe: score on this instead of each figure's own, written as for `probes.build`.
        on_figure: called before the figures of a probe are scored.

    Raises:
        WorkbenchError: if no figure is of a detector, or a probe does not fit the model.
    """
    about = ", ".join(dict.fromkeys(f.detector for f in published.figures))
    unknown = sorted(set(detectors or ()) - {f.detector for f in published.figures})
    if unknown:
        raise WorkbenchError(f"no figures of {', '.join(unknown)} about {published.name}; there are: {about}")
    asked = [f for f in published.figures if detectors is None or f.detector in detectors]
    asked = [f if probe is None else f.model_copy(update={"probe": probe}) for f in asked]
    found: dict[int, Parity] = {}
    for written in dict.fromkeys(f.probe for f in asked):
        mine = [i for i, f in enumerate(asked) if f.probe == written]
        on_figure(asked[mine[0]])
        of_heads = [i for i in mine if asked[i].of == "head"]
        table = _scored(m, [asked[i] for i in of_heads], written, seed) if of_heads else None
        for i in mine:
            own = _of_groups(m, asked[i], seed) if table is None or asked[i].of == "kv_head" else _of(table, asked[i])
            found[i] = compare(asked[i], own)
    return [found[i] for i in range(len(asked))]


def _scored(m: HookedModel, figures: Sequence[Figure], written: str, seed: int) -> pd.DataFrame:
    names = list(dict.fromkeys(f.detector for f in figures))
    find_detectors(names)
    return score(m, names, probes=build(m, written), seed=seed)


def _of(table: pd.DataFrame, figure: Figure) -> Own:
    mine = table.loc[table["detector"] == figure.detector]
    values = {name: np.asarray(mine[name], dtype=np.float64) for name in ("score", "half_a", "half_b")}
    heads = zip(mine["layer"].tolist(), mine["head"].tolist(), strict=True)
    return Own(
        tuple((int(layer), int(head)) for layer, head in heads), **values, flags=str(mine.loc[:, "flags"].iloc[0])
    )


def _of_groups(m: HookedModel, figure: Figure, seed: int) -> Own:
    """Key/value heads by a ranking method, on each half of the probe's sequences; the score is the halves' mean."""
    if figure.detector not in METHODS:
        raise WorkbenchError(f"{figure.detector!r} ranks no key/value heads; expected one of {', '.join(METHODS)}")
    probe = build(m, figure.probe)
    n = len(probe.tokens)
    if n < 2:
        raise WorkbenchError(f"probe {figure.probe!r} has {n} sequence; its halves take at least 2")
    halves = [rank(Game(m, half, WINDOW, sink=SINK, seed=seed), figure.detector) for half in split(probe, (n + 1) // 2)]
    own = Own(
        tuple((h.layer, h.kv_head) for h in halves[0].heads), halves[0].scores, halves[0].scores, halves[1].scores
    )
    return replace(own, score=(own.half_a + own.half_b) / 2)
