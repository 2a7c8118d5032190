"""A run and a plan written before the layout changed open as they did, with the same numbers."""

import json
import shutil
from pathlib import Path

import pytest

import workbench as wb
from tests.command_process import workbench

KEPT = Path(__file__).parent
EXPECTED = json.loads((KEPT / "expected.json").read_text())


@pytest.fixture
def run(tmp_path):
    """A copy, as opening a run may write beside it."""
    return wb.open_run(shutil.copytree(KEPT / "run", tmp_path / "run"))


def test_its_scores_are_the_same(run):
    rows = [
        [row.detector, int(row.step), int(row.layer), int(row["head"]), round(float(row.score), 6)]
        for _, row in run.scores().iterrows()
    ]
    assert rows == EXPECTED["scores"]
    assert len(rows) == 2 * 3 * 8


def test_its_status_map_and_emergence_are_the_same(run):
    assert [run.status().done, run.status().planned] == EXPECTED["status"]
    assert run.map(1, 3).values.max() == pytest.approx(EXPECTED["map"], abs=1e-5)
    courses = [[int(row.layer), int(row["head"]), row.verdict] for _, row in run.emergence("induction").iterrows()]
    assert courses == EXPECTED["verdicts"]


def test_the_command_line_reads_it(run):
    shown = json.loads(workbench("top", run.path, "--detector", "induction", "--json").stdout)
    best = max(score for detector, step, _, _, score in EXPECTED["scores"] if (detector, step) == ("induction", 300))
    assert best == pytest.approx(0.926024)
    assert shown[0]["score"] == pytest.approx(best, abs=1e-6)


def test_the_plan_keeps_the_same_heads():
    plan = wb.Plan.load(KEPT / "plan.json")
    assert [list(head) for head in plan.keep] == EXPECTED["keep"]
    ranking = [[*ranked.head, round(ranked.score, 6)] for ranked in plan.ranking]
    assert ranking == EXPECTED["ranking"]
    assert (plan.window, plan.sink) == (8, 1)
