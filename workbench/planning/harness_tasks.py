"""Tasks of the Language Model Evaluation Harness on a model and on the model under a plan, side by side.

The harness (EleutherAI, `pip install "attention-workbench[eval]"`) is handed the model itself, once as it is and once
inside `m.apply(plan)`; prompts, metrics and their standard errors are its own. Both runs have the same documents, so
that the difference of a metric that is a mean over documents has a standard error of paired differences, smaller than
that of two independent runs.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.store.plan_file import Plan


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A metric of a task, of the model itself (`full`) and under the plan (`planned`), with standard errors.

    `difference`: planned − full, with `difference_stderr` of paired differences, NaN where the harness does not tell
    the metric's value of each document. `n`: documents. Without a plan the numbers of it are NaN.
    """

    task: str
    metric: str
    full: float
    full_stderr: float
    planned: float = math.nan
    planned_stderr: float = math.nan
    difference: float = math.nan
    difference_stderr: float = math.nan
    n: int = 0
    higher_is_better: bool | None = None


@dataclass(frozen=True, slots=True)
class HarnessSettings:
    """What the harness is asked for: `limit` documents per task, None for all, of which `num_fewshot` are shown first.

    `include_path`: a folder of tasks of one's own. `only_included`: those are all that are looked for, which saves the
    search through the harness's own.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1
    include_path: Path | None = None
    only_included: bool = False
    seed: int = 0


def evaluate_tasks(
    m: HookedModel, tasks: Sequence[str], plan: Plan | None = None, settings: HarnessSettings | None = None
) -> tuple[TaskScore, ...]:
    """Metrics of the harness's tasks on a model, and under a plan.

    Raises:
        WorkbenchError: if the harness is not installed, the model has no tokenizer, the plan is for another model, or
            there is no such task, or its data cannot be had.
    """
    settings = settings or HarnessSettings()
    if importlib.util.find_spec("lm_eval") is None:
        raise WorkbenchError('the evaluation harness is not installed; pip install "attention-workbench[eval]"')
    if m.tokenizer is None:
        raise WorkbenchError(f"{m.name} has no tokenizer, and tasks are texts; pass tokenizer= or --tokenizer")
    if not tasks:
        raise WorkbenchError("no task was named; expected names of the harness's tasks, as lambada_openai")
    if plan is not None:
        plan.check(m.layers)
    full = _run(m, None, tasks, settings)
    planned = None if plan is None else _run(m, plan, tasks, settings)
    return tuple(_scores(full, planned))


def table_of_tasks(scores: Sequence[TaskScore]) -> pd.DataFrame:
    """Scores as a table, one row per task and metric."""
    return pd.DataFrame([asdict(score) for score in scores], columns=[f.name for f in fields(TaskScore)])


def _run(m: HookedModel, plan: Plan | None, tasks: Sequence[str], settings: HarnessSettings) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    include = None if settings.include_path is None else str(settings.include_path)
    manager: Any = TaskManager(include_path=include, include_defaults=not settings.only_included)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise WorkbenchError(f"the harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists those that it has")
    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns of a model that is in memory, as this one is meant to
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        with nullcontext() if plan is None else m.apply(plan):
            outcome: Any = simple_evaluate(
                model=HFLM(pretrained=m.model, tokenizer=m.tokenizer, batch_size=settings.batch_size),
                tasks=list(tasks),
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                task_manager=manager,
                bootstrap_iters=1000,
                **dict.fromkeys(seeds, settings.seed),
            )
    except (OSError, ValueError, LookupError) as error:  # what data sets and prompts raise
        raise WorkbenchError(f"the harness stopped at {', '.join(tasks)}: {type(error).__name__}: {error}") from error
    return outcome


def _scores(full: Mapping[str, Any], planned: Mapping[str, Any] | None) -> list[TaskScore]:
    scores: list[TaskScore] = []
    for task, metrics in full["results"].items():
        for key, value in metrics.items():
            name, _, filter_name = key.partition(",")
            if not isinstance(value, int | float) or name.endswith("_stderr") or not filter_name:
                continue
            stderr_key = f"{name}_stderr,{filter_name}"
            other: Mapping[str, Any] = {} if planned is None else planned["results"][task]
            difference, stderr = _paired(full, planned, task, (name, filter_name), value)
            scores.append(
                TaskScore(
                    task=task,
                    metric=name if filter_name == "none" else f"{name} ({filter_name})",
                    full=float(value),
                    full_stderr=_number(metrics.get(stderr_key)),
                    planned=_number(other.get(key)),
                    planned_stderr=_number(other.get(stderr_key)),
                    difference=_number(other.get(key)) - float(value) if math.isnan(difference) else difference,
                    difference_stderr=stderr,
                    n=int(full.get("n-samples", {}).get(task, {}).get("effective", 0)),
                    higher_is_better=full.get("higher_is_better", {}).get(task, {}).get(name),
                )
            )
    return scores


def _paired(
    full: Mapping[str, Any], planned: Mapping[str, Any] | None, task: str, metric: tuple[str, str], reported: float
) -> tuple[float, float]:
    """The mean of the documents' differences and its standard error; NaN where the metric is no mean over documents."""
    if planned is None:
        return math.nan, math.nan
    values = [_by_document(outcome, task, metric) for outcome in (full, planned)]
    common = sorted(values[0].keys() & values[1].keys())
    pairs = np.array([[one[d] for d in common] for one in values])
    is_mean = len(common) > 1 and len(common) == len(values[0]) and abs(pairs[0].mean() - reported) < 1e-9
    if not is_mean:
        return math.nan, math.nan
    differences = pairs[1] - pairs[0]
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(common)))


def _by_document(outcome: Mapping[str, Any], task: str, metric: tuple[str, str]) -> dict[Any, float]:
    name, filter_name = metric
    samples = [s for s in outcome.get("samples", {}).get(task, ()) if s.get("filter", "none") == filter_name]
    return {s["doc_id"]: float(s[name]) for s in samples if isinstance(s.get(name), int | float)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
