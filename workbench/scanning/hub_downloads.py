"""A scan of checkpoints at a hub: what it has on disk, and its tasks, which can be begun when their weights are here.

In the run's folder, `downloads/series` has the small files of every revision by commit: configurations and tokenizers,
by which a series is checked and probes are made. They stay. `downloads/weights` has the revisions that are being
scored, in a folder of each process; they are fetched one ahead and removed when they were scored.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.checkpoints import Checkpoint, Fingerprint, Series
from workbench.checkpoints.candidates import Candidates, RemoteCheckpoint
from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.digests import FINGERPRINTS, fingerprint_at_hub
from workbench.checkpoints.formats import HINTS, UNREAD
from workbench.checkpoints.hub_references import unlisted_shards
from workbench.checkpoints.series_sources import candidates_of
from workbench.console import is_watched, watched_bar
from workbench.files.atomic import advisory_lock, is_alive, refusals_named
from workbench.heads import BadCheckpoint, WorkbenchError, some_of
from workbench.hub.byte_sizes import bytes_in_words, parse_bytes
from workbench.hub.downloads import quiet_hub
from workbench.hub.fetch_ahead import Bound, Errand, FetchAhead, Fetched
from workbench.hub.held_files import HeldFiles, bytes_to_hold, free_bytes
from workbench.hub.kept_files import KeptFiles
from workbench.hub.repositories import remote_revisions
from workbench.hub.small_files import fetch_small_files, list_revisions, small_files
from workbench.hub.user_cache import cached_snapshot
from workbench.loading.pretrained import load_config
from workbench.loading.quiet_transformers import quiet
from workbench.scanning.engines import Channel, Task
from workbench.scanning.engines.tasks import environment
from workbench.scanning.job import Job
from workbench.scanning.progress import Event
from workbench.scanning.worker import CheckpointTask, ScanWorker

DOWNLOADS = "downloads"
# What stays free of a disk: this share of it, and no more than this.
_RESERVE_SHARE, _LARGEST_RESERVE = 0.05, 20 * 10**9
_COMMIT_DIGITS = 12
_XET_CACHE = "HF_XET_CHUNK_CACHE_SIZE_BYTES"


def find_candidates(job: Job, folder: Path | None = None) -> Candidates:
    """The checkpoints of a job, unordered. Of those at a hub the small files are fetched into `folder`, by commit.

    `folder` None: that of the run.

    Raises:
        NoCheckpoints, StoreNotWritable, and WorkbenchError for checkpoints that cannot be listed or read.
        HubError: if the hub cannot be asked, or hands out nothing of any revision.
    """
    with quiet_hub():
        candidates = candidates_of(job.source, job.revisions)
        remote = [each for each in candidates.checkpoints if each.remote is not None]
        if not remote:
            return candidates
        is_of_run = folder is None
        folder = job.out / DOWNLOADS / "series" if folder is None else folder
        name = f"small-files.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        staging = (job.out / ".tmp" if is_of_run else folder) / name
        revisions = {each.remote.revision: each.remote.files for each in remote if each.remote is not None}
        with refusals_named(folder), watched_bar("file") as show:
            errors = fetch_small_files(revisions, folder, staging=staging, show=show)
            if len(errors) < len(revisions):
                list_revisions(folder, revisions.keys())
    if len(errors) == len(revisions):
        raise next(iter(errors.values()))
    at_hub = {each.name: folder / each.remote.revision.commit for each in remote if each.remote is not None}
    checkpoints = [replace(c, path=at_hub[c.name]) if c.name in at_hub else c for c in candidates.checkpoints]
    return replace(candidates, checkpoints=checkpoints)


def moved_since(records: Sequence[Mapping[str, object]], series: Series) -> list[str]:
    """Sentences on the revisions that stood for other commits at the last scan; `records`: of that."""
    before = {str(record["name"]): str(record["commit"]) for record in records if record.get("commit")}
    now = {name: remote.revision.commit for name, remote in series.remote.items()}
    moved = [name for name, commit in now.items() if before.get(name, commit) != commit]
    return [] if not moved else [f"{_moves(moved, before, now)} since the last scan: what they are now is scored"]


def moved_meanwhile(job: Job, series: Series) -> list[str]:
    """Sentences on the revisions that moved at the hub while they were scanned. If it cannot be asked, none."""
    commits = {name: remote.revision.commit for name, remote in series.remote.items()}
    if not commits:
        return []
    try:
        with quiet_hub():
            listed = remote_revisions(job.references, job.revisions).chosen
    except WorkbenchError:
        return []
    at = {(revision.repo, revision.name): revision.commit for revision in listed}
    now = {name: at.get((r.revision.repo, r.revision.name)) for name, r in series.remote.items()}
    moved = [name for name, commit in now.items() if commit not in (None, commits[name])]
    gone = [name for name, commit in now.items() if commit is None]
    remarks: list[str] = []
    if moved:
        remarks.append(
            f"{_moves(moved, commits, {name: str(commit) for name, commit in now.items()})} while they were scanned: "
            "the scores are of what they were before; the same command scores what they are now"
        )
    if gone:
        remarks.append(f"{some_of(gone)}: no longer at the hub; the scores stay")
    return remarks


def _moves(names: Sequence[str], before: Mapping[str, str], now: Mapping[str, str]) -> str:
    first = names[0]
    commits = f"from commit {before[first][:_COMMIT_DIGITS]} to {now[first][:_COMMIT_DIGITS]}"
    return f"{some_of(names)} moved at the hub ({first} {commits})"


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What a scan fetches. In bytes: `to_fetch` in all, `small` of configurations and tokenizers that stay.

    `missing` are the checkpoints to fetch, by name; `cached` those that the user's cache has whole.
    """

    missing: tuple[str, ...]
    cached: tuple[str, ...]
    to_fetch: int
    small: int
    most_on_disk: int


def plan_downloads(job: Job, series: Series, names: Sequence[str], *, workers: int) -> DownloadPlan:
    """What a scan of these checkpoints would fetch, and how much of it would lie on disk at a time.

    Raises:
        WorkbenchError: if it is to be kept and does not fit on the disk, or the small files alone do not.
    """
    remote = {name: series.remote[name] for name in names if name in series.remote}
    cached = tuple(name for name, each in remote.items() if _cached(each) is not None)
    missing = {name: each for name, each in remote.items() if name not in cached}
    small = sum({f.blob: f.size for each in series.remote.values() for f in small_files(each.files)}.values())
    blobs = {file.blob: file.size for each in missing.values() for file in each.files if file.is_weights}
    sizes = sorted((bytes_to_hold(each.files) for each in missing.values()), reverse=True)
    total = sum(blobs.values())
    disk = None if job.disk is None else parse_bytes(job.disk)
    if job.keep_downloads:
        at_once, free = total, free_bytes(job.out)
        room = free - reserve(job.out) if disk is None else disk
        if missing and total > room:
            limit = f"{bytes_in_words(free)} are free" if disk is None else f"--disk allows {bytes_in_words(disk)}"
            raise WorkbenchError(
                f"the {len(missing)} checkpoints to fetch take {bytes_in_words(total)}, and {limit}; leave "
                "--keep-downloads out, so that each is removed when it was scored, or make room"
            )
    else:
        at_once = sum(sizes[: workers + 1])
    if disk is not None and missing and small >= disk:
        raise WorkbenchError(
            f"configurations and tokenizers alone take {bytes_in_words(small)}, and --disk allows "
            f"{bytes_in_words(disk)}; raise it"
        )
    most = at_once + small
    return DownloadPlan(tuple(missing), cached, total, small, most if disk is None else min(most, disk))


def reserve(folder: Path) -> int:
    """The bytes of a disk that a scan leaves free."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return min(int(_RESERVE_SHARE * shutil.disk_usage(there).total), _LARGEST_RESERVE)


class HubTasks:
    """The tasks of a scan of a hub: a `Supply` that hands one out when its weights are here, or need not be."""

    def __init__(self, ready: Sequence[Task], waiting: Mapping[str, CheckpointTask], ahead: FetchAhead) -> None:
        self._ready, self._waiting, self._ahead = deque(ready), waiting, ahead
        self._channel: Channel | None = None

    def report_to(self, channel: Channel) -> None:
        """Send what is being waited for as events."""
        self._channel = channel

    def take(self) -> Task | None:
        """See `Supply`. Raises StoreNotWritable if the disk is full or refuses."""
        if (fetched := self._ahead.take()) is not None:
            return Task(fetched.name, _begun(self._waiting[fetched.name], fetched))
        return self._ready.popleft() if self._ready else None

    def remaining(self) -> int:
        """See `Supply`."""
        return len(self._ready) + self._ahead.remaining()

    def wait(self, seconds: float) -> None:
        """See `Supply`."""
        if self._channel is not None and (now := self._ahead.fetching()) is not None:
            share = f", {now.n_bytes / now.of:.0%}" if is_watched() and now.of else ""
            self._channel.send(Event(now.name, f"download of {bytes_in_words(now.of)}{share}"))
        self._ahead.wait(seconds)

    def release(self, name: str) -> None:
        """Remove the weights of a checkpoint that was processed; after an interrupt they are left for the next scan."""
        if self._channel is None or not self._channel.should_stop():
            self._ahead.release(name)


def _begun(task: CheckpointTask, fetched: Fetched) -> CheckpointTask:
    if fetched.folder is None:
        return replace(task, unfetched=fetched.error)
    return replace(task, checkpoint=replace(task.checkpoint, path=fetched.folder))


@contextmanager
def hub_tasks(
    job: Job, series: Series, tasks: Sequence[CheckpointTask], *, worker: ScanWorker, workers: int
) -> Generator[HubTasks]:
    """Inside the block, the checkpoints of `tasks` that have units to do are fetched, as they are taken.

    Raises:
        WorkbenchError: if what is to be kept does not fit on the disk.
        RunLocked: if another process fetches for the same part of this scan.
    """
    cache, refusals = job.out / FINGERPRINTS, _Refusals(job, worker)
    ready: list[Task] = []
    waiting: dict[str, CheckpointTask] = {}
    for task in tasks:
        remote = series.remote.get(task.checkpoint.name)
        known = None if remote is None else _known(task.checkpoint, remote, cache)
        refusal = None if remote is None or task.mismatch else refusals.of(task.checkpoint, remote)
        if refusal is not None:
            ready.append(Task(task.checkpoint.name, replace(task, unfetched=refusal)))
        elif remote is None or task.mismatch is not None or (known and worker.is_done(task.checkpoint, known)):
            ready.append(Task(task.checkpoint.name, replace(task, known=known)))
        else:
            waiting[task.checkpoint.name] = replace(task, known=known, blobs=remote.blobs_by_name)
    plan = plan_downloads(job, series, list(waiting), workers=workers)
    n_bytes = None if job.disk is None or job.keep_downloads else parse_bytes(job.disk) - plan.small
    bound = Bound(n_bytes, workers + 1, reserve(job.out))
    # Xet, by which hubs store large files, has a cache of pieces outside this folder, of up to 10 GB.
    without_pieces = {_XET_CACHE: os.environ.get(_XET_CACHE, "0")}
    with _own_folder(job) as own, quiet_hub(), environment(without_pieces):
        holder = KeptFiles(own) if job.keep_downloads else HeldFiles(own)
        errands = [_errand(series.remote[name], task.checkpoint) for name, task in waiting.items()]
        holder.remove_all_but({each.revision.commit for each in errands})
        held = set() if isinstance(holder, KeptFiles) else set(holder.held)
        errands.sort(key=lambda each: each.revision.commit not in held)  # what is here already comes first
        with FetchAhead(errands, holder, bound) as ahead:
            yield HubTasks(ready, waiting, ahead)
        if ahead.is_over():
            holder.remove_all_but(())
        holder.close()


class _Refusals:
    """Why checkpoints cannot be scored, as far as it is known without their weights, which are then not fetched."""

    def __init__(self, job: Job, worker: ScanWorker) -> None:
        self._job, self._worker = job, worker
        self._of_configs: dict[bytes, str | None] = {}

    def of(self, checkpoint: Checkpoint, remote: RemoteCheckpoint) -> BadCheckpoint | None:
        """Why one is refused; None if its weights are to be fetched."""
        kind = checkpoint.format
        if kind in UNREAD or (kind != "safetensors" and not self._job.allow_pickle):
            return BadCheckpoint(
                f"{remote.revision}: its weights are {kind} files, which are not read and were not fetched; "
                f"{HINTS[kind]}"
            )
        if lack := unlisted_shards(checkpoint.path, [file.name for file in remote.files]):
            return BadCheckpoint(f"{remote.revision}: {lack}; its weights were not fetched")
        try:
            config = (checkpoint.path / CONFIG).read_bytes()
        except OSError:  # why it is not here is said when it is fetched again
            return None
        if config not in self._of_configs:
            self._of_configs[config] = self._fault(checkpoint)
        fault = self._of_configs[config]
        return None if fault is None else BadCheckpoint(f"{fault}; its weights were not fetched")

    def _fault(self, checkpoint: Checkpoint) -> str | None:
        try:
            with quiet():
                load_config(checkpoint.path)
            self._worker.units.probes(checkpoint.path)
        except BadCheckpoint as error:
            return str(error)
        return None


def _errand(remote: RemoteCheckpoint, checkpoint: Checkpoint) -> Errand:
    return Errand(checkpoint.name, remote.revision, remote.files, checkpoint.path)


def _known(checkpoint: Checkpoint, remote: RemoteCheckpoint, cache: Path) -> Fingerprint | None:
    try:
        return fingerprint_at_hub(checkpoint.path, remote.blobs_by_name, cache)
    except BadCheckpoint:  # no configuration: why it was not fetched is said when it is tried again
        return None


def _cached(remote: RemoteCheckpoint) -> Path | None:
    return cached_snapshot(remote.revision.repo, remote.revision.commit, remote.files)


@contextmanager
def _own_folder(job: Job) -> Generator[Path]:
    """The folder in which this process alone puts weights; those of dead processes are emptied."""
    weights = job.out / DOWNLOADS / "weights"
    own = weights / _own_name(job)
    _empty_dead(weights)
    with refusals_named(own):
        own.mkdir(parents=True, exist_ok=True)
    lock = weights / f"{own.name}.lock"
    with advisory_lock(lock, is_shared=False):
        yield own
    lock.unlink(missing_ok=True)
    for folder in (weights, weights.parent):
        with _if_empty():
            folder.rmdir()


@contextmanager
def _if_empty() -> Generator[None]:
    try:
        yield
    except OSError:
        return


def _own_name(job: Job) -> str:
    if job.shard is not None:
        i, n = job.shard_of
        return f"shard-{i}-of-{n}"
    return f"join-{socket.gethostname()}-{os.getpid()}" if job.join else "scan"


def _empty_dead(weights: Path) -> None:
    """Remove what scans with --join of this machine left when they were killed."""
    pattern = re.compile(rf"join-{re.escape(socket.gethostname())}-(\d+)")
    for folder in weights.glob("join-*"):
        match = pattern.fullmatch(folder.name)
        if match is not None and not is_alive(int(match[1])):
            holder = HeldFiles(folder)
            holder.remove_all_but(())
            holder.close()
            (weights / f"{folder.name}.lock").unlink(missing_ok=True)
