"""The Head table page: every head of a run under all detectors, to sort, filter, pin, annotate and export."""

from __future__ import annotations

import os
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from workbench.app import ids
from workbench.app.answers_of_view import kept_answer
from workbench.app.components import attributes, card
from workbench.app.head_tables import every_head, score_columns
from workbench.app.registry import page
from workbench.app.state.content import Content
from workbench.app.state.head_sets import PARAMETER, pinned
from workbench.app.state.view import View
from workbench.figures.trajectories import UNITS
from workbench.heads import Head, WorkbenchError
from workbench.runs import Run
from workbench.store.head_notes import read_notes, write_note

TABLE, RUN, SENTENCE, NOTE_STATUS = "head-table", "head-table-run", "head-table-sentence", "head-table-notes"
_NEEDS, _PINNED, _NOTE = "needs the whole context", "pinned", "note"
# Of more heads the table shows scores without their intervals, which the export has.
_MOST_WITH_INTERVALS = 600
_ROW_PX, _HEADER_PX = 30, 96
_NUMBER = {"function": "params.value == null ? '–' : d3.format('.3f')(params.value)"}


def register(app: Dash, content: Content) -> None:
    """The table, its pinned heads and its notes."""
    runs = content.runs
    app.clientside_callback(
        ClientsideFunction("workbench", "changeHeadRun"),
        Input(RUN, "value"),
        State(ids.VIEW, "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("workbench", "pinSelected"),
        Input(TABLE, "selectedRows"),
        State(ids.VIEW, "data"),
        prevent_initial_call=True,
    )

    @app.callback(Output(RUN, "data"), Output(RUN, "value"), Input(ids.VIEW, "data"))
    def offer_runs(view_json: Any) -> Any:
        view = View.of_page("head_table", view_json)
        return (no_update, no_update) if view is None else (list(view.runs), view.run or None)

    @app.callback(
        Output(TABLE, "rowData"),
        Output(TABLE, "columnDefs"),
        Output(TABLE, "selectedRows"),
        Output(TABLE, "style"),
        Output(SENTENCE, "children"),
        Output(NOTE_STATUS, "children"),
        Input(ids.VIEW, "data"),
        Input(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        Input(TABLE, "cellValueChanged"),
    )
    def show_table(view_json: Any, checkpoints: Any, _: Any, changes: Any) -> Any:
        view = View.of_page("head_table", view_json)
        if view is None or view.run not in runs:
            return (no_update,) * 6
        run = runs[view.run]
        try:
            step = (checkpoints or {}).get(view.run) or last_checkpoint(run)
            status = ""
            if ctx.triggered_id == TABLE and changes:
                status = keep_notes(run, step, changes)
            table = heads_of_run(view, content, step)
        except WorkbenchError as error:
            return [], [], {"ids": []}, no_update, "", html.Span(str(error), className="failed")
        chosen = {"ids": [str(head) for head in pinned(view, runs)]}
        columns = columns_of(table, is_writable=_is_writable(run), first=view.detector)
        sent = table if len(table) <= _MOST_WITH_INTERVALS else table.loc[:, [column["field"] for column in columns]]
        rows = sent.astype(object).where(sent.notna(), None).to_dict("records")
        words = f"{len(rows):,} query heads of {view.run} at {step}; {len(chosen['ids'])} pinned"
        height = {"height": f"min(70vh, {_HEADER_PX + _ROW_PX * len(rows)}px)"}
        return rows, columns, chosen, height, words, status or _about_notes(run)


def heads_of_run(view: View, content: Content, step: str) -> pd.DataFrame:
    """`every_head` of the view's run, with what needs the whole context, what is pinned, and the notes.

    Raises:
        WorkbenchError: if the run has no such checkpoint, or its notes cannot be read.
    """
    run = content.runs[view.run]
    table = every_head(run, step, probe=view.probe)
    needed = {str(head) for head in kept_answer(run, content).heads}
    chosen = {str(head) for head in pinned(view, content.runs)}
    notes = {note.head: note.text for note in read_notes(run.path) if note.ckpt == step}
    table.insert(1, _NEEDS, ["●" if name in needed else "" for name in table["head"]])
    table.insert(2, _PINNED, ["pinned" if name in chosen else "" for name in table["head"]])
    table.insert(3, _NOTE, [notes.get(name, "") for name in table["head"]])
    return table


def keep_notes(run: Run, step: str, changes: list[dict[str, Any]]) -> Any:
    """Write the notes that were edited; what is said of it."""
    names: list[str] = []
    for change in changes:
        if change.get("colId") != _NOTE:
            continue
        try:
            write_note(run.path, Head.parse(change["data"]["head"]), step, str(change.get("value") or ""))
        except WorkbenchError as error:
            return html.Span(str(error), className="failed")
        names.append(change["data"]["head"])
    return f"kept: the note on {', '.join(names)} at {step}, in {run.path / 'notes.json'}" if names else ""


def columns_of(table: pd.DataFrame, *, is_writable: bool, first: str = "") -> list[dict[str, Any]]:
    """The columns of the grid; by the scores of the detector `first` it is sorted to begin with."""
    has_intervals = len(table) <= _MOST_WITH_INTERVALS
    text = {"filter": "agTextColumnFilter"}
    columns: list[dict[str, Any]] = [
        {"field": "head", "headerName": "head", "pinned": "left", "cellClass": "opens-head", "width": 110, **text},
        {"field": _NEEDS, "headerName": "needs far", "headerTooltip": f"{_NEEDS}: see Overview", "width": 105, **text},
        {"field": _PINNED, "headerName": _PINNED, "width": 95, **text},
        *({"field": n, "headerName": n, "filter": "agNumberColumnFilter", "width": 90} for n in ("layer", "number")),
        {"field": "kind", "headerName": "kind", "width": 100, **text},
        {"field": "kv_head", "headerName": "KV head", "filter": "agNumberColumnFilter", "width": 95},
    ]
    for name in score_columns(table):
        unit = UNITS.get(name.partition(" ")[0], "")
        columns.append(
            {
                "field": name,
                "headerName": f"{name} ({unit})" if unit else name,
                "filter": "agNumberColumnFilter",
                "type": "rightAligned",
                "valueFormatter": _NUMBER,
                "sortingOrder": ["desc", "asc", None],
                **({"initialSort": "desc"} if name == first else {}),
                **({"tooltipValueGetter": _tooltip(name)} if has_intervals else {}),
            }
        )
    return [*columns, {"field": _NOTE, "headerName": _NOTE, "editable": is_writable, "width": 260, **text}]


def last_checkpoint(run: Run) -> str:
    """The last checkpoint that has scores.

    Raises:
        WorkbenchError: if there is none yet.
    """
    scores = run.scores(step="last", columns=("ckpt",))
    if scores.empty:
        raise WorkbenchError(f"no scores yet; make some with workbench scan DIR --out {run.path.name}")
    return str(scores["ckpt"].iloc[-1])


def _tooltip(name: str) -> dict[str, str]:
    low, high = (f"params.data['{name} {end}']" for end in ("ci_lo", "ci_hi"))
    text = f"'95 % CI ' + d3.format('.3f')({low}) + ' to ' + d3.format('.3f')({high})"
    return {"function": f"{low} == null ? 'no interval' : {text}"}


def _is_writable(run: Run) -> bool:
    return os.access(run.path, os.W_OK)


def _about_notes(run: Run) -> str:
    if not _is_writable(run):
        return f"{run.path} is read-only: notes cannot be kept; copy the run to a folder of yours"
    return "a double click on a note edits it; notes are kept beside the run, in notes.json"


def _table(view: View, content: Content, step: int | None) -> pd.DataFrame:
    """Every head with the intervals of its scores, whatever the grid filters."""
    if view.run not in content.runs:
        raise WorkbenchError("there is no run to list the heads of")
    run = content.runs[view.run]
    names = [last_checkpoint(run)] if step is None else run.scores(step=step, columns=("ckpt",))["ckpt"].tolist()
    return heads_of_run(view, content, str(names[-1])).assign(run=view.run, ckpt=names[-1])


@page(
    "head_table",
    register=register,
    parameters=("of",),
    exports={"head_table": _table},
    follows_checkpoint=True,
)
def layout(content: Content) -> list[Any]:
    """Every head under all detectors, with pinned heads and notes."""
    run = dmc.Select(
        id=RUN, data=list(content.runs), size="xs", allowDeselect=False, w=190, **attributes(aria_label="run")
    )
    clear = html.A("unpin all", href="head_table", **attributes(data_page="head_table", data_set='{"heads": ""}'))
    title = html.Section(
        [run, html.Span(id=SENTENCE), clear, html.Span(id=NOTE_STATUS, className="muted", **attributes(role="status"))],
        className="card head-title",
    )
    grid = dag.AgGrid(
        id=TABLE,
        rowData=[],
        columnDefs=[],
        getRowId="params.data.head",
        defaultColDef={"sortable": True, "resizable": True, "floatingFilter": True, "width": 130, "minWidth": 70},
        dashGridOptions={
            "rowSelection": {"mode": "multiRow", "enableClickSelection": False, "selectAll": "filtered"},
            "selectionColumnDef": {"pinned": "left", "width": 46},
            "rowHeight": _ROW_PX,
            "headerHeight": 34,
            "floatingFiltersHeight": 36,
            "suppressFieldDotNotation": True,
            "enableCellTextSelection": True,
            "tooltipShowDelay": 300,
            "animateRows": False,
        },
        style={"height": "70vh"},
    )
    return [
        title,
        card(
            "Every head",
            "sort: click a title · filter: below it · tick: pin, carried from page to page "
            f"({PARAMETER}= in the address) · a click on a head opens it",
            grid,
            table="head_table",
        ),
    ]
