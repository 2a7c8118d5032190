"""Rows on two forms of a probe are never counted or averaged as one: other arguments are other tokens."""

from __future__ import annotations

import pandas as pd

from workbench.heads import WorkbenchError


def refuse_two_forms(rows: pd.DataFrame) -> None:
    """Refuse rows of one probe name and several probe digests; tables without digests pass.

    Raises:
        WorkbenchError: naming the probe, its digests, and how to choose.
    """
    if not {"probe", "probe_digest"} <= set(rows.columns):
        return
    forms = rows.loc[:, ["probe", "probe_digest"]].drop_duplicates().astype(str)
    repeated = forms.loc[forms["probe"].duplicated(), "probe"]
    if repeated.empty:
        return
    name = str(repeated.iloc[0])
    digests = [digest[:8] for digest in forms.loc[forms["probe"] == name, "probe_digest"]]
    raise WorkbenchError(
        f"these rows are of {len(digests)} forms of the probe {name} (digests {', '.join(digests)}), which are other "
        'tokens; choose those of one probe_digest, or open the run with select="newest"'
    )
