"""The command line: one verb per question, each in `workbench.commands`."""

from __future__ import annotations

import sys

import typer

from workbench.commands import machine, planning, runs, scans, showing
from workbench.console import warn
from workbench.experiments.command import experiment
from workbench.heads import WorkbenchError
from workbench.pretrain.command import pretrain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which attention heads need the whole context, since when in pretraining, and which may get a window.",
)
app.add_typer(experiment, name="experiment")
for verb in (
    *(scans.series, scans.scan, scans.status),
    *(runs.top, runs.emergence, runs.report, runs.check),
    *(machine.detectors, machine.doctor, planning.plan, showing.demo, pretrain),
):
    app.command()(verb)
app.command(name="app")(showing.open_app)


def main() -> None:
    """Run the command line; exit codes are those of the README."""
    try:
        app()
    except WorkbenchError as error:
        warn(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
