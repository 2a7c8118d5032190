"""`workbench evaluate`: tasks of the Language Model Evaluation Harness on a model, and on the model under a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.arguments import Device, Json, Tokenizer, open_named_model
from workbench.console import print_json, print_table
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.planning import TaskScore


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or a model's id at a hub.")],
    tasks: Annotated[list[str], typer.Option("--tasks", help="Tasks of the harness, with commas or repeated.")],
    plan: Annotated[Path | None, typer.Option(help="Evaluate the model under this plan, too.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task. Default: all.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt. Default: the task's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents in a pass.")] = 1,
    include_path: Annotated[Path | None, typer.Option(help="A folder of tasks of your own.")] = None,
    only_included: Annotated[
        bool, typer.Option("--only-included", help="Look for tasks in that folder alone, which begins sooner.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    device: Device = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """What a model gets right on tasks of the evaluation harness, as it is and under a plan."""
    from dataclasses import asdict

    from workbench.planning import HarnessSettings, evaluate_tasks
    from workbench.store.plan_file import Plan

    names = [name.strip() for written in tasks for name in written.split(",") if name.strip()]
    if only_included and include_path is None:
        raise WorkbenchError("--only-included looks in the folder of --include-path; pass it")
    if include_path is not None and not include_path.is_dir():
        raise WorkbenchError(f"--include-path {include_path} is no folder; expected one with the YAML files of tasks")
    heads_plan = None if plan is None else Plan.load(plan)
    m = open_named_model(model, device, tokenizer)
    settings = HarnessSettings(limit, num_fewshot, batch_size, include_path, only_included, seed)
    scores = evaluate_tasks(m, names, heads_plan, settings)
    if as_json:
        print_json({"model": model, "plan": None if plan is None else str(plan), "scores": [asdict(s) for s in scores]})
        return
    _print(scores, is_planned=heads_plan is not None)


def _print(scores: tuple[TaskScore, ...], *, is_planned: bool) -> None:
    columns = ["task", "metric", "n", "full", "± stderr"]
    columns += ["planned", "± stderr", "difference", "± stderr"] if is_planned else []
    rows = [
        [s.task, s.metric, s.n, s.full, s.full_stderr]
        + ([s.planned, s.planned_stderr, s.difference, s.difference_stderr] if is_planned else [])
        for s in scores
    ]
    print_table(tuple(columns), rows, title="Tasks of the evaluation harness")
