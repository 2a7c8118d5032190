"""`workbench experiment`: one command per experiment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from workbench.console import duration, say_json, say_table, warn
from workbench.heads import WorkbenchError

experiment = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Experiments on small models that are pretrained here and now.",
)


@experiment.callback()
def experiments() -> None:
    """Experiments on small models that are pretrained here and now; each can be interrupted and goes on from there."""


@experiment.command()
def conversion(
    quick: Annotated[bool, typer.Option("--quick", help="16 heads, minutes. Default: 64 heads, half a day.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Models, parts and report. Default: runs/conversion, or …-quick.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Models to pretrain; more can be added later.")] = 3,
    workers: Annotated[int | None, typer.Option(help="Processes of one thread. Default: one per core.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; messages stay on stderr.")
    ] = False,
) -> None:
    """Convert full attention to sliding windows head by head: what is lost, which heads repair it, do roles move?"""
    if seeds < 1:
        raise WorkbenchError(f"--seeds {seeds}: expected at least 1; without several there are no error bars")

    from workbench.experiments.conversion import StudyProgress, run_conversion
    from workbench.experiments.report import as_document, headline, write_report
    from workbench.experiments.settings import larger_study, quick_study
    from workbench.experiments.tables import read_results

    study = quick_study() if quick else larger_study()
    folder = out or Path("runs/conversion-quick" if quick else "runs/conversion")

    def tell(progress: StudyProgress) -> None:
        warn(f"{progress.done}/{progress.total} {progress.finished} ({duration(progress.elapsed_s)})")

    started, n_workers = time.monotonic(), (os.cpu_count() or 1) if workers is None else workers
    try:
        run_conversion(study, folder, seeds=seeds, workers=n_workers, on_progress=tell)
    except KeyboardInterrupt:
        warn("interrupted; what is finished is kept, and the same command goes on from there")
        raise
    results = read_results(study, folder, seeds=seeds)
    markdown, _ = write_report(results, folder)
    warn(f"{duration(time.monotonic() - started)}; the report is {markdown}")
    if as_json:
        say_json(as_document(results))
    else:
        columns, rows = headline(results)
        say_table(columns, rows, title="Needle words from beyond the window copied right, by heads kept full")
