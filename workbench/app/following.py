"""Follow the runs while they are shown: what the header says, which runs are gone, and what is to be drawn again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, html, no_update

from workbench.app import ids
from workbench.app.components import attributes
from workbench.app.state.content import Content
from workbench.app.state.scan_states import ScanState, scan_state, unread_state
from workbench.app.state.view import View
from workbench.heads import WorkbenchError
from workbench.runs import Run

_NAMES = ("scores", "metrics", "head", "names", "any")


def register(app: Dash, content: Content) -> None:
    """The callback of the timer."""
    runs = content.runs

    @app.callback(
        Output(ids.STATUS, "children"),
        Output(ids.BANNERS, "children"),
        Output(ids.FINGERPRINTS, "data"),
        Output(ids.SCORES_CHANGED, "data"),
        Output(ids.METRICS_CHANGED, "data"),
        Output(ids.HEAD_CHANGED, "data"),
        Output(ids.NAMES_CHANGED, "data"),
        Output(ids.ANY_CHANGED, "data"),
        Input(ids.TICK, "n_intervals"),
        State(ids.VIEW, "data"),
        State(ids.FINGERPRINTS, "data"),
    )
    def refresh(_: Any, view_json: Any, last: Any) -> Any:
        if not runs:
            return "" if content.model is None else content.model.about, *(no_update,) * 7
        view = View() if view_json is None else View.from_json(view_json)
        chosen = [runs[name] for name in view.runs if name in runs] or list(runs.values())
        of = [*view.runs, view.detector, view.probe]
        before = last if last and last["of"] == of else {"of": of, **_digests(view, chosen)}
        now = time.time()
        shown = [scan_state(run, now) for run in chosen]
        # A run that cannot be read is not chosen, and is said to be so all the same.
        states = [*shown, *(unread_state(run) for run in runs.values() if run not in chosen)]
        unread = [(state.run.name, state.reason) for state in states if state.reason]
        after = {"of": of, **_digests(view, chosen), "unread": unread}
        changed = [after[name] if after[name] != before[name] else no_update for name in _NAMES]
        banners = no_update if last and last.get("unread") == [list(pair) for pair in unread] else _banners(states)
        return status_line(shown), banners, after, *changed


def status_line(states: Sequence[ScanState]) -> list[Any]:
    """The progress of the scans of the chosen runs, for the header, in the words of the Jobs page."""
    statuses = [state.status for state in states if state.status is not None]
    done, planned = (sum(getattr(status, name) for status in statuses) for name in ("done", "planned"))
    checkpoints = sum(status.checkpoints for status in statuses)
    failed_units = sum(status.failed for status in statuses)
    failed_checkpoints = sum(status.checkpoints_failed for status in statuses)
    counts = f"{_counted(len(states), 'run')} · {_counted(checkpoints, 'checkpoint')}"
    line: list[Any] = [html.Span(counts, className="muted")]
    each = "\n".join(f"{state.run.name}: {state.reason or state.in_words}" for state in states)
    unread = [state for state in states if state.reason]
    for words in dict.fromkeys(state.in_words for state in unread):
        names = ", ".join(state.run.name for state in unread if state.in_words == words)
        line.append(_to_jobs(f"{words}: {names}", each, "failed"))
    rest = [state.in_words for state in states if not state.reason]
    if rest and all(words == "complete" for words in rest):
        line.append(html.Span("the rest complete" if unread else "scan complete", className="muted", title=each))
    elif rest and set(rest) <= {"complete", "ended with failures"}:
        line.append(html.Span("scan ended with failures", className="muted", title=each))
    elif planned:
        share = 100 * done / planned
        bar = html.Span(html.Span(style={"width": f"{share:.1f}%"}), className="bar", role="presentation")
        quiet = ", quiet" if "writing" not in rest else ""
        line += [html.Span(f"scan {share:.0f} %{quiet}", className="accent", title=each), bar]
    if failed_units or failed_checkpoints:
        failed = _counted(failed_units, "unit") if failed_units else _counted(failed_checkpoints, "checkpoint")
        line.append(_to_jobs(f"{failed} failed", "see why", "failed"))
    remarks = [f"{state.run.name}: {remark}" for state in states for remark in state.remarks]
    if remarks:
        line.append(_to_jobs("not all scores are shown", "\n".join(remarks)))
    return line


def _banners(states: Sequence[ScanState]) -> list[Any]:
    """A bar for each run that cannot be read: which, why, and what to do."""
    return [
        html.Div([html.B(f"{state.run.name}: {state.in_words}. "), state.reason], className="wb-banner", role="alert")
        for state in states
        if state.reason
    ]


def _digests(view: View, chosen: Sequence[Run]) -> dict[str, Any]:
    """Digests of what the page shows, table by table, so that only changed figures are drawn again."""
    digests: dict[str, list[Any]] = {name: [] for name in _NAMES}
    names: set[str] = set()
    for run in chosen:
        try:
            digests["scores"].append(run.fingerprint("scores", detector=view.detector, probe=view.probe))
            digests["metrics"].append(run.fingerprint("metrics"))
            if run.name == view.run:
                digests["head"].append(run.fingerprint("scores"))
            digests["any"].append(
                f"{run.fingerprint('scores')} {run.fingerprint('metrics')} {run.failures_changed_ns()}"
            )
            names |= {f"{name} on {probe}" for name in run.detectors for probe in run.probes_of(name)}
        except (WorkbenchError, OSError) as error:
            digests["any"].append(str(error))
    digests["names"] = sorted(names)
    return digests


def _to_jobs(text: str, title: str, class_name: str = "") -> html.A:
    return html.A(text, href="jobs", className=class_name, title=title, **attributes(data_page="jobs"))


def _counted(n: int, name: str) -> str:
    return f"{n} {name}{'s' * (n != 1)}"
