"""How far a scan is, in words that hold where nothing could be planned too."""

from __future__ import annotations

from workbench.runs.status import status_of
from workbench.store import Failure

UNIT = {"table": "scores", "probe": "repeats", "detector": "sink", "version": 1}


def failure(ckpt):
    return Failure(ckpt, None, "BadCheckpoint", "is an adapter", "")


def test_where_every_checkpoint_failed_before_units_were_planned_the_checkpoints_are_counted():
    status = status_of({"units": [], "checkpoints": ["a", "b"]}, [], [], [failure("a"), failure("b")])
    assert status.in_words == "no units could be planned; 2 of 2 checkpoints failed"


def test_where_units_are_planned_they_are_counted():
    status = status_of({"units": [UNIT], "checkpoints": ["a", "b"]}, [], [], [failure("a")])
    assert status.in_words == "0 of 2 units done, 1 failed"


def test_a_scan_that_has_not_begun_has_not_failed():
    assert status_of({"units": [], "checkpoints": []}, [], [], []).in_words == "0 of 0 units done, 0 failed"
