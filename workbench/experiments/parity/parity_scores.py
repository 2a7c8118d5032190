"""Agreement of our head scores with published ones, and of our scores on two halves of the sequences. No torch.

A source often lists only its best heads. Then both rankings are cut: with k heads listed, all heads below the k-th
highest tie. Two rankings with the same best k in the same order have a correlation of 1, unrelated ones of about 0.
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
class OwnScores:
    """Our scores of every head, and those on each half of the sequences; NaN where a head has none.

    `flags`: the detector's notes on them, such as how many instances counted.
    """

    heads: tuple[tuple[int, int], ...]
    score: Float[np.ndarray, " n"]
    half_a: Float[np.ndarray, " n"]
    half_b: Float[np.ndarray, " n"]
    flags: str = ""


@dataclass(frozen=True, slots=True)
class Parity:
    """One figure and our agreement with it.

    `n_heads` have a score of ours; `n_listed` of them are listed. `spearman`: rank correlation, NaN for a set.
    `ceiling`: the correlation that our noise allows, 2r / (1 + r) of that between our halves (Spearman–Brown).
    `overlap`: share of our `n_best` best heads that are the source's, by chance `overlap_chance`; `overlap_ceiling`:
    the same between our halves, each of which is half the data. `auroc`: how often a listed head scores above one that
    is not. For a share: `published` and `ours`.
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


def compare(figure: Figure, own: OwnScores) -> Parity:
    """Compare our scores with a figure; numbers that do not exist are NaN."""
    has_score = np.isfinite(own.score)
    score, half_a, half_b = (x[has_score] for x in (own.score, own.half_a, own.half_b))
    heads = [head for head, is_scored in zip(own.heads, has_score, strict=True) if is_scored]
    listed = dict(zip(figure.layers_and_heads(), figure.scores(), strict=True))
    published = np.array([listed.get(head, -np.inf) for head in heads], dtype=np.float64)
    is_listed = np.isfinite(published)
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
        spearman=spearman(_cut(score, k), published) if is_order else np.nan,
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
    """The values, with all below the k-th highest made equal."""
    return np.where(values >= np.sort(values)[-k], values, -np.inf)


def _best(values: Float[np.ndarray, " n"], k: int) -> set[int]:
    return set(top_rows(values, k))


def _of_source(figure: Figure, heads: Sequence[tuple[int, int]], k: int) -> set[int]:
    index = {head: i for i, head in enumerate(heads)}
    return set([index[head] for head in figure.layers_and_heads() if head in index][:k])


def _shared(best: set[int], reference: set[int]) -> float:
    return len(best & reference) / len(reference) if reference else np.nan


def _auroc(score: Float[np.ndarray, " n"], is_listed: Bool[np.ndarray, " n"]) -> float:
    """How often a listed head scores above one that is not, ties counting half; NaN where all or none are listed."""
    inside, outside = score[is_listed], score[~is_listed]
    if len(inside) == 0 or len(outside) == 0:
        return np.nan
    above = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return float(above)
