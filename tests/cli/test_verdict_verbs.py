"""`workbench verdict` and `workbench plan --verdict`: a table and a sentence, the plan's file, and mistakes."""

import json

import pytest

from tests.planning.far_pairs import FAR, NEAR, model_of_two_reaches, registered_pairs
from tests.planning.plans import plan_of
from workbench import Plan
from workbench.cli import plan_verbs, verdict_verbs

TASK = ["--task", "far_pairs"]


@pytest.fixture(scope="module")
def m():
    with registered_pairs():
        yield model_of_two_reaches()


@pytest.fixture
def run(m, monkeypatch, command):
    """The command on the hand-built model: its exit code, stdout and stderr."""
    for verbs in (plan_verbs, verdict_verbs):
        monkeypatch.setattr(verbs, "open_named_model", lambda *_: m)
    return command


@pytest.fixture
def plan_file(m, tmp_path):
    plan_of(m.layers, [(0, 0), (0, 1), NEAR], window=4, context=128).save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_the_table_and_the_sentence_are_printed_and_the_plan_keeps_its_verdict(run, plan_file):
    code, out, err = run("verdict", "M", "--plan", plan_file, "--lengths", "40,96", *TASK, "--out", plan_file)
    assert code == 0
    assert "From 96 tokens on the plan loses more than 0.05 nats per answer: at 96 tokens " in out
    assert err.splitlines()[0].startswith("the verdict at 40, 96 tokens takes up to 6 forward passes, 1,632 tokens in")
    saved = Plan.load(plan_file)
    assert saved.verdict.loses_from == 96
    assert saved.verdict.sentence in out
    # The verdict is of the heads that the plan keeps.
    assert saved.keeping([FAR]).verdict is None
    assert saved.keeping(saved.keep).verdict == saved.verdict


def test_json_is_one_document_with_the_sentence_and_every_cell(run, plan_file):
    code, out, _ = run("verdict", "M", "--plan", plan_file, "--lengths", "40,96", *TASK, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["loses_from"] == 96
    assert [(c["length"], c["arm"]) for c in document["cells"][:3]] == [
        (40, a) for a in ("full", "planned", "windowed")
    ]
    assert {row["arm"] for row in document["area"]} == {"full", "planned", "windowed"}
    assert Plan.load(plan_file).verdict is None


def test_a_plan_is_judged_as_it_is_made(run, tmp_path):
    probes = ["--probe", "far_pairs:length=96,seed=1", "--held-out", "far_pairs:length=96,seed=2"]
    settings = ["--window", 4, "--keep", 0.75, "--method", "leave_one_windowed", "--effort", "quick"]
    out_file = tmp_path / "p.json"
    words = ["plan", "M", *settings, *probes, "--out", out_file]
    code, out, _ = run(*words, "--verdict", "64,96", "--json")
    assert code == 0
    assert Plan.load(out_file).verdict.lengths == (64, 96)
    assert json.loads(out)["verdict"]["sentence"] == Plan.load(out_file).verdict.sentence


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lengths", "40;96"], "lengths '40;96': expected whole numbers of tokens with commas"),
        (["--lengths", "500"], "the model's context has 128; pass shorter ones, or beyond_context=True"),
        (["--tolerance", "-1"], "a tolerance of -1.0 nats was given"),
        (["--effort", "some"], "effort is 'some'; expected one of"),
        (["--out", "missing/plan.json"], "its folder does not exist"),
    ],
)
def test_a_mistake_ends_with_two_and_a_message(run, plan_file, arguments, reason):
    code, out, err = run("verdict", "M", "--plan", plan_file, *TASK, *arguments)
    assert (code, out) == (2, "")
    assert reason in " ".join(err.split())
