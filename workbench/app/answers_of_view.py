"""The answers of the runs of a view, kept until their scores, their metrics or the plans change."""

from __future__ import annotations

from pathlib import Path

from workbench.app.state.content import Content
from workbench.app.state.view import View
from workbench.runs import Run
from workbench.runs.answers import Answer, answer_of, answer_or_reason


def answers(view: View, content: Content) -> dict[str, Answer]:
    """The answer of each chosen run, by name; of one that cannot be read, why."""
    chosen = [content.runs[name] for name in view.runs if name in content.runs]
    return {run.name: answer_or_reason(run, lambda each: kept_answer(each, content, unit=view.x)) for run in chosen}


def kept_answer(run: Run, content: Content, *, unit: str = "tokens") -> Answer:
    """The answer of one run.

    Raises:
        WorkbenchError: if the run cannot be read.
    """
    stamps = [(name, _changed_ns(path)) for name, path in content.plans.items()]
    key = ("answer", run.name, unit, run.fingerprint("scores"), run.fingerprint("metrics"), *stamps)
    return content.made.once(key, lambda: answer_of(run, content.plans, unit=unit))


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
