"""Plans beside runs: which there are, and which are of the model that a run scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from workbench.heads import WorkbenchError
from workbench.runs.run import Run
from workbench.store.plan_file import Plan

_SCAN_FILES = frozenset({"run.json", "plan.json", "checkpoints.json", "fingerprints.json"})
_START_BYTES, _MOST_BYTES = 64, 64 * 1024 * 1024


def find_plans(runs: Sequence[Path], named: Sequence[str | Path]) -> dict[str, Path]:
    """The plans beside or inside run folders, and those that were named, each under a name of its own.

    Raises:
        WorkbenchError: if a file that was named is no plan.
    """
    for path in named:
        Plan.load(path)
    folders = dict.fromkeys(folder for run in runs for folder in (run, run.parent))
    beside = [path for folder in folders for path in sorted(folder.glob("*.json")) if _is_plan(path)]
    files = list(dict.fromkeys(Path(path).resolve() for path in (*named, *beside)))
    stems = [file.stem for file in files]
    names = [file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}" for file in files]
    return dict(zip(names, files, strict=True))


def is_plan_of(plan: Plan, path: Path, run: Run) -> bool:
    """Whether the plan of a file is of a run's model, so that heads of one name are the same.

    It is if its file lies in the run's folder, or if it names the run or the model that the run scored; and if the run
    has all of its softmax layers.
    """
    return (_is_inside(path, run) or _names_model(plan.model, run)) and _has_layers(plan, run)


def plan_of_run(run: Run, plans: Mapping[str, Path]) -> tuple[str, Plan] | None:
    """The plan of a run's model, with its name; of several, one in the run's folder comes first."""
    for name, path in sorted(plans.items(), key=lambda item: not _is_inside(item[1], run)):
        try:
            plan = Plan.load(path)
        except WorkbenchError:
            continue  # the app's Plan page gives the reason
        if is_plan_of(plan, path, run):
            return name, plan
    return None


def run_of_plan(plan: Plan, path: Path, runs: Mapping[str, Run]) -> str:
    """The first run that a plan is of, one whose folder it lies in before others; "" where heads may be others."""
    by_place = sorted(runs.items(), key=lambda item: not _is_inside(path, item[1]))
    for name, run in by_place:
        with suppress(WorkbenchError, OSError):  # a run that cannot be read; the app's cards say so
            if is_plan_of(plan, path, run):
                return name
    return ""


def _is_inside(path: Path, run: Run) -> bool:
    return path.parent.resolve() == run.path.resolve()


def _names_model(model: str, run: Run) -> bool:
    """Whether a plan's model is a run by its name, or what it scored: its folder, or a checkpoint in it."""
    source, named = PurePath(str(run.last_job().checkpoints or run.name)), PurePath(model)
    if not model:
        return False
    checkpoints = set(run.checkpoints()["ckpt"])
    is_scored = named.name == source.name or (named.parent.name == source.name and named.name in checkpoints)
    return is_scored or model == run.name


def _has_layers(plan: Plan, run: Run) -> bool:
    """Whether the softmax layers of a plan are those of the run: number, kind and query heads of each."""
    rows: list[dict[str, Any]] = run.layers().to_dict("records")
    scored = {(int(row["layer"]), str(row["kind"]), int(row["n_heads"])) for row in rows}
    planned = {(info.index, str(info.kind), info.n_heads) for info in plan.layers if info.mixer == "softmax"}
    return bool(planned) and planned <= scored


def _is_plan(path: Path) -> bool:
    """Whether a file is a plan; other files are recognised by their first bytes, and never raise."""
    if path.name in _SCAN_FILES and (path.parent / "run.json").exists():
        return False
    try:
        with path.open("rb") as file:
            if b'"version"' not in file.read(_START_BYTES) or path.stat().st_size > _MOST_BYTES:
                return False
        content: Any = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"version", "ranking", "keep", "curve"} <= content.keys():
            return False
        Plan.load(path)
    except (OSError, ValueError, WorkbenchError):
        return False
    return True
