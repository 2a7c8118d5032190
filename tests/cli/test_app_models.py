"""What `workbench app` takes for a model, and which head it shows first."""

import shutil

import pytest
import torch

from tests.command_process import workbench
from tests.families import tiny
from tests.synthetic_run import DEMO, write_run
from workbench import open_model, probes, score
from workbench.cli.app_models import is_model, strongest_head, without_notes
from workbench.heads import Head, WorkbenchError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a run, and a folder of checkpoints, side by side."""
    folder = tmp_path_factory.mktemp("place")
    tiny("llama").save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "series" / "step1")
    write_run(folder / "runs" / "one", DEMO["full"])
    (folder / "notes").mkdir()
    return folder


def test_folders_of_weights_and_names_are_models_and_runs_are_not(place, monkeypatch):
    monkeypatch.chdir(place)
    assert [is_model(name) for name in ("model", "smollm2", "org/name", "org/name@main")] == [True] * 4
    assert [is_model(name) for name in ("runs/one", "runs")] == [False, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is neither a run nor a model: there is no such folder; make a run with"),
        ("smollm", "neither a run nor a model.*did you mean smollm2"),
        ("runs/onne", "neither a run nor a model.*did you mean runs/one"),
        ("notes", "neither a run nor a model: notes: holds no weights"),
        ("series", "weights in folders below: pass one of them .step1.*workbench scan series --out RUN"),
    ],
)
def test_what_is_neither_a_run_nor_a_model_is_refused_with_the_next_step(place, monkeypatch, name, message):
    monkeypatch.chdir(place)
    with pytest.raises(WorkbenchError, match=message):
        is_model(name)


def test_the_head_that_is_shown_is_the_one_with_the_highest_score(place):
    opened = strongest_head(str(place / "model"), "previous_token", "repeats:n=8,n_sequences=5", None)
    m = open_model(place / "model")
    table = score(m, ["previous_token"], probes=probes.repeats(m, n=8, n_sequences=5))
    best = table.nlargest(1, "score").iloc[0]
    assert opened.head == Head(int(best.layer), int(best["head"]))
    assert (opened.source, opened.kind) == (place / "model", "full")
    assert f"{best.head_name} has the highest previous_token of 8 heads, {best.score:.3f}" in opened.about


def test_a_detector_of_answers_takes_a_probe_that_has_them_and_an_unknown_one_is_refused(place):
    with torch.no_grad():
        assert strongest_head(str(place / "model"), "retrieval", None, None).probe.startswith("repeats")
    for detector, probe, message in (("nonsense", None, "unknown detectors"), ("induction", "nope", "unknown probe")):
        with pytest.raises(WorkbenchError, match=message):
            strongest_head(str(place / "model"), detector, probe, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/one", "model"], "model is a model, and 2 things were named; expected runs, or one model"),
        (["model", "--plan", "plan.json"], "--plan and --setting are of runs"),
        (["runs/one", "--detector", "induction"], "are of a model without a run"),
    ],
)
def test_a_mixture_is_refused_with_exit_code_2(place, words, message):
    done = workbench("app", *(place / word if word in ("runs/one", "model") else word for word in words), "--port", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_notes_beside_runs_are_left_out_and_said_and_without_a_run_they_are_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "README.md").write_text("two runs")
    named = [str(tmp_path / name) for name in ("README.md", "run")]
    assert without_notes(named) == named[1:]
    assert "left out" in capsys.readouterr().err
    assert without_notes(named[:1]) == named[:1]
