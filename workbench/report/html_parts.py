"""The parts of a report's HTML page: the page itself with plotly inside, figures and tables. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.heads import StoreNotWritable
from workbench.report.contents import value_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin-bottom: .2rem; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #d8dee4; text-align: left; vertical-align: top; }
th { color: #59636e; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .note { color: #59636e; font-size: 13px; } figure { margin: 0; }
"""
# No logo, and no button that sends the figure to a server of Plotly's.
_PRIVATE = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}


def write_html(title: str, sections: Iterable[str], out: Path) -> Path:
    """Write a page of these sections under the title.

    Raises:
        StoreNotWritable: if the file cannot be written.
    """
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    # A data icon: without one a browser asks the folder for favicon.ico.
    icon = '<link rel="icon" href="data:,">'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    page = (
        f'<!doctype html><html lang="en"><head>{head}{icon}<script>{get_plotlyjs()}</script></head>'
        f"<body>{body}</body></html>\n"
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror}); pass another --out") from error
    return out


def paragraphs(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def figure_html(figure: go.Figure, numbers: Iterator[int]) -> str:
    """A figure with the next number."""
    drawn: Any = figure
    html = drawn.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{next(numbers)}", config=_PRIVATE, default_width="100%"
    )
    return f"<figure>{html}</figure>"


def table_html(table: pd.DataFrame) -> str:
    """A table that scrolls sideways where it is wide."""
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
