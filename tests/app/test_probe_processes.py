"""Models run on demand: in a process of their own that keeps its model, with progress, reasons and no files left."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.children import child, descendants, first_line, is_running, until
from tests.families import random_tokens, tiny
from tests.preloaded import PreloadedReading
from workbench.app.probe_processes import KEPT, Probings
from workbench.app.probe_sources import named_model
from workbench.heads import WorkbenchError
from workbench.scanning.probe_page_worker import KeptModel, answer
from workbench.store import PatternFile


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "step1"
    tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def probings():
    running = Probings()
    yield running
    running.close()


def ended(probings, name):
    for _ in range(600):
        status = probings.status(name)
        if status["state"] != "running":
            return status
        time.sleep(0.1)
    raise AssertionError("the model run did not end in a minute")


def worker_of(probings):
    return probings._held.worker.process


def asked(folder, text, *, probe="", tokenizer=None, **source):
    """A folder with a request, as the app writes it."""
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_text(
        json.dumps({"text": text, "probe": probe, "tokenizer": tokenizer, **{k: str(v) for k, v in source.items()}})
    )
    return folder


def test_one_process_runs_text_after_text_dies_and_is_started_again(probings, checkpoint):
    from workbench.hooks import open_model

    tokens = random_tokens(1, 20)[0]
    text = " ".join(map(str, tokens.tolist()))
    name = probings.start(checkpoint, text=text)
    status = ended(probings, name)
    assert (status["state"], status["note"], status["reason"]) == ("done", "", "")
    assert "the model was opened, and it stays open for the next text for 10 minutes, in " in status["said"]
    file, process = probings.result(name), worker_of(probings)
    assert file.ids.tolist() == tokens.tolist()
    expected = open_model(checkpoint).pattern(tokens, 1, 2).numpy()
    assert file.map(1, 2).values == pytest.approx(expected, rel=0.034, abs=1e-6)

    other = probings.start(checkpoint, text="1 2 3")
    assert "the model was open, and" in ended(probings, other)["said"]
    assert worker_of(probings) is process
    assert probings.start(checkpoint, text=text) == probings.find(checkpoint, text=text) == name  # not run again
    assert probings.find(checkpoint, text="7 8") is None

    bad = ended(probings, failed := probings.start(checkpoint, text="no numbers at all"))
    assert bad["state"] == "failed"
    assert "no tokenizer files" in bad["reason"]
    with pytest.raises(WorkbenchError, match="no result"):
        probings.result(failed)
    assert worker_of(probings) is process

    process.kill()
    process.wait()
    again = probings.start(checkpoint, text="4 5 6")
    assert "ended by SIGKILL" in probings.status(again)["note"]
    assert "it was started again" in probings.status(again)["note"]
    os.kill(worker_of(probings).pid, signal.SIGKILL)
    status = ended(probings, again)
    assert (status["state"], "run it again" in status["reason"]) == ("failed", True)

    folder = probings._held.base
    probings.close()
    assert not folder.exists()
    with pytest.raises(WorkbenchError, match="no longer kept"):
        probings.result(name)


def test_a_cancelled_run_ends_at_once_and_another_takes_its_place(probings, checkpoint):
    first = probings.start(checkpoint, text="1 2 3")
    process = worker_of(probings)
    second = probings.start(checkpoint, text="4 5 6")
    assert probings.status(first)["state"] == "cancelled"
    assert process.poll() is not None
    probings.cancel(second)
    assert probings.status(second) == {"state": "cancelled", "said": "starting", "note": "", "reason": ""}
    assert worker_of(probings).poll() is not None


def test_only_a_few_results_are_kept(probings, checkpoint):
    names = [probings.start(checkpoint, text=f"1 2 {i}") for i in range(KEPT + 1)]
    with pytest.raises(WorkbenchError, match="no longer kept"):
        probings.status(names[0])
    assert len(probings._held.probings) == len(list(probings._held.base.glob("*/"))) == KEPT


@pytest.mark.slow
def test_a_process_without_texts_ends_and_another_model_takes_its_place(checkpoint, tmp_path):
    probings = Probings(idle_s=0.2)
    name = probings.start(checkpoint, text="1 2 3")
    assert "for 0.2 s" in ended(probings, name)["said"]
    process = worker_of(probings)
    until(lambda: process.poll() is not None, 20)
    assert probings.status(name)["state"] == "done"
    again = probings.start(checkpoint, text="4 5 6")
    assert probings.status(again)["note"] == ""  # it ended as it should
    ended(probings, again)
    tiny("gpt2").save_pretrained(tmp_path / "other")
    running = worker_of(probings)
    other = probings.start(tmp_path / "other", text="4 5 6")
    assert running.poll() is not None
    assert ended(probings, other)["state"] == "done"
    probings.close()


def test_a_model_stays_open_until_its_files_change(checkpoint, tmp_path):
    stages, kept_model = [], KeptModel()
    folder = tmp_path / "step1"
    tiny("llama").save_pretrained(folder)
    for text in ("5 17 4 5 17", "3 1 2"):
        answer(asked(tmp_path / "a", text, checkpoint=folder), kept_model, say=stages.append)
    assert kept_model.was_open
    opened = kept_model.model
    with torch.no_grad():
        changed = copy.deepcopy(tiny("llama"))
        changed.lm_head.weight.mul_(2)
    changed.save_pretrained(folder)
    answer(asked(tmp_path / "b", "3 1 2", checkpoint=folder), kept_model, say=stages.append)
    assert not kept_model.was_open
    assert kept_model.model is not opened
    assert [stage for stage in stages if "open" in stage] == [
        "opening the checkpoint",
        "files of the checkpoint have changed: opening it again",
    ]
    before, after = (json.loads((tmp_path / name / "losses.json").read_text())["nats"] for name in "ab")
    assert before != after


def test_the_loss_of_every_token_is_written_beside_the_patterns(checkpoint, tmp_path):
    kept_model = KeptModel()
    answer(asked(tmp_path / "a", "5 17 4 5 17 9", checkpoint=checkpoint), kept_model)
    nats = json.loads((tmp_path / "a" / "losses.json").read_text())["nats"]
    tokens = torch.tensor([5, 17, 4, 5, 17, 9])
    with torch.no_grad():
        logits = kept_model.model.model(input_ids=tokens[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[1:], reduction="none")
    assert nats[0] is None
    assert nats[1:] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_model_run_ends_with_the_app_however_that_ends(synthetic_runs, checkpoint, number):
    code = (
        "import sys; from pathlib import Path; from workbench.app import serve\n"
        "from workbench.app.probe_processes import Probings\n"
        "probings = Probings(); name = probings.start(Path(sys.argv[2]), text='1 2 3')\n"
        "print(probings._held.base, flush=True)\n"
        "serve([sys.argv[1]], port=0)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, synthetic_runs[0], checkpoint]
    with child(command, start=PreloadedReading, ignores_interrupts=True, **pipes) as app:
        folder = Path(first_line(app, app.stdout).strip())
        (worker,) = descendants(app.pid)
        os.kill(worker, signal.SIGSTOP)  # it is not done before the app is ended
        try:
            assert folder.is_dir()
            assert "workbench app at" in first_line(app, app.stderr)
            app.send_signal(number)
            assert app.wait(timeout=60) == (0 if number == signal.SIGTERM else -number)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
        until(lambda: not is_running(worker) and not folder.exists(), 120)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"text": "  "}, "no text"), ({"text": "a" * 100_001}, "100,001 characters"), ({"probe": ""}, "no text")],
)
def test_what_cannot_be_run_is_refused_before_a_process_starts(probings, checkpoint, arguments, reason):
    with pytest.raises(WorkbenchError, match=reason):
        probings.start(checkpoint, **arguments)
    with pytest.raises(WorkbenchError, match=r"not on this disk; put it back, or choose another checkpoint$"):
        probings.start(checkpoint / "gone", text="1 2")
    assert not probings._held.probings


def test_a_model_at_a_hub_is_fetched_with_its_bytes_counted_and_run(hub, checkpoint, tmp_path):
    from workbench.hooks import open_model

    hub.put("org/name", "step1", checkpoint)
    folder = asked(tmp_path / "a", "5 17 4 5 17", reference="org/name@step1")
    for is_cached in (False, True):
        stages = []
        answer(folder, KeptModel(), say=stages.append)
        fetching = [line for line in stages if line.startswith("fetching org/name@step1 into the Hugging Face cache: ")]
        assert (f"asking {hub.url} for org/name@step1" in stages, bool(fetching)) == (not is_cached, not is_cached)
        assert stages[-4:] == [
            "opening the checkpoint",
            "running 5 tokens through 2 layers",
            "losses of the tokens: pass 1 of 1",
            "writing patterns",
        ]
    file = PatternFile(folder / "result.safetensors")
    expected = open_model(checkpoint).pattern(torch.tensor([5, 17, 4, 5, 17]), 1, 2).numpy()
    assert file.map(1, 2).values == pytest.approx(expected, rel=0.034, abs=1e-6)
    assert file.label.origin.ckpt == "org/name@step1"


def test_a_model_that_the_hub_lacks_is_the_reason_of_a_failure(hub, checkpoint, tmp_path):
    hub.put("org/name", "step1", checkpoint)
    with pytest.raises(WorkbenchError, match=r"^org/nmae: "):
        answer(asked(tmp_path / "a", "1", reference="org/nmae"), KeptModel())


def test_the_process_is_told_the_reference_and_no_folder_of_that_name(probings, tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = probings.start(named_model(" org/name "), text="1 2")
    request = json.loads((probings._held.base / name / "request.json").read_text())
    assert (request["reference"], "checkpoint" in request) == ("org/name", False)
