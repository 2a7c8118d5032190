"""Write the contents of a report as one HTML file with plotly inside; the page loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench import figures
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.report.contents import Contents, value_text
from workbench.runs import Run

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin-bottom: .2rem; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #d8dee4; text-align: left; vertical-align: top; }
th { color: #59636e; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .note { color: #59636e; font-size: 13px; } figure { margin: 0; }
"""
_METRICS = 6  # model-level curves drawn at most
_NO_BAR = {"displaylogo": False, "responsive": True}


def write_page(contents: Contents, out: Path) -> Path:
    """Write the report.

    Raises:
        StoreNotWritable: if the file cannot be written.
    """
    title = f"Attention heads of {', '.join(run.name for run in contents.runs)}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    # A data icon: without one a browser asks the folder for favicon.ico.
    icon = '<link rel="icon" href="data:,">'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *_sections(contents)])
    page = (
        f'<!doctype html><html lang="en"><head>{head}{icon}<script>{get_plotlyjs()}</script></head>'
        f"<body>{body}</body></html>\n"
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror}); pass another --out") from error
    return out


def _sections(contents: Contents) -> Iterator[str]:
    numbers = count()
    yield "<h2>What was scanned</h2>"
    yield _facts(contents)
    yield "<h2>What the numbers say</h2>"
    yield "<ul>" + "".join(f"<li>{escape(claim)}</li>" for claim in contents.claims) + "</ul>"
    yield (
        '<p class="note">Intervals are 95&nbsp;% bootstraps over sequences, onsets of fits over checkpoints. '
        "Heads of different runs are compared by class, never by number.</p>"
    )
    for name, model in contents.models.items():
        yield f"<h2>{escape(name)}: what the model gets right</h2>"
        yield _table(model.abilities)
        yield f"<h2>{escape(name)}: its heads, with the threshold of each class</h2>"
        yield _table(model.heads.drop(columns=["layer", "head", "kv_head"]))
    yield "<h2>Best heads at the end</h2>"
    yield _table(contents.best)
    if len(contents.models) == len(contents.runs):
        yield from _at_one_checkpoint(contents, numbers)
        return
    yield "<h2>Classes, and when half of their rise was over</h2>"
    yield _table(contents.summary.tables["classes"])
    yield "<h2>The earliest heads of each class</h2>"
    yield _table(contents.summary.tables["heads"])
    for detector, probe in contents.classes:
        yield f"<h2>{escape(detector)} on {escape(probe)}</h2>"
        yield from _of_class(contents, detector, probe, numbers)
    yield "<h2>The model as a whole</h2>"
    yield from _of_model(contents.runs, numbers)
    yield "<h3>Phase changes</h3>"
    yield _table(contents.summary.tables["phase_changes"])
    yield "<h2>Failures</h2>"
    yield _table(contents.failures) if len(contents.failures) else "<p>None.</p>"


def _at_one_checkpoint(contents: Contents, numbers: Iterator[int]) -> Iterator[str]:
    """What there is to draw where no run is over training: each detector's grid of heads."""
    for detector, probe in contents.classes:
        yield f"<h2>{escape(detector)} on {escape(probe)}</h2>"
        yield _figure(figures.heads(contents.runs, detector=detector, probe=probe), numbers)
    yield "<h2>Failures</h2>"
    yield _table(contents.failures) if len(contents.failures) else "<p>None.</p>"


def _of_class(contents: Contents, detector: str, probe: str, numbers: Iterator[int]) -> Iterator[str]:
    runs = contents.runs
    yield _figure(figures.emergence(runs, detector=detector, probe=probe), numbers)
    if len(runs) > 1:
        tables = {run.name: run.emergence(detector, probe=probe) for run in runs}
        try:
            yield _figure(figures.compare(tables, detector=detector), numbers)
        except WorkbenchError as error:
            yield f'<p class="note">{escape(str(error))}</p>'
    yield _figure(figures.strips(runs, detector=detector, probe=probe), numbers)
    for run in runs:
        yield f"<h3>Lock-in of {escape(run.name)}</h3>"
        try:
            yield _figure(figures.lock_in(run.lock_in(detector, probe=probe)), numbers)
        except WorkbenchError as error:
            yield f'<p class="note">{escape(str(error))}</p>'


def _of_model(runs: Sequence[Run], numbers: Iterator[int]) -> Iterator[str]:
    """The curves of the model-level numbers that all runs have."""
    tables = [run.metrics() for run in runs]
    pooled = [t.loc[t["position"].isna(), ["metric", "probe"]].drop_duplicates() for t in tables]
    shared = set.intersection(*(set(p.itertuples(index=False, name=None)) for p in pooled))
    for metric, probe in sorted(shared)[:_METRICS]:
        yield f"<h3>{escape(str(metric))} on {escape(str(probe))}</h3>"
        yield _figure(figures.metrics(runs, metric=str(metric), probe=str(probe)), numbers)
    if len(shared) > _METRICS:
        omitted = ", ".join(f"{metric} on {probe}" for metric, probe in sorted(shared)[_METRICS:])
        yield f'<p class="note">Not drawn: {escape(omitted)}.</p>'
    if not shared:
        yield "<p>No number that all runs have.</p>"


def _figure(figure: go.Figure, numbers: Iterator[int]) -> str:
    drawn: Any = figure
    html = drawn.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{next(numbers)}", config=_NO_BAR, default_width="100%"
    )
    return f"<figure>{html}</figure>"


def _facts(contents: Contents) -> str:
    names = [name for name in next(iter(contents.facts.values())) if name != "status"]
    rows = {name: [facts[name] for facts in contents.facts.values()] for name in names}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(contents.facts)).rename_axis("").reset_index()
    return _table(table)


def _table(table: pd.DataFrame) -> str:
    if table.empty:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(str(column))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(_table_cell(value) for value in row) + "</tr>"
        for row in table.astype(object).itertuples(index=False)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _table_cell(value: Any) -> str:
    kind = "" if isinstance(value, str) else ' class="number"'
    return f"<td{kind}>{escape(value_text(value))}</td>"
