"""A ranking of key/value heads by their need for the whole context, and what it is compared with: chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from workbench.heads import KVHead


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of every key/value head by one method, higher for heads to keep, in the units the method names.

    `per_sequence`: the scores on each sequence that has an answer, where the method has them. `evidence`: numbers that
    say how far to trust them.
    """

    method: str
    units: str
    heads: tuple[KVHead, ...]
    scores: Float[np.ndarray, " n_kv"]
    per_sequence: Float[np.ndarray, "n_seq n_kv"] | None = None
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def order(self) -> list[KVHead]:
        """The heads, those to keep first; equal scores in order of layer and head."""
        return [self.heads[i] for i in np.argsort(-self.scores, kind="stable")]


def random_order(heads: Sequence[KVHead], seed: int) -> Ranking:
    """Any order."""
    return Ranking("random", "none", tuple(heads), np.random.default_rng(seed).random(len(heads)))


def shuffled_in_layers(ranking: Ranking, seed: int) -> Ranking:
    """A ranking's scores dealt anew among the heads of each layer: the first n are as many of each layer as before."""
    rng = np.random.default_rng(seed)
    scores, layers = ranking.scores.copy(), np.array([head.layer for head in ranking.heads])
    for layer in np.unique(layers):
        mine = np.flatnonzero(layers == layer)
        scores[mine] = scores[rng.permutation(mine)]
    return Ranking("random_in_layer", ranking.units, ranking.heads, scores)
