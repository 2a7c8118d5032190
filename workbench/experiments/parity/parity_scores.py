"""How far our scores of heads agree with published ones, and how far they agree with themselves. No torch.

A source often lists its best heads only. Then both rankings are cut: below the k-th highest, k the number listed, all
heads tie. Two rankings that agree on the best k in their order have a correlation of 1, unrelated ones of about 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from workbench.emergence.rank_statistics import spearman, top_rows
from workbench.experiments.parity.published import Figure

BEST = 10


@dataclass(frozen=True, slots=True)
class Own:
    """Our scores of every head, and the same on each half of the sequences; NaN where a head has none.

    `flags`: what the detector says about them, such as how many instances counted.
    """

    heads: tuple[tuple[int, int], ...]
    score: Float[np.ndarray, " n"]
    half_a: Float[np.ndarray, " n"]
    half_b: Float[np.ndarray, " n"]
    flags: str = ""


@dataclass(frozen=True, slots=True)
class Parity:
    """One figure and how near we come to it.

    `n_heads` have a score of ours; `n_listed` of them are listed. `spearman`: of ranks, NaN for a set. `ceiling`: what
    our halves allow, 2r / (1 + r) of their correlation (Spearman–Brown). `overlap`: share of the `n_best` best heads
    that are the source's, by chance `overlap_chance`; `overlap_ceiling`: the same between our halves, each of which is
    half the data. `auroc`: how often a listed head scores above one that is not. For a share: `published` and `ours`.
    """

    detector: str
    kind: str
    of: str
    probe: str
    source: str
    n_heads: int
    n_listed: int
    spearman: float
    ceiling: float
    n_best: int
    overlap: float
    overlap_ceiling: float
    overlap_chance: float
    auroc: float
    published: float
    ours: float
    flags: str


def compare(figure: Figure, own: Own) -> Parity:
    """Hold our scores against a figure; numbers that do not exist are NaN."""
    has_score = np.isfinite(own.score)
    score, half_a, half_b = (x[has_score] for x in (own.score, own.half_a, own.half_b))
    heads = [head for head, is_scored in zip(own.heads, has_score, strict=True) if is_scored]
    listed = dict(zip(figure.places(), figure.scores(), strict=True))
    theirs = np.array([listed.get(head, -np.inf) for head in heads], dtype=np.float64)
    is_listed = np.isfinite(theirs)
    k, n = int(is_listed.sum()), len(heads)
    n_best = k if figure.kind == "set" else min(BEST, k)
    has_halves = bool(np.isfinite(half_a).all() and np.isfinite(half_b).all())
    is_order = figure.kind in ("scores", "ranked") and k > 1
    r = spearman(_cut(half_a, k), _cut(half_b, k)) if is_order and has_halves else np.nan
    return Parity(
        detector=figure.detector,
        kind=figure.kind,
        of=figure.of,
        probe=figure.probe,
        source=figure.source,
        n_heads=n,
        n_listed=k,
        spearman=spearman(_cut(score, k), theirs) if is_order else np.nan,
        ceiling=2 * r / (1 + r) if r > -1 else np.nan,
        n_best=n_best,
        overlap=_shared(_best(score, n_best), _of_source(figure, heads, n_best)),
        overlap_ceiling=_shared(_best(half_a, n_best), _best(half_b, n_best)) if has_halves else np.nan,
        overlap_chance=n_best / n if n_best else np.nan,
        auroc=_auroc(score, is_listed),
        published=np.nan if figure.value is None else figure.value,
        ours=float(score.mean()) if figure.kind == "share" and n else np.nan,
        flags=own.flags,
    )


def _cut(values: Float[np.ndarray, " n"], k: int) -> Float[np.ndarray, " n"]:
    """Everything below the k-th highest made equal."""
    return np.where(values >= np.sort(values)[-k], values, -np.inf)


def _best(values: Float[np.ndarray, " n"], k: int) -> set[int]:
    return set(top_rows(values, k))


def _of_source(figure: Figure, heads: Sequence[tuple[int, int]], k: int) -> set[int]:
    place = {head: i for i, head in enumerate(heads)}
    return set([place[head] for head in figure.places() if head in place][:k])


def _shared(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(other) if other else np.nan


def _auroc(score: Float[np.ndarray, " n"], is_listed: Bool[np.ndarray, " n"]) -> float:
    """How often a listed head scores above one that is not, ties counting half; NaN where all or none are listed."""
    inside, outside = score[is_listed], score[~is_listed]
    if len(inside) == 0 or len(outside) == 0:
        return np.nan
    above = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return float(above)
