"""Lineages of checkpoints: the parent of each stage and branch, and branches with the past that they continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.emergence.score_curves import in_order


def parents_of(table: pd.DataFrame, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Checkpoint -> the one that its stage or branch continues; those of the first stage and trunk have none.

    The rules of `workbench.checkpoints`: a stage continues the last checkpoint of the stage before, of the same branch
    if it has one, else of the trunk, else of its longest branch. A branch beside a trunk of its own stage continues
    the trunk's last checkpoint at or before its own first step.

    Args:
        table: rows with ckpt, stage, branch, step, step_total, tokens, of scores or `Run.checkpoints()`.
        known: parents that the series itself names; they override the rules.
    """
    checkpoints = in_order(table).reset_index().astype({"ckpt": "str"})
    # the empty string stands for no stage, and for the trunk
    filled = {name: checkpoints.loc[:, name].astype("object").fillna("") for name in ("stage", "branch")}
    checkpoints = checkpoints.assign(**filled)
    stages = list(dict.fromkeys(table.loc[:, "stage"].astype("object").fillna("")))
    parents: dict[str, str] = {}
    for stage, branch in checkpoints.loc[:, ["stage", "branch"]].drop_duplicates().itertuples(index=False):
        group = checkpoints.loc[(checkpoints["stage"] == stage) & (checkpoints["branch"] == branch)]
        parent = _trunk_before(checkpoints, group, stage, branch)
        if parent is None:
            parent = _end_before(checkpoints, stages[: stages.index(stage)], branch)
        if parent is not None:
            parents |= dict.fromkeys(group.loc[:, "ckpt"], parent)
    return {**parents, **{ckpt: parent for ckpt, parent in (known or {}).items() if ckpt in set(checkpoints["ckpt"])}}


def with_past(scores: pd.DataFrame, known: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The rows, and for each branch beside a trunk the rows of its ancestors again, under the branch's name.

    A head's curve on a branch then begins where training began, so that a role lost on the branch counts as lost.
    """
    parents = parents_of(scores, known)
    order = {ckpt: position for position, ckpt in enumerate(in_order(scores).index.astype("str"))}
    branch_of = scores.drop_duplicates("ckpt").set_index("ckpt").loc[:, "branch"]
    pieces: list[pd.DataFrame] = []
    for branch in branch_of.dropna().unique():
        own = [ckpt for ckpt, its_branch in branch_of.items() if its_branch == branch]
        start = min(own, key=lambda ckpt: order[str(ckpt)])
        past = _ancestors(str(start), parents, order, branch_of)
        pieces.append(scores.loc[scores["ckpt"].isin(list(past - set(own)))].assign(branch=branch))
    return pd.concat([*pieces, scores], ignore_index=True)  # own rows last: a head's kind is that of its last row


def _ancestors(ckpt: str, parents: Mapping[str, str], order: Mapping[str, int], branch_of: pd.Series) -> set[str]:
    """The parent, what lies before it on its own branch, and so on to the beginning."""
    ancestors: set[str] = set()
    while (parent := parents.get(ckpt)) is not None and parent not in ancestors and parent in order:
        branch: Any = branch_of[parent]
        same = branch_of == branch if isinstance(branch, str) else branch_of.isna()
        line = [str(c) for c in branch_of.index[same.to_numpy()] if order[str(c)] <= order[parent]]
        ancestors |= set(line)
        ckpt = min(line, key=lambda c: order[c])
    return ancestors


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
    """The last checkpoint of the nearest earlier stage, of the same branch, else the trunk, else any."""
    for stage in reversed(stages):
        members = checkpoints.loc[checkpoints["stage"] == stage]
        for candidate in (branch, ""):
            on_branch = members.loc[members["branch"] == candidate]
            if len(on_branch):
                return str(on_branch.loc[:, "ckpt"].iloc[-1])
        if len(members):
            return str(members.loc[:, "ckpt"].iloc[-1])
    return None
