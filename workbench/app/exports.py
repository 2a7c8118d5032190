"""What the pages show, as files: every table as CSV or Parquet, an edited plan as JSON."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import flask
import pandas as pd
from dash import Dash

from workbench import emergence
from workbench.app import components as p
from workbench.app.head_tables import head_scores
from workbench.app.pages import compare, jobs, plan
from workbench.app.pages.overview import scored
from workbench.app.state.view import View, settled, view_of
from workbench.heads import Head, WorkbenchError

_Step = int | None
_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def register(app: Dash, content: p.Content) -> None:
    """Answer `export/TABLE.csv`, `export/TABLE.parquet` and `export/plan.json` for the view that the query asks for."""

    def export(name: str, form: str) -> flask.Response:
        view, step = _view(content)
        try:
            if (name, form) == ("plan", "json"):
                return _answer(plan_bytes(view, content), "application/json", "plan.json")
            if name not in TABLES or form not in _TYPES:
                flask.abort(404)
            table = TABLES[name](view, content, step)
        except WorkbenchError as error:
            return flask.Response(f"{error}\n", status=409, mimetype="text/plain")
        return _answer(as_file(table, form), _TYPES[form], f"{name}.{form}")

    app.server.add_url_rule("/export/<name>.<form>", "workbench_export", export)


def as_file(table: pd.DataFrame, form: str) -> bytes:
    """A table as CSV or Parquet."""
    if form == "csv":
        return table.to_csv(index=False).encode()
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def plan_bytes(view: View, content: p.Content) -> bytes:
    """The plan with the mask of the view, as `Plan.load` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        plan.plan_of(view, content).save(file)
        return file.read_bytes()


def _view(content: p.Content) -> tuple[View, _Step]:
    query = flask.request.query_string.decode("utf-8", "replace")
    view, step = view_of({"pathname": flask.request.args.get("page", ""), "search": f"?{query}"})
    view = settled(view, content.runs)
    return compare.settle(plan.settle(view, content), content), step


def _answer(body: bytes, kind: str, name: str) -> flask.Response:
    return flask.Response(body, mimetype=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _scores(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    """All scores of the chosen detector and probe, of all chosen runs."""
    runs = scored(view, content.runs)
    if not runs:
        raise WorkbenchError("no chosen run has such scores yet; make some with `workbench scan DIR --out RUN`")
    tables = [run.scores(detector=view.detector, probe=view.probe).assign(run=run.name) for run in runs]
    return pd.concat(tables, ignore_index=True)


def _emergence(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    tables = [table.assign(run=name) for name, table in compare.emerged(view, content.runs).items()]
    if not tables:
        raise WorkbenchError("no chosen run has such scores yet; make some with `workbench scan DIR --out RUN`")
    return pd.concat(tables, ignore_index=True)


def _metrics(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    tables = [content.runs[name].metrics().assign(run=name) for name in view.runs]
    return pd.concat(tables, ignore_index=True)


def _head(view: View, content: p.Content, step: _Step) -> pd.DataFrame:
    """All detectors' scores of one head, with ranks and onsets."""
    if not view.head:
        raise WorkbenchError("no head is chosen; open one on the Head page")
    at = "last" if step is None else step
    return pd.DataFrame(head_scores(content.runs[view.run], Head.parse(view.head), at, probe=view.probe))


def _moved(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    sides = compare.sides_of(view, content.runs)
    return compare.pairs_of(sides, view).assign(one=sides.names[0], other=sides.names[1])


def _rank_agreement(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    tables = compare.agreement_of(compare.sides_of(view, content.runs), view)
    return pd.concat([table.assign(of=title) for title, table in tables.items()], ignore_index=True)


def _lock_in(view: View, content: p.Content, _: _Step) -> pd.DataFrame:
    return compare.sides_of(view, content.runs).runs[0].lock_in(view.detector, probe=view.probe)


TABLES: dict[str, Callable[[View, p.Content, _Step], pd.DataFrame]] = {
    "scores": _scores,
    "emergence": _emergence,
    "metrics": _metrics,
    "head": _head,
    "moved": _moved,
    "rank_agreement": _rank_agreement,
    "lock_in": _lock_in,
    "compare": lambda view, content, _: emergence.compare(compare.emerged(view, content.runs)),
    "curve": lambda view, content, _: plan.plan_of(view, content).curves(),
    "ranking": lambda view, content, _: plan.ranking_frame(plan.plan_of(view, content)),
    "scans": lambda view, content, _: jobs.scans_table([content.runs[name] for name in view.runs]),
    "failures": lambda view, content, _: jobs.failures_table([content.runs[name] for name in view.runs]),
    "timings": lambda view, content, _: jobs.timings_table([content.runs[name] for name in view.runs]),
    "checkpoints": lambda view, content, _: jobs.checkpoints_table([content.runs[name] for name in view.runs]),
}
