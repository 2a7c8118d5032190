"""A scan of a hub gives the rows of a scan of the same folders, in bounded disk; a failed download is a failure."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.command_process import workbench
from tests.hub.hub_client import environment, user_cache
from tests.hub.tiny_checkpoints import REPO, copy_of, serve, write_checkpoints
from tests.hub.watched_folder import Watched
from workbench import open_run, scan
from workbench.checkpoints import inspect_weights
from workbench.cli.scan_verbs import scan as scan_command
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.hub import GatedModel, RemoteRevision, downloads, needed_files, remote_files
from workbench.hub.downloads import download
from workbench.scanning import look_ahead, make_job
from workbench.store import Store

FAST = {"detectors": ["induction"], "probes": ["repeats:n=12,n_sequences=2"], "maps": False}
STEPS = range(12)
KEYS = ["ckpt", "detector", "probe", "layer", "head"]
FAILING = {"step2": "GatedModel", "step5": "BadDownload", "step7": "Unreachable", "step9": "NotAtHub"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twelve checkpoints in a plain directory."""
    return write_checkpoints(tmp_path_factory.mktemp("folders"), STEPS)


@pytest.fixture(scope="module")
def from_folders(folders, tmp_path_factory):
    """The run of a scan of the directory."""
    return scan(folders, tmp_path_factory.mktemp("runs") / "run", **FAST)


@pytest.fixture(autouse=True)
def _without_waiting(without_waiting_for_the_disk):
    """No test here loses power."""


@pytest.fixture
def commits(hub, folders, monkeypatch):
    """The same checkpoints at the hub; their commits."""
    monkeypatch.setattr(downloads, "_PAUSES", (0.01,))
    return serve(hub, folders)


@pytest.fixture
def few(hub, folders, tmp_path, monkeypatch):
    """Two of them at the hub."""
    monkeypatch.setattr(downloads, "_PAUSES", (0.01,))
    return serve(hub, copy_of(folders, tmp_path / "few", ["step0", "step1"]))


def rows(run, but=()):
    table = run.scores().drop(columns="run").sort_values(KEYS).reset_index(drop=True)
    return table[~table["ckpt"].isin(but)].reset_index(drop=True)


def size_of_one(folders):
    return sum(f.stat().st_size for f in (folders / "step0").iterdir())


def weights_in(folder):
    return sorted(file.name for file in folder.rglob("*.safetensors"))


def test_twelve_revisions_of_which_four_fail_have_the_rows_of_their_folders_within_the_disk(
    hub, commits, folders, from_folders, tmp_path
):
    out, disk = tmp_path / "run", int(2.5 * size_of_one(folders))
    hub.fault("gated", revision="step2", file="*.safetensors")
    hub.fault("wrong", revision="step5", file="*.safetensors")
    hub.fault("reset", revision="step7", file="*.safetensors", after=100)
    hub.fault("no_revision", revision="step9", file="*.safetensors")
    with Watched(out / "downloads") as watched:
        run = scan(REPO, out, revisions="step*", disk=str(disk), **FAST)
    assert size_of_one(folders) < watched.most <= disk
    assert watched.looks > 50
    failures = run.failures()
    assert dict(zip(failures["ckpt"], failures["kind"], strict=True)) == FAILING
    assert all("same command" in m or "accept it" in m or "no revision" in m for m in failures["message"])
    assert rows(run).equals(rows(from_folders, but=FAILING))
    assert weights_in(out) == []
    with pytest.raises(BadCheckpoint, match=r"the weights of org/name@step0 are at the hub.*--keep-downloads"):
        inspect_weights(Path(run.checkpoints()["path"].iloc[0]))
    table = run.checkpoints().set_index("ckpt")
    assert not table["is_gone"].any()
    assert dict(table["commit"]) == commits
    assert set(table["repo"]) == {REPO}
    assert list(table["parts"] > 0) == [name not in FAILING for name in table.index]

    hub.heal()
    hub.requests.clear()
    again = scan(REPO, out, revisions="step*", disk=str(disk), **FAST)
    assert rows(again).equals(rows(from_folders))
    assert len(again.failures()) == 0
    fetched = {request.revision for request in hub.gets("*.safetensors")}
    assert fetched == {commits[name] for name in FAILING}


def test_what_is_done_is_not_fetched_again_and_a_new_detector_fetches_it(hub, few, tmp_path):
    out = tmp_path / "run"
    scan(REPO, out, revisions="step*", **FAST)
    sent = hub.bytes_sent
    scan(REPO, out, revisions="step*", **FAST)
    assert hub.bytes_sent == sent
    more = scan(REPO, out, revisions="step*", **{**FAST, "detectors": ["previous_token"]})
    assert set(more.scores()["ckpt"]) == {"step0", "step1"}
    assert hub.bytes_sent > sent
    assert weights_in(out) == []


def test_the_job_file_of_the_run_scans_the_hub_again(hub, few, tmp_path, capsys):
    first = scan(REPO, tmp_path / "run", revisions="step*", disk="1GB", **FAST)
    scan_command(str(tmp_path / "run" / "job.toml"), out=tmp_path / "again", as_json=True)
    assert json.loads(capsys.readouterr().out)["failed"] == 0
    assert rows(open_run(tmp_path / "again")).equals(rows(first))
    assert first.last_job().revisions == "step*"
    assert first.last_job().disk == "1GB"


def test_a_revision_that_moves_during_a_scan_is_scored_as_it_was_and_then_as_it_is(hub, few, folders, tmp_path):
    out, old = tmp_path / "run", few["step1"]

    def move(request):
        if request.revision == few["step0"] and request.file == "model.safetensors":
            hub.before = lambda _: None
            hub.put(REPO, "step1", folders / "step5")

    hub.before = move
    run = scan(REPO, out, revisions="step*", **FAST)
    assert run.checkpoints().set_index("ckpt")["commit"]["step1"] == old
    (remark,) = [remark for remark in run.remarks if "moved" in remark]
    assert remark.startswith(f"step1 moved at the hub (step1 from commit {old[:12]} to ")
    assert "while they were scanned" in remark
    again = scan(REPO, out, revisions="step*", **FAST)
    assert any("since the last scan" in remark for remark in again.remarks)
    plain = scan(folders / "step5", tmp_path / "plain", **FAST)
    now = again.scores()[again.scores()["ckpt"] == "step1"]["score"].to_list()
    assert now == plain.scores()["score"].to_list()
    everything = open_run(out, select="all").scores()
    assert everything[everything["ckpt"] == "step1"]["weights"].nunique() == 2


def test_a_revision_that_moves_to_the_same_weights_costs_no_download(hub, few, folders, tmp_path):
    scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    files = {f.name: f.read_bytes() for f in (folders / "step1").iterdir()}
    hub.put(REPO, "step1", {**files, "README.md": b"another commit"})
    hub.requests.clear()
    run = scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    assert hub.gets("*.safetensors") == []
    assert run.status().done == run.status().planned


def test_kept_downloads_lie_in_the_users_cache_and_are_read_from_there(hub, few, from_folders, tmp_path):
    run = scan(REPO, tmp_path / "run", revisions="step*", keep_downloads=True, **FAST)
    repository = user_cache(tmp_path) / "models--org--name"
    assert {name: (repository / "refs" / name).read_text() for name in few} == few
    assert len(weights_in(repository / "snapshots")) == 2
    assert weights_in(tmp_path / "run") == []
    others = [name for name in map("step{}".format, STEPS) if name not in few]
    assert rows(run).equals(rows(from_folders, but=others))
    sent = hub.bytes_sent
    scan(REPO, tmp_path / "other", revisions="step*", **FAST)
    assert hub.bytes_sent - sent < 20_000
    assert len(weights_in(repository / "snapshots")) == 2


def test_a_damaged_file_of_the_users_cache_is_a_failure_and_stays(hub, few, tmp_path):
    revision = RemoteRevision(REPO, "step1", few["step1"])
    folder = download(revision, needed_files(remote_files(REPO, few["step1"])))
    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-3] ^= 0x40
    blob.write_bytes(content)
    run = scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    (failure,) = run.failures().to_dict("records")
    assert failure["ckpt"] == "step1"
    assert "in the Hugging Face cache" in failure["message"]
    assert "remove it there" in failure["message"]
    assert blob.read_bytes() == content


def test_one_larger_than_the_disk_is_a_failure_that_says_so(hub, few, folders, tmp_path):
    big = {f.name: f.read_bytes() for f in (folders / "step3").iterdir()}
    hub.put(REPO, "step3", {**big, "model.safetensors": big["model.safetensors"] * 3})
    disk = int(1.5 * size_of_one(folders))
    run = scan(REPO, tmp_path / "run", revisions="step*", disk=str(disk), **FAST)
    (failure,) = run.failures().to_dict("records")
    assert (failure["ckpt"], failure["kind"]) == ("step3", "DiskBound")
    assert "raise --disk" in failure["message"]


def test_weights_that_would_be_refused_are_not_fetched(hub, few, folders, tmp_path):
    step = {f.name: f.read_bytes() for f in (folders / "step3").iterdir()}
    pickled = {"pytorch_model.bin" if name == "model.safetensors" else name: body for name, body in step.items()}
    hub.put(REPO, "step3", pickled)
    hub.put(REPO, "step4", {**step, "config.json": b'{"model_type": "t5", "vocab_size": 97}'})
    run = scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    messages = run.failures().set_index("ckpt")["message"]
    assert set(messages.index) == {"step3", "step4"}
    assert (
        "its weights are bin files, which are not read and were not fetched; pass --allow-pickle" in messages["step3"]
    )
    assert {r.revision for r in [*hub.gets("*.safetensors"), *hub.gets("*.bin")]} == set(few.values())


def test_kept_revisions_are_scanned_again_without_a_network(hub, few, tmp_path, monkeypatch):
    first = scan(REPO, tmp_path / "run", revisions="step*", keep_downloads=True, **FAST)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = scan(REPO, tmp_path / "run", revisions="step*", keep_downloads=True, **FAST)
    assert again.status().done == again.status().planned == first.status().planned
    assert rows(again).equals(rows(first))
    assert hub.requests == []


def test_a_narrower_pattern_leaves_the_scores_of_the_others(hub, few, tmp_path):
    scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    run = scan(REPO, tmp_path / "run", revisions="step0", **FAST)
    assert set(run.scores()["ckpt"]) == {"step0", "step1"}
    assert any("step1 is no longer among the revisions that were asked for: the scores stay" in r for r in run.remarks)


def test_what_is_to_be_kept_and_does_not_fit_is_refused_before_it_is_fetched(hub, few, tmp_path):
    with pytest.raises(WorkbenchError, match="leave --keep-downloads out"):
        scan(REPO, tmp_path / "run", revisions="step*", keep_downloads=True, disk="100kB", **FAST)
    assert not hub.gets("*.safetensors")


def test_a_model_that_hands_out_nothing_is_refused_at_once_with_the_reason(hub, few, tmp_path):
    hub.fault("gated")
    with pytest.raises(GatedModel, match="accept it at"):
        scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_dry_run_says_what_is_fetched_how_much_lies_on_disk_and_what_is_cached(hub, few, folders, tmp_path, capsys):
    download(RemoteRevision(REPO, "step1", few["step1"]), needed_files(remote_files(REPO, few["step1"])))
    fields = {"checkpoints": REPO, "out": tmp_path / "run", "revisions": "step*", **FAST}
    weights = (folders / "step0" / "model.safetensors").stat().st_size
    plan = look_ahead(make_job(fields)).downloads
    assert (plan.missing, plan.cached) == (("step0",), ("step1",))
    assert plan.to_fetch == weights
    assert weights < plan.most_on_disk < 2 * weights
    assert look_ahead(make_job({**fields, "disk": "115kB"})).downloads.most_on_disk == 115_000
    scan_command(REPO, out=tmp_path / "run", revisions="step*", disk="115kB", dry_run=True)
    message = capsys.readouterr().err
    assert "1 checkpoints to fetch, 114 kB of weights; 1 more are in the Hugging Face cache" in message
    assert "at most 115 kB of it on disk at a time, each removed when it was scored" in message
    scan_command(REPO, out=tmp_path / "run", revisions="step*", dry_run=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["downloads"]["to_fetch"] == weights
    assert not (tmp_path / "run").exists()
    assert hub.gets("*.safetensors")[1:] == []


@pytest.mark.slow
def test_worker_processes_share_the_downloads_of_the_parent(hub, few, from_folders, tmp_path):
    run = scan(REPO, tmp_path / "run", revisions="step*", engine="local", workers=2, **FAST)
    others = [name for name in map("step{}".format, STEPS) if name not in few]
    assert rows(run).equals(rows(from_folders, but=others))
    assert len({r.revision for r in hub.gets("*.safetensors")}) == len(hub.gets("*.safetensors")) == 2
    assert weights_in(tmp_path / "run") == []


def test_shards_have_folders_of_their_own(hub, few, from_folders, tmp_path):
    for i in range(2):
        scan(REPO, tmp_path / "run", revisions="step*", shard=f"{i}/2", **FAST)
    others = [name for name in map("step{}".format, STEPS) if name not in few]
    assert rows(open_run(tmp_path / "run")).equals(rows(from_folders, but=others))
    assert weights_in(tmp_path / "run") == []
    assert not (tmp_path / "run" / "downloads" / "weights").exists()


def test_another_model_is_not_scanned_into_the_run(hub, few, folders, tmp_path):
    scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    hub.put("org/other", "step7", folders / "step7")
    hub.put("org/other", "main", folders / "step7")
    with pytest.raises(WorkbenchError, match="another series"):
        scan("org/other", tmp_path / "run", revisions="step*", **FAST)
    run = scan("org/other", tmp_path / "run", revisions="step*", same_series=True, **FAST)
    assert "step7" in set(run.scores()["ckpt"])


def test_a_renamed_model_goes_on(hub, few, tmp_path):
    scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    hub.rename(REPO, "org/new")
    sent = hub.bytes_sent
    run = scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    assert run.status().done == run.status().planned
    assert hub.bytes_sent == sent
    assert any("is called org/new" in remark for remark in run.remarks)


def test_what_a_stopped_scan_held_is_used_by_the_next(hub, few, tmp_path):
    out = tmp_path / "run"
    first = scan(REPO, out, revisions="step0", **FAST)
    assert first.status().done == first.status().planned
    commit = few["step1"]
    held = out / "downloads" / "weights" / "scan"
    (held / commit).mkdir(parents=True)
    files = needed_files(remote_files(REPO, commit))
    shutil.copy(tmp_path / "few" / "step1" / "model.safetensors", held / commit)
    entry = {"repo": REPO, "name": "step1", "files": [[f.name, f.size, f.blob] for f in files]}
    gone = {"repo": REPO, "name": "old", "files": [["model.safetensors", 3, "abc"]]}
    (held / "ledger.json").write_text(json.dumps({commit: entry, "f" * 40: gone}))
    (held / ("f" * 40)).mkdir()
    (held / ("f" * 40) / "model.safetensors").write_text("old")
    hub.requests.clear()
    run = scan(REPO, out, revisions="step*", **FAST)
    assert hub.gets("*.safetensors") == []
    assert run.status().done == run.status().planned
    assert weights_in(out) == []


@pytest.fixture
def interruptible():
    """SIGINT as a terminal gives it, whatever the tests were started under."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_during_a_download_ends_the_scan_soon_and_it_goes_on(hub, few, from_folders, tmp_path):
    hub.pace = 20_000.0
    raised = threading.Event()

    def interrupt():
        while not hub.gets("*.safetensors"):
            time.sleep(0.01)
        raised.set()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    thread.join()
    assert raised.is_set()
    assert not list((tmp_path / "run").rglob("*.incomplete"))
    hub.pace = None
    run = scan(REPO, tmp_path / "run", revisions="step*", **FAST)
    others = [name for name in map("step{}".format, STEPS) if name not in few]
    assert rows(run).equals(rows(from_folders, but=others))
    assert Store.open(tmp_path / "run").failures() == []


def killed_scans(hub, folders, tmp_path, *, kills, seed, options=()):
    """Scan three revisions in processes that are killed at random moments, then to the end; the run.

    A cache of the user's with another model and one of the revisions, and foreign files in the scan's own folders, are
    the same afterwards.
    """
    commits = serve(hub, copy_of(folders, tmp_path / "few", ["step0", "step1", "step2", "step3"]))
    other = hub.put("org/other", "main", folders / "step9")
    download(RemoteRevision("org/other", "main", other), needed_files(remote_files("org/other", other)))
    revision = RemoteRevision(REPO, "step3", commits["step3"])
    download(revision, needed_files(remote_files(REPO, revision.commit)))
    out = tmp_path / "run"
    foreign = {
        out / "downloads" / "weights" / "scan" / "mine.safetensors": "of the user",
        out / "downloads" / "weights" / "scan" / commits["step1"] / "notes.txt": "of the user",
        out / "downloads" / "series" / commits["step0"] / "more.bin": "of the user",
        out / "downloads" / "notes.txt": "of the user",
    }
    for path, text in foreign.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    disk = int((5 if options else 2.5) * size_of_one(folders))
    command = ["scan", REPO, "--revisions", "step*", "--out", out, "--disk", disk, "--no-maps"]
    command += [word for name in FAST["detectors"] for word in ("--detector", name)]
    command += ["--probe", *FAST["probes"], *options]
    moments, hub.pace = random.Random(seed), 600_000.0
    exits, held, latest = [], [], 1.5
    if kills > 2 and not options:  # at any moment of as long as a scan takes on this machine
        undisturbed = [tmp_path / "undisturbed" if word == out else word for word in command]
        for _ in range(2):  # the first one also warms up
            began = time.monotonic()
            assert workbench(*undisturbed, environment=environment(hub, tmp_path)).returncode == 0
            latest = time.monotonic() - began
            shutil.rmtree(tmp_path / "undisturbed")
    cache = contents_of(user_cache(tmp_path))
    with Watched(out / "downloads") as watched:
        for kill in range(kills):
            # The first ones come early: a scan that is done leaves nothing to kill.
            until = latest * (kill + 1) / kills if kills > 2 else latest
            ended = workbench(
                *command, environment=environment(hub, tmp_path), killed_after=moments.uniform(0.02, until)
            )
            exits.append(ended.returncode)
            n_parts = len(list(out.glob("scores/*/*.parquet")))
            held.append((len(weights_in(out)) - 1, n_parts))
            assert {path: path.read_text() for path in foreign} == foreign
            assert cache.items() <= contents_of(user_cache(tmp_path)).items()
            if (out / "run.json").exists():
                assert Store.open(out).check() == []
        hub.pace = None
        ended = workbench(*command, environment=environment(hub, tmp_path))
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0), ended.stderr
    assert set(exits) <= {-9, 0}, exits
    assert {path: path.read_text() for path in foreign} == foreign
    assert cache.items() <= contents_of(user_cache(tmp_path)).items()
    assert options or contents_of(user_cache(tmp_path)) == cache
    assert watched.most <= disk
    assert list(out.rglob("*.safetensors")) == [next(iter(foreign))]
    assert not list(tmp_path.rglob("*.incomplete"))
    assert not list((out / ".tmp").iterdir())
    return open_run(out), exits, held


def contents_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_killed_scans_of_a_hub_lose_nothing_and_remove_only_what_they_fetched(hub, folders, from_folders, tmp_path):
    run, exits, _ = killed_scans(hub, folders, tmp_path, kills=2, seed=1)
    assert -9 in exits
    others = [f"step{i}" for i in STEPS if i > 3]
    assert rows(run).equals(rows(from_folders, but=others))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments_lose_nothing(hub, folders, from_folders, tmp_path, seed):
    run, exits, held = killed_scans(hub, folders, tmp_path, kills=8, seed=seed)
    print(f"killed {exits.count(-9)} of {len(exits)} scans; weights held and checkpoints scored after each: {held}")
    assert exits.count(-9) >= 1
    others = [f"step{i}" for i in STEPS if i > 3]
    assert rows(run).equals(rows(from_folders, but=others))


@pytest.mark.slow
def test_kills_of_a_scan_that_keeps_its_downloads_leave_whole_files_in_the_users_cache(
    hub, folders, from_folders, tmp_path
):
    run, exits, _ = killed_scans(hub, folders, tmp_path, kills=8, seed=3, options=["--keep-downloads"])
    assert exits.count(-9) >= 1
    for blob in (user_cache(tmp_path) / "models--org--name" / "blobs").iterdir():
        assert len(blob.name) == 40 or hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert rows(run).equals(rows(from_folders, but=[f"step{i}" for i in STEPS if i > 3]))
