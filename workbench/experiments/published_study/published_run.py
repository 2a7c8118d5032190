"""Run a study of a published model, piece by piece; the same call goes on where it was interrupted.

Every finished piece has a file. Workers are processes of one thread, and equal work gives equal bytes, so that it does
not matter how often a study is interrupted, nor in how many processes it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.experiments.conversion.study_folder import add_call, claim_folder
from workbench.experiments.pieces_of_work import done, worker_pool
from workbench.experiments.published_study.given_text import GivenText, given_text, write_held_out, write_tokens
from workbench.experiments.published_study.judged_texts import lengths_of_study
from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.experiments.published_study.study_cost import StudyCost, in_all, pieces_left, study_cost
from workbench.experiments.published_study.study_models import Source, holding, opened
from workbench.experiments.published_study.study_work import StudyCall, StudyWork
from workbench.files.atomic import advisory_lock
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.plan_work import model_digest

LOCK = "lock"


@dataclass(frozen=True, slots=True)
class PieceDone:
    """A finished piece: its name, how many this call did of those that were left, at most, and the time.

    `elapsed_s`: since the call. `to_go_s`: by the tokens of the pieces that this call did.
    """

    name: str
    done: int
    left: int
    elapsed_s: float
    to_go_s: float


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """A study that can be run: its settings with digests of weights and text, and the model."""

    call: StudyCall
    m: HookedModel
    text: GivenText | None = None

    @property
    def study(self) -> PublishedStudy:
        return self.call.study

    def cost(self) -> StudyCost:
        """What is left to do."""
        return study_cost(self.call, self.m)


def prepare_study(
    study: PublishedStudy,
    out: Path,
    *,
    tokenizer: str | None = None,
    text: Path | None = None,
    m: HookedModel | None = None,
    is_kept: bool = True,
) -> PreparedStudy:
    """Open the model, choose the text, claim the folder; a folder of another study is refused.

    Args:
        text: a file or a folder; None: what Python carries. A model without a tokenizer has none.
        m: the model, where it is in memory; `study.model` is its name then.
        is_kept: whether the folder is made and the text written; else nothing is written, and the study cannot be run.

    Raises:
        WorkbenchError: for settings that the model cannot have, another study in the folder, or a text that is none.
        StoreNotWritable: if the folder cannot be written.
    """
    source = Source(study.model, tokenizer)
    m = opened(source) if m is None else m
    if m.tokenizer is None and text is not None:
        raise WorkbenchError(f"{m!r} has no tokenizer, which text needs; pass --tokenizer, or leave the text out")
    chosen = None if m.tokenizer is None else given_text(text, out / "text")
    study = replace(study, weights=model_digest(m), text="" if chosen is None else chosen.digest)
    if study.training.steps and chosen is None:
        raise WorkbenchError(f"{m!r} has no tokenizer, and training takes text; pass --tokenizer, or train for no step")
    call = StudyCall(source, study, out)
    for window in study.windows:
        call.heads(m, window)
        lengths_of_study(study, m, window)
    if is_kept:
        claim_folder(_identity(study), out, defaults=_identity(PublishedStudy("", "", (1,))))
        if chosen is not None:
            write_held_out(chosen)
    return PreparedStudy(call, m, chosen)


def run_published(
    prepared: PreparedStudy,
    *,
    workers: int = 1,
    minutes: float | None = None,
    on_progress: Callable[[PieceDone], None] | None = None,
) -> int:
    """Do the missing pieces; returns how many are left, which is 0 unless the time was up.

    Args:
        workers: processes of one thread; 1: in this process. A model in memory takes 1.
        minutes: no piece begins after so many, and trainings are saved and stop.

    Raises:
        WorkbenchError: if a number is below its minimum, or no heads can be ranked.
        RunLocked: if another process works in the folder.
        StoreNotWritable: if the folder cannot be written.
    """
    if workers < 1:
        raise WorkbenchError(f"workers is {workers}; expected at least 1")
    if minutes is not None and not minutes > 0:
        raise WorkbenchError(f"minutes is {minutes:g}; expected a number above 0")
    call, m, began = prepared.call, prepared.m, time.monotonic()
    call = replace(call, until=float("inf") if minutes is None else time.time() + 60 * minutes)
    training, n_done, spent = prepared.study.training, 0, 0
    with advisory_lock(call.out / LOCK, is_shared=False), holding(call.source.model, m):
        if training.steps and prepared.text is not None:
            write_tokens(prepared.text, m, at_least=training.length)
        work = StudyWork(call, m)
        n_left, tokens_left = in_all(pieces_left(call, m))
        try:
            with worker_pool(workers) as pool:
                for job, _ in done(work, pool, workers):
                    n_done, spent = n_done + 1, spent + job.subject.tokens
                    elapsed = time.monotonic() - began
                    if on_progress is not None:
                        to_go = elapsed / spent * max(0, tokens_left - spent)
                        on_progress(PieceDone(job.name, n_done, n_left, elapsed, to_go))
                    if time.time() >= call.until:
                        work.close()
        finally:
            add_call(call.out, time.monotonic() - began, finished=n_done, workers=workers)
        return in_all(pieces_left(call, m))[0]


def _identity(study: PublishedStudy) -> dict[str, Any]:
    """The settings that a folder holds one of: not how long is trained and further windows, which may be added."""
    settings = asdict(replace(study, windows=study.windows[:1]))
    del settings["training"]["steps"]
    return settings
