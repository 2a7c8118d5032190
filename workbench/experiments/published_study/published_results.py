"""The results of a study of a published model, finished or not: tables, and an answer to each question."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from workbench.experiments.conversion.study_folder import read
from workbench.experiments.published_study.arm_answers import texts_of
from workbench.experiments.published_study.judged_texts import lengths_of_study
from workbench.experiments.published_study.published_scores import (
    alignment,
    head_scores_table,
    lock_in_by_arm,
    sink_damage,
)
from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.experiments.published_study.study_cost import in_all, pieces_left
from workbench.experiments.published_study.study_tables import StudyAnswers, areas
from workbench.experiments.published_study.study_work import StudyCall
from workbench.heads import KVHead, WorkbenchError, brief
from workbench.hooks import HookedModel


@dataclass(frozen=True, slots=True)
class PublishedResults:
    """`answers`: every arm's. `cells`, `by_distance`, `areas`: tables of them, see `StudyAnswers`.

    `scores`: of every head, before and after training. `lock_in`, `sinks`, `alignment`: what they say. `losses`: of
    the trainings, a row per arm, seed and step. `heads`: those that each window is for. `remarks`: what was left out,
    and why. `n_missing`: pieces that are not done, at most.
    """

    call: StudyCall
    m: HookedModel
    answers: StudyAnswers
    cells: pd.DataFrame
    by_distance: pd.DataFrame
    areas: pd.DataFrame
    scores: pd.DataFrame
    lock_in: pd.DataFrame
    sinks: pd.DataFrame
    alignment: dict[str, float] | None
    losses: pd.DataFrame
    heads: dict[int, tuple[KVHead, ...]]
    remarks: tuple[str, ...]
    n_missing: int

    def __repr__(self) -> str:
        return brief(self)

    @property
    def study(self) -> PublishedStudy:
        return self.call.study

    def claims(self) -> list[Any]:
        """Each question of the study with its answer."""
        from workbench.experiments.published_study.published_claims import claims_of

        return claims_of(self)

    def document(self) -> dict[str, Any]:
        """The report as plain values: the same for the same study, however it ran."""
        return {
            "study": {**asdict(self.study), "training": asdict(self.study.training)},
            "model": self.m.name,
            "is_finished": not self.n_missing,
            "claims": [asdict(claim) for claim in self.claims()],
            "remarks": list(self.remarks),
            "heads": {str(window): [str(head) for head in heads] for window, heads in self.heads.items()},
            "cells": _records(self.cells),
            "areas": _records(self.areas),
            "by_distance": _records(self.by_distance),
            "lock_in": _records(self.lock_in),
            "sinks": _records(self.sinks),
            "alignment": self.alignment,
            "losses": _records(self.losses),
        }


def published_results(call: StudyCall, m: HookedModel) -> PublishedResults:
    """Read all pieces that are done.

    Raises:
        WorkbenchError: if none is, or one is damaged.
    """
    answers = StudyAnswers(call, m)
    if not answers.every:
        raise WorkbenchError(f"{call.out} holds no finished piece of this study; run it without --so-far")
    heads = {window: call.heads(m, window) for window in call.study.windows}
    cells, scores = answers.table(), head_scores_table(call)
    return PublishedResults(
        call=call,
        m=m,
        answers=answers,
        cells=cells,
        by_distance=answers.by_distance(),
        areas=areas(cells),
        scores=scores,
        lock_in=lock_in_by_arm(scores),
        sinks=sink_damage(call, heads),
        alignment=alignment(call),
        losses=_losses(call),
        heads=heads,
        remarks=tuple(_remarks(call, m, answers)),
        n_missing=in_all(pieces_left(call, m))[0],
    )


def _losses(call: StudyCall) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    window = call.study.windows[0]
    for seed in range(call.study.seeds):
        by_arm: dict[str, list[float]] = {}
        for steps in call.study.training.steps:
            for path in sorted(call.files.trained(window, seed, "x", steps).parents[1].glob(f"*/{steps}.json")):
                by_arm[path.parent.name] = read(path)["losses"]
        for arm, losses in by_arm.items():
            rows += [{"arm": arm, "seed": seed, "step": i, "loss": loss} for i, loss in enumerate(losses)]
    return pd.DataFrame(rows, columns=pd.Index(["arm", "seed", "step", "loss"]))


def _remarks(call: StudyCall, m: HookedModel, answers: StudyAnswers) -> list[str]:
    """What does not count, with its reason: tasks, lengths, rankings."""
    remarks: list[str] = []
    for window in call.study.windows:
        for length in lengths_of_study(call.study, m, window):
            at = f"at {length:,} tokens, window {window}"
            ends = answers.ends(window, length)
            if ends is None:
                continue
            for part in ends[0].by_seed[min(ends[0].by_seed)]:
                able = answers.ability(window, length, part)
                if able is not None and able.reason:
                    remarks.append(f"{part} {at} is left out: {able.reason}.")
            problems = texts_of(m, call.study, window, length, 0)[1]
            remarks += [f"{name} {at} is left out: {reason}." for name, reason in problems.items()]
        for seed in range(call.study.seeds):
            path = call.files.rankings(window, seed)
            ranked = read(path)["rankings"] if path.exists() else {}
            for name, ranking in ranked.items():
                if "problem" in ranking:
                    remarks.append(f"{name} at window {window}, seed {seed}, is left out: {ranking['problem']}.")
                error = ranking.get("evidence", {}).get("completeness_error", 0.0)
                if error > 0.05:  # the error that the gates are asked for
                    remarks.append(
                        f"{name} at window {window}, seed {seed}, leave {error:.0%} of the loss unexplained, by which "
                        "each head's score is in doubt."
                    )
    return list(dict.fromkeys(remarks))


def _records(table: Any) -> list[dict[str, Any]]:
    table = table.round(5)
    return table.astype(object).where(table.notna(), None).to_dict("records")
