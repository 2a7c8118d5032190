"""The command `workbench`: its verbs, collected from the files of `workbench.cli`."""

from __future__ import annotations

import sys

import typer

from workbench.cli import (
    app_verbs,
    evaluate_verbs,
    export_verbs,
    get_verbs,
    machine_verbs,
    plan_verbs,
    run_verbs,
    scan_verbs,
    score_verbs,
    verdict_verbs,
)
from workbench.cli.experiment_verbs import experiment
from workbench.cli.pretrain_verbs import pretrain
from workbench.console import warn
from workbench.heads import WorkbenchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which attention heads need the whole context, since when in pretraining, and which may get a window.",
)
app.add_typer(experiment, name="experiment")
for verb in (
    *(get_verbs.get, scan_verbs.series, scan_verbs.scan, scan_verbs.status, score_verbs.score),
    *(run_verbs.top, run_verbs.emergence, run_verbs.report, run_verbs.check),
    *(export_verbs.export_plan, evaluate_verbs.evaluate),
    *(machine_verbs.detectors, machine_verbs.doctor, plan_verbs.plan, verdict_verbs.verdict, app_verbs.demo, pretrain),
):
    app.command()(verb)
app.command(name="app")(app_verbs.open_app)


def main() -> None:
    """Run the command line. The README lists the exit codes."""
    try:
        app()
    except WorkbenchError as error:
        warn(f"error: {error}")
        sys.exit(error.exit_code)
