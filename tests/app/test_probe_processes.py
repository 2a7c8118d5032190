"""Models run on demand: in their own process, from known checkpoints only, with progress, reasons and no files left."""

from __future__ import annotations

import contextlib
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
from workbench.app.probe_processes import (
    KEPT,
    Probings,
    checkpoint_folder,
    checkpoint_source,
    named_model,
    note_on,
)
from workbench.checkpoints.fetched_models import obtain_checkpoint
from workbench.heads import WorkbenchError
from workbench.hub import HubReference


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


def folder_of(probings, name):
    return probings._probings[name].folder


def test_a_checkpoint_without_a_tokenizer_is_run_on_ids_and_its_patterns_are_the_models_own(probings, checkpoint):
    from workbench.hooks import open_model

    tokens = random_tokens(1, 20)[0]
    name = probings.start(checkpoint, text=" ".join(map(str, tokens.tolist())))
    assert ended(probings, name) == {"state": "done", "said": "done", "reason": ""}
    file = probings.result(name)
    assert file.ids.tolist() == tokens.tolist()
    expected = open_model(checkpoint).pattern(tokens, 1, 2).numpy()
    assert file.map(1, 2).values == pytest.approx(expected, rel=0.034, abs=1e-6)
    folder = folder_of(probings, name)
    probings.close()
    assert not folder.exists()
    with pytest.raises(WorkbenchError, match="no longer kept"):
        probings.result(name)


@pytest.mark.slow
def test_a_run_that_fails_gives_its_reason(probings, checkpoint):
    name = probings.start(checkpoint, text="no numbers at all")
    status = ended(probings, name)
    assert status["state"] == "failed"
    assert "no tokenizer files" in status["reason"]
    with pytest.raises(WorkbenchError, match="no result"):
        probings.result(name)


def test_a_cancelled_run_ends_at_once_and_another_takes_its_place(probings, checkpoint):
    first = probings.start(checkpoint, text="1 2 3")
    second = probings.start(checkpoint, text="4 5 6")
    assert probings.status(first)["state"] == "cancelled"
    probings.cancel(second)
    assert probings.status(second)["state"] == "cancelled"
    assert probings._probings[second].process.poll() is not None


def test_only_a_few_results_are_kept(probings, checkpoint):
    names = [probings.start(checkpoint, text="1 2") for _ in range(KEPT + 1)]
    with pytest.raises(WorkbenchError, match="no longer kept"):
        probings.status(names[0])
    assert len(probings._probings) == KEPT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_model_run_ends_with_the_app_however_that_ends(synthetic_runs, checkpoint, number):
    code = (
        "import sys; from pathlib import Path; from workbench.app import serve\n"
        "from workbench.app.probe_processes import Probings\n"
        "probings = Probings(); name = probings.start(Path(sys.argv[2]), text='1 2 3')\n"
        "print(probings._probings[name].folder, flush=True)\n"
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
    assert not probings._probings


def test_only_checkpoints_of_the_series_have_a_folder():
    series = [{"ckpt": "step1", "path": "/runs/step1"}, {"ckpt": "step2"}]
    assert checkpoint_folder(series, "step1") == Path("/runs/step1")
    for name in ("step2", "/etc", "../step1"):
        with pytest.raises(WorkbenchError, match="choose one of the list"):
            checkpoint_folder(series, name)


def test_a_model_at_a_hub_is_fetched_with_its_bytes_counted_and_run(hub, checkpoint, tmp_path, capsys):
    from workbench.hooks import open_model
    from workbench.scanning.probe_page_worker import main
    from workbench.store import PatternFile

    hub.put("org/name", "step1", checkpoint)
    request = {"reference": "org/name@step1", "text": "5 17 4 5 17", "probe": "", "tokenizer": None}
    (tmp_path / "request.json").write_text(json.dumps(request))
    for is_cached in (False, True):
        assert main(tmp_path) == 0
        stages = capsys.readouterr().out.splitlines()
        fetching = [line for line in stages if line.startswith("fetching org/name@step1 into the Hugging Face cache: ")]
        assert (f"asking {hub.url} for org/name@step1" in stages, bool(fetching)) == (not is_cached, not is_cached)
        assert stages[-4] == "opening the checkpoint"
    file = PatternFile(tmp_path / "result.safetensors")
    expected = open_model(checkpoint).pattern(torch.tensor([5, 17, 4, 5, 17]), 1, 2).numpy()
    assert file.map(1, 2).values == pytest.approx(expected, rel=0.034, abs=1e-6)
    assert file.label.origin.ckpt == "org/name@step1"


def test_a_model_that_the_hub_lacks_is_the_reason_of_a_failure(hub, checkpoint, tmp_path, capsys):
    from workbench.scanning.probe_page_worker import main

    hub.put("org/name", "step1", checkpoint)
    (tmp_path / "request.json").write_text(json.dumps({"reference": "org/nmae", "text": "1", "probe": ""}))
    assert main(tmp_path) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: org/nmae: ")


def test_the_process_is_told_the_reference_and_no_folder_of_that_name(probings, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = probings.start(named_model(" org/name "), text="1 2")
    request = json.loads((folder_of(probings, name) / "request.json").read_text())
    assert (request["reference"], "checkpoint" in request) == ("org/name", False)
    for bad in ("/etc", "../name", "a/b/c", "org/*", "", "~"):
        with pytest.raises(WorkbenchError, match="is no id of a model; write org/name"):
            named_model(bad)


def test_a_published_model_is_named_by_its_short_name(probings, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path))
    with pytest.raises(WorkbenchError, match="fetch it with `workbench get smollm2`"):
        named_model("smollm2")
    with pytest.raises(WorkbenchError, match="or `workbench get smollm2` and write its name as the model's id"):
        probings.start(tmp_path / "smollm2", text="1 2")
    (tmp_path / "smollm2").symlink_to(checkpoint)
    assert named_model(" smollm2 ") == tmp_path / "smollm2"


def test_the_page_says_what_run_would_fetch_and_asks_no_hub(hub, checkpoint, monkeypatch):
    hub.put("org/name", "main", checkpoint)
    reference = HubReference("org/name")
    fetches = f"org/name is not in the Hugging Face cache: Run fetches it from {hub.url}, and says its size"
    assert note_on(reference) == fetches
    assert hub.requests == []
    obtain_checkpoint(reference)
    assert note_on(reference) == "org/name is in the Hugging Face cache; nothing is fetched"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert note_on(HubReference("org/other")).endswith("HF_HUB_OFFLINE is set: it cannot be fetched")
    assert note_on(checkpoint) == ""


def test_a_checkpoint_that_a_scan_fetched_and_removed_is_one_at_the_hub(checkpoint, tmp_path):
    place = {"repo": "org/name", "revision": "step1", "commit": "c0ffee"}
    series = [{"ckpt": "step1", "path": "/gone/c0ffee", **place}, {"ckpt": "step2", "path": str(checkpoint), **place}]
    assert checkpoint_source(series, "step1") == HubReference("org/name", "c0ffee")
    (tmp_path / "config.json").write_text("{}")  # configurations stay in the run's folder
    assert checkpoint_source([{**series[0], "path": str(tmp_path)}], "step1") == HubReference("org/name", "c0ffee")
    assert checkpoint_source(series, "step2") == checkpoint
    assert checkpoint_source([{"ckpt": "step3", "path": "/gone", "repo": float("nan")}], "step3") == Path("/gone")


@pytest.mark.slow
@pytest.mark.browser
def test_the_probe_page_fetches_a_model_when_run_is_pressed(tab, served, synthetic_runs, hub, checkpoint):
    hub.put("org/name", "main", checkpoint)
    with served(synthetic_runs[:1]) as address:
        tab.goto(f"{address}/probe")
        tab.wait_for_selector("#probe-model")
        tab.fill("#probe-text", "1 2 3 1 2 3")
        tab.fill("#probe-model", "org/name")
        tab.wait_for_function("document.querySelector('#probe-note').textContent.includes('Run fetches it from')")
        assert hub.requests == []
        tab.click("#probe-start")
        tab.wait_for_selector("#probe-patterns canvas.map")
        assert len(hub.gets("model.safetensors")) > 0
        tab.fill("#probe-model", "org/nmae")
        tab.click("#probe-start")
        tab.wait_for_selector("#probe-said.failed")
        assert "Near: org/name" in tab.inner_text("#probe-said")
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
@pytest.mark.browser
def test_the_probe_page_runs_the_demo_on_a_text_and_shows_its_patterns(tab, served, demo_runs):
    with served(demo_runs[:1]) as address:
        tab.goto(f"{address}/probe")
        tab.wait_for_function("document.querySelector('#probe-checkpoint')?.value.includes('checkpoint-')")
        tab.fill("#probe-text", "not a word it knows")
        tab.click("#probe-start")
        tab.wait_for_selector("#probe-said.failed", timeout=60_000)
        assert "cannot read the text" in tab.inner_text("#probe-said")
        tab.fill("#probe-text", " ".join(f"w{i:02}" for i in [*range(5, 25), *range(5, 25)]))
        tab.click("#probe-start")
        tab.wait_for_selector("#probe-patterns canvas.map", timeout=60_000)
        assert tab.locator("#probe-patterns .tokens span").count() >= 40
        tab.get_by_role("button", name="L1 full").click()
        tab.wait_for_function(
            "document.querySelector('#probe-patterns canvas.map').getAttribute('aria-label').includes('L1H')"
        )
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
@pytest.mark.browser
def test_the_head_page_of_the_demo_names_the_longest_link_of_its_copying_head(tab, served, demo_runs):
    from workbench.hooks import open_model
    from workbench.runs import open_run

    run = open_run(demo_runs[0])
    best = run.top("induction", 1, probe="repeats").iloc[0]
    layer, head = int(best.layer), int(best["head"])
    file = run.maps.find(probe="repeats")
    paths = run.checkpoints().set_index("ckpt")["path"]
    model = open_model(Path(paths[file.label.origin.ckpt]))
    import torch

    tokens = torch.from_numpy(file.ids.astype("int64"))
    pattern = model.pattern(tokens, layer, head)
    back = torch.arange(len(tokens))[:, None] - torch.arange(len(tokens))
    far = pattern * (back >= file.label.far)
    far[:, 0] = 0
    query, key = divmod(int(far.argmax()), len(tokens))
    with served(demo_runs[:1]) as address:
        tab.goto(f"{address}/head?of=full&head=L{layer}H{head}&detector=induction&probe=repeats")
        tab.wait_for_selector("#head-patterns table.links tbody tr")
        cells = tab.locator("#head-patterns table.links tbody tr").first.locator("td").all_inner_texts()
        assert cells[0] == f"{float(far.max()):.2f}"
        assert cells[1].endswith(f"@{query}")
        assert cells[2].endswith(f"@{key}")
        assert tab.complaints == []
        tab.goto("about:blank")
