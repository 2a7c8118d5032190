"""The finished pieces of a long computation, kept beside the file that it will write, so that it can go on. No torch.

Beside `plan.json` stands the folder `plan.json.parts`. In it every computation has a file, named by a digest of its
settings: one JSON line of the settings, then a line for each piece, each appended in one write. A last line that a
crash cut off is dropped. One process at a time works in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.files.atomic import advisory_lock, append_line, refusals_named
from workbench.heads import RunLocked

_LOCK = "lock"


@dataclass(slots=True)
class Pieces:
    """Values by name, each computed once; with a `path`, each is a line of that file as soon as it is there.

    `n_kept`: pieces that an earlier run left.
    """

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    n_kept: int = 0

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def count(self, start: str, end: str) -> int:
        """How many pieces have names that start and end like this."""
        return sum(name.startswith(start) and name.endswith(end) for name in self.values)

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of that name as JSON gives it back; `compute` gives it the first time."""
        if name not in self.values:
            line = json.dumps([name, compute()])
            if self.path is not None:
                append_line(self.path, line)
            # A value is read back as it is after an interruption, so that both ways give the same bytes.
            self.values[name] = json.loads(line)[1]
        return self.values[name]


@contextlib.contextmanager
def pieces_beside(out: Path, settings: Mapping[str, Any], *, announce: Callable[[str], None]) -> Generator[Pieces]:
    """Yield the pieces that are kept for `out`; when the block ends without an error, `out` is written and they go.

    Pieces of other settings are not used; `announce` is told which settings differ.

    Raises:
        RunLocked: if another process works on the same file.
        StoreNotWritable: if the folder cannot be written.
    """
    folder = parts_folder(out)
    with _held(folder, out):
        identity = json.dumps(settings, sort_keys=True)
        path = _path(out, identity)
        for other in sorted(folder.glob("*.jsonl")):
            if other != path:
                announce(_not_used(other, settings))
        values = _read(path, identity)
        if values is None:
            announce(f"{path} is no list of finished pieces; it is begun anew")
        if not values:
            path.unlink(missing_ok=True)
            append_line(path, identity)
            values = {}
        yield Pieces(path, values, n_kept=len(values))
        with refusals_named(folder):
            shutil.rmtree(folder)


def kept_pieces(out: Path, settings: Mapping[str, Any]) -> Pieces:
    """The pieces that are kept for `out`, read only; none where there are none of these settings."""
    identity = json.dumps(settings, sort_keys=True)
    path = _path(out, identity)
    values = _read(path, identity, mended=False) or {}
    return Pieces(None, values, n_kept=len(values))


def parts_folder(out: Path) -> Path:
    """The folder that holds the finished pieces of this file."""
    return out.with_name(f"{out.name}.parts")


@contextlib.contextmanager
def _held(folder: Path, out: Path) -> Generator[None]:
    with refusals_named(folder):
        folder.mkdir(exist_ok=True)
    lock = folder / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(advisory_lock(lock, is_shared=False))
        except RunLocked as error:
            holder = lock.read_text(errors="replace").strip() if lock.is_file() else ""
            raise RunLocked(
                f"{out} is being made by {holder or 'another process'}; wait for it, stop it, or pass another --out"
            ) from error
        if not lock.is_file():
            # The lock of a folder that its holder has just removed keeps nobody out.
            raise RunLocked(f"{out} has just been made by another process; look at it, or run the same command again")
        yield


def _path(out: Path, identity: str) -> Path:
    return parts_folder(out) / f"{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.jsonl"


def _read(path: Path, identity: str, *, mended: bool = True) -> dict[str, Any] | None:
    """The pieces of a file, without what a crash cut off; None if it is no list of pieces."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    first, *lines = whole.decode(errors="replace").splitlines() or [identity]
    if first != identity:
        return None
    if mended and len(whole) < len(content):
        with refusals_named(path):
            os.truncate(path, len(whole))
    values: dict[str, Any] = {}
    for line in lines:
        try:
            name, value = json.loads(line)
        except (TypeError, ValueError):
            return None  # another hand was in the file: nothing of it is trusted
        values[name] = value
    return values


def _not_used(path: Path, settings: Mapping[str, Any]) -> str:
    """What is said of pieces of other settings."""
    try:
        first = path.read_text(errors="replace").partition("\n")[0]
        others: Any = json.loads(first)
    except (OSError, ValueError):
        others = {}
    others = others if isinstance(others, dict) else {}
    names = [name for name in settings if settings[name] != others.get(name)]
    return (
        f"{path.parent} has finished pieces of other settings ({', '.join(names)} differ), which are not used and go "
        "when this is written"
    )
