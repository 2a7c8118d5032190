"""One run that fails leaves the others, and its reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workbench.app.isolated_runs import of_those_that_can
from workbench.heads import WorkbenchError

RUNS = [SimpleNamespace(name=name) for name in "abc"]


def joined(*failing, error=WorkbenchError):
    def make(runs):
        for run in runs:
            if run.name in failing:
                raise error(f"{run.name} is torn")
        return "".join(run.name for run in runs)

    return make


def test_the_others_are_made_and_the_reason_is_kept():
    assert of_those_that_can(joined(), RUNS) == ("abc", {})
    assert of_those_that_can(joined("b"), RUNS) == ("ac", {"b": "b is torn"})
    assert of_those_that_can(joined("a", "c", error=OSError), RUNS) == ("b", {"a": "a is torn", "c": "c is torn"})


def test_if_none_can_the_error_is_that_of_the_first():
    with pytest.raises(WorkbenchError, match="a is torn"):
        of_those_that_can(joined("a", "b", "c"), RUNS)


def test_what_fails_for_the_runs_together_is_no_fault_of_one():
    def make(runs):
        if len(runs) > 1:
            raise WorkbenchError("two units of training")
        return runs

    with pytest.raises(WorkbenchError, match="two units"):
        of_those_that_can(make, RUNS)


def test_a_fault_of_ours_is_not_taken_for_a_damaged_run():
    with pytest.raises(ValueError, match="b is torn"):
        of_those_that_can(joined("b", error=ValueError), RUNS)
