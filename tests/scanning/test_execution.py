"""A scan: the same scores as `score`, resumable, every failure a stored row, nothing done twice."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from tests.children import child, descendants, is_running, output_of, until
from tests.families import random_tokens
from tests.forking import WORKER
from tests.preloaded import Preloaded, workers_forked
from tests.series import STEPS, write_series
from workbench import open_model, open_run, probes, scan, score
from workbench.cli.scan_verbs import scan as scan_command
from workbench.detectors.registry import DETECTORS, Detector
from workbench.heads import NoCheckpoints, RunLocked, WorkbenchError
from workbench.hooks import CellSum
from workbench.scanning import look_ahead, read_job, run_job
from workbench.scanning.engines import Outcome, run_inline
from workbench.store import Store

FAST = {"detectors": ["induction", "sink", "far_mass"], "probes": ["repeats:n=12,n_sequences=6"]}
SCORES = ["layer", "head", "kv_head", "kind", "detector", "probe", "score", "n", "n_seq", "ci_lo", "ci_hi"]
KEYS = ["ckpt", "detector", "probe", "layer", "head"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def run(series, tmp_path_factory):
    return scan(series, tmp_path_factory.mktemp("runs") / "run", **FAST)


def parts(run):
    return {p.path: p.path.stat().st_mtime_ns for p in Store.open(run.path).parts()}


def parts_by_name(run):
    return {p.path.relative_to(run.path) for p in Store.open(run.path).parts()}


def sorted_scores(run):
    return run.scores().drop(columns="run").sort_values(KEYS).reset_index(drop=True)


def test_stored_scores_are_those_that_score_gives(series, run):
    m = open_model(series / "checkpoint-16")
    probe = probes.build(m, FAST["probes"][0])
    expected = score(m, FAST["detectors"], probes=probe, far=None)
    expected = expected[expected.detector != "far_mass"]
    stored = run.scores(step=16)
    stored = stored[stored.detector != "far_mass"]
    order = ["detector", "layer", "head"]
    a = stored.sort_values(order)[SCORES].reset_index(drop=True)
    b = expected.sort_values(order)[SCORES].reset_index(drop=True)
    pd.testing.assert_frame_equal(a, b, check_dtype=False, rtol=1e-6)


def test_a_scan_measures_far_mass_beyond_the_models_smallest_window_and_stores_it(run):
    far = run.scores(detector="far_mass")
    assert far["flags"].unique().tolist() == ["far_window=8;far_sink=0"]
    assert far[far.kind == "sliding"].score.eq(0).all()


def test_a_sink_given_without_a_window_holds_beyond_the_models_own_window(series, run, tmp_path):
    sunk = scan(series, tmp_path / "run", ["far_mass"], FAST["probes"], far_sink=3)
    order = ["step", "layer", "head"]
    with_sink = sunk.scores(detector="far_mass").sort_values(order)
    without = run.scores(detector="far_mass").sort_values(order)
    assert with_sink["flags"].unique().tolist() == ["far_window=8;far_sink=3"]
    is_full = with_sink.kind.to_numpy() == "full"
    assert (with_sink.score.to_numpy()[is_full] < without.score.to_numpy()[is_full]).all()


def test_every_checkpoint_has_its_step_and_tokens(run):
    table = run.scores()
    assert sorted(table.step.unique()) == list(STEPS)
    assert (table.tokens == table.step * 2048).all()


def test_metrics_stand_beside_the_scores(run):
    metrics = run.metrics(metric="copy_accuracy")
    assert set(metrics.step) == set(STEPS)
    assert set(metrics[metrics.distance.notna()].distance) == {12}
    assert (run.metrics(metric="loss_nats").value > 0).all()


def test_the_same_command_again_does_nothing(series, run):
    before = parts(run)
    again = scan(series, run.path, **FAST)
    assert parts(again) == before
    assert again.status().is_complete


def test_more_detectors_and_probes_add_their_own_parts_only(series, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    before = {p.name for p in (tmp_path / "run" / "scores").glob("*/*.parquet")}
    wider = scan(
        series,
        tmp_path / "run",
        detectors=[*FAST["detectors"], "entropy"],
        probes=[*FAST["probes"], "key_value:n_pairs=4,n_queries=2"],
    )
    after = {p.name for p in (tmp_path / "run" / "scores").glob("*/*.parquet")}
    assert before < after
    assert len(after) == len(STEPS) * 4 * 2
    assert set(wider.metrics().metric) == {"loss_nats", "copy_accuracy", "recall"}


def test_a_retrained_checkpoint_is_scored_anew(series, tmp_path):
    copy = tmp_path / "series"
    shutil.copytree(series, copy)
    first = scan(copy, tmp_path / "run", **FAST)
    n = len(parts(first))
    tensors = load_file(copy / "checkpoint-2" / "model.safetensors")
    save_file({k: v + 0.01 for k, v in tensors.items()}, copy / "checkpoint-2" / "model.safetensors", {"format": "pt"})
    second = scan(copy, tmp_path / "run", **FAST)
    assert len(parts(second)) == n + 4


def test_probes_made_in_python_are_scanned_as_they_are(series, tmp_path):
    probe = probes.token_sequences(random_tokens(6, 20), name="mine")
    run = scan(series, tmp_path / "run", ["entropy", "retrieval"], probe)
    assert run.probes == ("mine",)
    assert run.detectors == ("entropy",)  # no known target cells: retrieval is not defined
    assert set(run.metrics().metric) == {"loss_nats"}
    assert run.metrics().position.max() == 18


def break_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_missing_tensor(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, file, {"format": "pt"})


def break_nan(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})


def break_config(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["num_hidden_layers"] = 3
    config["layer_types"].append("full_attention")
    file.write_text(json.dumps(config))


def break_no_config(folder):
    (folder / "config.json").unlink()


def break_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


def break_empty_config(folder):
    (folder / "config.json").write_text("{}")


BREAKS = {
    "truncated": (break_truncated, "model.safetensors"),
    "missing tensor": (break_missing_tensor, "layers.1.self_attn.k_proj"),
    "nan": (break_nan, "layers.1.self_attn.k_proj"),
    "one layer too many": (break_config, "config.json"),
    "no config": (break_no_config, "config.json"),
    "empty config": (break_empty_config, "config.json"),
    "pickle": (break_pickle, "pytorch_model.bin"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_bad_checkpoint_is_a_stored_failure_and_the_others_are_scored(series, tmp_path, name):
    breaks, told = BREAKS[name]
    copy = tmp_path / "series"
    shutil.copytree(series, copy)
    breaks(copy / "checkpoint-16")
    run = scan(copy, tmp_path / "run", **FAST)
    (failure,) = run.failures().to_dict("records")
    assert failure["ckpt"] == "checkpoint-16"
    assert told in failure["message"]
    assert sorted(run.scores().step.unique()) == [0, 2, 100]
    assert run.status().checkpoints_failed == 1
    shutil.rmtree(copy / "checkpoint-16")
    shutil.copytree(series / "checkpoint-16", copy / "checkpoint-16")
    mended = scan(copy, tmp_path / "run", **FAST)
    assert mended.failures().empty
    assert mended.status().is_complete


def test_a_lone_sibling_is_scored_beside_a_checkpoint_whose_config_says_nothing(series, tmp_path):
    for step in (0, 2):
        shutil.copytree(series / f"checkpoint-{step}", tmp_path / "series" / f"checkpoint-{step}")
    break_empty_config(tmp_path / "series" / "checkpoint-0")
    run = scan(tmp_path / "series", tmp_path / "run", **FAST)
    assert run.failures().ckpt.tolist() == ["checkpoint-0"]
    assert run.scores().step.unique().tolist() == [2]


def test_a_detector_that_fails_is_stored_with_its_traceback(series, tmp_path, monkeypatch):
    from workbench.scanning import worker

    real = worker.measure

    def failing(model, probe, detectors, **kwargs):
        if probe.name == "broken":
            raise RuntimeError("the kernel fell over")
        return real(model, probe, detectors, **kwargs)

    monkeypatch.setattr(worker, "measure", failing)
    run = scan(series, tmp_path / "run", ["entropy"], ["repeats:n=12", "repeats:n=10,name=broken"])
    failures = run.failures()
    assert set(failures.message) == {"the kernel fell over"}
    assert failures.traceback.str.contains("RuntimeError").all()
    assert set(run.scores().probe) == {"repeats"}
    # A scan that asks for other units leaves no failure of those behind.
    run = scan(series, tmp_path / "run", ["entropy"], ["repeats:n=12"], maps=False)
    assert run.failures().empty
    assert run.status().failed == 0


def _broken(_):
    """Fail."""
    raise IndexError("row 99 of 12")


@pytest.fixture
def broken_detector():
    own = Detector("own", 1, frozenset({CellSum("own", _broken)}), _broken, "high", "share", False)
    DETECTORS.add("own", own, function=_broken)
    yield
    DETECTORS.remove("own")


@pytest.mark.usefixtures("broken_detector")
def test_a_detector_whose_code_fails_is_a_failed_unit_and_the_others_of_its_probe_are_scored(series, tmp_path):
    run = scan(series, tmp_path / "run", ["own", "entropy"], ["repeats:n=12"])
    assert set(run.scores().detector) == {"entropy"}
    assert run.scores().score.notna().all()
    failures = run.failures()
    assert failures.message.eq("IndexError in the need 'own': row 99 of 12").all()
    assert set(failures.ckpt) == set(run.scores().ckpt)
    assert run.status().failed == len(failures) == len(STEPS)


def test_a_failed_map_is_a_failed_unit_that_is_told_of_and_tried_again(series, tmp_path, monkeypatch):
    from workbench.scanning import worker

    real, tried = worker.make_map, []

    def failing(model, probe, *args, **kwargs):
        tried.append(model.name)
        if model.name == "checkpoint-16":
            raise RuntimeError("the map fell over")
        return real(model, probe, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "make_map", failing)
        run = scan(series, tmp_path / "run", **FAST)
        status = run.status()
        assert (status.planned, status.done, status.failed, status.checkpoints_failed) == (20, 19, 1, 1)
        assert run.failures().message.tolist() == ["the map fell over"]
        assert sorted(run.scores().step.unique()) == list(STEPS)
        assert len(tried) == 4
        again = scan(series, tmp_path / "run", **FAST)
        assert tried[4:] == ["checkpoint-16"]
        assert again.failures().attempts.tolist() == [2]
        with pytest.raises(typer.Exit) as ended:
            scan_command(str(tmp_path / "run" / "job.toml"))
        assert ended.value.exit_code == 1
    mended = scan(series, tmp_path / "run", **FAST)
    assert mended.failures().empty
    assert (mended.status().done, mended.status().failed) == (20, 0)


def test_while_maps_are_made_a_scan_is_not_complete(series, tmp_path):
    seen = []

    def look(progress):
        if progress.done == 19:
            seen.append(open_run(tmp_path / "run").status())

    scan(series, tmp_path / "run", **FAST, on_progress=look)
    assert {(status.done, status.is_complete) for status in seen} == {(19, False)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, o: scan(s / "none", o), NoCheckpoints, "no such directory"),
        (lambda s, o: scan(s, o, ["inductoin"]), WorkbenchError, "unknown detectors .*known: .*induction"),
        (
            lambda s, o: scan(s, o, engine="slurm"),
            WorkbenchError,
            "engine: given 'slurm', expected 'inline' or 'local'",
        ),
        (
            lambda s, o: scan(s, o, tokens=3),
            WorkbenchError,
            "tokens: unknown key .given 3.; expected one of",
        ),
        (lambda s, o: scan(s, o, dtype="int7"), WorkbenchError, "'int7' is not a floating-point torch dtype"),
        (lambda s, o: scan(s, o, device="gpu"), WorkbenchError, "'gpu' is none that torch knows; expected 'cpu'"),
        (lambda s, o: scan(s, o, device="meta"), WorkbenchError, "'meta' holds no numbers"),
        (lambda s, o: scan(s, o, device="cuda:99"), WorkbenchError, "'cuda:99' is not there"),
        (lambda s, o: scan(s, o, probes=["repeats:n=12", "repeats:n=13"]), WorkbenchError, "two probes are called"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_any_model_is_loaded(series, tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(series, tmp_path / "run")


def test_a_second_scan_of_the_same_run_is_refused_while_the_first_writes(series, run):
    with Store.open(run.path).locked(), pytest.raises(RunLocked):
        scan(series, run.path, **FAST)


def test_a_run_keeps_the_job_that_makes_it_again(series, run, tmp_path):
    again = scan(read_job(run.path / "job.toml", out=tmp_path / "run"))
    pd.testing.assert_frame_equal(sorted_scores(again), sorted_scores(run), check_exact=True)


def test_a_run_of_probes_made_in_python_says_that_it_needs_them_again(series, tmp_path):
    probe = probes.token_sequences(random_tokens(6, 20), name="mine")
    run = scan(series, tmp_path / "run", ["entropy"], probe)
    job = read_job(run.path / "job.toml", out=tmp_path / "again")
    with pytest.raises(WorkbenchError, match=r"made in Python.*mine.*pass them to wb.scan"):
        scan(job)
    again = run_job(job, ready=[probe])
    pd.testing.assert_frame_equal(sorted_scores(again), sorted_scores(run), check_exact=True)


def hold_back_the_first(out, progress):
    """Of two workers, stop the one that comes first until the other has done something too."""
    at_work = {int(t.worker.rpartition("-")[2]) for t in open_run(out).timings().each}
    for worker in at_work:
        os.kill(worker, signal.SIGSTOP if len(at_work) == 1 and progress.done < 6 else signal.SIGCONT)


@pytest.mark.parametrize("start", [workers_forked, pytest.param(contextlib.nullcontext, marks=pytest.mark.slow)])
def test_worker_processes_make_the_same_rows_bit_for_bit(series, run, tmp_path, start):
    said = []

    def on_progress(progress):
        said.append(progress)
        hold_back_the_first(tmp_path / "run", progress)

    with start():
        local = scan(series, tmp_path / "run", **FAST, engine="local", workers=2, on_progress=on_progress)
    pd.testing.assert_frame_equal(sorted_scores(local), sorted_scores(run), check_exact=True)
    assert (said[-1].done, said[-1].planned) == (20, 20)
    assert len({t.worker for t in local.timings().each}) == 2
    assert parts_by_name(local) == parts_by_name(run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_makes_the_same_rows_bit_for_bit(series, run, tmp_path):
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'attention-workbench[ray]'")
    clustered = scan(series, tmp_path / "run", **FAST, engine="ray", workers=2)
    pd.testing.assert_frame_equal(sorted_scores(clustered), sorted_scores(run), check_exact=True)


def test_shards_share_the_work_and_make_the_same_rows(series, run, tmp_path):
    first = scan(series, tmp_path / "run", **FAST, shard="0/3")
    assert sorted(first.scores().step.unique()) == [0, 100]
    assert (first.status().planned, first.status().done) == (20, 10)
    with Store.open(first.path).locked(is_shared=True):  # another job of the array is at work
        scan(series, tmp_path / "run", **FAST, shard="1/3")
    whole = scan(series, tmp_path / "run", **FAST, shard="2/3")
    assert whole.status().is_complete
    pd.testing.assert_frame_equal(sorted_scores(whole), sorted_scores(run), check_exact=True)
    with pytest.raises(WorkbenchError, match="shard 5/6 has none of 4 checkpoints"):
        scan(series, tmp_path / "run", **FAST, shard="5/6")


def test_a_scan_joins_one_that_is_running_only_if_told_to(series, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    with Store.open(tmp_path / "run").locked():
        with pytest.raises(RunLocked, match="--join"):
            scan(series, tmp_path / "run", **FAST)
        assert scan(series, tmp_path / "run", **FAST, join=True).status().is_complete


def test_a_checkpoint_that_workers_die_of_is_given_up_until_it_is_retried(series, tmp_path, monkeypatch):
    from workbench.scanning import execution

    def dying(opener, tasks, channel, *, environments):
        *others, last = tasks
        yield from run_inline(opener, others, channel)
        yield Outcome(last, is_done=False, deaths=3)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "run_local", dying)
        run = scan(series, tmp_path / "run", **FAST, engine="local")
    (failure,) = run.failures().to_dict("records")
    assert (failure["ckpt"], failure["kind"], failure["attempts"]) == ("checkpoint-100", "worker_died", 3)
    assert "--retry" in failure["message"]
    assert (run.status().done, run.status().failed, run.status().checkpoints_failed) == (15, 5, 1)
    again = scan(series, tmp_path / "run", **FAST)
    assert (again.status().done, again.status().failed) == (15, 5)
    retried = scan(series, tmp_path / "run", **FAST, retry=True)
    assert retried.failures().empty
    assert retried.status().done == 20


def test_what_a_job_would_do_is_counted_without_doing_it(series, run, tmp_path):
    job = read_job(run.path / "job.toml", out=tmp_path / "new")
    outlook = look_ahead(job)
    size = sum((series / f"checkpoint-{s}" / "model.safetensors").stat().st_size for s in STEPS)
    assert (outlook.units_to_do, outlook.bytes_to_read) == (20, size)
    assert not (tmp_path / "new").exists()
    done = look_ahead(read_job(run.path / "job.toml"))
    assert (done.units_to_do, done.bytes_to_read) == (0, 0)
    wider = look_ahead(read_job(run.path / "job.toml", detectors=["sink", "entropy"]))
    assert [(c.units, c.done) for c in wider.checkpoints] == [(4, 3)] * 4


def test_every_unit_has_its_time_and_the_rest_its_forecast(series, tmp_path):
    timings = scan(series, tmp_path / "run", **FAST).timings()
    named = [(t.ckpt, t.what, t.units) for t in timings.each]
    assert named == [(f"checkpoint-{s}", *of) for s in STEPS for of in (("scores", 4), ("maps", 1))]
    assert all(min(t.forward_s, t.write_s) > 0 for t in timings.each)
    assert all((min(t.load_s, t.statistics_s) > 0) == (t.what == "scores") for t in timings.each)
    assert timings.eta_s(0) == 0
    last = max(t.at for t in timings.each)
    pace = (last - timings.began) / 20
    assert timings.eta_s(8, now=last) == pytest.approx(8 * pace)
    assert timings.eta_s(8, now=last + 2 * pace) == pytest.approx(6 * pace, abs=1e-6)  # a clock's digits
    assert timings.slowest(1)[0].total_s == max(t.total_s for t in timings.each)


@pytest.mark.parametrize("form", ["bin", "pt", "dcp"])
def test_pickled_weights_are_scored_as_the_same_safetensors_if_allowed(series, run, tmp_path, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its distributed checkpoints
        pickled = pickled_copy(series / "checkpoint-16", tmp_path / "series" / "checkpoint-16", form)
    refused = scan(pickled.parent, tmp_path / "run", **FAST)
    assert "--allow-pickle" in refused.failures().message.item()
    scored = scan(pickled.parent, tmp_path / "run", **FAST, allow_pickle=True)
    assert scored.failures().empty
    a, b = (sorted_scores(r)[lambda f: f.step == 16].score.to_numpy() for r in (scored, run))
    assert (a == b).all()


def pickled_copy(source, target, form):
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    state = load_file(source / "model.safetensors")
    if form == "bin":
        torch.save(state, target / "pytorch_model.bin")
    elif form == "pt":
        loop = {"model": {f"_orig_mod.{k}": v for k, v in state.items()}, "step": 16, "optimizer": {"lr": 0.1}}
        torch.save(loop, target / "ckpt.pt")
    else:
        from torch.distributed.checkpoint import save

        save({"model": state, "optimizer": {"exp_avg": torch.zeros(3)}}, checkpoint_id=str(target), no_dist=True)
    return target


COMMAND = [
    *("scan", "--detector", "induction", "--detector", "sink", "--detector", "far_mass"),
    *("--probe", "repeats:n=12,n_sequences=6"),
]


def start_scan(series, out, *arguments, ignores_interrupts=False):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workbench.cli", *COMMAND, str(series), "--out", str(out), *arguments]
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    start = partial(Preloaded, has_workers="--workers" in arguments)
    return child(command, ignores_interrupts=ignores_interrupts, start=start, **options)


def wait_for_parts(process, out, n):
    until(lambda: process.poll() is not None or len(list(out.glob("scores/*/*.parquet"))) >= n, every=0.005)


def kill_until_done(series, out, seed, kills):
    """Scan in processes that are killed at random moments, then once to the end."""
    chance = random.Random(seed)
    for _ in range(kills):
        with start_scan(series, out) as process:
            wait_for_parts(process, out, len(list(out.glob("scores/*/*.parquet"))) + chance.randint(0, 3))
            time.sleep(chance.random() * 0.05)
            process.kill()
            output_of(process)
        for part in out.glob("scores/*/*.parquet"):
            pd.read_parquet(part)
    with start_scan(series, out) as process:
        _, told = output_of(process)
    assert process.returncode == 0, told.decode()


@pytest.mark.parametrize("seed", [0])
def test_killed_scans_end_with_the_same_rows_as_an_undisturbed_one(series, run, tmp_path, seed):
    kill_until_done(series, tmp_path / "run", seed, kills=2)
    killed = open_run(tmp_path / "run")
    assert Store.open(killed.path).check() == []
    pd.testing.assert_frame_equal(sorted_scores(killed), sorted_scores(run))
    assert not list((tmp_path / "run" / ".tmp").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_kills_change_nothing(series, run, tmp_path, seed):
    kill_until_done(series, tmp_path / "run", seed, kills=6)
    pd.testing.assert_frame_equal(sorted_scores(open_run(tmp_path / "run")), sorted_scores(run))


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(series, tmp_path):
    out = tmp_path / "run"
    with start_scan(series, out) as process:
        wait_for_parts(process, out, 1)
        process.send_signal(signal.SIGINT)
        _, told = output_of(process)
    assert process.returncode == 130
    assert b"same command goes on" in told
    assert b"Traceback" not in told
    n = len(list(out.glob("scores/*/*.parquet")))
    assert 3 <= n < 12
    assert n % 3 == 0
    assert not list((out / ".tmp").glob("*"))


def test_a_scan_that_nohup_started_ends_by_sigterm_and_says_how_to_go_on(series, tmp_path):
    out = tmp_path / "run"
    with start_scan(series, out, ignores_interrupts=True) as process:
        wait_for_parts(process, out, 1)
        process.send_signal(signal.SIGTERM)
        _, told = output_of(process)
    assert process.returncode == 130, told.decode()
    assert b"same command goes on" in told
    assert len(list(out.glob("scores/*/*.parquet"))) % 3 == 0


def test_the_workers_of_a_scan_end_when_it_is_killed(series, tmp_path):
    out = tmp_path / "run"
    with start_scan(series, out, "--engine", "local", "--workers", "2") as process:
        wait_for_parts(process, out, 1)
        started = descendants(process.pid)
        assert sum(WORKER in line for line in started.values()) == 2
        process.kill()
        until(lambda: not any(map(is_running, started)), 60)


def test_checkpoints_that_are_rotated_or_renamed_between_scans_keep_place_and_scores(series, tmp_path):
    directory, out = tmp_path / "series", tmp_path / "run"
    shutil.copytree(series, directory)
    few = {"detectors": ["induction"], "probes": ["repeats:n=8,n_sequences=2"]}
    before = scan(directory, out, **few)
    files = parts_by_name(before)
    shutil.rmtree(directory / "checkpoint-2")
    (directory / "checkpoint-16").rename(directory / "step16")
    run = scan(directory, out, **few)
    names = ["checkpoint-0", "checkpoint-2", "step16", "checkpoint-100"]
    assert list(dict.fromkeys(run.scores()["ckpt"])) == list(dict.fromkeys(run.maps.table()["ckpt"])) == names
    assert run.checkpoints()["is_gone"].tolist() == [False, True, False, False]
    assert run.status().done == run.status().planned
    assert parts_by_name(run) == files
    columns = ["step", "layer", "head", "score"]
    pd.testing.assert_frame_equal(run.scores().loc[:, columns], before.scores().loc[:, columns])
    assert run.maps.find().label.origin.ckpt == "checkpoint-100"


def test_tokens_that_a_series_toml_gives_later_reach_the_rows_without_a_model(series, tmp_path, monkeypatch):
    directory, out = tmp_path / "series", tmp_path / "run"
    shutil.copytree(series, directory)
    for state in directory.glob("*/trainer_state.json"):
        state.unlink()
    few = {"detectors": ["induction"], "probes": ["repeats:n=8,n_sequences=2"]}
    assert scan(directory, out, **few).scores()["tokens"].isna().all()
    (directory / "series.toml").write_text("tokens_per_step = 512\n")
    monkeypatch.setattr("workbench.scanning.worker.open_model", None)
    scores = scan(directory, out, **few).scores()
    assert (scores["tokens"] == 512 * scores["step"]).all()
