"""Fetch one model from a hub into the user's Hugging Face cache, after saying what it costs.

Whatever can be refused is refused before the weights are fetched: a form that is not read, and by the configuration, a
model that cannot be recorded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.formats import HINTS, UNREAD, Format, checkpoint_format
from workbench.checkpoints.hub_candidates import format_of
from workbench.checkpoints.hub_references import (
    Located,
    cached_checkpoint,
    cached_files,
    locate_checkpoint,
    unlisted_shards,
)
from workbench.console import showing_phases, warn
from workbench.heads import BadCheckpoint, StoreNotWritable, some_of
from workbench.hub.byte_sizes import bytes_in_words
from workbench.hub.downloads import Watch, download, quiet_hub
from workbench.hub.file_choice import RemoteFile, needed_files
from workbench.hub.hub_errors import BadReference, NotAtHub, Unreachable, endpoint, is_offline
from workbench.hub.local_cache import cache_folder, repository_folder
from workbench.hub.named_models import did_you_mean, resolve_model
from workbench.hub.references import HubReference
from workbench.hub.repositories import RemoteRevision, remote_files, remote_revisions
from workbench.hub.small_files import small_files
from workbench.hub.user_cache import cached_snapshot

_MB = 1_000_000
Check = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Download:
    """What has to be fetched for a model: its revision, the files it is read from, and how much of them is missing."""

    revision: RemoteRevision
    files: tuple[RemoteFile, ...]
    n_bytes: int
    remarks: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """One sentence for the user."""
        n, size, of = len(self.files), bytes_in_words(self.n_bytes), endpoint()
        return f"{self.revision}: fetching {size} ({n} file{'s' * (n > 1)}) from {of} into {cache_folder()}"


def obtain_checkpoint(
    reference: str | os.PathLike[str] | HubReference,
    *,
    allow_pickle: bool = False,
    check: Check | None = None,
    watch: Watch | None = None,
) -> Located:
    """The folder of the checkpoint that a path or a model's id names; one that is not on this disk is fetched first.

    A model that is whole in the cache is taken as it is there, and no hub is asked. What is fetched is said on stderr.

    Args:
        check: is handed the folder with the configuration before the weights are fetched, and may refuse it.

    Raises:
        HubError: if the hub cannot be reached, has no such model or revision, or does not show it.
        BadCheckpoint: if the model has no weights in a form that is read, or as `locate_checkpoint`.
        StoreNotWritable: if the cache has no room.
        DownloadStopped: if `watch` asks for it.
    """
    parsed = resolve_model(reference)
    if isinstance(parsed, Path) or is_offline() or _is_cached(parsed, allow_pickle=allow_pickle):
        return locate_checkpoint(reference)
    try:
        planned = plan_download(parsed, allow_pickle=allow_pickle)
    except Unreachable as error:
        return _cached_after_all(parsed, error)
    except NotAtHub as error:
        near = did_you_mean(str(reference))
        first = f"{reference}: no such folder; {near} " if near else ""
        raise NotAtHub(f"{first}{error}. On this disk, there is no folder {reference} either") from error
    for remark in planned.remarks:
        warn(remark)
    folder = fetch(planned, check=check, watch=watch)
    return Located(folder, planned.revision.repo.rpartition("/")[2])


def _is_cached(reference: HubReference, *, allow_pickle: bool) -> bool:
    """Whether the cache has the whole model in a form that is read; the hub may have safetensors beside a pickle."""
    folder = cached_checkpoint(reference)
    return folder is not None and (allow_pickle or checkpoint_format(folder) == "safetensors")


def obtain_small_files(reference: HubReference) -> Path:
    """The folder in the cache with the configuration and the tokenizer of a model; what is missing is fetched.

    Raises:
        HubError: if the hub cannot be reached, has no such model or revision, or does not show it.
    """
    (revision,) = remote_revisions(reference).chosen
    files = small_files(needed_files(remote_files(revision.repo, revision.commit)))
    with quiet_hub():
        return download(revision, files)


def obtain_configuration(reference: str | os.PathLike[str]) -> Path:
    """The folder with the config.json of the model that a path or an id names; of an id, it is fetched if missing.

    Raises:
        HubError: as `obtain_small_files`.
    """
    parsed = resolve_model(reference)
    if isinstance(parsed, Path) or parsed.is_glob:
        return Path(str(parsed))
    folder = cached_files(parsed)
    if folder is not None and (folder / CONFIG).exists():
        return folder
    return Path(reference) if is_offline() else obtain_small_files(parsed)


def plan_download(reference: HubReference, *, allow_pickle: bool = False) -> Download:
    """What has to be fetched for a model. No file is.

    Raises:
        HubError, BadCheckpoint: as `obtain_checkpoint`.
    """
    if reference.is_glob:
        raise BadReference(f"{reference}: names several models; pass one of them. `workbench series` lists them")
    listed = remote_revisions(reference)
    (revision,) = listed.chosen
    every = remote_files(revision.repo, revision.commit)
    files = needed_files(every)
    _refuse(revision, every, format_of(files), allow_pickle=allow_pickle)
    blobs = repository_folder(revision.repo) / "blobs"
    missing = {file.blob: file.size for file in files if not (blobs / file.blob).exists()}
    remarks = [remark for remark in listed.remarks if " is called " in remark]
    return Download(revision, files, sum(missing.values()), tuple(remarks))


def fetch(planned: Download, *, check: Check | None = None, watch: Watch | None = None) -> Path:
    """Fetch what was planned into the cache, with its progress on stderr, and return the folder.

    Raises:
        HubError, StoreNotWritable, DownloadStopped: as `obtain_checkpoint`.
    """
    revision, files = planned.revision, planned.files
    if cached_snapshot(revision.repo, revision.commit, files) is not None:
        return download(revision, (), watch=watch)  # its name may be new to the cache
    _require_room(planned)
    warn(planned.in_words)
    outer, n_bytes = watch or Watch(), 0
    with showing_phases() as show, quiet_hub():

        def count(n: int) -> None:
            nonlocal n_bytes
            n_bytes += n
            show(str(revision), "MB", n_bytes // _MB, max(planned.n_bytes // _MB, 1))
            outer.on_bytes(n)

        counting = Watch(count, outer.should_stop)
        folder = download(revision, small_files(files), watch=counting)
        if fault := unlisted_shards(folder, [file.name for file in files]):
            raise BadCheckpoint(f"{revision}: {fault}; its weights were not fetched. Pass another revision")
        if check is not None:
            check(folder)
        return download(revision, files, watch=counting)


def _refuse(revision: RemoteRevision, files: tuple[RemoteFile, ...], kind: Format, *, allow_pickle: bool) -> None:
    """Refuse a model whose weights are not read, before they are fetched."""
    if kind == "none":
        there = some_of([file.name for file in files]) or "no files"
        raise BadCheckpoint(f"{revision}: has no weights at {endpoint()}, there are {there}; pass another revision")
    if kind == "gguf":
        names = [file.name for file in files if file.name.endswith(".gguf")]
        raise BadCheckpoint(
            f"{revision}: has GGUF weights alone ({some_of(names)}); nothing was fetched. Download one of them, "
            f"`hf download {revision.repo} {names[0]} --local-dir DIR`, and pass DIR"
        )
    if kind in UNREAD:
        raise BadCheckpoint(f"{revision}: has {kind} weights alone, which are not read; {HINTS[kind]}")
    if kind != "safetensors" and not allow_pickle:
        raise BadCheckpoint(
            f"{revision}: has no safetensors, and {kind} weights are pickle files and not read; nothing was fetched. "
            f"{HINTS[kind][0].upper()}{HINTS[kind][1:]}"
        )


def _require_room(planned: Download) -> None:
    cache = cache_folder()
    there = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    if free < planned.n_bytes:
        raise StoreNotWritable(
            f"{planned.revision}: {bytes_in_words(planned.n_bytes)} to fetch, and {cache} has {bytes_in_words(free)} "
            "free; make room, or set HF_HUB_CACHE to a larger disk"
        )


def _cached_after_all(reference: HubReference, error: Unreachable) -> Located:
    """What the cache has of a model whose hub cannot be reached."""
    if reference.is_glob:
        raise error
    try:
        located = locate_checkpoint(reference)
    except BadCheckpoint as missing:
        is_near = did_you_mean(str(reference))
        raise Unreachable(f"{missing}. {error}" if is_near else f"{error}; {missing}") from error
    warn(f"{error}. {located.folder} in the Hugging Face cache is taken")
    return located
