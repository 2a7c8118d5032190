"""Arguments that several verbs share, and opening the model that one of them names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.heads import BadCheckpoint, WorkbenchError

if TYPE_CHECKING:
    from workbench.hooks import HookedModel

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages stay on stderr.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `workbench scan` wrote.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="A tokenizer's folder, or a model's name in the cache. Default: the checkpoint's own."),
]


def open_named_model(folder: Path, device: str | None = None, tokenizer: str | None = None) -> HookedModel:
    """Open the model that an argument names.

    Raises:
        WorkbenchError: if it must not be loaded; exit code 2, because the argument is wrong.
    """
    from workbench.hooks import open_model

    try:
        return open_model(folder, device=device, tokenizer=tokenizer)
    except BadCheckpoint as error:
        raise WorkbenchError(str(error)) from error
