"""Series, scans, and how far a scan is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import Json, RunFolder
from workbench.console import STDERR, duration, say_json, say_table, showing_progress, warn
from workbench.heads import WorkbenchError

_WATCH_S = 2.0
_SLOWEST = 3


def series(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory of checkpoints.")],
    as_json: Json = False,
) -> None:
    """Show the checkpoints of a directory in training order, and how their steps and tokens are known."""
    from workbench.checkpoints import find_checkpoints

    found = find_checkpoints(directory)
    records = found.records()
    if as_json:
        say_json({"checkpoints": records, "ignored": found.ignored})
        return
    columns = (
        *("name", "stage", "branch", "step", "step_total", "tokens", "tokens_source"),
        *("lr", "format", "alias_of"),
    )
    say_table(columns, [[r.get(c) for c in columns] for r in records])
    for name, reason in dict(found.ignored).items():
        warn(f"ignored {name}: {reason}")


def scan(
    source: Annotated[Path, typer.Argument(metavar="DIR|job.toml", help="Checkpoints, or a job file.")],
    out: Annotated[Path | None, typer.Option(help="The run folder to write; made if missing.")] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; repeat for more. Default: all of recordings.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="A probe, as repeats:n=64 or text:path=FILE; repeat for more. Default: two standard ones."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="inline, local (worker processes) or ray.")] = None,
    workers: Annotated[int | None, typer.Option(help="Checkpoints at a time. Default: one per GPU or core.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster: auto, or host:port.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th checkpoint from the i-th, from 0.")] = None,
    join: Annotated[bool, typer.Option("--join", help="Work on a run that another scan is writing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also what was given up because workers died of it.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare weights with the digests beside them.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also .bin, .pt and distributed checkpoints; no code is run.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Also weights with NaN or infinity; their rows are flagged.")
    ] = False,
    rows: Annotated[int | None, typer.Option(help="Query rows per sequence to sample. Default: all.")] = None,
    far_window: Annotated[int | None, typer.Option(help="Window of far_mass in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the bootstrap.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, …")] = None,
    maps: Annotated[bool | None, typer.Option("--maps/--no-maps", help="Keep pooled patterns. Default: yes.")] = None,
    keep: Annotated[str | None, typer.Option(help="qk: flagged heads' queries and keys too, for exact crops.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of a job file; repeat for more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Score every head of every checkpoint; run the same command again to resume."""
    from workbench.scanning import make_job, read_job, run_job
    from workbench.scanning.job import overrides

    given = {
        "out": out,
        "detectors": tuple(detector) if detector else None,
        "probes": tuple(probe) if probe else None,
        "engine": engine,
        "workers": workers,
        "address": address,
        "shard": shard,
        "join": join or None,
        "retry": retry or None,
        "verify": verify or None,
        "allow_pickle": allow_pickle or None,
        "allow_nonfinite": allow_nonfinite or None,
        "rows": rows,
        "far_window": far_window,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "maps": maps,
        "keep": keep,
    }
    if source.suffix == ".toml":
        job = read_job(source, settings=settings or (), environment=os.environ, **given)
    else:
        fields = {"checkpoints": source, **overrides(settings=settings or (), environment=os.environ, **given)}
        if "out" not in fields:
            raise WorkbenchError("no run folder was given; pass --out RUN")
        job = make_job(fields)
    if dry_run:
        _tell_outlook(job, as_json)
        return
    try:
        with showing_progress() as show:
            run = run_job(job, on_progress=show)
    except KeyboardInterrupt:
        warn("interrupted; what is done is kept, and the same command goes on from there")
        raise
    _tell_status(run, as_json)
    if run.status().checkpoints_failed:
        raise typer.Exit(1)


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Go on saying so until the scan is through.")] = False,
    as_json: Json = False,
) -> None:
    """How far a scan is, how long the rest will take, what was slowest and what failed."""
    from workbench.runs import open_run

    opened = open_run(run)
    if watch:
        _watch(opened)
    _tell_status(opened, as_json)


def _watch(run: Any) -> None:
    """A line on stderr that follows the scan, wherever it runs, until every unit is done or has failed.

    It names the slowest so far; what fails meanwhile is told at once, each failure once.
    """
    said, told = "", set[str]()
    while not (found := run.status()).is_complete:
        failed = [_failed(failure) for failure in run.failures().to_dict("records")]
        for failure in [f for f in failed if f not in told]:
            _clear_line()
            warn(failure)
        told.update(failed)
        slowest = "".join(f", slowest {_slow(t)}" for t in run.timings().slowest(1))
        line = f"{found.done} of {found.planned} units done, {found.failed} failed, {_to_go(run, found)}{slowest}"
        if STDERR.is_terminal:
            _clear_line()
            STDERR.print(line[: STDERR.width - 1], end="", markup=False, highlight=False)
        elif line != said:
            warn(line)
        said = line
        time.sleep(_WATCH_S)
    _clear_line()


def _clear_line() -> None:
    if STDERR.is_terminal:
        STDERR.print("\r\x1b[K", end="", markup=False, highlight=False)


def _slow(timing: Any) -> str:
    maps = " maps" if timing.what == "maps" else ""
    return f"{timing.ckpt} {timing.probe}{maps} {timing.total_s:.1f} s"


def _failed(failure: dict[str, Any]) -> str:
    return f"failed {failure['ckpt']}: {failure['message']}"


def _to_go(run: Any, found: Any) -> str:
    eta = run.timings().eta_s(found.planned - found.done - found.failed)
    return "time to go not known yet" if eta is None else f"{duration(eta)} to go"


def _tell_status(run: Any, as_json: bool) -> None:
    found, failures, timings = run.status(), run.failures(), run.timings()
    eta = timings.eta_s(found.planned - found.done - found.failed)
    slowest = timings.slowest(_SLOWEST)
    if as_json:
        document = {name: getattr(found, name) for name in found.__dataclass_fields__}
        parts = ("digest_s", "load_s", "forward_s", "statistics_s", "write_s")
        slow = [
            {n: getattr(t, n) for n in ("ckpt", "probe", "what", "units", "total_s", *parts, "worker")} for t in slowest
        ]
        failed = failures.drop(columns="traceback").to_dict("records")
        say_json({"run": run.path, **document, "eta_s": eta, "slowest": slow, "failures": failed})
        return
    to_go = "" if found.is_complete else f"; {_to_go(run, found)}"
    print(
        f"{run.path}: {found.done} of {found.planned} units done, {found.failed} failed; "
        f"{found.checkpoints_done} of {found.checkpoints} checkpoints complete{to_go}"
    )
    for t in slowest:
        warn(
            f"slowest {_slow(t)} (digest {t.digest_s:.1f}, load {t.load_s:.1f}, "
            f"forward {t.forward_s:.1f}, statistics {t.statistics_s:.1f}, write {t.write_s:.1f})"
        )
    for failure in failures.to_dict("records"):
        warn(_failed(failure))


def _tell_outlook(job: Any, as_json: bool) -> None:
    from workbench.scanning import look_ahead

    outlook = look_ahead(job)
    looks = [[c.checkpoint, c.units, c.done, c.bytes] for c in outlook.checkpoints]
    columns = ("checkpoint", "units", "done", "bytes")
    if as_json:
        say_json(
            {
                "job": job.model_dump(mode="json"),
                "units": outlook.units,
                "units_to_do": outlook.units_to_do,
                "bytes_to_read": outlook.bytes_to_read,
                "checkpoints": [dict(zip(columns, look, strict=True)) for look in looks],
            }
        )
        return
    print(job.to_toml())
    say_table(columns, looks)
    warn(
        f"{outlook.units_to_do} units to do on {len(looks)} checkpoints, {outlook.bytes_to_read / 1e9:.3g} GB of "
        "weights to read; nothing was done"
    )
