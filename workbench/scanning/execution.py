"""Run a job: plan it, hand its checkpoints to an engine, keep account of what comes back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from workbench.checkpoints import Checkpoint, Series, find_checkpoints
from workbench.checkpoints.formats import weight_files
from workbench.detectors import find_detectors
from workbench.heads import WorkbenchError
from workbench.probes import Probe
from workbench.runs import Run, open_run
from workbench.scanning.engines import Engine, Outcome, Task, run_inline, run_local, run_ray
from workbench.scanning.interrupts import Interrupts
from workbench.scanning.job import Job, make_job
from workbench.scanning.memory import available_memory
from workbench.scanning.outlook import planned_units, shard_of
from workbench.scanning.progress import Counts, OnProgress
from workbench.scanning.worker import CheckpointTask, ScanWorker, Setup, open_worker
from workbench.store import Failure, Store

WORKER_DIED = "worker_died"
# A model on the CPU is float32, twice the bytes of most files, and its activations come on top.
_MEMORY_PER_FILE_BYTE = 3


def scan(
    checkpoint_dir: str | Path | Job,
    out: str | Path | None = None,
    detectors: Iterable[str] | None = None,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    engine: str = "inline",
    workers: int | None = None,
    *,
    on_progress: OnProgress | None = None,
    **job: Any,
) -> Run:
    """Score every checkpoint of a directory and return the run; run again to resume.

    A checkpoint that must not be scored becomes a stored failure, and the scan goes on.

    Args:
        checkpoint_dir: a directory, or a whole `Job` instead of all that follows.
        probes: written probes (`"repeats:n=64"`) or Probe objects; default `probes.default` of each model.
        engine: `inline` runs in this process, `local` in worker processes, `ray` on a cluster: the same rows.
        job: further fields of `Job`: rows, far_window, far_sink, seed, device, dtype, shard, retry, ...

    Raises:
        NoCheckpoints, StoreNotWritable, StoreTooNew, RunLocked, and WorkbenchError for a bad job.
    """
    if isinstance(checkpoint_dir, Job):
        return run_job(checkpoint_dir, on_progress=on_progress)
    listed = [probes] if isinstance(probes, str | Probe) else None if probes is None else list(probes)
    ready = [p for p in listed or [] if isinstance(p, Probe)]
    written = None if listed is None else tuple(p for p in listed if isinstance(p, str))
    names = (detectors,) if isinstance(detectors, str) else None if detectors is None else tuple(detectors)
    fields = {"checkpoints": checkpoint_dir, "out": out, "detectors": names, "probes": written}
    fields |= {"made_in_python": tuple(map(_mark, ready)), "engine": engine, "workers": workers, **job}
    return run_job(make_job({k: v for k, v in fields.items() if v is not None}), ready=ready, on_progress=on_progress)


def run_job(job: Job, *, ready: Sequence[Probe] = (), on_progress: OnProgress | None = None) -> Run:
    """Run a job; `ready` are the probes that it says were made in Python.

    Raises:
        NoCheckpoints, StoreNotWritable, StoreTooNew, RunLocked, and WorkbenchError for a job that cannot be run.
    """
    if job.made_in_python != tuple(map(_mark, ready)):
        raise WorkbenchError(
            f"the job has probes that were made in Python, {list(job.made_in_python)}, and given were "
            f"{list(map(_mark, ready))}; make them again and pass them to wb.scan(probes=...)"
        )
    # A worker elsewhere has another working directory.
    job = job.model_copy(update={"checkpoints": job.checkpoints.absolute(), "out": job.out.absolute()})
    chosen = find_detectors(job.detectors)
    modules = tuple(sorted({d.function.__module__ for d in chosen} - {"__main__"}))
    worker = open_worker(Setup(job, tuple(ready), job.detectors, modules))
    series = find_checkpoints(job.checkpoints)
    every = [c for c in series.checkpoints if c.alias_of is None]
    mine = shard_of(job, every)
    versions = {name: version(name) for name in ("attention-workbench", "torch", "transformers")}
    store = Store.create(job.out, job=job.kept(), versions=versions)
    is_one_of_several = job.join or job.shard is not None
    with store.locked(is_shared=is_one_of_several), Interrupts() as interrupts:
        planned = planned_units(worker.units, every)
        store.sweep()
        store.write_job(job.to_toml())
        store.write_checkpoints(series.records())
        store.write_plan({"checkpoints": [c.name for c in every], "units": planned})
        store.begin_timing()
        opener = partial(open_worker, Setup(job, tuple(ready), job.detectors, modules))
        tasks = _tasks(mine, series, given_up=set() if job.retry else _given_up(store), ahead=_workers(job, mine))
        counts = Counts(len(planned), len(mine), on_progress)
        for outcome in _engine(job, mine, worker)(
            opener, tasks, tell=counts.hear, should_stop=lambda: interrupts.is_noted
        ):
            if not outcome.is_done:
                _give_up(store, outcome)
            counts.end(outcome.task.name)
        interrupts.check()
    return open_run(job.out)


def _tasks(mine: Sequence[Checkpoint], series: Series, *, given_up: set[str], ahead: int) -> list[Task]:
    """A task per checkpoint; each names the one whose weights are to be read ahead while it runs."""
    unlike = {change.checkpoint: str(change) for change in series.config_changes if change.is_fatal}
    left = [c for c in mine if c.name not in given_up]
    upcoming = [c.path for c in left[ahead:]]
    return [
        Task(c.name, CheckpointTask(c, unlike.get(c.name), upcoming[i] if i < len(upcoming) else None))
        for i, c in enumerate(left)
    ]


def _given_up(store: Store) -> set[str]:
    """Checkpoints that every worker died of."""
    return {f.ckpt for f in store.failures() if f.kind == WORKER_DIED and f.unit is None}


def _give_up(store: Store, outcome: Outcome) -> None:
    ckpt = outcome.task.name
    message = (
        f"{outcome.deaths} worker processes in a row died of it, killed or out of memory; it is tried again only with "
        "--retry"
    )
    store.fail(Failure(ckpt, None, WORKER_DIED, message, "", attempts=outcome.deaths))
    store.log(event="given up", ckpt=ckpt, deaths=outcome.deaths)


def _engine(job: Job, checkpoints: Sequence[Checkpoint], inline: ScanWorker) -> Engine:
    """The engine of a job; the worker of this process is open already and serves where no other is needed."""
    if job.engine == "inline":
        return partial(run_inline, opened=inline)
    if job.engine == "local":
        return partial(run_local, environments=_environments(job, _workers(job, checkpoints)))
    return partial(run_ray, address=job.address, workers=job.workers, gpus_per_task=float(_on_cuda(job)))


def _workers(job: Job, checkpoints: Sequence[Checkpoint]) -> int:
    """How many checkpoints at a time: as asked, or what GPUs, cores and memory are good for."""
    if job.engine == "inline":
        return 1
    if job.workers is not None:
        return job.workers
    if job.engine == "local" and _on_cuda(job):
        return len(_gpus())
    largest = max((_size(c) for c in checkpoints), default=0)
    fits = available_memory() // max(1, _MEMORY_PER_FILE_BYTE * largest)
    return max(1, min(_cores(), fits, len(checkpoints)))


def _environments(job: Job, workers: int) -> list[dict[str, str]]:
    """What each worker process sees: its share of the threads, and one GPU in turn unless one is named."""
    share = os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // workers)))
    gpus = _gpus() if _on_cuda(job) and job.device in (None, "cuda") else []
    return [
        {"OMP_NUM_THREADS": share} | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})
        for i in range(workers)
    ]


def _on_cuda(job: Job) -> bool:
    return torch.cuda.is_available() if job.device is None else job.device.startswith("cuda")


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(checkpoint: Checkpoint) -> int:
    return sum(file.stat().st_size for file in weight_files(checkpoint.path) if file.exists())


def _mark(probe: Probe) -> str:
    return f"{probe.name}:{probe.digest}"
