"""Turn what names checkpoints into folders on this disk: a path, a model's id, or a folder of a Hugging Face cache.

Nothing is downloaded: an id is looked up in the cache. `fetched_models` downloads one that is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoints.formats import SAFETENSORS_INDEX, checkpoint_format, weight_files
from workbench.heads import BadCheckpoint, NoCheckpoints, some_of
from workbench.hub.hub_errors import is_offline
from workbench.hub.local_cache import (
    Revision,
    cache_folder,
    cached_models,
    is_repository,
    model_id,
    repository_folder,
    revisions,
    with_name,
)
from workbench.hub.named_models import did_you_mean, resolve_model
from workbench.hub.references import HubReference, parse_reference

_OTHERS = ("datasets--", "spaces--")
_INDICES = (SAFETENSORS_INDEX, "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Located:
    """The folder of a checkpoint, and its name for users."""

    folder: Path
    name: str


def locate_series(reference: str | os.PathLike[str]) -> Path:
    """The folder of checkpoints that a path or a cached model's id names; an unknown name is returned as a path.

    `org/name` is the model's folder in the cache, with all its revisions; `org/name@revision` is one of them. So is the
    short name of a published model, as `smollm2`.

    Raises:
        NoCheckpoints: if the cache holds the model, but not the revision.
        WorkbenchError: for a published model that was not fetched.
    """
    named = resolve_model(reference)
    if isinstance(named, Path):
        is_inside = named.name == "snapshots" and is_repository(named.parent)
        return named.parent if is_inside else named
    cached = _cached(named)
    if cached is None:
        return Path(reference)
    repository, revision = cached
    return repository if revision is None else _revision(repository, revision, NoCheckpoints).folder


def locate_checkpoint(reference: str | os.PathLike[str] | HubReference) -> Located:
    """The folder of the checkpoint that a path or a cached model's id names. A HubReference is no path.

    Of a model's folder in a cache it is the revision `main`, else the only one. So for the short name of a published
    model, as `smollm2`.

    Raises:
        BadCheckpoint: if the cache does not hold the model or the revision, or several of which none is `main`.
        WorkbenchError: for a published model that was not fetched.
    """
    path = resolve_model(reference)
    if isinstance(path, HubReference):
        cached = _cached(path)
        if cached is None:
            raise BadCheckpoint(why_missing(reference))
        repository, revision = cached
        chosen = _main(repository) if revision is None else _revision(repository, revision, BadCheckpoint)
        return Located(chosen.folder, model_id(repository).rpartition("/")[2])
    repository = path.parent if path.name == "snapshots" else path
    if is_repository(repository):
        return Located(_main(repository).folder, model_id(repository).rpartition("/")[2])
    if models := cached_models(path):
        raise BadCheckpoint(f"{path}: is a Hugging Face cache with {_listed(list(models), 'model')}; pass one of them")
    if not path.exists():
        raise BadCheckpoint(why_missing(reference))
    return Located(path, path.name)


def cached_checkpoint(reference: HubReference) -> Path | None:
    """The whole checkpoint that the cache has of a reference; None if it lacks the model, the revision or a file."""
    folder = cached_files(reference)
    return folder if folder is not None and is_whole(folder) else None


def cached_files(reference: HubReference) -> Path | None:
    """The folder with what the cache has of a revision, `main` where none is named; None if it has nothing of it."""
    repository = repository_folder(reference.repo)
    if not is_repository(repository):
        return None
    folders = {revision.folder for revision in with_name(repository, reference.revision or "main")}
    return folders.pop() if len(folders) == 1 else None


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has weights, with every shard that its index names. A download may have been interrupted."""
    if checkpoint_format(folder) == "none":
        return False
    for index in (folder / name for name in _INDICES):
        if index.is_file() and index.name.startswith(_form(folder)):
            return all((folder / shard).exists() for shard in _shards(index))
    return all(file.exists() for file in weight_files(folder))


def unlisted_shards(folder: Path, names: Iterable[str]) -> str:
    """Which shards an index in a folder names that are not among the files of its revision, in words; "" if none."""
    there = set(names)
    for index in (folder / name for name in _INDICES if name in there):
        if missing := sorted(_shards(index) - there):
            return f"{index.name} names {some_of(missing)}, which the hub does not have"
    return ""


def _shards(index: Path) -> set[str]:
    """The files that an index names; none where it cannot be read, of which whoever opens it says what is wrong."""
    try:
        return set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def why_missing(reference: str | os.PathLike[str] | HubReference, noun: str = "folder") -> str:
    """Why a reference that is neither a path nor a cached model's id leads nowhere, and what to do."""
    text = str(reference)
    parsed = reference if isinstance(reference, HubReference) else parse_reference(reference)
    if text.rpartition("/")[2].startswith(_OTHERS):
        return f"{text}: is no model of a Hugging Face cache; pass a model's id, as org/name"
    near = did_you_mean(text)
    if parsed is None:
        return f"{text}: no such {noun}; {near or 'check the path'}"
    if near and "/" not in text:
        return f"{text}: no such {noun}; {near} A model of that name at a hub is hf://{text}"
    offline = " HF_HUB_OFFLINE is set, so that no hub is asked; unset it, or" if is_offline() else ""
    if "/" not in text:
        offline += f" pass hf://{text}, or" if noun == "directory" else ""
    return (
        f"{text}: no such {noun}, and no model of that name in the Hugging Face cache {cache_folder()}. Check the path;"
        f" if it is a model's id,{offline} download it: `{download_command(parsed)}`"
    )


def download_command(reference: HubReference) -> str:
    """The command that puts a model into the cache."""
    flag = "" if reference.revision is None else f" --revision {reference.revision}"
    return f"hf download {reference.repo}{flag}"


def _form(folder: Path) -> str:
    """How the index of the weights that are read begins."""
    if checkpoint_format(folder) == "bin":
        return "pytorch_model"
    return "none: one file" if (folder / "model.safetensors").exists() else "model"


def _cached(reference: HubReference) -> tuple[Path, str | None] | None:
    """The folder of a cached model, and the revision that the reference names; None for models not in the cache."""
    if reference.is_glob:
        return None
    repository = repository_folder(reference.repo)
    return (repository, reference.revision) if is_repository(repository) else None


def _main(repository: Path) -> Revision:
    present, _ = revisions(repository)
    main = [revision for revision in present if revision.name == "main"] or present
    if len(main) == 1:
        return main[0]
    repo = model_id(repository)
    if not present:
        raise BadCheckpoint(f"{repository}: holds no revision of {repo}; download it: `hf download {repo}`")
    raise BadCheckpoint(
        f"{repository}: holds {_listed([r.name for r in present], 'revision')} of {repo}, and none is main; pass one, "
        f"as {repo}@{present[0].name}, or its folder {present[0].folder}"
    )


def _revision(repository: Path, name: str, error: type[BadCheckpoint | NoCheckpoints]) -> Revision:
    """The revision of this name, or whose commit begins so.

    Raises:
        BadCheckpoint or NoCheckpoints: whichever is `error`, if there is none, or several commits begin so.
    """
    fitting = with_name(repository, name)
    if len({r.folder for r in fitting}) == 1:
        return fitting[0]
    present, _ = revisions(repository)
    repo = model_id(repository)
    there = _listed([r.name for r in present], "revision") if present else "no revision"
    raise error(
        f"{repo}@{name}: {'several commits begin so' if fitting else 'no such revision is in the cache'}; {repository} "
        f"holds {there}. Pass one of them, or download it: `hf download {repo} --revision {name}`"
    )


def _listed(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' * (len(names) > 1)} ({some_of(names)})"
