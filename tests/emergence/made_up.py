"""Rows of scores with known onsets, as `Run.scores()` gives them."""

from __future__ import annotations

import numpy as np
import pandas as pd

PYTHIA = np.array([0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)])
FEW = np.unique(np.geomspace(8, 3072, 20).astype(int))
TOKENS_PER_STEP = 2048


def rows(
    score,
    steps,
    *,
    se=0.01,
    heads_per_layer=32,
    kind="full",
    branch=None,
    stage=None,
    tokens_per_step=TOKENS_PER_STEP,
    noise=None,
    detector="induction",
    names=None,
):
    """One row per head (down) and checkpoint (across) of `score`; halves differ by `noise` where it is given."""
    score = np.asarray(score, dtype=float)
    n_heads, n_ckpts = score.shape
    at, head = np.repeat(np.arange(n_ckpts), n_heads), np.tile(np.arange(n_heads), n_ckpts)
    values = score.T.ravel()
    halves = np.zeros((2, len(values))) if noise is None else noise.normal(0, 1, (2, len(values))) * se * np.sqrt(2)
    step = np.asarray(steps)[at]
    names = np.array([f"{branch or stage or ''}step{s}" for s in steps] if names is None else names)

    def ints(x):
        return pd.array(x, dtype="Int64")

    def text(x):
        return pd.array([x] * len(values), dtype="str")

    return pd.DataFrame(
        {
            "ckpt": names[at],
            "stage": text(stage),
            "branch": text(branch),
            "step": ints(step),
            "step_total": ints(step),
            "tokens": ints([None] * len(step)) if tokens_per_step is None else ints(step * tokens_per_step),
            "layer": head // heads_per_layer,
            "head": ints(head % heads_per_layer),
            "kv_head": head % heads_per_layer,
            "kind": kind,
            "window": ints([None] * len(step)),
            "detector": detector,
            "version": 1,
            "probe": "repeats",
            "probe_digest": "p",
            "score": values,
            "half_a": values + halves[0],
            "half_b": values + halves[1],
            "sd_seq": se * 4,
            "n_seq": 16,
        }
    )


def logistic(x, middle, width, floor, amplitude):
    """Heads down, places across."""
    middle, width, floor, amplitude = (np.asarray(v)[..., None] for v in (middle, width, floor, amplitude))
    return floor + amplitude / (1 + np.exp(-np.clip((x - middle) / width, -60, 60)))


def rising_heads(rng, steps, n, *, widths=(0.3, 0.8), sd=0.01, inner=0.2):
    """n heads that rise within the series: their scores, and the tokens of half of the rise."""
    tokens = steps * float(TOKENS_PER_STEP)
    x = np.log(np.where(tokens > 0, tokens, 1e-300))
    first, last = np.log(tokens[tokens > 0][[0, -1]])
    middle = rng.uniform(first + inner * (last - first), last - inner * (last - first), n)
    width, floor, amplitude = rng.uniform(*widths, n), rng.uniform(0, 0.1, n), rng.uniform(0.4, 0.9, n)
    return logistic(x, middle, width, floor, amplitude) + rng.normal(0, sd, (n, len(steps))), np.exp(middle)
