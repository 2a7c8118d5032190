"""The answers to which heads need the whole context as sentences, with links to the heads and to the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dash import html

from workbench.app.components import attributes
from workbench.runs.answers import Answer, shared_remarks

# Query heads that an answer names.
_LINKED = 8


def sentences(by_run: Mapping[str, Answer]) -> list[html.P]:
    """The answers as sentences, one a run, with links to heads and plan; what is said of several comes last.

    Runs of which the answer is not known for the same reason share a sentence.
    """
    shared = shared_remarks(by_run.values())
    last = [html.P("; ".join(shared), className="muted")] if shared else []
    runs_of: dict[str, list[str]] = {}  # the runs that are not known, by the reason
    for answer in by_run.values():
        if not answer.count:
            runs_of.setdefault(answer.basis, []).append(answer.run)
    alone = [answer for answer in by_run.values() if answer.count or len(runs_of[answer.basis]) == 1]
    together = [Answer(", ".join(names), (), "", basis) for basis, names in runs_of.items() if len(names) > 1]
    each = [_sentence(answer, [r for r in answer.remarks if r not in shared]) for answer in (*alone, *together)]
    return [*each, *last]


def _sentence(answer: Answer, remarks: Sequence[str]) -> html.P:
    dressed = {
        "run": lambda text: html.B(text),
        "count": lambda text: html.Span(text, className="strong"),
        "basis": lambda text: html.Span(text, title=answer.source),
        "": str,
    }
    parts: list[Any] = [*(dressed[what](text) for what, text in answer.phrases()), " "]
    if answer.heads:
        links = [_head_link(answer.run, str(head)) for head in answer.heads[:_LINKED]]
        parts += [part for link in links for part in (link, " ")]
        more = len(answer.heads) - len(links)
        parts += [_rest_link(answer, more), " "] * (more > 0)
    if answer.plan:
        to_plan = attributes(data_page="plan", data_set=json.dumps({"plan": answer.plan, "keep": ""}))
        parts += ["· ", html.A("the plan, its costs and its verdict", href="plan", **to_plan), " "]
    if remarks and (answer.heads or answer.plan):
        parts += ["· "]
    return html.P([*parts, html.Span("; ".join(remarks), className="muted")])


def _rest_link(answer: Answer, n: int) -> html.A:
    """All heads of an answer are marked in the table of the run's heads."""
    to_table = attributes(data_page="head_table", data_head=str(answer.heads[0]), data_run=answer.run)
    title = "the table of all heads, where ● marks these"
    return html.A(f"and {n} more query heads", href="head_table", title=title, **to_table)


def _head_link(run: str, head: str) -> html.A:
    return html.A(head, href="head", **attributes(data_page="head", data_head=head, data_run=run))
