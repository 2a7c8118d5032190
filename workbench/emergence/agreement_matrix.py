"""Every checkpoint against every other: since when a model ranks its heads as it does later, as one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.emergence.rank_statistics import FEWEST_HEADS, spearman_matrix
from workbench.emergence.score_curves import curves_of
from workbench.heads import WorkbenchError

_HEAD = ["layer", "head", "kv_head"]


def rank_agreement(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of head scores between each checkpoint of one table and each of the other.

    Heads of the same layer and number are taken to be the same: give rows of one lineage, or of one run twice.
    Unlike `lock_in`, nothing is divided by the probe's noise ceiling, so the numbers are lower where it is noisy.

    Args:
        one, other: rows of `Run.scores()` of one detector on one probe.

    Returns:
        One row per pair, in order: ckpt (of `one`), reference (of `other`), n_heads, rho, and rho_within, with each
        layer's mean taken off. NaN below four heads that have both.

    Raises:
        WorkbenchError: if there is no score, or no head that both have.
    """
    matrix = _matrix(one)
    matrix_of_other = matrix if other is one else _matrix(other)
    (heads, names, scores), (heads_of_other, references, scores_of_other) = matrix, matrix_of_other
    both = heads.intersection(heads_of_other)
    if both.empty:
        raise WorkbenchError("the two have no scored head of the same layer and number; compare runs of one lineage")
    scores = scores[heads.get_indexer(both)]
    scores_of_other = scores if other is one else scores_of_other[heads_of_other.get_indexer(both)]
    layer = both.get_level_values("layer").to_numpy(np.int64)
    n = (~np.isnan(scores)).T.astype(np.int64) @ (~np.isnan(scores_of_other)).astype(np.int64)
    rho = spearman_matrix(scores, scores_of_other)
    rho_within = spearman_matrix(scores, scores_of_other, layer)
    pairs = pd.MultiIndex.from_product([names, references], names=["ckpt", "reference"])
    table = pd.DataFrame({"n_heads": n.ravel()}, index=pairs).reset_index()
    columns = {"rho": rho, "rho_within": rho_within}
    return table.assign(**{name: np.where(n < FEWEST_HEADS, np.nan, m).ravel() for name, m in columns.items()})


def _matrix(table: pd.DataFrame) -> tuple[pd.MultiIndex, list[str], Float[np.ndarray, "heads ckpts"]]:
    if not table.loc[:, "score"].notna().any():
        raise WorkbenchError("there are no scores to compare")
    curves = curves_of(table.assign(branch=pd.Series(pd.NA, table.index, dtype="str")))
    first = ~curves.heads.duplicated(_HEAD).to_numpy()
    heads = pd.MultiIndex.from_frame(curves.heads.loc[first, _HEAD].astype("Int64"))
    return heads, [str(name) for name in curves.checkpoints.index], curves.score[first]
