"""Every detector and probe that is chosen in the app has a line that says what it is, read without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.test_callbacks import call
from workbench.app import build_app
from workbench.app.definitions import definition
from workbench.app.state.view import View
from workbench.detectors import all_detectors
from workbench.runs import open_run

PUBLISHED = Path(__file__).parents[2] / "examples" / "published"


def test_a_detector_is_defined_by_the_first_line_of_its_own_docstring():
    lines = {name: entry.summary.removesuffix(".") for name, entry in all_detectors().items()}
    other = {name for name, line in lines.items() if definition(name) != line}
    assert {"induction", "retrieval_top1", "entropy", "copying"}.isdisjoint(other)
    assert all(name.startswith(("sink_gu", "tl_", "far_")) for name in other), other  # registered in a loop


@pytest.mark.parametrize("run", ["smollm2", "gemma3-270m"])
def test_every_detector_and_probe_of_a_published_run_has_a_line(run):
    run = open_run(PUBLISHED / run)
    assert {name for name in (*run.detectors, *run.probes) if not definition(name)} == set()


def test_the_names_of_a_probes_arguments_are_set_as_code():
    app = build_app([PUBLISHED / "gemma3-270m"])
    view = View("overview", ("gemma3-270m",), "induction", "repeats").as_json()
    (_, probe) = call(app, "definitions.children", ["view.data"], view=view)["definitions"]["children"]
    parts = probe["props"]["children"]
    assert [part["props"]["children"] for part in parts if isinstance(part, dict)] == ["repeats", "copies", "n"]


def test_a_probes_control_says_what_is_gone_and_an_unknown_name_says_nothing():
    assert definition("repeats_without_answers").startswith("the control of repeats")
    assert definition("of another package") == ""
    assert definition("niah_multikey_1").startswith("Needles of RULER")
    assert definition("repeats_near") == definition("repeats")
