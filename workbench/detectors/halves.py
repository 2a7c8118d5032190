"""How far a ranking of heads can be trusted: would the other half of the sequences have given the same?

Reference:
    Spearman 1910 and Brown 1910: from the correlation r of two halves, 2r / (1 + r) for the whole.
"""

from __future__ import annotations

import pandas as pd

from workbench.heads import WorkbenchError


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """Split-half reliability of every detector on every probe, over heads.

    Args:
        table: of `score`, or of one checkpoint of a run: its `half_a` and `half_b` are scores on every other sequence.

    Returns:
        detector, probe; n_heads with both halves; reliability = 2r / (1 + r) of their Pearson correlation r, of scores,
        and rank_reliability, of ranks: the most that a correlation with another ranking can be expected to show.
        NaN below three heads, or where all heads score the same; weights have no halves.

    Raises:
        WorkbenchError: if the table has several steps.
    """
    if "step" in table and table["step"].nunique() > 1:
        raise WorkbenchError(f"the table has {table['step'].nunique()} steps; pass one checkpoint: run.scores(step=…)")
    rows: list[tuple[object, ...]] = []
    for (detector, probe), mine in table.groupby(["detector", "probe"], sort=False):
        halves = mine[["half_a", "half_b"]].dropna()
        ranks = halves.rank()
        rows.append((detector, probe, len(halves), _stepped_up(halves), _stepped_up(ranks)))
    columns = ["detector", "probe", "n_heads", "reliability", "rank_reliability"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _stepped_up(halves: pd.DataFrame) -> float:
    a, b = halves["half_a"], halves["half_b"]
    if len(halves) < 3 or a.nunique() < 2 or b.nunique() < 2:
        return float("nan")
    r = float(a.corr(b))
    return 2 * r / (1 + r) if r > -1 else float("nan")
