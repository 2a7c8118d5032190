"""Which entries of a directory are checkpoints, which are not and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.formats import Format, checkpoint_format
from workbench.checkpoints.names import CheckpointName, parse_name
from workbench.checkpoints.overrides import Overrides, read_overrides
from workbench.heads import NoCheckpoints

_LOADABLE = ("safetensors", "bin")
_FILES = (".ckpt", ".pt", ".pth")
_ENDS = ("main", "final", "release", "last", "latest", "best")
_LOOKED_FOR = (
    "folders named like step1000, checkpoint-500, stage2-step500-tokens3B, iter_0001000 or ckpt_100,"
    " or any folder with model.safetensors and config.json"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint as found on disk."""

    name: str
    path: Path
    format: Format
    says: CheckpointName


@dataclass(frozen=True, slots=True)
class Finding:
    """The checkpoints of a directory, unordered; what the user says; the rest with the reason for each."""

    root: Path
    candidates: list[Candidate]
    ignored: dict[str, str]
    overrides: Overrides


def find_candidates(directory: Path) -> Finding:
    """Look through a directory of checkpoints, one checkpoint, or a run with one folder of checkpoints in it.

    Raises:
        NoCheckpoints: if there are none, or several folders of them; says what was looked for.
        WorkbenchError: if `series.toml` is malformed.
    """
    if not directory.is_dir():
        missing = "is a file, expected its folder" if directory.exists() else "no such directory"
        raise NoCheckpoints(f"{directory}: {missing}; pass a directory with {_LOOKED_FOR}")
    found = _look(directory)
    if found.candidates:
        return found
    below = [inner for folder in _folders(directory) if (inner := _look(folder)).candidates]
    if len(below) > 1:
        raise NoCheckpoints(
            f"{directory}: {len(below)} of its folders hold checkpoints"
            f" ({', '.join(inner.root.name for inner in below)}); pass one of them"
        )
    if not below:
        seen = "; ".join(f"{name}: {why}" for name, why in found.ignored.items()) or "no folders"
        config = f". There is a {CONFIG} but no weights beside it" if (directory / CONFIG).exists() else ""
        raise NoCheckpoints(f"{directory}: no checkpoints. Looked for {_LOOKED_FOR}. Found {seen}{config}")
    return below[0]


def _look(directory: Path) -> Finding:
    overrides = read_overrides(directory)
    if (directory / "snapshots").is_dir() and (directory / "refs").is_dir():
        return _look_in_hub_cache(directory, overrides)
    candidates: list[Candidate] = []
    ignored: dict[str, str] = {}
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith("."):
            continue
        candidate = _candidate(entry, entry.name)
        reason = None if entry.name in overrides.checkpoints else _no_checkpoint(candidate)
        if reason is None:
            candidates.append(candidate)
        elif reason:
            ignored[entry.name] = reason
    own = _candidate(directory, directory.resolve().name)
    if own.format in _LOADABLE:
        # A Trainer's output folder ends up with weights of its own beside its checkpoints; a lone checkpoint
        # has folders of optimizer states at most.
        if not any(each.format in _LOADABLE or (each.path / CONFIG).exists() for each in candidates):
            return Finding(directory, [own], {}, overrides)
        candidates.append(own)
    elif not candidates and own.format != "none":
        candidates.append(own)
    return Finding(directory, candidates, ignored, overrides)


def _candidate(path: Path, name: str) -> Candidate:
    return Candidate(name, path, checkpoint_format(path), parse_name(name))


def _no_checkpoint(candidate: Candidate) -> str | None:
    """Why an entry is none; None if it is one, "" if there is nothing to say about it."""
    says, path, kind = candidate.says, candidate.path, candidate.format
    if path.is_file():
        if path.suffix == ".safetensors" and says.gives_place:
            return "a bare safetensors file; put it as model.safetensors into a folder with its config.json"
        return None if path.suffix in _FILES and says.gives_place else ""
    if not path.is_dir():
        return "a broken link" if path.is_symlink() else ""
    if kind in _LOADABLE or (says.gives_place and not path.name.isdigit()):
        return None
    if kind != "none" and (says.gives_place or candidate.name in _ENDS):
        return None
    weights = "no weights" if kind == "none" else f"{kind} files"
    config = f", {CONFIG}" if (path / CONFIG).exists() else ""
    return f"{weights}{config} in it, and its name gives no step"


def _look_in_hub_cache(directory: Path, overrides: Overrides) -> Finding:
    """The downloaded revisions of one model in a Hugging Face cache, under the names they were asked for."""
    refs = directory / "refs"
    candidates: list[Candidate] = []
    ignored: dict[str, str] = {}
    for ref in sorted(file for file in refs.rglob("*") if file.is_file()):
        name = ref.relative_to(refs).as_posix()
        candidate = _candidate(directory / "snapshots" / ref.read_text(encoding="utf-8").strip(), name)
        if name.startswith("pr/"):
            ignored[name] = "a pull request"
        elif candidate.format == "none":
            ignored[name] = "no weights of this revision are in the cache"
        else:
            candidates.append(candidate)
    return Finding(directory, candidates, ignored, overrides)


def _folders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
