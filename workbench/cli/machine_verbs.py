"""`workbench detectors` and `workbench doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli.arguments import Json
from workbench.console import print_json, print_table


def detectors(as_json: Json = False) -> None:
    """List the registered detectors: what each measures, in which units."""
    from workbench.detectors import all_detectors

    columns = ("name", "version", "units", "direction", "needs_answers", "summary")
    rows = [[getattr(d, c) for c in columns] for d in all_detectors().values()]
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows)


def doctor(
    state_precision: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Instead: what this model's linear layers lose with a state of fewer bits."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens decoded for --state-precision.")] = 4096,
    as_json: Json = False,
) -> None:
    """Show versions, devices, and which kernel each operation will use and why."""
    if state_precision is not None:
        _print_states(state_precision, tokens, as_json=as_json)
        return
    from workbench.cli.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for heading, facts in report.items():
        print_table(("", ""), list(facts.items()), title=heading)


def _print_states(model: str, tokens: int, *, as_json: bool) -> None:
    from workbench.cli.doctor import examine_states

    report = examine_states(model, tokens=tokens)
    if as_json:
        print_json({"lost": report.lost.to_dict("records"), "growth": report.growth.to_dict("records")})
        return
    by_layer = report.by_layer()
    for title, table in (("share of heads whose decay is lost to rounding", report.lost), ("error", by_layer)):
        rows = [[f"{x:.2g}" if isinstance(x, float) else x for x in row] for row in table.itertuples(index=False)]
        print_table(list(table.columns), rows, title=title)
