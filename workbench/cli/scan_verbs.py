"""Verbs of a scan: `workbench series`, `scan` and `status`."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.arguments import Device, Json, Revisions, RunFolder, Tokenizer
from workbench.console import STDERR, duration, print_json, print_table, showing_progress, warn
from workbench.heads import WorkbenchError

_WATCH_S = 2.0
_SLOWEST = 3


def series(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A directory of checkpoints, or a model's id.")],
    revisions: Revisions = None,
    as_json: Json = False,
) -> None:
    """Show the checkpoints of a directory or a hub in training order, and how their steps and tokens are known.

    No weights are fetched: of checkpoints at a hub their names and sizes are asked for.
    """
    from workbench.checkpoints import find_checkpoints

    checkpoints = find_checkpoints(directory, revisions=revisions)
    records = [{**record, **_place(checkpoints, str(record["name"]))} for record in checkpoints.records()]
    if as_json:
        print_json({"checkpoints": records, "ignored": checkpoints.ignored, "remarks": checkpoints.remarks})
        return
    columns = (
        *("name", "stage", "branch", "step", "step_total", "tokens", "tokens_source"),
        *("lr", "format", "bytes", "alias_of"),
    )
    print_table(columns, [[r.get(c) for c in columns] for r in records])
    for name, reason in dict(checkpoints.ignored).items():
        warn(f"ignored {name}: {reason}")
    for remark in checkpoints.remarks:
        warn(remark)
    if remote := checkpoints.remote:
        warn(_download_in_words(checkpoints, [c.name for c in checkpoints.on_disk if c.name in remote]))


def _place(series: Any, name: str) -> dict[str, object]:
    """The size of a checkpoint's files and, of one at a hub, whether the cache has it."""
    from workbench.checkpoints.formats import weights_size
    from workbench.hub.user_cache import cached_snapshot

    checkpoint = next(c for c in series.checkpoints if c.name == name)
    if name not in series.remote:
        return {"bytes": None if checkpoint.is_gone else weights_size(checkpoint.path)}
    remote = series.remote[name]
    snapshot = cached_snapshot(remote.revision.repo, remote.revision.commit, remote.files)
    return {"bytes": remote.n_bytes, "is_cached": snapshot is not None}


def _download_in_words(series: Any, names: list[str]) -> str:
    """What a scan of the checkpoints at a hub would fetch."""
    from workbench.hub.byte_sizes import bytes_in_words

    places = [_place(series, name) for name in names]
    n, missing = len(names), [int(str(place["bytes"])) for place in places if not place["is_cached"]]
    return (
        f"{n} checkpoint{'s' * (n != 1)} at the hub, aliases left out, {n - len(missing)} in the Hugging Face cache; a "
        f"scan fetches {bytes_in_words(sum(missing))}"
    )


def scan(
    source: Annotated[
        str, typer.Argument(metavar="DIR|job.toml", help="Checkpoints, the id of a model at a hub, or a job file.")
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder to write; made if missing.")] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; repeat for more. Default: all that read recordings.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="A probe, as repeats:n=64 or text:path=FILE; repeat for more. Default: two standard ones."),
    ] = None,
    revisions: Revisions = None,
    keep_downloads: Annotated[
        bool, typer.Option("--keep-downloads", help="Leave what is fetched from a hub in the Hugging Face cache.")
    ] = False,
    disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most to hold of what is fetched, as 50GB. Default: what is free."),
    ] = None,
    tokenizer: Tokenizer = None,
    engine: Annotated[str | None, typer.Option(help="inline, local (worker processes) or ray.")] = None,
    workers: Annotated[int | None, typer.Option(help="Checkpoints at a time. Default: one per GPU or core.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster: auto, or host:port.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th checkpoint from the i-th, from 0.")] = None,
    join: Annotated[bool, typer.Option("--join", help="Work on a run that another scan is writing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Also checkpoints given up because workers died.")] = False,
    same_series: Annotated[
        bool, typer.Option("--same-series", help="DIR continues the run's training, though it shares no weights.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare weights with the digests beside them.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also .bin, .pt and distributed checkpoints; no code is run.")
    ] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Also weights with NaN or infinity; their rows are flagged.")
    ] = False,
    rows: Annotated[int | None, typer.Option(help="Query rows per sequence to sample. Default: all.")] = None,
    far_window: Annotated[int | None, typer.Option(help="Window of far_mass in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the bootstrap.")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, …")] = None,
    maps: Annotated[bool | None, typer.Option("--maps/--no-maps", help="Keep pooled patterns. Default: yes.")] = None,
    keep: Annotated[str | None, typer.Option(help="qk: flagged heads' queries and keys too, for exact crops.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of a job file; repeat for more.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Score every head of every checkpoint; run the same command again to resume."""
    from workbench.scanning import make_job, read_job, run_job
    from workbench.scanning.job import overrides

    flags = {
        "out": out,
        "detectors": tuple(detector) if detector else None,
        "probes": tuple(probe) if probe else None,
        "revisions": revisions,
        "keep_downloads": keep_downloads or None,
        "disk": disk,
        "tokenizer": tokenizer,
        "engine": engine,
        "workers": workers,
        "address": address,
        "shard": shard,
        "join": join or None,
        "retry": retry or None,
        "same_series": same_series or None,
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
    if source.endswith(".toml"):
        job = read_job(Path(source), settings=settings or (), environment=os.environ, **flags)
    else:
        fields = {"checkpoints": source, **overrides(settings=settings or (), environment=os.environ, **flags)}
        if "out" not in fields:
            raise WorkbenchError("no run folder was given; pass --out RUN")
        job = make_job(fields)
    if dry_run:
        _print_outlook(job, as_json)
        return
    try:
        with showing_progress() as show:
            run = run_job(job, on_progress=show)
    except KeyboardInterrupt:
        warn("interrupted; what is done is kept, and the same command goes on from there")
        raise
    _print_status(run, as_json)
    if run.status().checkpoints_failed:
        raise typer.Exit(1)


def status(
    run: RunFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the scan is complete.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a scan has done, the remaining time, the slowest probes and the failures."""
    from workbench.runs import open_run

    opened = open_run(run)
    if watch:
        _watch(opened)
    _print_status(opened, as_json)


def _watch(run: Any) -> None:
    """Print the state of a scan on stderr until every unit is done or has failed; each failure is printed once."""
    last_line, printed = "", set[str]()
    while not (state := run.status()).is_complete:
        failures = [_format_failure(failure) for failure in run.failures().to_dict("records")]
        for failure in [f for f in failures if f not in printed]:
            _clear_line()
            warn(failure)
        printed.update(failures)
        slowest = "".join(f", slowest {_format_timing(t)}" for t in run.timings().slowest(1))
        to_go = _format_time_to_go(run, state)
        line = f"{state.in_words}, {to_go}{slowest}"
        if STDERR.is_terminal:
            _clear_line()
            STDERR.print(line[: STDERR.width - 1], end="", markup=False, highlight=False)
        elif line != last_line:
            warn(line)
        last_line = line
        time.sleep(_WATCH_S)
    _clear_line()


def _clear_line() -> None:
    if STDERR.is_terminal:
        STDERR.print("\r\x1b[K", end="", markup=False, highlight=False)


def _format_timing(timing: Any) -> str:
    maps = " maps" if timing.what == "maps" else ""
    return f"{timing.ckpt} {timing.probe}{maps} {timing.total_s:.1f} s"


def _format_failure(failure: dict[str, Any]) -> str:
    return f"failed {failure['ckpt']}: {failure['message']}"


def _format_time_to_go(run: Any, state: Any) -> str:
    eta = run.timings().eta_s(state.planned - state.done - state.failed)
    return "time to go not known yet" if eta is None else f"{duration(eta)} to go"


def _print_status(run: Any, as_json: bool) -> None:
    state, failures, timings = run.status(), run.failures(), run.timings()
    eta = timings.eta_s(state.planned - state.done - state.failed)
    slowest = timings.slowest(_SLOWEST)
    if as_json:
        document = {name: getattr(state, name) for name in state.__dataclass_fields__}
        columns = ("ckpt", "probe", "what", "units", "total_s")
        columns += ("digest_s", "load_s", "forward_s", "statistics_s", "write_s", "worker")
        slow = [{name: getattr(t, name) for name in columns} for t in slowest]
        failed = failures.drop(columns="traceback").to_dict("records")
        rest = {"eta_s": eta, "slowest": slow, "failures": failed, "remarks": run.remarks}
        print_json({"run": run.path, **document, **rest})
        return
    to_go = "" if state.is_complete else f"; {_format_time_to_go(run, state)}"
    complete = f"; {state.checkpoints_done} of {state.checkpoints} checkpoints complete" if state.planned else ""
    print(f"{run.path}: {state.in_words}{complete}{to_go}")
    for t in slowest:
        warn(
            f"slowest {_format_timing(t)} (digest {t.digest_s:.1f}, load {t.load_s:.1f}, "
            f"forward {t.forward_s:.1f}, statistics {t.statistics_s:.1f}, write {t.write_s:.1f})"
        )
    for failure in failures.to_dict("records"):
        warn(_format_failure(failure))
    for remark in run.remarks:
        warn(remark)


def _downloads_in_words(plan: Any, job: Any) -> str:
    from workbench.hub.byte_sizes import bytes_in_words

    cached = f"{len(plan.cached)} more are in the Hugging Face cache; " if plan.cached else ""
    stay = (
        "what is fetched stays there"
        if job.keep_downloads
        else f"at most {bytes_in_words(plan.most_on_disk)} of it on disk at a time, each removed when it was scored"
    )
    return f"{len(plan.missing)} checkpoints to fetch, {bytes_in_words(plan.to_fetch)} of weights; {cached}{stay}"


def _print_outlook(job: Any, as_json: bool) -> None:
    from workbench.scanning import look_ahead

    outlook = look_ahead(job)
    rows = [[c.checkpoint, c.units, c.done, c.bytes] for c in outlook.checkpoints]
    columns = ("checkpoint", "units", "done", "bytes")
    if as_json:
        print_json(
            {
                "job": job.model_dump(mode="json"),
                "units": outlook.units,
                "units_to_do": outlook.units_to_do,
                "bytes_to_read": outlook.bytes_to_read,
                "checkpoints": [dict(zip(columns, row, strict=True)) for row in rows],
                "downloads": None if outlook.downloads is None else asdict(outlook.downloads),
                "remarks": outlook.remarks,
            }
        )
        return
    print(job.to_toml())
    print_table(columns, rows)
    warn(
        f"{outlook.units_to_do} units to do on {len(rows)} checkpoints, {outlook.bytes_to_read / 1e9:.3g} GB of "
        "weights to read; nothing was done"
    )
    if outlook.downloads is not None:
        warn(_downloads_in_words(outlook.downloads, job))
    for remark in outlook.remarks:
        warn(remark)
