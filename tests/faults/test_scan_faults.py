"""Faults while a scan is running: disks, locks, memory, signals, clocks. Nothing committed is lost or wrong.

Numbers are those of the fault table in docs/jobs.md.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import shutil
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.children import run_child
from tests.families import tiny
from tests.faults.test_store_faults import nothing_half_written, small_disk
from tests.preloaded import Preloaded
from tests.series import STEPS, write_series
from workbench import open_run, scan
from workbench.heads import RunLocked, StoreNotWritable
from workbench.scanning import worker
from workbench.store import Store

FAST = {"detectors": ["induction", "sink"], "probes": ["repeats:n=12,n_sequences=6"]}
KEYS = ["ckpt", "detector", "probe", "layer", "head"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def whole(series, tmp_path_factory):
    """The scores of an undisturbed scan."""
    return scores(scan(series, tmp_path_factory.mktemp("runs") / "run", **FAST))


def scores(run):
    return run.scores().drop(columns="run").sort_values(KEYS).reset_index(drop=True)


def assert_resumes(series, out, whole):
    """The same command again makes the whole run."""
    run = scan(series, out, **FAST)
    assert run.status().is_complete
    assert run.failures().empty
    pd.testing.assert_frame_equal(scores(run), whole, check_exact=True)
    assert nothing_half_written(out)


# 7: a config of another model with the same shapes


def test_another_head_count_than_its_siblings_is_a_failure_of_that_checkpoint_alone(series, tmp_path):
    damaged = shutil.copytree(series, tmp_path / "series")
    config = json.loads((damaged / "checkpoint-2" / "config.json").read_text())
    changed = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2 * config["head_dim"]}
    (damaged / "checkpoint-2" / "config.json").write_text(json.dumps(config | changed))
    run = scan(damaged, tmp_path / "run", **FAST)
    (failure,) = run.failures().to_dict("records")
    assert failure["ckpt"] == "checkpoint-2"
    assert "its siblings" in failure["message"]
    assert sorted(run.scores().step.unique()) == [0, 16, 100]


# 3: a bit that flipped on the way


def test_verifying_refuses_a_flipped_bit_that_loads_without_an_error(series, tmp_path):
    damaged = shutil.copytree(series, tmp_path / "series")
    for folder in damaged.iterdir():
        sums = run_child(["sha256sum", "model.safetensors"], cwd=folder, capture_output=True, check=True)
        (folder / "SHA256SUMS").write_bytes(sums.stdout)
    weights = damaged / "checkpoint-16" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x01
    weights.write_bytes(content)
    assert scan(damaged, tmp_path / "trusting", **FAST).failures().empty
    (failure,) = scan(damaged, tmp_path / "run", **FAST, verify=True).failures().to_dict("records")
    assert failure["ckpt"] == "checkpoint-16"
    assert "sha256 is" in failure["message"]


# 10: numbers that are none


def test_weights_that_are_not_finite_are_scored_if_allowed_and_every_row_says_so(series, whole, tmp_path):
    damaged = shutil.copytree(series, tmp_path / "series")
    weights = damaged / "checkpoint-16" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = torch.nan
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.inf
    save_file(tensors, weights, {"format": "pt"})
    refused = scan(damaged, tmp_path / "run", **FAST)
    assert refused.failures().ckpt.tolist() == ["checkpoint-16"]
    assert "--allow-nonfinite" in refused.failures().message.item()
    run = scan(damaged, tmp_path / "run", **FAST, allow_nonfinite=True)
    assert run.failures().empty
    assert run.status().is_complete
    flags = run.scores().groupby("step")["flags"].unique().map(list).to_dict()
    assert flags == {0: [""], 2: [""], 16: ["nonfinite_weights=2"], 100: [""]}
    below = scores(run)[lambda f: (f.step == 16) & (f.layer == 0)]
    expected = whole[(whole.step == 16) & (whole.layer == 0)]
    assert below.score.tolist() == expected.score.tolist()  # of layers before the damage nothing is lost
    (log,) = [e for e in events(run.path) if e["event"] == "non-finite weights"]
    assert len(log["tensors"]) == 2


def events(path):
    return [json.loads(line) for file in (path / "log").glob("*.jsonl") for line in file.read_text().splitlines()]


# 21, 23: disks


def test_a_full_disk_ends_the_scan_at_once_and_the_same_command_goes_on_when_there_is_room(series, whole, tmp_path):
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        ballast = disk / "ballast"

        def fill(progress):
            if progress.done >= 6 and not ballast.exists():
                write_until_full(ballast)

        with pytest.raises(StoreNotWritable, match=r"no space left.*run the same command again") as refused:
            scan(series, disk / "run", **FAST, on_progress=fill)
        assert refused.value.exit_code == 5
        assert nothing_half_written(disk / "run")
        assert 6 <= len(Store.open(disk / "run").parts()) < 12
        ballast.unlink()
        assert_resumes(series, disk / "run", whole)


def write_until_full(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_read_only_run_is_refused_before_any_model_is_loaded(series, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "open_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        run_child(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreNotWritable, match="read-only") as refused:
            scan(series, disk / "run", **FAST)
        assert refused.value.exit_code == 5


# 24, 30: locks


def test_a_second_scan_is_refused_and_the_first_is_not_disturbed(series, whole, tmp_path):
    refused = []

    def intrude(progress):
        if progress.done == 3 and not refused:
            with pytest.raises(RunLocked, match=f"process {os.getpid()} on") as error:
                scan(series, tmp_path / "run", **FAST)
            refused.append(error.value.exit_code)

    run = scan(series, tmp_path / "run", **FAST, on_progress=intrude)
    assert refused == [6]
    pd.testing.assert_frame_equal(scores(run), whole, check_exact=True)


def test_two_scans_that_know_nothing_of_each_other_make_the_same_run(series, whole, tmp_path):
    joined = []

    def join(progress):
        if progress.done == 3 and not joined:
            joined.append(scan(series, tmp_path / "run", **FAST, join=True))

    run = scan(series, tmp_path / "run", **FAST, on_progress=join)
    assert joined[0].status().is_complete
    pd.testing.assert_frame_equal(scores(run), whole, check_exact=True)
    assert nothing_half_written(run.path)


def test_a_file_system_without_locks_is_told_of_once_and_scanned_on(series, whole, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.warns(UserWarning, match="has no locks: two scans at once repeat work") as told:
        run = scan(series, tmp_path / "run", **FAST)
    assert len(told) == 1
    pd.testing.assert_frame_equal(scores(run), whole, check_exact=True)


# 25: memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_checkpoint_that_needs_too_much_memory_is_told_so_and_the_others_go_on(
    series, whole, tmp_path, monkeypatch, error
):
    real = worker.measure

    def starving(model, *args, **kwargs):
        if model.name == "checkpoint-16":
            raise error
        return real(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", starving)
        run = scan(series, tmp_path / "run", **FAST)
    failures = run.failures()
    assert set(failures.ckpt) == {"checkpoint-16"}
    assert set(failures.kind) == {"oom"}
    assert sorted(run.scores().step.unique()) == [0, 2, 100]
    assert_resumes(series, tmp_path / "run", whole)


def little_memory(*arguments):
    """What a process says that may take only so much more memory than it has."""
    command = [sys.executable, str(Path(__file__).with_name("little_memory.py")), *map(str, arguments)]
    ended = run_child(
        command, start=Preloaded, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_tiles_that_do_not_fit_into_the_address_space_are_halved_and_the_numbers_are_the_same():
    said = little_memory("attention", 150)
    assert len(said["sizes"]) >= 2
    assert all(a == 2 * b for a, b in pairwise(said["sizes"]))
    assert said["equal"]
    assert said["error"] <= 1e-6


def test_a_checkpoint_too_large_for_the_address_space_is_oom_and_the_others_go_on(tmp_path):
    for step, width in ((1, 64), (2, 200_000), (3, 64)):
        config = copy.deepcopy(tiny("llama").config)
        config.intermediate_size = width
        LlamaForCausalLM(config).save_pretrained(tmp_path / "series" / f"step{step}")
    said = little_memory("scan", 100, tmp_path / "series", tmp_path / "run")
    assert [(f["ckpt"], f["kind"]) for f in said["failures"]] == [("step2", "oom")]
    assert said["steps"] == [1, 3]
    run = scan(tmp_path / "series", tmp_path / "run", ["sink"], ["repeats:n=12,n_sequences=6"])  # with memory again
    assert run.failures().empty
    assert run.status().is_complete


# 27: signals


@pytest.fixture
def usual_interrupts():
    """Ctrl-C as on a terminal, whatever the tests were started under."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_finishes_the_unit_at_hand_and_a_second_drops_it(series, whole, tmp_path, number, times):
    def interrupt(progress):
        if progress.checkpoint == "checkpoint-2" and progress.probe and progress.done == 4:
            for _ in range(times):
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        scan(series, tmp_path / "run", **FAST, on_progress=interrupt)
    assert len(Store.open(tmp_path / "run").parts()) == {1: 6, 2: 3}[times]
    assert nothing_half_written(tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_resumes(series, tmp_path / "run", whole)


# 28: clocks


@pytest.mark.parametrize("when", [0, 4_070_908_800], ids=["1970", "2099"])
def test_clocks_that_are_wrong_change_no_number_and_no_order(series, whole, tmp_path, when):
    damaged = shutil.copytree(series, tmp_path / "series")
    for i, path in enumerate(sorted(damaged.rglob("*"), reverse=True)):
        os.utime(path, (when + i, when + i))
    run = scan(damaged, tmp_path / "run", **FAST)
    pd.testing.assert_frame_equal(scores(run), whole, check_exact=True)
    parts = list((tmp_path / "run").rglob("*.parquet"))
    for i, part in enumerate(parts):
        os.utime(part, (when - i if when else i, when + i))
    again = scan(damaged, tmp_path / "run", **FAST)
    assert again.checkpoints().ckpt.tolist() == [f"checkpoint-{s}" for s in STEPS]
    pd.testing.assert_frame_equal(scores(open_run(tmp_path / "run")), whole, check_exact=True)
    assert sorted((tmp_path / "run").rglob("*.parquet")) == sorted(parts)


# 29: a node that is cut off and still writes


def test_a_writer_that_was_thought_dead_writes_the_same_rows_under_the_same_name(series, whole, tmp_path):
    first = scan(series, tmp_path / "run", **FAST)
    parts = {p: pd.read_parquet(p) for p in first.path.rglob("*.parquet")}
    late = scan(series, tmp_path / "late" / "run", **FAST)
    for part in late.path.rglob("*.parquet"):  # what it wrote comes in over what another wrote meanwhile
        os.replace(part, first.path / part.relative_to(late.path))
    again = {p: pd.read_parquet(p) for p in first.path.rglob("*.parquet")}
    assert parts.keys() == again.keys()
    for path, rows in parts.items():
        pd.testing.assert_frame_equal(rows, again[path], check_exact=True)
    pd.testing.assert_frame_equal(scores(open_run(first.path)), whole, check_exact=True)
