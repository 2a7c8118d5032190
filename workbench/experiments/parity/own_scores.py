"""Score a model's heads for comparison with published figures, one pass for all figures of a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from workbench.detectors import find_detectors, score
from workbench.experiments.parity.parity_scores import OwnScores, Parity, compare
from workbench.experiments.parity.published import Figure, Published
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning import METHODS, Game, rank
from workbench.probes import build, split

# The last and first tokens that DuoAttention's streaming heads see.
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
    """Compare every figure about a model with our own scores.

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
    figures = [f for f in published.figures if detectors is None or f.detector in detectors]
    figures = [f if probe is None else f.model_copy(update={"probe": probe}) for f in figures]
    parities: dict[int, Parity] = {}
    for probe_text in dict.fromkeys(f.probe for f in figures):
        of_probe = [i for i, f in enumerate(figures) if f.probe == probe_text]
        on_figure(figures[of_probe[0]])
        of_heads = [figures[i] for i in of_probe if figures[i].of == "head"]
        table = _score_heads(m, of_heads, probe_text, seed) if of_heads else None
        for i in of_probe:
            if table is None or figures[i].of == "kv_head":
                own = _group_scores(m, figures[i], seed)
            else:
                own = _head_scores(table, figures[i])
            parities[i] = compare(figures[i], own)
    return [parities[i] for i in range(len(figures))]


def _score_heads(m: HookedModel, figures: Sequence[Figure], probe_text: str, seed: int) -> pd.DataFrame:
    names = list(dict.fromkeys(f.detector for f in figures))
    find_detectors(names)
    return score(m, names, probes=build(m, probe_text), seed=seed)


def _head_scores(table: pd.DataFrame, figure: Figure) -> OwnScores:
    rows = table.loc[table["detector"] == figure.detector]
    values = {name: np.asarray(rows[name], dtype=np.float64) for name in ("score", "half_a", "half_b")}
    heads = zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True)
    return OwnScores(
        tuple((int(layer), int(head)) for layer, head in heads), **values, flags=str(rows.loc[:, "flags"].iloc[0])
    )


def _group_scores(m: HookedModel, figure: Figure, seed: int) -> OwnScores:
    """Key/value heads by a ranking method, on each half of the probe's sequences; the score is the halves' mean."""
    if figure.detector not in METHODS:
        raise WorkbenchError(f"{figure.detector!r} ranks no key/value heads; expected one of {', '.join(METHODS)}")
    probe = build(m, figure.probe)
    n = len(probe.tokens)
    if n < 2:
        raise WorkbenchError(f"probe {figure.probe!r} has {n} sequence; its halves take at least 2")
    halves = [
        rank(Game(m, half, WINDOW, sink=SINK, seed=seed), figure.detector, progress=False)
        for half in split(probe, (n + 1) // 2)
    ]
    own = OwnScores(
        tuple((h.layer, h.kv_head) for h in halves[0].heads), halves[0].scores, halves[0].scores, halves[1].scores
    )
    return replace(own, score=(own.half_a + own.half_b) / 2)
