"""The Jobs page: the progress of every scan, its failures with their reasons, and the command that resumes it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from dash import Dash, Input, Output, State, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, card, text_table
from workbench.app.registry import page
from workbench.app.state.content import Content
from workbench.app.state.scan_states import ScanState, scan_state, unread_state
from workbench.app.state.view import View
from workbench.console import fixed
from workbench.emergence.head_trajectories import checkpoint_of
from workbench.figures.trajectories import records
from workbench.runs import Run
from workbench.store import JobDescription, Timing

SCANS, FAILED, CHECKPOINTS, SLOWEST = "scans", "failed", "job-checkpoints", "job-slowest"
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
_CHECKPOINT_COLUMNS = ("ckpt", "branch", "step", "step_total", "tokens", "parts", "failed", "is_gone")


def register(app: Dash, content: Content) -> None:
    """The Jobs page, which reads the runs with every tick."""

    @app.callback(
        Output(SCANS, "children"),
        Output(FAILED, "children"),
        Output(CHECKPOINTS, "children"),
        Output(SLOWEST, "children"),
        Output(FAILED, "title"),
        Input(ids.VIEW, "data"),
        Input(ids.TICK, "n_intervals"),
        Input(ids.ANY_CHANGED, "data"),
        State(FAILED, "title"),
    )
    def show_jobs(view_json: Any, _: Any, __: Any, last_state: Any) -> Any:
        view = View.of_page("jobs", view_json)
        if view is None:
            return (no_update,) * 5
        chosen = _chosen(view, content)
        unread = [run for run in content.runs.values() if run not in chosen and unread_state(run).reason]
        states = [scan_state(run, time.time()) for run in (*chosen, *unread)]
        scans = [scan_card(state) for state in states]
        readable = [state.run for state in states if not state.reason and state.run in chosen]
        state = " ".join(f"{run.name}: {run.fingerprint('scores')} {run.failures_changed_ns()}" for run in readable)
        if state == last_state:  # tracebacks that the reader unfolded stay open
            return scans, no_update, no_update, no_update, no_update
        return scans, failure_list(readable), checkpoint_strips(readable), slowest_table(readable), state


def resume_command(run: Run) -> str:
    """The command that resumes the scan, or as a comment the Python call where its probes were made in Python."""
    job = run.last_job()
    if job.made_in_python:
        return _python_call(job, run.path)
    words = ["workbench", "scan", job.checkpoints or "DIR", "--out", str(run.path)]
    for name in job.detectors or ():
        words += ["--detector", name]
    for name in job.probes or ():
        words += ["--probe", name]
    for name, value in job.options().items():
        flag = f"--{name.replace('_', '-')}"
        if name == "far_sink":
            words += ["--set", f"far_sink={value}"]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _python_call(job: JobDescription, out: Path) -> str:
    """The call that resumes a scan whose probes were made in Python, and which probes these are."""
    detectors = {} if job.detectors is None else {"detectors": list(job.detectors)}
    words = [repr(job.checkpoints or "DIR"), repr(str(out))]
    words += [f"{name}={value!r}" for name, value in {**detectors, **job.options()}.items()]
    words.append(f"probes=[{', '.join([*map(repr, job.probes or ()), '*made_again'])}]")
    made = ", ".join(job.made_in_python or ())
    return f"# no command can name the probes {made}: make them again in Python, then wb.scan({', '.join(words)})"


def scans_table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: its state, the units planned, done and failed, the command that resumes it, why it is unread."""
    rows: list[dict[str, Any]] = []
    for state in (scan_state(run, time.time()) for run in runs):
        counts = {name: getattr(state.status, name, None) for name in ("planned", "done", "failed")}
        resume = "" if state.reason else resume_command(state.run)
        rows.append({"run": state.run.name, "state": state.in_words, **counts, "resume": resume, "why": state.reason})
    return pd.DataFrame(rows)


def scan_card(state: ScanState) -> html.Div:
    """One run's progress, or which of its files cannot be read."""
    run, status = state.run, state.status
    if status is None:
        words = html.Span(state.in_words, className="badge failed")
        return html.Div([html.Div([html.B(run.name), words]), html.Div(state.reason)], className="scan")
    command, written = resume_command(run), run.last_written()
    share = status.done / status.planned if status.planned else 0.0
    ago = "" if written is None else f" · last part {_ago(time.time() - written)} ago"
    checkpoints = f"{status.checkpoints_done} of {status.checkpoints} checkpoints{ago}"
    units = f"{status.done:,} of {status.planned:,} units" if status.planned else status.in_words
    progress = f"{units} · {checkpoints}"
    failed = [html.Span(f"{status.failed} failed", className="failed")] if status.failed else []
    copy = html.Button("copy", className="text", **attributes(data_copy=command))
    line = [html.Code(command), copy]
    return html.Div(
        [
            html.Div(
                [
                    html.B(run.name),
                    html.Span(state.in_words, className="badge"),
                    html.Span(progress, className="muted"),
                    *failed,
                ]
            ),
            html.Div(html.Span(style={"width": f"{100 * share:.2f}%"}), className="bar wide"),
            html.Div(line, className="command") if state.in_words != "complete" else None,
            *(html.Div(remark, className="muted") for remark in run.remarks),
        ],
        className="scan",
    )


def failure_list(runs: list[Run]) -> Any:
    """Every failure with its reason; its traceback unfolds."""
    items: list[Any] = []
    for run in runs:
        failures = run.failures()
        for row in records(failures, *failures.columns):
            unit = f"{run.name} · {row['ckpt']} · " + ("whole checkpoint" if row["unit"] is None else row["unit"])
            tries = f"{row['attempts']} attempt{'s' * (row['attempts'] != 1)}"
            head = html.Summary([html.Span(row["kind"], className="badge"), html.B(unit), " ", row["message"]])
            trace = html.Pre((row["traceback"] or "no traceback was kept")[-_TRACE_CHARACTERS:])
            items.append(html.Details([head, html.Div(tries, className="muted"), trace]))
    return items or html.P("nothing failed", className="muted")


def failures_table(runs: list[Run]) -> pd.DataFrame:
    """Every failure of these runs."""
    return pd.concat([run.failures().assign(run=run.name) for run in runs], ignore_index=True)


def checkpoint_strips(runs: list[Run]) -> Any:
    """A box per checkpoint: filled as its units are done, hatched where some failed."""
    strips: list[Any] = []
    for run in runs:
        table = run.checkpoints()
        most = max([1, *table.loc[:, "parts"].tolist()])
        boxes = [_checkpoint_box(row, most) for row in records(table, *_CHECKPOINT_COLUMNS)]
        strips.append(html.Div([html.B(run.name), html.Div(boxes, className="cells")], className="scan"))
    return strips


def checkpoints_table(runs: list[Run]) -> pd.DataFrame:
    """The checkpoints of these runs with the units done of each."""
    return pd.concat([run.checkpoints().assign(run=run.name) for run in runs], ignore_index=True)


def slowest_table(runs: list[Run]) -> Any:
    """The checkpoints and probes that took longest, with the time of each step."""
    table = timings_table(runs)
    if table.empty:
        return html.P("no timings: a scan keeps them beside its scores, and these runs have none", className="muted")
    slowest = table.sort_values("total_s", ascending=False).head(_SLOWEST_ROWS)
    titles = ("run", "checkpoint", "probe", "units", *(name for name in _SECONDS))
    rows = [
        [row["run"], row["ckpt"], row["probe"], row["units"], *(fixed(row[name], 2) for name in _SECONDS.values())]
        for row in records(slowest, *slowest.columns)
    ]
    return text_table(titles, rows, numbers_from=3)


def timings_table(runs: list[Run]) -> pd.DataFrame:
    """The seconds of every checkpoint and probe of these runs, in all and step by step."""
    rows = [
        {"run": run.name, **asdict(timing), "total_s": timing.total_s} for run in runs for timing in run.timings().each
    ]
    names = ["run", *(field.name for field in fields(Timing)), "total_s"]
    return pd.DataFrame(rows, columns=names)


def _checkpoint_box(row: dict[str, Any], most: int) -> html.Span:
    label = f"{checkpoint_of(row)}: {row['parts']} units done" + (", some failed" if row["failed"] else "")
    label += ", no longer on disk" if row["is_gone"] else ""
    level = "cell-failed" if row["failed"] else "done" if row["parts"] >= most else "part" if row["parts"] else "none"
    return html.Span(className=f"cell {level}", title=label, role="img", **attributes(aria_label=label))


def _ago(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


def _chosen(view: View, content: Content) -> list[Run]:
    return [content.runs[name] for name in view.runs]


@page(
    "jobs",
    register=register,
    controls=("runs",),
    exports={
        "scans": lambda view, content, _: scans_table(_chosen(view, content)),
        "failures": lambda view, content, _: failures_table(_chosen(view, content)),
        "timings": lambda view, content, _: timings_table(_chosen(view, content)),
        "checkpoints": lambda view, content, _: checkpoints_table(_chosen(view, content)),
    },
)
def layout(_: Content) -> list[Any]:
    """Progress and failures of the scans that wrote the chosen runs."""
    return [
        card("Scans", "", html.Div(id=SCANS), table="scans"),
        card("Failures", "", html.Div(id=FAILED), table="failures"),
        card("Checkpoints", "units that are done, per run", html.Div(id=CHECKPOINTS), table="checkpoints"),
        card(
            "What took longest",
            "seconds for all units of one checkpoint and probe, by the scan's own account",
            html.Div(id=SLOWEST, className="table"),
            table="timings",
        ),
    ]
