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
    medium: Annotated[bool, typer.Option("--medium", help="64 heads, fewer arms: half an hour of a core.")] = False,
    so_far: Annotated[bool, typer.Option("--so-far", help="Run nothing; report what is finished by now.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Models, parts and report. Default: runs/conversion, …-quick or …-medium.")
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
    from workbench.experiments.keepsets import told_trainings
    from workbench.experiments.report import as_document, headline, write_report
    from workbench.experiments.settings import larger_study, medium_study, quick_study
    from workbench.experiments.tables import read_finished, read_results

    if quick and medium:
        raise WorkbenchError("--quick and --medium were given; expected one of them, or none for the larger study")
    study = quick_study() if quick else medium_study() if medium else larger_study()
    folder = out or Path(f"runs/conversion{'-quick' if quick else '-medium' if medium else ''}")

    def tell(progress: StudyProgress) -> None:
        warn(f"{progress.done}/{progress.total} {progress.finished} ({duration(progress.elapsed_s)})")

    started, n_workers = time.monotonic(), (os.cpu_count() or 1) if workers is None else workers
    if so_far:
        results = read_finished(study, folder, seeds=seeds)
    else:
        for line in told_trainings(study):
            warn(line)
        try:
            run_conversion(study, folder, seeds=seeds, workers=n_workers, on_progress=tell)
        except KeyboardInterrupt:
            warn("interrupted; what is finished is kept, the same command goes on from there, --so-far reports it")
            raise
        results = read_results(study, folder, seeds=seeds)
    markdown, _ = write_report(results, folder)
    warn(f"{duration(time.monotonic() - started)}; the report is {markdown}")
    if as_json:
        say_json(as_document(results))
    else:
        columns, rows = headline(results)
        say_table(columns, rows, title="Needle words from beyond the window copied right, by heads kept full")
