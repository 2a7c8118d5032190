"""Find the checkpoints in a directory, and the reason why each other entry is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.formats import Format, checkpoint_format
from workbench.checkpoints.names import CheckpointName, parse_name
from workbench.checkpoints.series_overrides import Overrides, read_overrides
from workbench.heads import NoCheckpoints

_LOADABLE = ("safetensors", "bin")
_FILES = (".ckpt", ".pt", ".pth")
_END_NAMES = ("main", "final", "release", "last", "latest", "best")
_EXPECTED = (
    "folders named like step1000, checkpoint-500, stage2-step500-tokens3B, iter_0001000 or ckpt_100,"
    " or any folder with model.safetensors and config.json"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint on disk, or one that is gone. `parsed`: the fields of its name.

    `recorded`: what an earlier look noted of one that is gone; None for one on disk.
    """

    name: str
    path: Path
    format: Format
    parsed: CheckpointName
    recorded: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The checkpoints of a directory, unordered; the reason for each ignored entry; the overrides of `series.toml`."""

    root: Path
    checkpoints: list[Candidate]
    ignored: dict[str, str]
    overrides: Overrides


def find_candidates(directory: Path) -> Candidates:
    """Search a directory of checkpoints, a single checkpoint, or a run with one folder of checkpoints in it.

    Raises:
        NoCheckpoints: if there are none, or several folders of them; the message lists what is expected.
        WorkbenchError: if `series.toml` is malformed.
    """
    if not directory.is_dir():
        missing = "is a file, expected its folder" if directory.exists() else "no such directory"
        raise NoCheckpoints(f"{directory}: {missing}; pass a directory with {_EXPECTED}")
    candidates = _search(directory)
    if candidates.checkpoints:
        return candidates
    below = [inner for folder in _folders(directory) if (inner := _search(folder)).checkpoints]
    if len(below) > 1:
        raise NoCheckpoints(
            f"{directory}: {len(below)} of its folders hold checkpoints"
            f" ({', '.join(inner.root.name for inner in below)}); pass one of them"
        )
    if not below:
        ignored = "; ".join(f"{name}: {reason}" for name, reason in candidates.ignored.items()) or "no folders"
        config = f". There is a {CONFIG} but no weights beside it" if (directory / CONFIG).exists() else ""
        raise NoCheckpoints(f"{directory}: no checkpoints. Looked for {_EXPECTED}. Found {ignored}{config}")
    return below[0]


def _search(directory: Path) -> Candidates:
    overrides = read_overrides(directory)
    if (directory / "snapshots").is_dir() and (directory / "refs").is_dir():
        return _search_hub_cache(directory, overrides)
    checkpoints: list[Candidate] = []
    ignored: dict[str, str] = {}
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            continue
        candidate = _candidate(entry, entry.name)
        reason = None if entry.name in overrides.checkpoints else _reason_to_ignore(candidate)
        if reason is None:
            checkpoints.append(candidate)
        elif reason:
            ignored[entry.name] = reason
    own = _candidate(directory, directory.resolve().name)
    if own.format in _LOADABLE:
        # A Trainer's output folder holds weights beside its checkpoints. A single checkpoint holds at most folders of
        # optimizer states.
        if not any(each.format in _LOADABLE or (each.path / CONFIG).exists() for each in checkpoints):
            return Candidates(directory, [own], {}, overrides)
        checkpoints.append(own)
    elif not checkpoints and own.format != "none":
        checkpoints.append(own)
    return Candidates(directory, checkpoints, ignored, overrides)


def _candidate(path: Path, name: str) -> Candidate:
    return Candidate(name, path, checkpoint_format(path), parse_name(name))


def _reason_to_ignore(candidate: Candidate) -> str | None:
    """Why an entry is no checkpoint; None if it is one, "" for an entry that is not worth a message."""
    name, path, kind = candidate.parsed, candidate.path, candidate.format
    if path.is_file():
        if path.suffix in (".safetensors", *_FILES) and name.is_weak:
            return "a bare file, and its name gives no step; put it into a folder with its config.json"
        if path.suffix == ".safetensors" and name.gives_position:
            return "a bare safetensors file; put it as model.safetensors into a folder with its config.json"
        return None if path.suffix in _FILES and name.gives_position else ""
    if not path.is_dir():
        return "a broken link" if path.is_symlink() else ""
    if kind in _LOADABLE or (name.gives_position and not name.is_weak and not path.name.isdigit()):
        return None
    if kind != "none" and (name.gives_position or candidate.name in _END_NAMES):
        return None
    weights = "no weights" if kind == "none" else f"{kind} files"
    config = f", {CONFIG}" if (path / CONFIG).exists() else ""
    return f"{weights}{config} in it, and its name gives no step"


def _search_hub_cache(directory: Path, overrides: Overrides) -> Candidates:
    """The downloaded revisions of one model in a Hugging Face cache, by revision name."""
    refs = directory / "refs"
    checkpoints: list[Candidate] = []
    ignored: dict[str, str] = {}
    for ref in sorted(file for file in refs.rglob("*") if file.is_file()):
        name = ref.relative_to(refs).as_posix()
        candidate = _candidate(directory / "snapshots" / ref.read_text(encoding="utf-8").strip(), name)
        if name.startswith("pr/"):
            ignored[name] = "a pull request"
        elif candidate.format == "none":
            ignored[name] = "no weights of this revision are in the cache"
        else:
            checkpoints.append(candidate)
    return Candidates(directory, checkpoints, ignored, overrides)


def _folders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
