"""A reader's notes on heads, one for each head and checkpoint, as JSON beside a run.

`notes.json` is one object: `{"version": 1, "notes": [{"head": "L5H1", "ckpt": "step64", "text": "…", "written": "…"}]}`
with times in UTC. Nothing else reads or writes it, and a scan does not touch it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.files.atomic import refusals_named, replace_file
from workbench.files.plain_json import json_text
from workbench.heads import Head, StoreNotWritable, WorkbenchError

FILE = "notes.json"
VERSION = 1
LONGEST = 2_000  # characters of a note
_PATIENCE_S = 5


@dataclass(frozen=True, slots=True)
class HeadNote:
    """A note on a head at a checkpoint; `written`: when, in UTC."""

    head: str
    ckpt: str
    text: str
    written: str


def read_notes(folder: Path) -> tuple[HeadNote, ...]:
    """The notes beside a run, in the order in which they were written.

    Raises:
        WorkbenchError: if the file holds something else; it is left as it is.
    """
    path = folder / FILE
    try:
        document = json.loads(path.read_bytes())
        if document["version"] > VERSION:
            raise WorkbenchError(f"{path} has version {document['version']}, this workbench reads up to {VERSION}")
        return tuple(HeadNote(**{name: str(note[name]) for name in _FIELDS}) for note in document["notes"])
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise WorkbenchError(
            f"{path} holds no notes ({type(error).__name__}: {error}); mend it, or move it away to begin anew"
        ) from error


def write_note(folder: Path, head: Head, ckpt: str, text: str) -> tuple[HeadNote, ...]:
    """Write a note on a head at a checkpoint in place of the one before, or remove it with an empty text; all notes.

    Raises:
        StoreNotWritable: if the run is read-only or the disk is full.
        WorkbenchError: for a text that is too long, or a file that holds something else.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise WorkbenchError(f"the note has {len(text):,} characters; expected at most {LONGEST:,}")
    try:
        with refusals_named(folder / FILE), FileLock(folder / f".{FILE}.lock", timeout=_PATIENCE_S):
            others = [note for note in read_notes(folder) if (note.head, note.ckpt) != (str(head), ckpt)]
            written = datetime.now(UTC).isoformat(timespec="seconds")
            notes = (*others, *([HeadNote(str(head), ckpt, text, written)] if text else []))
            document: dict[str, Any] = {"version": VERSION, "notes": [asdict(note) for note in notes]}
            replace_file(folder / FILE, json_text(document, indent=1).encode() + b"\n")
    except StoreNotWritable as error:
        raise StoreNotWritable(
            f"the note is not kept: {folder} cannot be written ({error.__cause__}); copy the run to a folder of yours"
        ) from error
    except Timeout as error:
        raise WorkbenchError(
            f"the note is not kept: {folder / FILE} is being written by another app; try again"
        ) from error
    return notes


_FIELDS = ("head", "ckpt", "text", "written")
