"""`workbench plan`: the key/value heads that must keep the whole context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.arguments import Device, Json, Tokenizer, open_named_model
from workbench.cli.verdict_verbs import keys_of_verdict, lengths_of, print_verdict, verdict_document
from workbench.console import is_watched, print_json, print_table, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.planning import PlanCost
    from workbench.store.conversions import Window
    from workbench.store.plan_file import Plan


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or a model's id at a hub.")],
    window: Annotated[int, typer.Option(help="Last tokens that a windowed head sees, its own included.")],
    sink: Annotated[int, typer.Option(help="First tokens that it sees as well.")] = 0,
    keep: Annotated[float | None, typer.Option(help="Share of the key/value heads to keep. Default: 0.25.")] = None,
    kv_bytes: Annotated[int | None, typer.Option(help="Instead: bytes of key/value cache at the full context.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Instead: nats of held-out loss that the plan may lose.")
    ] = None,
    method: Annotated[str, typer.Option(help="How heads are ranked.")] = "window_gates",
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Keep whole layers.")] = False,
    probe: Annotated[str | None, typer.Option(help="Probe that heads are ranked on. Default: far needles.")] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="A probe for the curve; repeat for more.")] = None,
    effort: Annotated[
        str, typer.Option(help="quick, standard or thorough: sequences, passes, points and baselines.")
    ] = "standard",
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="A method to compare with, such as random; repeat for more. Default: those of the effort."),
    ] = None,
    choices: Annotated[
        str,
        typer.Option(help="What heads that are not kept may get: window, with linear, sparse or both after commas."),
    ] = "window",
    block: Annotated[int | None, typer.Option(help="Keys in a block of sparse heads.")] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Blocks that they select. Default: as many keys as the window has.")
    ] = None,
    sink_blocks: Annotated[int | None, typer.Option(help="First blocks that are always among them.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="How blocks are selected: oracle (the bound of any selector), mean (MoBA) or minmax (Quest)."
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Judge the plan at these lengths, as 512,1024,2048. With a tokenizer: three.",
        ),
    ] = None,
    no_verdict: Annotated[bool, typer.Option("--no-verdict", help="Do not judge the plan at several lengths.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure what it costs, print that, and stop.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the plan here as JSON. Finished pieces stay beside it until then: the same command goes on."
        ),
    ] = None,
    duo: Annotated[Path | None, typer.Option(help="Write DuoAttention's head file here.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    device: Device = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """Which key/value heads must keep the whole context, and what the model is worth if only they do."""
    from workbench.planning import evaluation_on, plan_cost
    from workbench.planning.efforts import extent
    from workbench.planning.head_choices import check_choices
    from workbench.planning.planner import plan as make_plan
    from workbench.store.conversions import check_window
    from workbench.store.plan_exports import check_duo
    from workbench.store.plan_file import KVBytes, LossTolerance

    budgets = [x for x in (keep, kv_bytes, tolerance) if x is not None]
    if len(budgets) > 1:
        raise WorkbenchError("several budgets were given; pass one of --keep, --kv-bytes and --tolerance")
    budget = 0.25 if keep is None else keep
    budget = budget if kv_bytes is None else KVBytes(kv_bytes)
    budget = budget if tolerance is None else LossTolerance(tolerance)
    if verdict is not None and no_verdict:
        raise WorkbenchError("--verdict and --no-verdict were given; pass one of them")
    for path in (out, duo):
        if path is not None and not path.resolve().parent.is_dir():
            raise WorkbenchError(f"{path}: its folder does not exist; make it first")
    if duo is not None:
        check_duo(duo)
    conversions = tuple(name.strip() for name in choices.split(","))
    check_choices(conversions)
    selecting = {"block": block, "n_blocks": blocks, "sink_blocks": sink_blocks, "rule": rule}
    conversions = _with_sparse(
        conversions, check_window(window, sink), {k: v for k, v in selecting.items() if v is not None}
    )
    others = [name for name in ("linear", "sparse") if name in choices]
    if duo is not None and others:
        raise WorkbenchError(
            f"--duo writes DuoAttention's file, which knows no {' or '.join(others)} attention; leave it out, or pass "
            "--choices window"
        )
    paid, lengths = extent(effort), lengths_of(verdict)
    m = open_named_model(model, device, tokenizer)
    evaluation = evaluation_on(
        m, window, sink, probe=probe, held_out=held_out or (), seed=seed, n_sequences=paid.n_sequences
    )
    settings: dict[str, Any] = {
        "unit": "layer" if layerwise else "head",
        "evaluation": evaluation,
        "effort": effort,
        "baselines": baseline,
        "choices": conversions,
        "verdict": not no_verdict if lengths is None else lengths,
        "out": out,
    }
    if dry_run:
        _print_cost(plan_cost(m, window, sink, budget, method, **settings), as_json)
        return
    progress = True if is_watched() else warn
    heads_plan = make_plan(m, window, sink, budget, method, progress=progress, **settings)
    if duo is not None:
        heads_plan.to_duo_attention(duo)
    _print_plan(heads_plan, as_json)


def _with_sparse(choices: Sequence[str], window: Window, settings: dict[str, Any]) -> tuple[Any, ...]:
    """The choices with these settings of sparse attention in the place of its name; the others are the default's.

    Raises:
        WorkbenchError: for settings of what is no choice, or that make no sparse attention.
    """
    from workbench.planning.sparse_choice import default_form

    if settings and "sparse" not in choices:
        flags = {"n_blocks": "--blocks"}
        flags_passed = ", ".join(flags.get(name, f"--{name.replace('_', '-')}") for name in settings)
        raise WorkbenchError(
            f"{flags_passed} are of sparse attention, which is no choice; pass --choices window,sparse as well"
        )
    if "sparse" not in choices:
        return tuple(choices)
    form = replace(default_form(window, settings.get("block")), **settings)
    return tuple(form if choice == "sparse" else choice for choice in choices)


def _print_cost(cost: PlanCost, as_json: bool) -> None:
    table = cost.table()
    if as_json:
        print_json(
            {
                "parts": table.to_dict("records"),
                "tokens": cost.tokens,
                "seconds": cost.seconds,
                "likely_seconds": cost.likely_seconds,
                "kept_pieces": cost.n_kept,
            }
        )
        return
    print_table(list(table), table.to_numpy().tolist(), title="What is left to do, at most")
    warn(str(cost))


def _print_plan(heads_plan: Plan, as_json: bool) -> None:
    curves = heads_plan.curves()
    if as_json:
        heads = {
            "keep": [str(head) for head in heads_plan.keep],
            "windowed": [str(head) for head in heads_plan.windowed],
            "linear": {str(head): asdict(form) for head, form in heads_plan.linear.items()},
            "sparse": {str(head): asdict(form) for head, form in heads_plan.sparse.items()},
        }
        ranking = [asdict(r) for r in heads_plan.ranking]
        print_json(
            {
                **heads,
                "kv_saved": heads_plan.kv_saved,
                "keys_read": heads_plan.keys_read,
                "keys_saved": heads_plan.keys_saved,
                "evidence": heads_plan.evidence,
                "ranking": ranking,
                "curve": curves.to_dict("records"),
                "costs": [{**asdict(costs), "head": str(costs.head)} for costs in heads_plan.costs],
                "remarks": list(heads_plan.remarks),
                "verdict": None if heads_plan.verdict is None else verdict_document(heads_plan.verdict),
            }
        )
        return
    _print_heads(heads_plan)
    print()
    columns = ("method", "probe", "n_kept", "nats", "recovered", "ci_lo", "ci_hi", "accuracy", "kv_saved")
    print_table(columns, curves.loc[:, list(columns)].to_numpy().tolist(), title="What is left on held-out probes")
    evidence = "".join(f"; {name} {value:.3g}" for name, value in heads_plan.evidence.items())
    warn(
        f"keeps {len(heads_plan.keep)} of {len(heads_plan.ranking)} heads and saves {heads_plan.kv_saved:.0%} of the "
        f"cache{evidence}"
    )
    if heads_plan.linear:
        warn(f"{len(heads_plan.linear)} heads get linear attention, {len(heads_plan.windowed)} a window")
    if heads_plan.sparse:
        warn(heads_plan.sparse_in_words)
    for remark in heads_plan.remarks:
        warn(remark)
    if heads_plan.verdict is not None:
        print()
        print_verdict(heads_plan.verdict, as_json=False, keys=keys_of_verdict(heads_plan, heads_plan.verdict))


def _print_heads(heads_plan: Plan) -> None:
    """The ranking with each head's choice, and, where there were several, what each costs and leaves of a cache."""
    table = heads_plan.table()
    names = table.choice.replace("window", "windowed")
    heads = [str(r.head) for r in heads_plan.ranking]
    columns = {
        "head": heads,
        "plan": names,
        heads_plan.units: table.score,
        "ci_lo": table.ci_lo,
        "ci_hi": table.ci_hi,
    }
    if heads_plan.costs:
        names = ["window_nats", "linear_nats", "linear_error", "linear_flags"]
        offers_sparse = any(own.sparse_form is not None for own in heads_plan.costs)
        names += ["sparse_nats", "bytes", "keys_read"] if offers_sparse else []
        columns |= {name: table[name] for name in names}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    print_table(tuple(columns), rows, title=f"{heads_plan.method} on {heads_plan.probe}")
