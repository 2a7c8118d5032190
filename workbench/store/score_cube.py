"""One detector's scores of a whole run as one array in memory, for fast access by head or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32, Int64

from workbench.heads import Head, WorkbenchError, brief
from workbench.store.part_files import Part

COLUMNS = ("layer", "head", "score")


@dataclass(frozen=True, slots=True)
class Cube:
    """Scores by checkpoint (in series order) and head; NaN where there is none. `steps` count within their stages."""

    ckpts: tuple[str, ...]
    steps: tuple[int | None, ...]
    layers: Int64[np.ndarray, " n"]
    heads: Int64[np.ndarray, " n"]
    scores: Float32[np.ndarray, "ckpts n"]

    def __repr__(self) -> str:
        return brief(self)

    def head(self, layer: int, head: int) -> pd.DataFrame:
        """One head over all checkpoints: ckpt, step, score.

        Raises:
            WorkbenchError: if no checkpoint has it.
        """
        columns = np.flatnonzero((self.layers == layer) & (self.heads == head))
        if not len(columns):
            last = self.layers.max(initial=-1)
            raise WorkbenchError(f"head {Head(layer, head)} has no scores; layers are 0 … {last}")
        steps = pd.array(self.steps, dtype="Int64")
        return pd.DataFrame({"ckpt": self.ckpts, "step": steps, "score": self.scores[:, columns[0]]})

    def checkpoint(self, ckpt: str) -> pd.DataFrame:
        """All heads at one checkpoint: layer, head, score.

        Raises:
            WorkbenchError: if it has no scores.
        """
        return pd.DataFrame({"layer": self.layers, "head": self.heads, "score": self.scores[self._row(ckpt)]})

    def top(self, n: int, *, ckpt: str | None) -> pd.DataFrame:
        """The `n` highest scores at one checkpoint, or of all: ckpt, step, layer, head, score; best first.

        Raises:
            WorkbenchError: if the checkpoint has no scores.
        """
        first = 0 if ckpt is None else self._row(ckpt)
        scores = self.scores if ckpt is None else self.scores[first : first + 1]
        flat = np.where(np.isnan(scores), -np.inf, scores).ravel()
        n = min(n, int(np.isfinite(flat).sum()))
        best = np.argpartition(-flat, n - 1)[:n] if n else np.empty(0, int)
        best = best[np.argsort(-flat[best], kind="stable")]
        row, column = np.divmod(best, len(self.layers)) if n else (best, best)
        return pd.DataFrame(
            {
                "ckpt": [self.ckpts[first + r] for r in row],
                "step": pd.array([self.steps[first + r] for r in row], dtype="Int64"),
                "layer": self.layers[column],
                "head": self.heads[column],
                "score": flat[best],
            }
        )

    def _row(self, ckpt: str) -> int:
        if ckpt not in self.ckpts:
            raise WorkbenchError(f"checkpoint {ckpt!r} has no scores; there is: {', '.join(self.ckpts[:10]) or 'none'}")
        return self.ckpts.index(ckpt)


def make_cube(parts: Sequence[Part], rows: Mapping[Part, pa.Table]) -> Cube:
    """The scores of parts of one detector and probe, in this order; scores without a query head are left out."""
    ckpts = tuple(dict.fromkeys(part.label.ckpt for part in parts))
    steps = {part.label.ckpt: part.label.origin.step for part in parts}
    tables = [rows[part].filter(rows[part]["head"].is_valid()) for part in parts]
    layers, heads, scores = (
        [table[name].to_numpy() for table in tables] or [np.empty(0, np.int64)] for name in COLUMNS
    )
    width = 1 + max((int(h.max(initial=-1)) for h in heads), default=0)
    keys = [layer * width + head.astype(np.int64) for layer, head in zip(layers, heads, strict=True)]
    known = np.unique(np.concatenate(keys))
    filled = np.full((len(ckpts), len(known)), np.nan, np.float32)
    for part, key, score in zip(parts, keys, scores, strict=False):
        filled[ckpts.index(part.label.ckpt), np.searchsorted(known, key)] = score
    return Cube(ckpts, tuple(steps[c] for c in ckpts), known // width, known % width, filled)
