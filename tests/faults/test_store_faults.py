"""Kill, starve, race and corrupt a store: nothing half-written is ever visible, and a resume completes it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.children import LIMIT, child, first_line, run_child
from tests.faults.store_writer import UNITS, is_whole, origin_of, rows_of, write
from tests.preloaded import PreloadedReading
from workbench.heads import RunLocked, StoreTooNew, WorkbenchError
from workbench.store import SCORES, Reader, Store

WRITER = [sys.executable, str(Path(__file__).with_name("store_writer.py"))]


def writer(verb, path, *arguments, timeout=300):
    """Run a verb of the writer in a process of its own and return what it reports."""
    command = [*WRITER, verb, str(path), *map(str, arguments)]
    ended = run_child(command, start=PreloadedReading, capture_output=True, text=True, timeout=timeout)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@contextlib.contextmanager
def small_disk(folder, options):
    """A file system of its own, where this process may mount one."""
    folder.mkdir()
    mounted = run_child(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        run_child(["umount", "-l", str(folder)], check=True)


def nothing_half_written(path):
    temporaries = list((path / ".tmp").iterdir()) if (path / ".tmp").is_dir() else []
    return temporaries == [] and Store(path).check() == []


@pytest.mark.parametrize("rounds", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_writers_leave_no_corrupt_part_and_the_resume_is_whole(tmp_path, rounds, request):
    rounds = request.config.getoption("--soak") or rounds
    count = writer("kill-loop", tmp_path, rounds, 7, timeout=300 + 10 * rounds)
    assert count["killed"] >= rounds // 2
    assert count["corrupt"] == 0
    assert count["wrong"] == 0


def test_a_file_size_limit_is_reported_and_leaves_nothing_behind(tmp_path):
    said = writer("starve", tmp_path / "run", 4096)
    assert "size limit" in said["error"]
    assert said["exit_code"] == 5
    assert nothing_half_written(tmp_path / "run")
    write(tmp_path / "run", UNITS)
    assert is_whole(tmp_path / "run")


def test_a_full_disk_is_reported_leaves_nothing_behind_and_can_be_resumed(tmp_path):
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        run = disk / "run"
        said = writer("fill", run)
        assert "no space left" in said["error"]
        assert "run the same command again" in said["error"]
        assert said["exit_code"] == 5
        assert nothing_half_written(run)
        store = Store.open(run)
        assert len(store.parts()) == said["committed"] > 0
        for part in store.parts()[: said["committed"] // 2]:
            part.path.unlink()
        write(run, UNITS[:1])
        assert store.has("scores", origin_of(UNITS[0]), UNITS[0])


def test_a_read_only_folder_is_refused_before_anything_else(tmp_path):
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        write(disk / "run", UNITS[:1])
        run_child(["mount", "-o", "remount,ro", str(disk)], check=True)
        for run in (disk / "run", disk / "new"):
            said = writer("outcome", run)
            assert said["exit_code"] == 5
            assert "read-only" in said["error"]
        assert len(Store.open(disk / "run").scores()) == 512


def test_two_writers_at_once_make_the_same_run_as_one(tmp_path):
    run = tmp_path / "run"
    reader = None
    deadline = time.monotonic() + LIMIT
    start = PreloadedReading
    with (
        child([*WRITER, "write", run, 1], start=start) as first,
        child([*WRITER, "write", run, -1], start=start) as second,
    ):
        while any(process.poll() is None for process in (first, second)):
            assert time.monotonic() < deadline
            if (run / "scores").is_dir():
                reader = reader or Reader(run)
                reader.refresh()
                assert len(reader.frame("scores", reader.parts("scores"))) % 512 == 0
    assert [first.returncode, second.returncode] == [0, 0]
    assert is_whole(run)
    assert nothing_half_written(run)


def test_a_lock_is_free_as_soon_as_its_holder_is_killed(tmp_path):
    run = tmp_path / "run"
    with child([*WRITER, "hold", run], start=PreloadedReading, stdout=subprocess.PIPE, text=True) as holder:
        assert first_line(holder, holder.stdout) == "holding\n"
        store = Store.open(run)
        with pytest.raises(RunLocked, match=f"process {holder.pid} on"), store.locked():
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=60)
        with store.locked():
            pass


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    payload = bytearray(path.read_bytes())
    payload[4:2000] = bytes(1996)
    path.write_bytes(payload)


def turn_one_bit(path):
    """In the page of scores, which the format itself would read without complaint."""
    column = pq.read_metadata(path).row_group(0).column(SCORES.get_field_index("score"))
    payload = bytearray(path.read_bytes())
    payload[column.data_page_offset + column.total_compressed_size // 2] ^= 0x40
    path.write_bytes(payload)


def swap(path):
    path.write_bytes(path.with_name(f"{UNITS[1]}.parquet").read_bytes())


@pytest.mark.parametrize("damage", [cut, empty, flip, turn_one_bit, swap])
def test_a_damaged_part_is_named_by_check_and_never_read_as_less(tmp_path, damage):
    write(tmp_path, UNITS[:2])
    store = Store.open(tmp_path)
    path = store.parts()[0].path
    assert path.stem == sorted(UNITS[:2])[0]
    path = path.with_name(f"{UNITS[0]}.parquet")
    damage(path)
    with pytest.raises(WorkbenchError, match=f"{path.name}.*workbench check"):
        store.scores()
    (problem,) = store.check()
    assert problem.path == path
    path.unlink()
    write(tmp_path, UNITS)
    assert is_whole(tmp_path)


def test_a_part_in_the_folder_of_another_checkpoint_is_named(tmp_path):
    write(tmp_path, UNITS)
    store = Store.open(tmp_path)
    first, *_, last = store.parts()
    moved = first.path.rename(last.path.with_name(first.path.name))
    (problem,) = store.check()
    assert problem.path == moved
    assert first.label.origin.folder in problem.reason
    assert moved.exists()


def test_an_account_that_is_no_json_is_named(tmp_path):
    write(tmp_path, UNITS[:1])
    store = Store.open(tmp_path)
    store.write_plan({"checkpoints": [], "units": []})
    (tmp_path / "plan.json").write_text('{"checkpoints": [')
    (problem,) = store.check()
    assert problem.path == tmp_path / "plan.json"


def test_a_foreign_file_is_a_problem_but_hides_nothing(tmp_path):
    write(tmp_path, UNITS[:1])
    store = Store.open(tmp_path)
    (store.parts()[0].path.parent / "notes.txt").write_text("mine")
    assert len(store.scores()) == 512
    (problem,) = store.check()
    assert "foreign" in problem.reason


def test_a_parquet_file_of_another_program_is_not_read_as_scores(tmp_path):
    write(tmp_path, UNITS[:1])
    store = Store.open(tmp_path)
    path = store.parts()[0].path.with_name(f"{UNITS[1]}.parquet")
    store.scores().to_parquet(path)
    with pytest.raises(WorkbenchError, match=r"no b?.*wb\.\w+.* in its metadata"):
        store.scores()
    (problem,) = store.check()
    assert problem.path == path


def test_a_part_of_a_newer_version_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.store.run_folder.SCHEMA", 3)
    store = Store.create(tmp_path, job={}, versions={})
    store.commit_scores(origin_of(UNITS[0]), UNITS[0], rows_of(UNITS[0]), probe_digest="p", seq_len=64)
    with pytest.raises(StoreTooNew, match="pip install"):
        store.scores()
    assert len(store.check()) == 1
