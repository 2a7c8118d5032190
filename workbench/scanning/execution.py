"""Run a job: plan its units, give its checkpoints to an engine, store the failures that the engine reports."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.checkpoints import Checkpoint, Series
from workbench.detectors import find_detectors
from workbench.heads import WorkbenchError
from workbench.probes import Probe
from workbench.runs import Run, open_run
from workbench.scanning.dry_run import find_series, find_words, planned_units, remarks_on, shard_of, size_of
from workbench.scanning.engines import Channel, Engine, Outcome, Task, Tasks, run_inline, run_local, run_ray
from workbench.scanning.hub_downloads import find_candidates, hub_tasks, moved_meanwhile, moved_since
from workbench.scanning.interrupts import Interrupts
from workbench.scanning.job import Job, make_job
from workbench.scanning.machine import n_workers, on_cuda, worker_environments
from workbench.scanning.progress import OnProgress, ProgressCounter, default_progress
from workbench.scanning.same_series import require_same_series, shapes_with_run
from workbench.scanning.worker import CheckpointTask, ScanWorker, Setup, open_worker
from workbench.store import Failure, Store

WORKER_DIED = "worker_died"


def scan(  # noqa: PLR0913, PLR0917  # public keywords
    checkpoint_dir: str | Path | Sequence[str] | Job,
    out: str | Path | None = None,
    detectors: Iterable[str] | None = None,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    engine: str = "inline",
    workers: int | None = None,
    *,
    on_progress: OnProgress | None = None,
    **job: Any,
) -> Run:
    """Score every checkpoint of a directory and return the run. Call it again to resume.

    A checkpoint that must not be scored becomes a stored failure, and the scan continues.

    Args:
        checkpoint_dir: a directory, the id of a model at a hub or several ids, or a whole `Job` instead of all that
            follows.
        probes: written probes (`"repeats:n=64"`) or Probe objects; default `probes.default` of each model.
        engine: `inline` runs in this process, `local` in worker processes, `ray` on a cluster: the same rows.
        on_progress: called after every change; None: a progress bar on a terminal or in a notebook.
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
    fields |= {"made_in_python": tuple(map(_label, ready)), "engine": engine, "workers": workers, **job}
    return run_job(make_job({k: v for k, v in fields.items() if v is not None}), ready=ready, on_progress=on_progress)


def run_job(job: Job, *, ready: Sequence[Probe] = (), on_progress: OnProgress | None = None) -> Run:
    """Run a job. `ready`: the probes that it lists as made in Python; `on_progress` as in `scan`.

    Raises:
        NoCheckpoints, StoreNotWritable, StoreTooNew, RunLocked, and WorkbenchError for a job that cannot be run.
    """
    if job.made_in_python != tuple(map(_label, ready)):
        raise WorkbenchError(
            f"the job has probes that were made in Python, {list(job.made_in_python)}, and given were "
            f"{list(map(_label, ready))}; make them again and pass them to wb.scan(probes=...)"
        )
    if on_progress is not None:
        return _run(job, ready, on_progress)
    with default_progress() as show:
        return _run(job, ready, show)


def _run(job: Job, ready: Sequence[Probe], on_progress: OnProgress) -> Run:
    # A worker on another machine has another working directory.
    job = job.absolute()
    candidates = find_candidates(job)
    require_same_series(job, candidates)
    modules = tuple(sorted({d.function.__module__ for d in find_detectors(job.detectors)} - {"__main__"}))
    series = find_series(job, candidates)
    words = find_words(job, ready, series)
    setup = Setup(job, tuple(ready), job.detectors, modules, words)
    worker = open_worker(setup)
    checkpoints = series.on_disk
    selected = shard_of(job, checkpoints)
    versions = {name: version(name) for name in ("attention-workbench", "torch", "transformers")}
    store = Store.create(job.out, job=job.kept(), versions=versions)
    is_one_of_several = job.join or job.shard is not None
    with store.locked(is_shared=is_one_of_several), Interrupts() as interrupts:
        architectures = shapes_with_run(store, job, series)
        planned = planned_units(worker.units, checkpoints)
        store.sweep()
        store.renew()
        store.write_architectures(architectures)
        store.write_job(job.to_toml())
        moved = moved_since(store.checkpoints(), series)
        store.write_checkpoints(series.records())
        remarks = [*remarks_on(series), *moved, *worker.units.remarks()]
        plan = {"checkpoints": [c.name for c in checkpoints], "units": planned, "remarks": remarks}
        plan |= {"tokenizer": None if words.tokenizer is None else str(words.tokenizer)}
        store.write_plan(plan)
        written = worker.units.written([c.path for c in checkpoints])
        store.write_request(planned, written, checkpoints=job.checkpoints)
        store.begin_timing()
        workers = n_workers(job, [size_of(c, series) for c in selected])
        tasks = _tasks(selected, series, given_up=set() if job.retry else _given_up(store), n_ahead=workers)
        counter = ProgressCounter(len(planned), len(selected), on_progress)
        channel = Channel(counter.add, lambda: interrupts.is_noted)
        engine = _engine(job, workers, worker)
        with _supply(job, series, tasks, worker=worker, workers=workers, channel=channel) as (supply, release):
            for outcome in engine(partial(open_worker, setup), supply, channel):
                release(outcome.task.name)
                if not outcome.is_done:
                    _give_up(store, outcome)
                counter.end_checkpoint(outcome.task.name)
        interrupts.check()
        if moved := moved_meanwhile(job, series):
            store.write_plan({**plan, "remarks": [*remarks, *moved]})
    return open_run(job.out)


@contextmanager
def _supply(
    job: Job, series: Series, tasks: Sequence[CheckpointTask], *, worker: ScanWorker, workers: int, channel: Channel
) -> Generator[tuple[Tasks, Callable[[str], None]]]:
    """The tasks as an engine takes them, and what to call with the name of each that has ended."""
    if not series.remote:
        yield [Task(task.checkpoint.name, task) for task in tasks], lambda _: None
        return
    with hub_tasks(job, series, tasks, worker=worker, workers=workers) as supply:
        supply.report_to(channel)
        yield supply, supply.release


def _tasks(selected: Sequence[Checkpoint], series: Series, *, given_up: set[str], n_ahead: int) -> list[CheckpointTask]:
    """One task per checkpoint. Each names the checkpoint whose weights are read ahead, `n_ahead` places later."""
    mismatches = {change.checkpoint: str(change) for change in series.config_changes if change.is_fatal}
    remaining = [c for c in selected if c.name not in given_up]
    upcoming = [None if c.name in series.remote else c.path for c in remaining[n_ahead:]]
    upcoming += [None] * (len(remaining) - len(upcoming))
    return [CheckpointTask(c, mismatches.get(c.name), ahead) for c, ahead in zip(remaining, upcoming, strict=True)]


def _given_up(store: Store) -> set[str]:
    """Checkpoints on which every worker died."""
    return {f.ckpt for f in store.failures() if f.kind == WORKER_DIED and f.unit is None}


def _give_up(store: Store, outcome: Outcome) -> None:
    ckpt = outcome.task.name
    message = (
        f"{outcome.deaths} worker processes in a row died of it, killed or out of memory; it is tried again only with "
        "--retry"
    )
    store.fail(Failure(ckpt, None, WORKER_DIED, message, "", attempts=outcome.deaths))
    store.log(event="given up", ckpt=ckpt, deaths=outcome.deaths)


def _engine(job: Job, workers: int, inline_worker: ScanWorker) -> Engine:
    if job.engine == "inline":
        return partial(run_inline, worker=inline_worker)
    if job.engine == "local":
        return partial(run_local, environments=worker_environments(job, workers))
    return partial(run_ray, address=job.address, workers=job.workers, gpus_per_task=float(on_cuda(job)))


def _label(probe: Probe) -> str:
    return f"{probe.name}:{probe.digest}"
