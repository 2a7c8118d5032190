"""A directory whose checkpoints are rotated: what is gone keeps its place, what stays its steps and tokens."""

from __future__ import annotations

import shutil

import pytest

from tests.checkpoints.folders import checkpoint, trainer_state
from workbench.checkpoints import find_checkpoints
from workbench.heads import NoCheckpoints


def folder(root, names, *, tokens=None):
    for i, name in enumerate(names):
        checkpoint(root / name, seed=i)
        if tokens is not None:
            step = int(name.rpartition("-")[2])
            trainer_state(root / name, step, step * tokens)
    return root


def places(series):
    return [(c.name, c.stage, c.step, c.step_total, c.tokens, c.tokens_source) for c in series.checkpoints]


def remove(root, *names):
    for name in names:
        shutil.rmtree(root / name)


@pytest.mark.parametrize(
    ("names", "gone"),
    [
        ([f"checkpoint-{s}" for s in (0, 61, 107, 156)], ["checkpoint-0", "checkpoint-107"]),
        # A later stage counts on from the end of the one before.
        (["stage1-step1000", "stage1-step2000", "stage2-step100"], ["stage1-step1000", "stage1-step2000"]),
        # Token labels are fitted together.
        ([f"step{s}-tokens{s * 4 // 1000}B" for s in (1000, 2000, 5000)], ["step5000-tokens20B"]),
        # Names without a stage belong to the first one, as long as others name it.
        (["stage1-step1000", "step2000", "stage2-step100"], ["stage1-step1000", "stage2-step100"]),
    ],
)
def test_what_is_gone_keeps_its_place_and_what_stays_keeps_its_counts(tmp_path, names, gone):
    before = find_checkpoints(folder(tmp_path, names))
    remove(tmp_path, *gone)
    after = find_checkpoints(tmp_path, before=before.records())
    assert places(after) == places(before)
    assert [c.name for c in after.checkpoints if c.is_gone] == [
        n for n in [c.name for c in before.checkpoints] if n in gone
    ]
    assert [c.name for c in after.on_disk] == [c.name for c in before.checkpoints if c.name not in gone]
    again = find_checkpoints(tmp_path, before=after.records())
    assert places(again) == places(before)
    assert gone[0] in " ".join(after.remarks)


def test_steps_and_tokens_that_only_the_trainer_knew_stay_known(tmp_path):
    before = find_checkpoints(folder(tmp_path, ["run-10", "run-20", "run-30"], tokens=512))
    remove(tmp_path, "run-10", "run-30")
    assert places(find_checkpoints(tmp_path, before=before.records())) == places(before)


def test_a_later_checkpoint_stands_after_those_that_are_gone(tmp_path):
    before = find_checkpoints(folder(tmp_path, ["checkpoint-10", "checkpoint-20"]))
    remove(tmp_path, "checkpoint-20")
    checkpoint(tmp_path / "checkpoint-5", seed=8)
    checkpoint(tmp_path / "checkpoint-15", seed=9)
    names = [c.name for c in find_checkpoints(tmp_path, before=before.records()).checkpoints]
    assert names == ["checkpoint-5", "checkpoint-10", "checkpoint-15", "checkpoint-20"]


def test_a_checkpoint_without_a_position_stays_behind_what_it_followed(tmp_path):
    before = find_checkpoints(folder(tmp_path, ["step10", "step20", "final"]))
    assert [c.name for c in before.checkpoints] == ["step10", "step20", "final"]
    remove(tmp_path, "final")
    checkpoint(tmp_path / "step30", seed=9)
    after = find_checkpoints(tmp_path, before=before.records())
    assert [c.name for c in after.checkpoints] == ["step10", "step20", "final", "step30"]


def test_a_renamed_checkpoint_takes_the_place_of_its_earlier_name(tmp_path):
    before = find_checkpoints(folder(tmp_path, ["checkpoint-10", "checkpoint-20"]))
    (tmp_path / "checkpoint-20").rename(tmp_path / "step20")
    after = find_checkpoints(tmp_path, before=before.records())
    assert [(c.name, c.is_gone) for c in after.checkpoints] == [("checkpoint-10", False), ("step20", False)]


def test_a_series_toml_may_name_what_is_gone(tmp_path):
    (tmp_path / "series.toml").write_text('[checkpoints."best-a"]\nstep = 5\n')
    before = find_checkpoints(folder(tmp_path, ["best-a", "step10"]))
    remove(tmp_path, "best-a")
    after = find_checkpoints(tmp_path, before=before.records())
    assert [(c.name, c.step) for c in after.checkpoints] == [("best-a", 5), ("step10", 10)]


def test_an_order_that_is_known_no_longer_is_told_of_and_refuses_nothing(tmp_path):
    (tmp_path / "series.toml").write_text('stage_order = ["foo", "bar"]\n')
    before = find_checkpoints(folder(tmp_path, ["foo_step10", "bar_step10", "bar_step20"]))
    remove(tmp_path, "foo_step10")
    (tmp_path / "series.toml").unlink()
    after = find_checkpoints(tmp_path, before=before.records())
    assert [c.name for c in after.checkpoints] == ["bar_step10", "bar_step20"]
    assert "the order of the stages" in after.remarks[-1]


def test_a_directory_without_checkpoints_is_refused_whatever_there_was(tmp_path):
    before = find_checkpoints(folder(tmp_path, ["checkpoint-10"]))
    remove(tmp_path, "checkpoint-10")
    with pytest.raises(NoCheckpoints):
        find_checkpoints(tmp_path, before=before.records())
