"""One rule says what a name means: a path that is there, then a published model, then an id at a hub."""

from pathlib import Path

import pytest

from workbench.checkpoints import find_checkpoints
from workbench.checkpoints.hub_references import locate_checkpoint
from workbench.heads import BadCheckpoint, NoCheckpoints, WorkbenchError
from workbench.hub import HubReference
from workbench.hub.named_models import did_you_mean, resolve_model


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory and a folder of published models of the test's own."""
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path / "models"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "models"


def test_a_path_goes_before_a_published_model_and_that_before_an_id(elsewhere):
    (elsewhere / "smollm2").mkdir(parents=True)
    assert resolve_model("smollm2") == elsewhere / "smollm2"
    assert resolve_model("org/name@step1") == HubReference("org/name", "step1")
    assert resolve_model("hf://smollm2") == HubReference("smollm2")
    Path("smollm2").mkdir()
    Path("org/name").mkdir(parents=True)
    assert resolve_model("smollm2") == Path("smollm2")
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model("smollm2", exists=False) == elsewhere / "smollm2"
    assert resolve_model("org/name", exists=False) == HubReference("org/name")


def test_what_is_no_name_is_a_path_and_a_reference_stays():
    assert resolve_model("a/b/c") == Path("a/b/c")
    assert resolve_model(HubReference("smollm2")) == HubReference("smollm2")


def test_a_published_model_that_is_not_here_is_refused_with_the_command():
    with pytest.raises(WorkbenchError, match="fetch it with `workbench get smollm2`"):
        resolve_model("smollm2")


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("smollm", "did you mean smollm2? `workbench get smollm2` fetches it."),
        ("SmolLM2-135M", "did you mean smollm2? `workbench get smollm2` fetches it."),
        ("gema3", "did you mean gemma3-270m? `workbench get gemma3-270m` fetches it."),
        ("gpt2", ""),
        ("org/smollm", ""),
        ("runs/fist", "did you mean runs/first?"),
        ("no/such/folder", ""),
    ],
)
def test_a_mistyped_name_is_answered_with_the_near_ones(text, question):
    Path("runs/first").mkdir(parents=True)
    assert did_you_mean(text) == question


def test_a_near_model_that_is_here_need_not_be_fetched(elsewhere):
    (elsewhere / "smollm2").mkdir(parents=True)
    assert did_you_mean("smolm2") == "did you mean smollm2?"
    assert did_you_mean(str(Path.cwd() / "smolm2")) == "did you mean smollm2?"  # as a job names what was written alone
    with pytest.raises(
        NoCheckpoints, match=r"smollm: no such directory; did you mean smollm2\? A model of that name.*"
    ):
        find_checkpoints("smollm")
    with pytest.raises(BadCheckpoint, match=r"^smollm: no such folder; did you mean smollm2\? .*hf://smollm$"):
        locate_checkpoint("smollm")
