"""Jobs: how far every scan is, what failed and why, and the command that goes on with it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
from dash import Dash, Input, Output, State, html, no_update

from workbench.app import components as p
from workbench.app.head_tables import plain_table
from workbench.app.state.view import View
from workbench.emergence.head_trajectories import checkpoint_of
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError
from workbench.runs import Run
from workbench.store import Timing

SCANS, FAILED, CHECKPOINTS, SLOWEST = "scans", "failed", "job-checkpoints", "job-slowest"
_QUIET_S = 120
_SLOWEST_ROWS = 8
_SECONDS = {
    "all": "total_s",
    "digest": "digest_s",
    "load": "load_s",
    "model": "forward_s",
    "statistics": "statistics_s",
    "write": "write_s",
}
_TRACE_CHARACTERS = 6000
_WHERE = ("ckpt", "branch", "step", "step_total", "tokens", "parts", "failed")


def layout(_: p.Content) -> html.Div:
    """The Jobs page."""
    return p.page_of(
        "jobs",
        [
            p.card("Scans", "", html.Div(id=SCANS), table="scans"),
            p.card("Failures", "", html.Div(id=FAILED), table="failures"),
            p.card("Checkpoints", "units that are done, per run", html.Div(id=CHECKPOINTS), table="checkpoints"),
            p.card(
                "What took longest",
                "seconds for all units of one checkpoint and probe, by the scan's own account",
                html.Div(id=SLOWEST, className="table"),
                table="timings",
            ),
        ],
    )


def register(app: Dash, content: p.Content) -> None:
    """The Jobs page, which looks at the disk with every tick."""

    @app.callback(
        Output(SCANS, "children"),
        Output(FAILED, "children"),
        Output(CHECKPOINTS, "children"),
        Output(SLOWEST, "children"),
        Output(FAILED, "title"),
        Input(p.VIEW, "data"),
        Input(p.TICK, "n_intervals"),
        Input(p.ANY_CHANGED, "data"),
        State(FAILED, "title"),
    )
    def look(kept: Any, _: Any, __: Any, seen: Any) -> Any:
        if kept is None or kept["page"] != "jobs":
            return (no_update,) * 5
        chosen = [content.runs[name] for name in View.from_json(kept).runs]
        found = " ".join(f"{run.name}: {run.fingerprint('scores')} {run.failures_changed_ns()}" for run in chosen)
        scans = [scan_card(run) for run in chosen]
        if found == seen:  # what was opened to read stays open
            return scans, no_update, no_update, no_update, no_update
        return scans, failure_list(chosen), checkpoint_strips(chosen), slowest_table(chosen), found


def state_of(run: Run, now: float) -> str:
    """What a scan seems to be doing, as far as its folder says."""
    status = run.status()
    written = run.last_written()
    if status.planned and status.done >= status.planned:
        return "complete"
    if status.planned and status.is_complete:
        return "ended with failures"
    if written is not None and now - written < _QUIET_S:
        return "writing"
    return "not started" if written is None else "quiet: stopped, or on a long unit"


def resume_command(run: Run) -> str:
    """The command that goes on where the scan stopped; probes made in Python need Python again."""
    job: dict[str, Any] = run.description().get("job", {})
    if job.get("ready"):
        return f"# its probes were made in Python: call again what wrote {run.path}, with the same arguments"
    words = ["workbench", "scan", str(job.get("checkpoints", "DIR")), "--out", str(run.path)]
    for name in job.get("detectors") or ():
        words += ["--detector", str(name)]
    for name in job.get("probes") or ():
        words += ["--probe", str(name)]
    for option in ("rows", "far_window", "seed", "device", "dtype"):
        if job.get(option):
            words += [f"--{option.replace('_', '-')}", str(job[option])]
    return shlex.join(words)


def scans_table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: what is planned, done and failed, its state, and the command that goes on with it."""
    now = time.time()
    rows = [
        {
            "run": run.name,
            "state": state_of(run, now),
            **{name: getattr(run.status(), name) for name in ("planned", "done", "failed")},
            "resume": resume_command(run),
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def scan_card(run: Run) -> html.Div:
    """One run's progress; an unreadable one says which file is at fault."""
    try:
        status, now = run.status(), time.time()
        state, command, written = state_of(run, now), resume_command(run), run.last_written()
    except WorkbenchError as error:
        return html.Div([html.B(run.name), html.Span(str(error), className="failed")], className="scan")
    share = status.done / status.planned if status.planned else 0.0
    ago = "" if written is None else f" · last part {_ago(now - written)} ago"
    checkpoints = f"{status.checkpoints_done} of {status.checkpoints} checkpoints{ago}"
    said = f"{status.done:,} of {status.planned:,} units · {checkpoints}"
    failed = [html.Span(f"{status.failed} failed", className="failed")] if status.failed else []
    copy = html.Button("copy", className="text", **p.extra(data_copy=command))
    line = [html.Code(command), copy]
    return html.Div(
        [
            html.Div(
                [
                    html.B(run.name),
                    html.Span(state, className="badge"),
                    html.Span(said, className="muted"),
                    *failed,
                ]
            ),
            html.Div(html.Span(style={"width": f"{100 * share:.2f}%"}), className="bar wide"),
            html.Div(line, className="command") if state != "complete" else None,
        ],
        className="scan",
    )


def failure_list(runs: list[Run]) -> Any:
    """Every failure with its reason, its traceback to unfold."""
    found: list[Any] = []
    for run in runs:
        failures = run.failures()
        for row in records(failures, *failures.columns):
            where = f"{run.name} · {row['ckpt']} · " + ("whole checkpoint" if row["unit"] is None else row["unit"])
            tries = f"{row['attempts']} attempt{'s' * (row['attempts'] != 1)}"
            head = html.Summary([html.Span(row["kind"], className="badge"), html.B(where), " ", row["message"]])
            trace = html.Pre((row["traceback"] or "no traceback was kept")[-_TRACE_CHARACTERS:])
            found.append(html.Details([head, html.Div(tries, className="muted"), trace]))
    return found or html.P("nothing failed", className="muted")


def failures_table(runs: list[Run]) -> pd.DataFrame:
    """Every failure of these runs."""
    return pd.concat([run.failures().assign(run=run.name) for run in runs], ignore_index=True)


def checkpoint_strips(runs: list[Run]) -> Any:
    """A cell per checkpoint: how many units are done, hatched where some failed."""
    strips: list[Any] = []
    for run in runs:
        table = run.checkpoints()
        most = max([1, *table.loc[:, "parts"].tolist()])
        cells = [_cell(row, most) for row in records(table, *_WHERE)]
        strips.append(html.Div([html.B(run.name), html.Div(cells, className="cells")], className="scan"))
    return strips


def checkpoints_table(runs: list[Run]) -> pd.DataFrame:
    """The checkpoints of these runs with what is done of each."""
    return pd.concat([run.checkpoints().assign(run=run.name) for run in runs], ignore_index=True)


def slowest_table(runs: list[Run]) -> Any:
    """The checkpoints and probes that took longest, and what of them took it."""
    table = timings_table(runs)
    if table.empty:
        return html.P("no timings: these scores were not made by a scan", className="muted")
    slowest = table.sort_values("total_s", ascending=False).head(_SLOWEST_ROWS)
    titles = ("run", "checkpoint", "probe", "units", *(name for name in _SECONDS))
    rows = [
        [row["run"], row["ckpt"], row["probe"], row["units"], *(f"{row[name]:.2f}" for name in _SECONDS.values())]
        for row in records(slowest, *slowest.columns)
    ]
    return plain_table(titles, rows, numbers_from=3)


def timings_table(runs: list[Run]) -> pd.DataFrame:
    """How long every checkpoint and probe of these runs took, and each of its parts, in seconds."""
    rows = [
        {"run": run.name, **asdict(timing), "total_s": timing.total_s} for run in runs for timing in run.timings().each
    ]
    names = ["run", *(field.name for field in fields(Timing)), "total_s"]
    return pd.DataFrame(rows, columns=names)


def _cell(row: dict[str, Any], most: int) -> html.Span:
    place = str(checkpoint_of(row))
    said = f"{place}: {row['parts']} units done" + (", some failed" if row["failed"] else "")
    level = "cell-failed" if row["failed"] else "done" if row["parts"] >= most else "part" if row["parts"] else "none"
    return html.Span(className=f"cell {level}", title=said, role="img", **p.extra(aria_label=said))


def _ago(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


PAGE = p.Page("jobs", layout, register)
