"""A verdict over length, drawn: a panel per task, a line and a band per arm."""

from dataclasses import replace

import pytest

from tests.app.plans import cells_of_verdict, made_plan
from workbench import WorkbenchError, figures
from workbench.store.length_verdict import LengthVerdict

VERDICT = LengthVerdict(0.05, 64, cells_of_verdict())


def lines(figure):
    return [trace for trace in figure.data if trace.text is not None]


def test_every_task_has_a_panel_and_every_arm_a_line_with_its_band():
    figure = figures.verdict(VERDICT)
    assert [title.text for title in figure.layout.annotations] == ["needles", "common words"]
    drawn = lines(figure)
    assert [trace.name for trace in drawn] == [
        *("the model itself", "under the plan", "every head windowed"),
        "the model itself",
    ]
    planned = drawn[1]
    assert list(planned.x) == [16, 32, 64]
    assert planned.y == pytest.approx([0.895, 0.7, 0.45])
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert bands[1].y == pytest.approx([0.945, 0.75, 0.5, 0.4, 0.65, 0.845])


def test_what_does_not_count_is_hollow_and_says_why():
    out = lines(figures.verdict(VERDICT))[3]
    assert out.marker.symbol == ("circle-open",)
    assert "does not count: the model gets 0.20 of its answers right" in out.text[0]


def test_natural_text_is_drawn_by_its_loss():
    cells = tuple(replace(cell, measure="nats") for cell in VERDICT.cells)
    figure = figures.verdict(replace(VERDICT, cells=cells), theme="dark")
    assert lines(figure)[1].y == pytest.approx([0.11, 0.5, 1.0])
    assert figure.layout.yaxis.title.text == "nats per answer"


def test_a_plan_is_drawn_by_its_verdict_and_one_without_is_refused():
    plan = replace(made_plan(), verdict=VERDICT)
    assert figures.verdict(plan).to_json() == figures.verdict(VERDICT).to_json()
    with pytest.raises(WorkbenchError, match="has no verdict; make one with"):
        figures.verdict(made_plan())
