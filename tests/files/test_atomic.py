"""Atomic writes: the old content or the new one, and temporaries of dead processes are removed."""

import os
import socket
from pathlib import Path

import pytest

from workbench.files.atomic import prove_writable, replace_file, replacing_file, replacing_folder, sweep_temporaries
from workbench.heads import StoreNotWritable


def test_a_file_is_replaced_when_the_block_ends_and_an_error_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    replace_file(path, b"old")

    def fail_half_way():
        with replacing_file(path) as stream:
            stream.write(b"half of the n")
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    with replacing_file(path, temporaries=tmp_path / ".tmp") as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_appears_whole_and_what_an_error_left_is_overwritten(tmp_path):
    path = tmp_path / "checkpoint-8"

    def fail_half_way():
        with replacing_folder(path) as partial:
            (partial / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == [".partial-checkpoint-8"]
    with replacing_folder(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("whole")
        assert not path.exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [
        "checkpoint-8/inner/file"
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreNotWritable, match=r"file/out cannot be written"), replacing_folder(tmp_path / "file/out"):
        pass


def test_a_place_where_no_folder_can_be_is_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    for place in (Path("/proc/none/run"), tmp_path / "a" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(StoreNotWritable, match=r"cannot be (made|written) .*choose a place"):
            prove_writable(place, temporaries=place)


def test_temporaries_of_dead_processes_of_this_machine_and_partial_folders_are_swept(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1  # beyond the largest process id of Linux
    removed = [f"unit.{host}.{dead}.0a1b2c3d", f".resume.{host}.{dead}.0a1b2c3d", f"a.b.{host}.{dead}.k_9zzzzz"]
    stay = [f"unit.{host}.{os.getpid()}.0a1b2c3d", f"unit.x{host}.{dead}.0a1b2c3d", "a.b.c.d", "resume.pt"]
    for name in [*removed, *stay]:
        (tmp_path / name).touch()
    (tmp_path / ".partial-checkpoint-8" / "inner").mkdir(parents=True)
    assert {p.name for p in sweep_temporaries(tmp_path)} == {*removed, ".partial-checkpoint-8"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(stay)
