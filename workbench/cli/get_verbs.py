"""`workbench get`: published models, from a registry of packages or a hub."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.arguments import Json
from workbench.console import print_json, print_table, warn
from workbench.hub.byte_sizes import bytes_in_words

if TYPE_CHECKING:
    from workbench.hub.published_models import PublishedModel


def get(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A name of the list, or org/name@revision at a hub. Without: the list."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to write. Default: the cache.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the terms that the model asks to accept.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a published model into a folder; without a name, list those that need no account."""
    if name is None:
        _print_list(as_json)
        return
    from workbench.loading.published_folders import obtain

    obtained = obtain(name, out=out, accept=lambda model: accept_licence or _is_accepted(model))
    if as_json:
        print_json({**asdict(obtained), "folder": obtained.folder})
        return
    if not obtained.is_new:
        warn(f"{name} is here already")
    print(obtained.folder)


def _is_accepted(model: PublishedModel) -> bool:
    """Ask on a terminal; elsewhere nothing is accepted."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    warn(f"{model.terms}. {model.licence_url}")
    return typer.confirm("Accept?", default=False, err=True)


def _print_list(as_json: bool) -> None:
    from workbench.hub.published_models import PUBLISHED, models_folder, published_here

    here = published_here()
    rows: list[dict[str, Any]] = [
        {
            "name": model.name,
            "title": model.title,
            "download_bytes": model.download_bytes,
            "folder_bytes": model.n_bytes,
            "quantisation": model.quantisation,
            "licence": model.licence,
            "asks": bool(model.terms),
            "folder": here.get(model.name),
        }
        for model in PUBLISHED.values()
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "model", "download", "on disk", "weights of", "licence", "here")
    table = [
        [
            *(row["name"], row["title"], bytes_in_words(row["download_bytes"]), bytes_in_words(row["folder_bytes"])),
            *(row["quantisation"] or "floats", row["licence"] + (" (asks)" if row["asks"] else "")),
            row["folder"] or "no",
        ]
        for row in rows
    ]
    print_table(columns, table, title=f"Published models; they go to {models_folder()}")
