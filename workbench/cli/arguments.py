"""Arguments that several verbs share, and opening the model that one of them names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.console import warn
from workbench.heads import BadCheckpoint, WorkbenchError

if TYPE_CHECKING:
    from workbench.hooks import HookedModel
    from workbench.runs import Run

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages stay on stderr.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `workbench scan` wrote.")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        help="Scores of this dtype, rows, seed, far_window or far_sink, not of the newest request; repeat for more.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")]
Revisions = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Branches and tags of a model at a hub: 'step*', 'step0,step1?000,main', or '/regular expression/'.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="A tokenizer's folder, or a model's id. Default: the checkpoint's own."),
]


def open_runs(folders: Sequence[Path], setting: Sequence[str] | None) -> list[Run]:
    """Open runs for reading, and print on stderr what scores they have beside those shown.

    Raises:
        WorkbenchError: if a folder holds no run, or none of these settings.
    """
    from workbench.runs import open_run

    settings: dict[str, str] = {}
    for written in setting or ():
        name, equals, value = written.partition("=")
        if not equals:
            raise WorkbenchError(f"--setting {written!r} has no '='; expected name=value, as in --setting rows=8")
        settings[name.strip()] = value.strip()
    runs = [open_run(folder, settings=settings) for folder in folders]
    for run in runs:
        for remark in run.left_out:
            warn(f"{run.path}: {remark}")
    return runs


def open_named_model(folder: str, device: str | None = None, tokenizer: str | None = None) -> HookedModel:
    """Open the model that an argument names.

    Raises:
        WorkbenchError: if it must not be loaded; exit code 2, because the argument is wrong.
    """
    from workbench.hooks import open_model

    try:
        return open_model(folder, device=device, tokenizer=tokenizer)
    except BadCheckpoint as error:
        raise WorkbenchError(str(error)) from error
