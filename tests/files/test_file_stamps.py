"""A change of any file of a folder is noticed, and nothing else is taken for one."""

from __future__ import annotations

import os

from workbench.files.file_stamps import stamp_of


def test_a_stamp_changes_with_a_file_below_the_folder_and_only_then(tmp_path):
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "weights"
    file.write_bytes(b"1234")
    before = stamp_of(tmp_path)
    assert stamp_of(tmp_path) == before != ()
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    assert stamp_of(tmp_path) != before
    after = stamp_of(tmp_path)
    (tmp_path / "more").write_bytes(b"")
    assert stamp_of(tmp_path) != after


def test_a_file_has_a_stamp_and_what_is_not_there_has_none(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    assert len(stamp_of(tmp_path / "file")) == 1
    assert stamp_of(tmp_path / "gone") == ()
