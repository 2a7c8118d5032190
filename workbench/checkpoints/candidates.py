"""Find the checkpoints in a directory, and the reason why each other entry is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.formats import Format, checkpoint_format, gguf_sets, gguf_split
from workbench.checkpoints.gguf_headers import gguf_files
from workbench.checkpoints.hub_references import locate_series, why_missing
from workbench.checkpoints.names import CheckpointName, parse_name, parse_revision
from workbench.checkpoints.other_contents import run_at, why_no_weights
from workbench.checkpoints.series_overrides import Overrides, read_overrides
from workbench.heads import BadCheckpoint, NoCheckpoints
from workbench.hub.file_choice import RemoteFile
from workbench.hub.local_cache import cached_models, is_repository, revisions
from workbench.hub.repositories import RemoteRevision

_LOADABLE = ("safetensors", "bin", "gguf")
_FILES = (".ckpt", ".pt", ".pth")
_END_NAMES = ("main", "final", "release", "last", "latest", "best")
_EXPECTED = (
    "folders named like step1000, checkpoint-500, stage2-step500-tokens3B, iter_0001000 or ckpt_100,"
    " or any folder with model.safetensors and config.json"
)


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """A checkpoint at a hub: its revision, and the files that it is read from."""

    revision: RemoteRevision
    files: tuple[RemoteFile, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes to download, where none of the files is here."""
        return sum(file.size for file in self.files)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests of its weights: equal for equal weights."""
        return tuple(self.blobs_by_name.values())

    @property
    def blobs_by_name(self) -> dict[str, str]:
        """The digests of its weight files by their names."""
        return {file.name: file.blob for file in self.files if file.is_weights}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint on disk or at a hub, or one that is gone. `parsed`: the fields of its name.

    `recorded`: what an earlier look noted of one that is gone; None for one on disk. `is_bare`: a revision of a model
    that is known by its commit alone. `remote`: of one at a hub, whose `path` is where the cache has it or would.
    """

    name: str
    path: Path
    format: Format
    parsed: CheckpointName
    recorded: Mapping[str, Any] | None = None
    is_bare: bool = False
    remote: RemoteCheckpoint | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The checkpoints of a directory, unordered; the reason for each ignored entry; the overrides of `series.toml`.

    `remarks`: sentences for the user.
    """

    root: Path
    checkpoints: list[Candidate]
    ignored: dict[str, str]
    overrides: Overrides
    remarks: tuple[str, ...] = ()


def find_candidates(directory: Path) -> Candidates:
    """Search a directory of checkpoints, a single checkpoint, or a run with one folder of checkpoints in it.

    Of a Hugging Face cache, search one model: its folder, or its id. Of a cache with one model, search that.

    Raises:
        NoCheckpoints: if there are none, or several folders of them; the message lists what is expected.
        WorkbenchError: if `series.toml` is malformed.
    """
    reference, directory = directory, locate_series(directory)
    if directory.is_file() and checkpoint_format(directory) == "gguf":
        return Candidates(directory.parent, [_candidate(directory, directory.name)], {}, Overrides())
    if not directory.is_dir():
        missing = why_no_weights(directory) if directory.exists() else why_missing(reference, "directory")
        is_mistyped = "did you mean" in missing
        raise NoCheckpoints(missing if is_mistyped else f"{missing}. Expected a directory with {_EXPECTED}")
    models = {} if is_repository(directory) else cached_models(directory)
    if len(models) > 1:
        raise NoCheckpoints(
            f"{directory}: is a Hugging Face cache of {len(models)} models; pass the id or the folder of one of them: "
            f"{', '.join(models)}"
        )
    directory = next(iter(models.values()), directory)
    candidates = _search(directory)
    if candidates.checkpoints:
        return candidates
    if run := run_at(directory):
        raise NoCheckpoints(f"{directory}: is {run}")
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
    if is_repository(directory):
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
    if own.format == "gguf":
        if not checkpoints:
            _require_one_model(directory)
            return Candidates(directory, [own], {}, overrides)
    elif own.format in _LOADABLE:
        # A Trainer's output folder holds weights beside its checkpoints. A single checkpoint holds at most folders of
        # optimizer states.
        if not any(each.format in _LOADABLE or (each.path / CONFIG).exists() for each in checkpoints):
            return Candidates(directory, [own], {}, overrides)
        checkpoints.append(own)
    elif not checkpoints and own.format != "none":
        checkpoints.append(own)
    return Candidates(directory, checkpoints, ignored, overrides)


def _require_one_model(directory: Path) -> None:
    try:
        gguf_files(directory)
    except BadCheckpoint as error:
        if len(gguf_sets(directory)) > 1:  # other faults are stored as those of the checkpoint
            raise NoCheckpoints(f"{error}. A series of them needs names with steps, as step1000.gguf") from error


def _candidate(path: Path, name: str) -> Candidate:
    return Candidate(name, path, checkpoint_format(path), parse_name(name))


def _reason_to_ignore(candidate: Candidate) -> str | None:
    """Why an entry is no checkpoint; None if it is one, "" for an entry that is not worth a message."""
    name, path, kind = candidate.parsed, candidate.path, candidate.format
    if path.is_file():
        if kind == "gguf":
            return _reason_to_ignore_gguf(path, name)
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
    if kind == "none" and (run := run_at(path)):
        return run
    weights = "no weights" if kind == "none" else f"{kind} files"
    config = f", {CONFIG}" if (path / CONFIG).exists() else ""
    return f"{weights}{config} in it, and its name gives no step"


def _reason_to_ignore_gguf(path: Path, name: CheckpointName) -> str | None:
    """As `_reason_to_ignore`, for a GGUF file. Of a set of files the first stands for all."""
    split = gguf_split(path.name)
    if split is not None and split[1] > 1:
        return "" if path.name.replace(f"-{split[1]:05d}-of-", "-00001-of-") in gguf_sets(path.parent) else None
    if name.gives_position and not name.is_weak:
        return None
    return "a bare GGUF file, and its name gives no step; pass the file itself"


def _search_hub_cache(directory: Path, overrides: Overrides) -> Candidates:
    """The downloaded revisions of one model in a Hugging Face cache, by name, else by commit."""
    present, ignored = revisions(directory)
    checkpoints: list[Candidate] = []
    for revision in present:
        kind = checkpoint_format(revision.folder)
        # The digits of a commit say nothing, whatever they look like.
        parsed = CheckpointName() if revision.is_bare else parse_revision(revision.name)
        if kind == "none":
            ignored[revision.name] = "no weights of this revision are in the cache"
        else:
            checkpoints.append(Candidate(revision.name, revision.folder, kind, parsed, is_bare=revision.is_bare))
    return Candidates(directory, checkpoints, ignored, overrides)


def _folders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
