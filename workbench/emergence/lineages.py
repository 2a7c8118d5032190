"""Where each stage and branch of training comes from, and branches with the past of what they continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.emergence.score_curves import in_order


def parents_of(table: pd.DataFrame, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Checkpoint -> the one that its stage or branch continues from; those of the first stage and trunk have none.

    The rules of `workbench.checkpoints`: a stage continues the last checkpoint of the stage before, of the same branch
    if it has one, else of the trunk, else of its longest branch. A branch beside a trunk of its own stage continues
    the trunk's last checkpoint at or before its own first step.

    Args:
        table: rows with ckpt, stage, branch, step, step_total, tokens, of scores or `Run.checkpoints()`.
        known: parents that the series itself names, which hold.
    """
    checkpoints = in_order(table).reset_index().astype({"ckpt": "str"})
    # the empty text is no stage, or the trunk
    filled = {name: checkpoints.loc[:, name].astype("object").fillna("") for name in ("stage", "branch")}
    checkpoints = checkpoints.assign(**filled)
    stages = list(dict.fromkeys(table.loc[:, "stage"].astype("object").fillna("")))
    found: dict[str, str] = {}
    for stage, branch in checkpoints.loc[:, ["stage", "branch"]].drop_duplicates().itertuples(index=False):
        group = checkpoints.loc[(checkpoints["stage"] == stage) & (checkpoints["branch"] == branch)]
        parent = _trunk_before(checkpoints, group, stage, branch)
        if parent is None:
            parent = _end_before(checkpoints, stages[: stages.index(stage)], branch)
        if parent is not None:
            found |= dict.fromkeys(group.loc[:, "ckpt"], parent)
    return {**found, **{ckpt: parent for ckpt, parent in (known or {}).items() if ckpt in set(checkpoints["ckpt"])}}


def with_past(scores: pd.DataFrame, known: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The rows, and for each branch beside a trunk those of its ancestors again, under the branch's name.

    So a head's curve on a branch begins where training began, and what the branch lost is seen to be lost.
    """
    parents = parents_of(scores, known)
    order = {ckpt: place for place, ckpt in enumerate(in_order(scores).index.astype("str"))}
    branch_of = scores.drop_duplicates("ckpt").set_index("ckpt").loc[:, "branch"]
    pieces: list[pd.DataFrame] = []
    for branch in branch_of.dropna().unique():
        own = [ckpt for ckpt, of in branch_of.items() if of == branch]
        start = min(own, key=lambda ckpt: order[str(ckpt)])
        past = _ancestors(str(start), parents, order, branch_of)
        pieces.append(scores.loc[scores["ckpt"].isin(list(past - set(own)))].assign(branch=branch))
    return pd.concat([*pieces, scores], ignore_index=True)  # in order: what a head is last is what its own rows say


def _ancestors(ckpt: str, parents: Mapping[str, str], order: Mapping[str, int], branch_of: pd.Series) -> set[str]:
    """The parent, what lies before it on its own branch, and so on to the beginning."""
    found: set[str] = set()
    while (parent := parents.get(ckpt)) is not None and parent not in found and parent in order:
        branch: Any = branch_of[parent]
        same = branch_of == branch if isinstance(branch, str) else branch_of.isna()
        line = [str(c) for c in branch_of.index[same.to_numpy()] if order[str(c)] <= order[parent]]
        found |= set(line)
        ckpt = min(line, key=lambda c: order[c])
    return found


def _trunk_before(checkpoints: pd.DataFrame, group: pd.DataFrame, stage: str, branch: str) -> str | None:
    """The last checkpoint of the trunk of the same stage at or before the branch's first step."""
    if not branch:
        return None
    trunk = checkpoints.loc[(checkpoints["stage"] == stage) & (checkpoints["branch"] == "")]
    total = trunk.loc[:, "step_total"].to_numpy(np.float64, na_value=np.nan)
    first = group.loc[:, "step_total"].to_numpy(np.float64, na_value=np.nan)[0]
    before = np.flatnonzero(total <= first)
    return str(trunk.loc[:, "ckpt"].iloc[int(before[-1])]) if len(before) else None


def _end_before(checkpoints: pd.DataFrame, stages: list[object], branch: str) -> str | None:
    """The last checkpoint of the nearest stage before that has some."""
    for stage in reversed(stages):
        members = checkpoints.loc[checkpoints["stage"] == stage]
        for of in (branch, ""):
            same = members.loc[members["branch"] == of]
            if len(same):
                return str(same.loc[:, "ckpt"].iloc[-1])
        if len(members):
            return str(members.loc[:, "ckpt"].iloc[-1])
    return None
