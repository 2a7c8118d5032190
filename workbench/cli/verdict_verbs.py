"""`workbench verdict`: what a plan loses with the length of the context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.arguments import Device, Json, Tokenizer, open_named_model
from workbench.console import print_json, print_table, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.store.length_verdict import LengthVerdict
    from workbench.store.plan_file import Plan

_COLUMNS = ("task", "length", "arm", "right", "right_lo", "right_hi", "nats", "lost", "lost_lo", "lost_hi")


def verdict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or a model's id at a hub.")],
    plan: Annotated[Path, typer.Option(help="The plan, as workbench plan --out wrote it.")],
    lengths: Annotated[
        str | None, typer.Option(help="In tokens, as 512,1024,2048. Default: three, from far beyond the window on.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task by name, or a probe without length and n_sequences; repeat for more. Default: all."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Nats per answer that the plan may lose.")] = 0.05,
    effort: Annotated[
        str, typer.Option(help="quick: chains alone; standard: all tasks; thorough: four times the texts.")
    ] = "standard",
    beyond_context: Annotated[
        bool, typer.Option("--beyond-context", help="Try lengths beyond the model's context, too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the plan with its verdict here; may be the plan's own file.")
    ] = None,
    device: Device = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """From which length on a plan loses more than its tolerance: retrieval, hops, counting and far text, at several."""
    from workbench.planning.efforts import extent
    from workbench.planning.verdict_over_length import verdict as judge
    from workbench.store.plan_file import Plan

    extent(effort)  # refuses what is none
    heads_plan = Plan.load(plan)
    if out is not None and not out.resolve().parent.is_dir():
        raise WorkbenchError(f"{out}: its folder does not exist; make it first")
    tried = lengths_of(lengths)
    m = open_named_model(model, device, tokenizer)
    settings: dict[str, Any] = {"tolerance": tolerance, "effort": effort, "beyond_context": beyond_context}
    made = judge(m, heads_plan, tried, task, progress=warn, **settings)
    if out is not None:
        replace(heads_plan, verdict=made).save(out)
    print_verdict(made, as_json, keys=keys_of_verdict(heads_plan, made))


def lengths_of(written: str | None) -> list[int] | None:
    """Lengths written as 512,1024,2048.

    Raises:
        WorkbenchError: for what are no whole numbers.
    """
    if written is None:
        return None
    try:
        return [int(part) for part in written.split(",")]
    except ValueError as error:
        raise WorkbenchError(
            f"lengths {written!r}: expected whole numbers of tokens with commas, as 512,1024,2048"
        ) from error


def keys_of_verdict(heads_plan: Plan, made: LengthVerdict) -> str:
    """The keys that a token reads at the lengths of a verdict, of a plan with sparse heads; "" of others."""
    return f"{heads_plan.keys_at(made.lengths)}." if heads_plan.sparse else ""


def print_verdict(made: LengthVerdict, as_json: bool, *, keys: str = "") -> None:
    """The table and the sentence, or one JSON document; `keys`: what a token reads, of a plan with sparse heads."""
    if as_json:
        print_json({**verdict_document(made), **({"keys": keys} if keys else {})})
        return
    table = made.table()
    counted = table.loc[table["left_out"] == "", list(_COLUMNS)]
    print_table(_COLUMNS, counted.to_numpy().tolist(), title="Right answers and nats per answer, by length")
    print()
    area = made.area
    if len(made.lengths) > 1:
        print_table(list(area), area.to_numpy().tolist(), title="Mean over the lengths, every doubling alike")
        print()
    print(made.sentence)
    if keys:
        print(keys)
    for remark in made.remarks:
        warn(remark)


def verdict_document(made: LengthVerdict) -> dict[str, Any]:
    """The verdict as one JSON document."""
    words = {"sentence": made.sentence, "loses_from": made.loses_from, "remarks": made.remarks}
    return {**words, "area": made.area.to_dict("records"), **made.document()}
