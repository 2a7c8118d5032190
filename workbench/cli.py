"""The command line: one verb per question. What a verb needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.console import say_json, say_table, showing_phases, showing_progress, warn
from workbench.experiments.command import experiment
from workbench.heads import BadCheckpoint, Head, WorkbenchError
from workbench.pretrain.command import pretrain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which attention heads need the whole context, since when in pretraining, and which may get a window.",
)
app.add_typer(experiment, name="experiment")
app.command()(pretrain)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages stay on stderr.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `workbench scan` wrote.")]


def main() -> None:
    """Run the command line; exit codes are those of the README."""
    try:
        app()
    except WorkbenchError as error:
        warn(f"error: {error}")
        sys.exit(error.exit_code)


@app.command()
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
        "name",
        "stage",
        "branch",
        "step",
        "step_total",
        "tokens",
        "tokens_source",
        "lr",
        "format",
        "alias_of",
    )
    say_table(columns, [[r.get(c) for c in columns] for r in records])
    for name, reason in dict(found.ignored).items():
        warn(f"ignored {name}: {reason}")


@app.command()
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
    rows: Annotated[int | None, typer.Option(help="Query rows per sequence to sample. Default: all.")] = None,
    far_window: Annotated[int | None, typer.Option(help="Window of far_mass in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the bootstrap.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, …")] = None,
    as_json: Json = False,
) -> None:
    """Score every head of every checkpoint; run the same command again to resume."""
    from workbench.scanning import make_job, read_job, run_job

    given = {
        "out": out,
        "detectors": tuple(detector) if detector else None,
        "probes": tuple(probe) if probe else None,
        "rows": rows,
        "far_window": far_window,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    if source.suffix == ".toml":
        job = read_job(source, **given)
    else:
        if out is None:
            raise WorkbenchError("no run folder was given; pass --out RUN")
        job = make_job({"checkpoints": source, **{k: v for k, v in given.items() if v is not None}})
    try:
        with showing_progress() as show:
            run = run_job(job, on_progress=show)
    except KeyboardInterrupt:
        warn("interrupted; what is done is kept, and the same command goes on from there")
        raise
    _tell_status(run, as_json)
    if run.status().checkpoints_failed:
        raise typer.Exit(1)


@app.command()
def status(run: RunFolder, as_json: Json = False) -> None:
    """How far a scan is, and what failed."""
    from workbench.run import open_run

    _tell_status(open_run(run), as_json)


@app.command()
def top(
    run: RunFolder,
    detector: Annotated[str | None, typer.Option(help="One detector. Default: each.")] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads per detector.")] = 10,
    as_json: Json = False,
) -> None:
    """The highest-scoring heads at the last checkpoint, with interval, n, and onset."""
    from workbench.run import open_run

    table = open_run(run).top(detector, n, probe=probe)
    if as_json:
        say_json(table.to_dict("records"))
        return
    columns = (
        "detector",
        "probe",
        "head",
        "kind",
        "score",
        "ci_lo",
        "ci_hi",
        "n",
        "onset_step",
        "onset_tokens",
    )
    rows = []
    for record in table.to_dict("records"):
        label = str(Head(record["layer"], record["head"])) if record["head"] == record["head"] else "–"
        rows.append([{**record, "head": label}[c] for c in columns])
    say_table(columns, rows)


@app.command()
def emergence(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared by class.")],
    detector: Annotated[list[str] | None, typer.Option(help="A detector; repeat for more. Default: each.")] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads per class to list, earliest onset first.")] = 3,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Also the heads of each class in order of onset, run beside run.")
    ] = False,
    counts: Annotated[
        bool, typer.Option("--counts", help="Also how many heads of each class there are by when.")
    ] = False,
    as_json: Json = False,
) -> None:
    """How many heads emerged and when, with intervals; the earliest; and what lock-in supports."""
    from workbench.emerged import summarise
    from workbench.run import open_run

    found = summarise([open_run(run) for run in runs], detectors=detector, probe=probe, n=n)
    titles = {
        "classes": "Heads of each class, and when half of their rise was over",
        "heads": "The earliest of each class",
        "phase_changes": "When the model as a whole changed its course",
    }
    if aligned:
        titles["aligned"] = "Onsets of the k-th head of each class: heads meet by class and place, never by number"
    if counts:
        titles["counts"] = "Heads of each class that are there by a time"
    if as_json:
        say_json({name: found.tables[name].to_dict("records") for name in titles} | {"lock_in": found.sentences})
        return
    for i, (name, title) in enumerate(titles.items()):
        table = found.tables[name]
        print("\n" if i else "", end="")
        say_table(list(table.columns), table.to_numpy(object).tolist(), title=title)
    for sentence in found.sentences:
        print(f"\n{sentence['run']}, {sentence['detector']} on {sentence['probe']}: {sentence['says']}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are set side by side.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; repeat for more. Default: all rising.")
    ] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads of each class to list.")] = 5,
    as_json: Json = False,
) -> None:
    """Write what runs show into one HTML file: claims with intervals, tables, figures. It needs no network."""
    from workbench.report import contents_of, write_page
    from workbench.run import open_run

    contents = contents_of([open_run(run) for run in runs], detectors=detector, probe=probe, n=n)
    written = write_page(contents, out)
    if as_json:
        say_json({"report": written, **contents.document()})
        return
    for claim in contents.claims:
        print(claim)
    warn(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


@app.command()
def check(run: RunFolder, as_json: Json = False) -> None:
    """Re-read every stored part; exit 1 if one is damaged."""
    from workbench.store import Store

    store = Store.open(run)
    problems = store.check()
    if as_json:
        say_json([{"path": p.path, "reason": p.reason} for p in problems])
    else:
        for problem in problems:
            print(f"{problem.path}: {problem.reason}")
        warn(f"{len(problems)} damaged parts" if problems else "every part is whole")
    if problems:
        warn("delete the damaged parts and run the scan again: it makes just those anew")
        raise typer.Exit(1)


@app.command()
def detectors(as_json: Json = False) -> None:
    """The registered detectors: what each measures, in which units."""
    from workbench.detectors import all_detectors

    columns = ("name", "version", "units", "direction", "needs_answers", "summary")
    rows = [[getattr(d, c) for c in columns] for d in all_detectors().values()]
    if as_json:
        say_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        say_table(columns, rows)


@app.command()
def doctor(
    state_precision: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Instead: what this model's linear layers lose with a state of fewer bits."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens decoded for --state-precision.")] = 4096,
    as_json: Json = False,
) -> None:
    """What this machine offers: versions, devices, and which kernel each operation will use and why."""
    if state_precision is not None:
        _say_states(state_precision, tokens, as_json=as_json)
        return
    from workbench.doctor import examine

    report = examine()
    if as_json:
        say_json(report)
        return
    for heading, facts in report.items():
        say_table(("", ""), list(facts.items()), title=heading)


def _say_states(model: Path, tokens: int, *, as_json: bool) -> None:
    from workbench.doctor import examine_states

    report = examine_states(model, tokens=tokens)
    if as_json:
        say_json({"lost": report.lost.to_dict("records"), "growth": report.growth.to_dict("records")})
        return
    by_layer = report.by_layer()
    for title, table in (("share of heads whose decay is lost to rounding", report.lost), ("error", by_layer)):
        rows = [[f"{x:.2g}" if isinstance(x, float) else x for x in row] for row in table.itertuples(index=False)]
        say_table(list(table.columns), rows, title=title)


@app.command()
def plan(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint's folder.")],
    window: Annotated[int, typer.Option(help="Last tokens that a windowed head sees, its own included.")],
    sink: Annotated[int, typer.Option(help="First tokens that it sees as well.")] = 0,
    keep: Annotated[float | None, typer.Option(help="Share of the key/value heads to keep. Default: 0.25.")] = None,
    kv_bytes: Annotated[int | None, typer.Option(help="Instead: bytes of key/value cache at the full context.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Instead: nats of held-out loss that may be lost.")] = None,
    method: Annotated[str, typer.Option(help="How heads are ranked.")] = "window_gates",
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Keep whole layers.")] = False,
    probe: Annotated[str | None, typer.Option(help="What heads are ranked on. Default: needles from afar.")] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="A probe for the curve; repeat for more.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here as JSON.")] = None,
    duo: Annotated[Path | None, typer.Option(help="Write DuoAttention's head file here.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")] = None,
    as_json: Json = False,
) -> None:
    """Which key/value heads must keep the whole context, and what the model is worth if only they do."""
    from workbench.hooks import open_model
    from workbench.planning import evaluation_on
    from workbench.planning.planner import plan as make_plan
    from workbench.plans import KVBytes, LossTolerance

    budgets = [x for x in (keep, kv_bytes, tolerance) if x is not None]
    if len(budgets) > 1:
        raise WorkbenchError("several budgets were given; pass one of --keep, --kv-bytes and --tolerance")
    budget = 0.25 if keep is None else keep
    budget = budget if kv_bytes is None else KVBytes(kv_bytes)
    budget = budget if tolerance is None else LossTolerance(tolerance)
    for path in (out, duo):
        if path is not None and not path.resolve().parent.is_dir():
            raise WorkbenchError(f"{path}: its folder does not exist; make it first")
    try:
        m = open_model(model, device=device)
    except BadCheckpoint as error:  # elsewhere one of many units, here the argument
        raise WorkbenchError(str(error)) from error
    made = make_plan(
        m,
        window,
        sink,
        budget,
        method,
        unit="layer" if layerwise else "head",
        evaluation=evaluation_on(m, window, sink, probe=probe, held_out=held_out or (), seed=seed),
        progress=warn,
    )
    if out is not None:
        made.save(out)
    if duo is not None:
        made.to_duo_attention(duo)
    _tell_plan(made, as_json)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where checkpoints and runs go. Default: runs/demo, or runs/demo-quick.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the app at the end.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Full and sliding attention only, fewer steps.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and data.")] = 0,
    port: Annotated[int, typer.Option(help="Of the app.")] = 8050,
    as_json: Json = False,
) -> None:
    """Pretrain four small models (full, sliding, hybrid, linear) here and now, scan them, and look at their heads."""
    from workbench.demo import copy_accuracy, findings, run_demo

    try:
        with showing_phases() as show:
            runs = run_demo(
                out or Path("runs/demo-quick" if quick else "runs/demo"),
                quick=quick,
                seed=seed,
                on_progress=lambda p: show(p.variant, p.phase, p.done, p.total),
            )
    except KeyboardInterrupt:
        warn("interrupted; what is finished is kept, and the same command goes on from there")
        raise
    found = {run.name: findings(run) for run in runs}
    accuracy = {run.name: copy_accuracy(run) for run in runs}
    if as_json:
        best = {name: [{**asdict(f), "head": str(f.head)} for f in heads] for name, heads in found.items()}
        say_json({"runs": [run.path for run in runs], "best_heads": best, "copy_accuracy": accuracy})
    else:
        columns = (
            "model",
            "detector",
            "probe",
            "best head",
            "kind",
            "score",
            "ci_lo",
            "ci_hi",
            "onset_step",
            "onset_tokens",
        )
        rows = [
            [f.variant, f.detector, f.probe, str(f.head), *astuple(f)[4:]] for heads in found.values() for f in heads
        ]
        say_table(columns, rows, title="Best heads at the end, and since when they are at half their final score")
        distances = sorted({d for by_distance in accuracy.values() for d in by_distance})
        table = [[name, *(by_distance.get(d) for d in distances)] for name, by_distance in accuracy.items()]
        print()
        say_table(("model", *map(str, distances)), table, title="Needle words copied right, by distance in tokens")
    failed = any(run.status().failed for run in runs)
    if serve:
        _serve([run.path for run in runs], port)
    if failed:
        raise typer.Exit(1)


@app.command(name="app")
def open_app(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, shown side by side.")],
    port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 8050,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
) -> None:
    """Look at runs in the browser: heads over checkpoints, live while a scan is writing."""
    _serve(runs, port, open_browser=browser)


def _tell_plan(made: Any, as_json: bool) -> None:
    curves = made.curves()
    if as_json:
        heads = {"keep": [str(head) for head in made.keep], "windowed": [str(head) for head in made.windowed]}
        ranking = [asdict(r) for r in made.ranking]
        say_json(
            {
                **heads,
                "kv_saved": made.kv_saved,
                "evidence": made.evidence,
                "ranking": ranking,
                "curve": curves.to_dict("records"),
            }
        )
        return
    rows = [
        [str(r.head), "full" if r.head in made.keep else "windowed", r.score, r.ci_lo, r.ci_hi] for r in made.ranking
    ]
    say_table(("head", "plan", made.units, "ci_lo", "ci_hi"), rows, title=f"{made.method} on {made.probe}")
    print()
    columns = ("method", "probe", "n_kept", "nats", "recovered", "accuracy", "kv_saved")
    say_table(columns, curves.loc[:, list(columns)].to_numpy().tolist(), title="What is left on held-out probes")
    told = "".join(f"; {name} {value:.3g}" for name, value in made.evidence.items())
    warn(f"keeps {len(made.keep)} of {len(made.ranking)} heads and saves {made.kv_saved:.0%} of the cache{told}")


def _serve(runs: list[Path], port: int, *, open_browser: bool = True) -> None:
    from workbench.app import serve

    serve(runs, port=port, open_browser=open_browser)


def _tell_status(run: Any, as_json: bool) -> None:
    found = run.status()
    failures = run.failures()
    if as_json:
        document = {name: getattr(found, name) for name in found.__dataclass_fields__}
        say_json({"run": run.path, **document, "failures": failures.drop(columns="traceback").to_dict("records")})
        return
    print(
        f"{run.path}: {found.done} of {found.planned} units done, {found.failed} failed; "
        f"{found.checkpoints_done} of {found.checkpoints} checkpoints complete"
    )
    for failure in failures.to_dict("records"):
        warn(f"failed {failure['ckpt']}: {failure['message']}")


if __name__ == "__main__":
    main()
