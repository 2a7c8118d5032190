"""A plan as a page: its claims are the plan's own numbers, and nothing on it leads elsewhere."""

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tests.app.plans import cells_of_verdict, made_plan
from workbench.cli.main import app
from workbench.heads import StoreNotWritable
from workbench.report import plan_claims, write_plan_page
from workbench.store.length_verdict import LengthVerdict

VERDICT = LengthVerdict(0.05, 64, cells_of_verdict())


@pytest.fixture
def plan():
    return replace(made_plan(), remarks=("A <remark> of the plan.",))


def test_the_claims_are_the_plans_numbers_and_say_what_was_not_judged(plan):
    counts, saved, *_, unjudged, remark = plan_claims(plan)
    assert f"Of {len(plan.ranking)} key/value heads" in counts
    assert f"{len(plan.keep)} keep the whole context" in counts
    assert f"{len(plan.windowed)} see the last {plan.window} tokens" in counts
    assert f"saves {plan.kv_saved:.0%} of the cache at {plan.context:,} tokens" in saved
    assert "workbench verdict MODEL --plan PLAN" in unjudged
    assert remark == "A <remark> of the plan."


def test_a_judged_plan_says_its_verdict_and_draws_it(plan, tmp_path):
    judged = replace(plan, verdict=VERDICT)
    assert VERDICT.sentence in plan_claims(judged)
    drawn = {name: write_plan_page(x, tmp_path / name).read_text() for name, x in (("no", plan), ("yes", judged))}
    assert drawn["yes"].count('id="figure-') == drawn["no"].count('id="figure-') + 1


def test_the_page_loads_nothing_sends_nothing_and_escapes_what_it_is_given(plan, tmp_path):
    page = write_plan_page(plan, tmp_path / "plan.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(?!data:)", page)
    assert page.count('"showSendToCloud": false') == page.count('id="figure-')
    assert "A &lt;remark&gt; of the plan." in page
    with pytest.raises(StoreNotWritable, match="pass another --out"):
        write_plan_page(plan, tmp_path / "missing" / "plan.html")


def test_the_command_takes_a_plan_where_it_takes_runs(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    run = CliRunner().invoke
    result = run(app, ["report", str(tmp_path / "plan.json"), "--out", str(tmp_path / "plan.html"), "--json"])
    assert json.loads(result.stdout)["claims"] == plan_claims(plan)
    assert (tmp_path / "plan.html").stat().st_size > 1e6
    several = run(app, ["report", str(tmp_path / "plan.json"), str(tmp_path), "--out", str(tmp_path / "no.html")])
    assert "pass run folders, or one plan file" in str(several.exception)
    (tmp_path / "other.json").write_text("{}")
    other = run(app, ["report", str(tmp_path / "other.json"), "--out", str(tmp_path / "no.html")])
    assert "is no plan" in str(other.exception)
