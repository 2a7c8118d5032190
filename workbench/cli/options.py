"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; messages stay on stderr.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `workbench scan` wrote.")]
