"""`workbench demo` and `workbench app`."""

from __future__ import annotations

import sys
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.app_models import is_model, strongest_head, without_notes
from workbench.cli.arguments import Json, SettingOption, Tokenizer, open_runs
from workbench.console import print_json, print_table, showing_phases, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.demo import Finding


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where checkpoints and runs go. Default: runs/demo, or runs/demo-quick.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the app at the end.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Full and sliding attention only, fewer steps.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the app.")] = 8050,
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
    best_heads = {run.name: findings(run) for run in runs}
    accuracy = {run.name: copy_accuracy(run) for run in runs}
    if as_json:
        records = {name: [{**asdict(f), "head": str(f.head)} for f in best] for name, best in best_heads.items()}
        print_json({"runs": [run.path for run in runs], "best_heads": records, "copy_accuracy": accuracy})
    else:
        _print_demo(best_heads, accuracy)
    has_failures = any(run.status().checkpoints_failed for run in runs)
    if serve:
        from workbench.app import serve as open_page

        open_page([run.path for run in runs], port=port, open_browser=True)
    if has_failures:
        raise typer.Exit(1)


def _print_demo(best_heads: dict[str, list[Finding]], accuracy: dict[str, dict[int, float]]) -> None:
    columns = ("model", "detector", "probe", "best head", "kind", "score", "ci_lo", "ci_hi")
    columns += ("onset_step", "onset_tokens")
    rows = [
        [f.variant, f.detector, f.probe, str(f.head), *astuple(f)[4:]] for best in best_heads.values() for f in best
    ]
    print_table(columns, rows, title="Best heads at the end, and since when they are at half their final score")
    distances = sorted({d for by_distance in accuracy.values() for d in by_distance})
    table = [[name, *(by_distance.get(d) for d in distances)] for name, by_distance in accuracy.items()]
    print()
    print_table(("model", *map(str, distances)), table, title="Needle words copied right, by distance in tokens")


def open_app(  # one parameter per flag
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, shown side by side; or one model: its folder, name or id."),
    ],
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="A plan file; repeat for more. Plans in and beside run folders are found."),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Of a model: the detector whose strongest head is shown. Default: induction.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="Of a model: the probe it is scored and shown on, as repeats:n=28. Default: by detector."),
    ] = None,
    tokenizer: Tokenizer = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8050,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than this machine needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str, typer.Option(help="Token that visitors must have. Default: made at random and printed.")
    ] = "",
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name of the app; repeat for more.")] = None,
    allow_embed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may frame single cards (/embed/CARD), as https://notes.org; repeat for more.",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Path under which a proxy serves the app, as /x/.")] = "/",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
    setting: SettingOption = None,
    as_json: Json = False,
) -> None:
    """Look at runs in the browser: heads over checkpoints, live while a scan is writing. Or at one model without a run.

    Of a model the Probe page alone is shown, at the strongest head of a detector. With --json, one document with the
    address is printed when the app answers there; it ends with Ctrl-C as without.
    """
    from workbench.app import Access
    from workbench.app.server.serving import Place, open_content, serve_content, serve_model
    from workbench.app.state.live_runs import run_folders

    runs = without_notes(runs)
    models = [named for named in runs if is_model(named)]
    if models and len(runs) > 1:
        raise WorkbenchError(
            f"{models[0]} is a model, and {len(runs)} things were named; expected runs, or one model: the Probe page "
            "beside runs takes models by their names"
        )
    document: dict[str, Any] = {"runs": [] if models else runs, "plans": plan or []}

    def announce(address: str) -> None:
        if as_json:
            print_json({"address": address, **document})
            sys.stdout.flush()  # the reader of a pipe waits for it, and the app goes on

    access = Access(tuple(allow_host or ()), token, prefix, embedders=tuple(allow_embed or ()))
    place = Place(host, port, access, browser, announce)
    if models:
        if plan or setting:
            raise WorkbenchError(f"{models[0]} is a model; --plan and --setting are of runs: leave them out")
        opened = strongest_head(models[0], detector or "induction", probe, tokenizer)
        warn(opened.about)
        document |= {"model": models[0], "head": str(opened.head), "probe": opened.probe, "about": opened.about}
        serve_model(opened, place)
        return
    if detector or probe or tokenizer:
        raise WorkbenchError("--detector, --probe and --tokenizer are of a model without a run; leave them out")
    shown = open_runs(run_folders(runs), setting) if setting else runs
    serve_content(lambda: open_content(shown, plan or ()), place)
