"""Split-half reliability: how well the scores on two halves of the sequences agree over heads.

Reference:
    Spearman 1910 and Brown 1910: from the correlation r of two halves, 2r / (1 + r) for the whole.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.emergence.rank_statistics import spearman
from workbench.emergence.thresholds import one_checkpoint


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """Split-half reliability of every detector on every probe.

    Args:
        table: of `score`, or of one checkpoint of a run: its `half_a` and `half_b` are scores on every other sequence.

    Returns:
        detector, probe; n_heads with both halves; reliability = 2r / (1 + r), r the Pearson correlation of the halves'
        scores, and rank_reliability, the same of ranks: the most that a correlation with another ranking can be
        expected to reach. NaN below three heads, or where all heads of a half score the same; weights have no halves.

    Raises:
        WorkbenchError: if the table has several steps.
    """
    one_checkpoint(table)
    names, probes = np.asarray(table["detector"]), np.asarray(table["probe"])
    halves = np.asarray(table[["half_a", "half_b"]], dtype=float)
    has_both = np.isfinite(halves).all(1)
    rows: list[tuple[str, str, int, float, float]] = []
    for detector, probe in dict.fromkeys(zip(names.tolist(), probes.tolist(), strict=True)):
        a, b = halves[(names == detector) & (probes == probe) & has_both].T
        rows.append((detector, probe, len(a), _stepped_up(_pearson(a, b), len(a)), _stepped_up(spearman(a, b), len(a))))
    columns = ["detector", "probe", "n_heads", "reliability", "rank_reliability"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    is_defined = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.corrcoef(a, b)[0, 1]) if is_defined else float("nan")


def _stepped_up(r: float, n_heads: int) -> float:
    return 2 * r / (1 + r) if n_heads >= 3 and r > -1 else float("nan")
