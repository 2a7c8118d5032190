"""`workbench demo` and `workbench app`."""

from __future__ import annotations

from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.arguments import Json, SettingOption, open_runs
from workbench.console import print_json, print_table, showing_phases, warn

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


def open_app(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, shown side by side.")],
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="A plan file; repeat for more. Plans in and beside run folders are found."),
    ] = None,
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
) -> None:
    """Look at runs in the browser: heads over checkpoints, live while a scan is writing."""
    from workbench.app import Access, serve
    from workbench.app.state.live_runs import run_folders

    shown = open_runs(run_folders(runs), setting) if setting else runs
    access = Access(tuple(allow_host or ()), token, prefix, embedders=tuple(allow_embed or ()))
    serve(shown, plans=plan or (), host=host, port=port, access=access, open_browser=browser)
