"""How much of a head's worth is due to the long context: its worth at long minus its worth at short context."""

from __future__ import annotations

import math

import pandas as pd
from torch import nn

from workbench.detectors.bootstrap import percentile_interval, resampled_means
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.planning.answer_loss import Objective
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED, AdaptiveNodes
from workbench.planning.rankings.window_gates import window_gates
from workbench.probes.token_inputs import ProbeLike, read_probe


def need_global(  # noqa: PLR0913  # public keywords
    m: HookedModel | nn.Module,
    short: ProbeLike,
    long: ProbeLike,
    window: int,
    *,
    sink: int = 0,
    nodes: int | AdaptiveNodes = AS_NEEDED,
    objective: Objective = "loss",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Window gates of every key/value head on a short and a long probe, and their difference, in nats per answer.

    Both contain what a head is worth at any length because a window disturbs it. `need_global` is what the length
    adds; `per_doubling` is that for every doubling of the context. `progress`: a bar for each probe on a terminal and
    in a notebook, in passes.
    `nodes`: of the gates' path: as many as it needs, or this number.

    Returns:
        One row per head: layer, kv_head, short, long, need_global, ci_lo, ci_hi, per_doubling; the interval is the 95 %
        percentile bootstrap over the sequences of both probes, and the gates' own margins on either side.

    Raises:
        WorkbenchError: if the long probe is not longer than the short one, or one of them has no answers.
    """
    m = open_model(m)
    short, long = read_probe(m, short), read_probe(m, long)
    n_short, n_long = short.tokens.shape[1], long.tokens.shape[1]
    if n_long <= n_short:
        raise WorkbenchError(f"the long probe has {n_long} tokens, the short one {n_short}; expected it to be longer")
    near, far = (
        window_gates(m, probe, window, sink=sink, nodes=nodes, objective=objective, progress=progress)
        for probe in (short, long)
    )
    # The two probes have different sequences, so their resamples are drawn independently.
    resampled = resampled_means(far.per_sequence, seed=2 * seed) - resampled_means(near.per_sequence, seed=2 * seed + 1)
    low, high = percentile_interval(resampled)
    margin = far.margin + near.margin
    added = far.scores - near.scores
    return pd.DataFrame(
        {
            "layer": [head.layer for head in far.heads],
            "kv_head": [head.kv_head for head in far.heads],
            "short": near.scores,
            "long": far.scores,
            "need_global": added,
            "ci_lo": low - margin,
            "ci_hi": high + margin,
            "per_doubling": added / math.log2(n_long / n_short),
        }
    )
