"""Hand-over: a head that loses its role while another takes it up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.emergence.head_histories import are_lost
from workbench.emergence.hysteresis import crossings_of
from workbench.emergence.score_curves import HEAD, curves_of

_CONTEXT = ["branch", "detector", "version", "probe", "probe_digest"]


def handovers(scores: pd.DataFrame, *, least: float = 0.2) -> pd.DataFrame:
    """For each head that fell, the head whose rise mirrors its fall best.

    A head fell if it crossed its high mark and ends below three quarters of it (see `crossings_of`). From its peak
    on, a perfect hand-over keeps the sum of the two scores constant.

    Returns:
        One row per head that fell: its lineage, peak_ckpt, fall (peak - final);
        to_layer, to_head, to_kv_head, to_kind, to_rise: the head of the same branch, detector and probe that explains
            most, and its rise over the same checkpoints; missing where none rises;
        explained: 1 - sum of squared changes of the two scores together / of the fall alone; 1 for a perfect one;
        class_sum_ratio: the sum of all heads' scores at the end over that at the peak: about 1 where the role only
            changes hands, below where it is lost to the model.

    Many heads move in training: a mirrored rise is a lead to follow with an intervention, not a proof.
    """
    curves = curves_of(scores)
    crossings = crossings_of(curves.score, least=least)
    fell = are_lost(curves.score, crossings)
    context = curves.heads.groupby(_CONTEXT, dropna=False, observed=True, sort=False).ngroup().to_numpy()
    rows = [_handover(curves.score, np.flatnonzero(context == context[a]), int(a)) for a in np.flatnonzero(fell)]
    found = pd.DataFrame(rows, columns=["peak_at", "fall", "to", "to_rise", "explained", "class_sum_ratio"])
    takers = curves.heads.loc[:, list(HEAD)].add_prefix("to_").reset_index(drop=True)
    takers = takers.reindex(found.loc[:, "to"].astype("Int64").fillna(-1).astype("int64")).reset_index(drop=True)
    peak = curves.checkpoints.index[found.loc[:, "peak_at"].astype("int64")] if len(found) else []
    left = curves.heads.loc[fell].reset_index(drop=True).assign(peak_ckpt=peak, fall=found["fall"])
    return pd.concat([left, takers, found.loc[:, ["to_rise", "explained", "class_sum_ratio"]]], axis=1)


def _handover(score: Float[np.ndarray, "heads ckpts"], peers: Int[np.ndarray, " peers"], a: int) -> tuple[Any, ...]:
    """Of head `a` among its peers: column of the peak, fall, best taker, its rise, how well, and the sum's ratio."""
    mine = score[a]
    peak = int(np.nanargmax(mine))
    since = np.flatnonzero(~np.isnan(mine) & (np.arange(len(mine)) >= peak))
    fall = mine[peak] - mine[since]
    others = score[peers][:, since]
    rise = others - others[:, :1]
    with np.errstate(invalid="ignore"):
        unexplained = np.nansum((fall - rise) ** 2, axis=1)
    is_whole = ~np.isnan(rise).any(1) & (rise[:, -1] > 0) & (peers != a)
    explained = np.where(is_whole, 1 - unexplained / (fall**2).sum(), -np.inf)
    sums = np.nansum(others[:, [0, -1]], axis=0)
    ratio = float(sums[1] / sums[0]) if sums[0] else float("nan")
    best = int(explained.argmax())
    if not np.isfinite(explained[best]):
        return peak, float(fall[-1]), None, float("nan"), float("nan"), ratio
    return peak, float(fall[-1]), int(peers[best]), float(rise[best, -1]), float(explained[best]), ratio
