"""The axis of training tells checkpoints apart: in tokens where they do, else in steps."""

from __future__ import annotations

import pytest

from workbench.emergence.head_trajectories import Checkpoint
from workbench.figures.axis import training_axis


def checkpoint(step, tokens, branch=None):
    return Checkpoint(f"step{step}{branch or ''}", branch, step, step, tokens)


@pytest.mark.parametrize(
    ("checkpoints", "unit"),
    [
        ([checkpoint(1, 10), checkpoint(2, 20)], "tokens"),
        ([checkpoint(1, 10), checkpoint(2, 10), checkpoint(3, 30)], "step"),
        ([checkpoint(1, 10), checkpoint(2, None)], "step"),
        ([checkpoint(1, 10), checkpoint(2, 20, "a"), checkpoint(2, 20, "b")], "tokens"),
    ],
    ids=["tokens rise", "two steps of equal tokens", "unknown tokens", "branches side by side"],
)
def test_the_unit_is_tokens_only_where_tokens_tell_steps_apart(checkpoints, unit):
    assert training_axis([checkpoints], "tokens").unit == unit
