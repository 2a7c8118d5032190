"""Serve the exports of the pages: tables as CSV or Parquet, other files as they are."""

from __future__ import annotations

import io
import mimetypes

import flask
import pandas as pd
from dash import Dash

from workbench.app.registry import Export, pages
from workbench.app.slider_scores import seen_checkpoint
from workbench.app.state.address import place_in, settled, view_of
from workbench.app.state.asked_view import NotThere, refuse_other
from workbench.app.state.content import Content
from workbench.app.state.plan_mask import name_taken_away
from workbench.app.state.view import View
from workbench.heads import WorkbenchError

_MIME_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def register(app: Dash, content: Content) -> None:
    """Answer `export/TABLE.csv`, `export/TABLE.parquet` and the pages' other files for the view of the query."""
    exports = find_exports()

    def export(name: str, extension: str) -> flask.Response:
        file_name = f"{name}.{extension}"
        make = exports.get(file_name) or (exports.get(name) if extension in _MIME_TYPES and "." not in name else None)
        if make is None:
            flask.abort(404)
        try:
            view, step = _view(content)
            exported = make(view, content, step)
        except NotThere as error:
            return flask.Response(f"{error}\n", status=404, mimetype="text/plain")
        except WorkbenchError as error:
            return flask.Response(f"{error}\n", status=409, mimetype="text/plain")
        body = exported if isinstance(exported, bytes) else as_file(exported, extension)
        mime_type = _MIME_TYPES.get(extension) or mimetypes.guess_type(file_name)[0]
        disposition = {"Content-Disposition": f'attachment; filename="{name_taken_away(view, file_name)}"'}
        return flask.Response(body, mimetype=mime_type, headers=disposition)

    app.server.add_url_rule("/export/<name>.<extension>", "workbench_export", export)


def find_exports() -> dict[str, Export]:
    """The exports of all pages by name.

    Raises:
        WorkbenchError: if two pages give one name to two exports.
    """
    exports: dict[str, Export] = {}
    for page in pages():
        for name, make in page.exports.items():
            if exports.setdefault(name, make) is not make:
                raise WorkbenchError(f"page {page.name!r} exports {name!r}, as another page does; rename it")
    return exports


def as_file(table: pd.DataFrame, extension: str) -> bytes:
    """A table as CSV or Parquet."""
    if extension == "csv":
        return table.to_csv(index=False).encode()
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _view(content: Content) -> tuple[View, int | None]:
    """The view of the request, with the parameters of all pages settled, and its step.

    Raises:
        NotThere: if the request names what is not there, so that other rows would answer it.
    """
    query = flask.request.query_string.decode("utf-8", "replace")
    if not content.runs:
        raise NotThere("the app is open on a model alone, and there is no run whose tables could be exported")
    view, step = view_of({"pathname": flask.request.args.get("page", ""), "search": f"?{query}"})
    view = settled(view, content.runs)
    for page in pages():
        view = page.settle(view, content)
    refuse_other(flask.request.args.to_dict(flat=False), view, content)
    return seen_checkpoint(view, place_in({"search": f"?{query}"}), content), step
