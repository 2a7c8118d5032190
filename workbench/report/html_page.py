"""Write the contents of a report as one HTML file with plotly inside; the page loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path

import pandas as pd

from workbench import figures
from workbench.heads import WorkbenchError
from workbench.report.contents import Contents
from workbench.report.html_parts import figure_html, paragraphs, table_html, write_html
from workbench.runs import Run
from workbench.runs.answers import Answer, shared_remarks

_MOST_NAMED = 24  # heads of an answer
_METRICS = 6  # model-level curves drawn at most


def write_page(contents: Contents, out: Path) -> Path:
    """Write the report.

    Raises:
        StoreNotWritable: if the file cannot be written.
    """
    title = f"Attention heads of {', '.join(run.name for run in contents.runs)}"
    return write_html(title, _sections(contents), out)


def _sections(contents: Contents) -> Iterator[str]:
    numbers = count()
    yield "<h2>Which heads need the whole context?</h2>"
    yield _answers(contents.answers)
    yield "<h2>What was scanned</h2>"
    yield _facts(contents)
    yield "<h2>What the numbers say</h2>"
    yield paragraphs(contents.claims)
    yield (
        '<p class="note">Intervals are 95&nbsp;% bootstraps over sequences, onsets of fits over checkpoints. '
        "Heads of different runs are compared by class, never by number.</p>"
    )
    for name, model in contents.models.items():
        yield f"<h2>{escape(name)}: what the model gets right</h2>"
        yield table_html(model.abilities)
        yield f"<h2>{escape(name)}: its heads, with the threshold of each class</h2>"
        yield table_html(model.heads.drop(columns=["layer", "head", "kv_head"]))
    yield "<h2>Best heads at the end</h2>"
    yield table_html(contents.best)
    if len(contents.models) == len(contents.runs):
        yield from _at_one_checkpoint(contents, numbers)
        return
    yield "<h2>Classes, and when half of their rise was over</h2>"
    yield table_html(contents.summary.tables["classes"])
    yield "<h2>The earliest heads of each class</h2>"
    yield table_html(contents.summary.tables["heads"])
    for detector, probe in contents.classes:
        yield f"<h2>{escape(detector)} on {escape(probe)}</h2>"
        yield from _of_class(contents, detector, probe, numbers)
    yield "<h2>The model as a whole</h2>"
    yield from _of_model(contents.runs, numbers)
    yield "<h3>Phase changes</h3>"
    yield table_html(contents.summary.tables["phase_changes"])
    yield "<h2>Failures</h2>"
    yield table_html(contents.failures) if len(contents.failures) else "<p>None.</p>"


def _answers(answers: Sequence[Answer]) -> str:
    """A sentence a run with its heads, whose tooltip is the source of its thresholds; then what else is to be known."""
    shared = shared_remarks(answers)
    items: list[str] = []
    for answer in answers:
        heads, more = answer.heads[:_MOST_NAMED], len(answer.heads) - _MOST_NAMED
        named = " ".join(map(str, heads)) + (f" and {more} more" if more > 0 else "")
        own = "; ".join(remark for remark in answer.remarks if remark not in shared)
        note = f' <span class="note">{escape(own)}</span>' if own else ""
        title = f' title="{escape(answer.source)}"' if answer.source else ""
        items.append(f"<li{title}>{escape(answer.sentence)} {named}{note}</li>")
    last = f'<p class="note">{escape("; ".join(shared))}</p>' if shared else ""
    return f"<ul>{''.join(items)}</ul>{last}"


def _at_one_checkpoint(contents: Contents, numbers: Iterator[int]) -> Iterator[str]:
    """What there is to draw where no run is over training: each detector's grid of heads."""
    for detector, probe in contents.classes:
        yield f"<h2>{escape(detector)} on {escape(probe)}</h2>"
        yield figure_html(figures.heads(contents.runs, detector=detector, probe=probe), numbers)
    yield "<h2>Failures</h2>"
    yield table_html(contents.failures) if len(contents.failures) else "<p>None.</p>"


def _of_class(contents: Contents, detector: str, probe: str, numbers: Iterator[int]) -> Iterator[str]:
    runs = contents.runs
    yield figure_html(figures.emergence(runs, detector=detector, probe=probe), numbers)
    if len(runs) > 1:
        tables = {run.name: run.emergence(detector, probe=probe) for run in runs}
        try:
            yield figure_html(figures.compare(tables, detector=detector), numbers)
        except WorkbenchError as error:
            yield f'<p class="note">{escape(str(error))}</p>'
    yield figure_html(figures.strips(runs, detector=detector, probe=probe), numbers)
    for run in runs:
        yield f"<h3>Lock-in of {escape(run.name)}</h3>"
        try:
            yield figure_html(figures.lock_in(run.lock_in(detector, probe=probe)), numbers)
        except WorkbenchError as error:
            yield f'<p class="note">{escape(str(error))}</p>'


def _of_model(runs: Sequence[Run], numbers: Iterator[int]) -> Iterator[str]:
    """The curves of the model-level numbers that all runs have."""
    tables = [run.metrics() for run in runs]
    pooled = [t.loc[t["position"].isna(), ["metric", "probe"]].drop_duplicates() for t in tables]
    shared = set.intersection(*(set(p.itertuples(index=False, name=None)) for p in pooled))
    for metric, probe in sorted(shared)[:_METRICS]:
        yield f"<h3>{escape(str(metric))} on {escape(str(probe))}</h3>"
        yield figure_html(figures.metrics(runs, metric=str(metric), probe=str(probe)), numbers)
    if len(shared) > _METRICS:
        omitted = ", ".join(f"{metric} on {probe}" for metric, probe in sorted(shared)[_METRICS:])
        yield f'<p class="note">Not drawn: {escape(omitted)}.</p>'
    if not shared:
        yield "<p>No number that all runs have.</p>"


def _facts(contents: Contents) -> str:
    names = [name for name in next(iter(contents.facts.values())) if name != "status"]
    rows = {name: [facts[name] for facts in contents.facts.values()] for name in names}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(contents.facts)).rename_axis("").reset_index()
    return table_html(table)
