"""A plan as one HTML page: its claims, its heads, what they cost, and the verdict over length. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from itertools import count
from pathlib import Path

from workbench import figures
from workbench.report.html_parts import figure_html, paragraphs, table_html, write_html
from workbench.store.plan_file import Plan

_NOT_JUDGED = (
    "The plan was not judged at several lengths: workbench verdict MODEL --plan PLAN --out PLAN does that. What a "
    "conversion costs often grows with the length."
)


def write_plan_page(plan: Plan, out: Path) -> Path:
    """Write the page.

    Raises:
        StoreNotWritable: if the file cannot be written.
    """
    return write_html(f"Which heads of {plan.model} need the whole context", _sections(plan), out)


def plan_claims(plan: Plan) -> list[str]:
    """What the plan says: heads by choice, the cache that is saved, what is recovered, and the verdict."""
    n, linear = len(plan.ranking), len(plan.linear)
    windows = len(plan.windowed)
    counts = [f"{len(plan.keep)} keep the whole context"]
    if windows:
        sinks = f" and the first {plan.sink}" if plan.sink else ""
        counts.append(f"{windows} see the last {plan.window} tokens{sinks}")
    if linear:
        counts.append(f"{linear} have linear attention")
    if plan.sparse:
        counts.append(f"{len(plan.sparse)} attend to selected blocks and keep their whole cache")
    claims = [
        f"Of {n} key/value heads that see further than the window, {', '.join(counts)}.",
        f"This saves {plan.kv_saved:.0%} of the cache at {plan.context:,} tokens.",
    ]
    recovered, lost = (plan.evidence.get(name, math.nan) for name in ("recovered", "lost_nats"))
    if not math.isnan(recovered):
        claims.append(
            f"On the held-out probe where it does worst, {recovered:.0%} of what converting every head costs is back; "
            f"{lost:.3g} nats per answer are lost."
        )
    claims.append(_NOT_JUDGED if plan.verdict is None else plan.verdict.sentence)
    return [*claims, *plan.remarks]


def _sections(plan: Plan) -> Iterator[str]:
    numbers = count()
    yield paragraphs(plan_claims(plan))
    if plan.verdict is not None:
        yield "<h2>What the plan loses with the length of the context</h2>"
        yield figure_html(figures.verdict(plan), numbers)
        yield paragraphs(plan.verdict.remarks)
    yield "<h2>The heads</h2>"
    yield f'<p class="note">Ranked by {escape(plan.method)} on {escape(plan.probe)}, in {escape(plan.units)}.</p>'
    yield figure_html(figures.plan(plan), numbers)
    yield "<h2>What heads kept bring back, and what they cost</h2>"
    yield figure_html(figures.pareto(plan), numbers)
    yield table_html(plan.curves())
    if plan.costs:
        yield "<h2>A window against linear attention</h2>"
        yield figure_html(figures.window_against_linear(plan), numbers)
    yield "<h2>Every head</h2>"
    yield table_html(plan.table().dropna(axis="columns", how="all"))
