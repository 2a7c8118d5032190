"""Notes on heads are kept beside a run, one for each head and checkpoint, and nothing is lost in silence."""

from __future__ import annotations

import errno
import json
import threading

import pytest

from workbench.heads import Head, StoreNotWritable, WorkbenchError
from workbench.store import head_notes
from workbench.store.head_notes import FILE, LONGEST, read_notes, write_note


def texts(folder):
    return {(note.head, note.ckpt): note.text for note in read_notes(folder)}


def test_a_note_is_of_a_head_at_a_checkpoint_replaced_and_removed(tmp_path):
    assert read_notes(tmp_path) == ()
    write_note(tmp_path, Head(5, 1), "step64", "finds names")
    write_note(tmp_path, Head(5, 1), "step128", "and numbers")
    write_note(tmp_path, Head(5, 1), "step64", "  finds names, again ")
    assert texts(tmp_path) == {("L5H1", "step64"): "finds names, again", ("L5H1", "step128"): "and numbers"}
    write_note(tmp_path, Head(5, 1), "step64", "")
    assert texts(tmp_path) == {("L5H1", "step128"): "and numbers"}
    assert json.loads((tmp_path / FILE).read_text())["version"] == 1


def test_two_writers_at_once_lose_no_note(tmp_path):
    writers = [threading.Thread(target=write_note, args=(tmp_path, Head(0, i), "last", f"note {i}")) for i in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(texts(tmp_path)) == 6


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"version": 9, "notes": []}', '{"version": 1, "notes": [{"head": "L0H0"}]}']
)
def test_a_file_that_holds_something_else_is_named_and_never_overwritten(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(WorkbenchError, match=FILE):
        write_note(tmp_path, Head(0, 0), "last", "text")
    assert (tmp_path / FILE).read_text() == content


def test_a_read_only_run_says_so_and_keeps_the_notes_before(tmp_path, monkeypatch):
    write_note(tmp_path, Head(0, 0), "last", "before")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(head_notes, "FileLock", refuse)
    with pytest.raises(StoreNotWritable, match=r"the note is not kept.*Read-only"):
        write_note(tmp_path, Head(0, 0), "last", "after")
    assert texts(tmp_path) == {("L0H0", "last"): "before"}


def test_a_note_too_long_for_a_table_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="at most"):
        write_note(tmp_path, Head(0, 0), "last", "x" * (LONGEST + 1))
