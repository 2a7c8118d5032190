"""The kept scans of two published models are whole, small and without weights, and say what their page says."""

import re
from pathlib import Path

import pytest

import workbench as wb
from workbench.store import Store

FOLDER = Path(__file__).parent.parent / "examples" / "published"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COLUMN = {"smollm2": 1, "gemma3-270m": 2}


@pytest.fixture(scope="module", params=COLUMN)
def run(request):
    return wb.open_run(FOLDER / request.param)


def test_they_are_whole_and_small_and_name_no_folder_of_the_machine_that_made_them(run):
    assert Store.open(run.path).check() == []
    status = run.status()
    assert (status.done, status.failed, status.checkpoints_done) == (status.planned, 0, 1)
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6e6
    for file in files:
        assert not re.search(rb"[\"' ]/(?:home|root|tmp|work|Users)/", file.read_bytes()), file


def test_their_page_names_the_strongest_heads_of_each_class_with_their_scores(run):
    heads = run.model_summary().heads
    for name in ("retrieval", "induction", "previous token", "sink"):
        of_class = heads[(heads["class"] == name) & (heads["claim"] == "yes")]
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} ("))
        cell = row.strip("|").split("|")[COLUMN[run.path.name]].strip()
        count, _, listed = cell.partition(": ")
        assert int(count) == len(of_class)
        strongest = of_class.nlargest(listed.count("L"), "score")
        expected = [
            f"{head} {score:.2f}".replace(" 0.", " .")
            for head, score in zip(strongest.name, strongest.score, strict=True)
        ]
        assert ", ".join(expected) == listed


def test_every_score_says_what_the_weights_were_quantised_to(run):
    assert run.scores()["flags"].str.contains("quantised=Q4_").all()


def test_a_plan_and_its_verdict_print_in_a_line_or_two():
    plan = wb.Plan.load(FOLDER / "smollm2" / "window-128.json")
    assert repr(plan).startswith(
        "Plan(smollm2: 22 of 90 heads kept, window 128, sink 4, 74% of the cache saved at 8192"
    )
    assert repr(plan.verdict) == f"LengthVerdict({plan.verdict.sentence} .table(), .area)"
    assert all("\n" not in text and len(text) < 400 for text in (repr(plan), repr(plan.verdict)))


def test_the_plan_that_the_readme_tells_of_is_the_kept_one():
    plan = wb.Plan.load(FOLDER / "smollm2" / "window-128.json")
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    curve = {(point.probe, point.n_kept): point for point in plan.curve}
    needles, chains = (curve[probe, len(plan.keep)] for probe in ("niah_multiquery", "variable_tracking"))

    def share(point):
        numbers = [f"{x:.2f}".removeprefix("0") for x in (point.recovered, point.ci_lo, point.ci_hi)]
        return "{} [{}, {}]".format(*numbers)

    few = [f"{curve[probe, 4].recovered:.2f}".removeprefix("0") for probe in ("niah_multiquery", "variable_tracking")]
    assert f"Of {len(plan.ranking)} key/value heads it keeps {len(plan.keep)}" in readme
    assert f"saves {plan.kv_saved:.0%}".replace("%", " %") in readme
    assert f"{share(needles)} of the loss that windows cost is back, on chains of assignments {share(chains)}" in readme
    assert f"four heads alone bring back {' and '.join(few)}" in readme
    assert "cannot be told at 512, 1,024 and 2,048 tokens" in plan.verdict.sentence
    of_arm = {(c.task, c.length, c.arm): c for c in plan.verdict.cells}
    assert all(
        cell.right >= of_arm[task, length, "full"].right_lo
        for (task, length, arm), cell in of_arm.items()
        if arm == "planned"
    )
