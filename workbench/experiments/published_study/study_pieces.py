"""The finished pieces of a study on disk, each a JSON file, written in one step. Equal work gives equal bytes.

<out>/parts/heads/seed0.json                     scores of every head
<out>/parts/linear.json                          the linear attention nearest to each head
<out>/parts/w128/seed0/n512/<arm>.json           an arm's answers, judged at texts of 512 tokens
<out>/parts/w128/seed0/rankings.json             every ranking of the heads
<out>/parts/w128/seed0/trained/<arm>/50.json     the losses of 50 steps of training, and head scores after them
<out>/parts/w128/seed0/trained/<arm>/50/n512.json  answers after 50 steps
<out>/states/w128/seed0/<arm>.pt                 weights and optimiser of a training that is not finished

What a piece took is in calls.json and times.jsonl alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.experiments.conversion.study_folder import read, write
from workbench.files.atomic import append_line
from workbench.planning.question_scores import QuestionScores

# Nats and shares are written with so many decimals: what is below is rounding.
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """The files of a study in its folder."""

    out: Path

    @property
    def linear(self) -> Path:
        return self.out / "parts" / "linear.json"

    def heads(self, seed: int) -> Path:
        return self.out / "parts" / "heads" / f"seed{seed}.json"

    def rankings(self, window: int, seed: int) -> Path:
        return self._of_seed(window, seed) / "rankings.json"

    def answers(self, window: int, seed: int, length: int, key: str) -> Path:
        return self._of_seed(window, seed) / f"n{length}" / f"{key}.json"

    def trained(self, window: int, seed: int, name: str, steps: int) -> Path:
        return self._of_seed(window, seed) / "trained" / name / f"{steps}.json"

    def trained_answers(self, window: int, seed: int, name: str, steps: int, length: int) -> Path:
        return self._of_seed(window, seed) / "trained" / name / str(steps) / f"n{length}.json"

    def state(self, window: int, seed: int, name: str) -> Path:
        return self.out / "states" / f"w{window}" / f"seed{seed}" / f"{name}.pt"

    def _of_seed(self, window: int, seed: int) -> Path:
        return self.out / "parts" / f"w{window}" / f"seed{seed}"

    def took(self, name: str, cpu_s: float, tokens: int) -> None:
        """Note what a piece took, outside of the pieces, which are the same bytes however fast they were made."""
        append_line(self.out / "times.jsonl", json.dumps([name, round(cpu_s, 2), tokens]))


def write_answers(path: Path, by_part: Mapping[str, QuestionScores], text: Mapping[str, np.ndarray]) -> None:
    """Write the questions of each part of each task, and the judged rows of plain text."""
    tasks = {name: {key: _rounded(getattr(q, key)) for key in ("right", "nats", "text")} for name, q in by_part.items()}
    write(path, {"tasks": tasks, "text": {name: _rounded(values) for name, values in text.items()}})


def read_answers(path: Path) -> tuple[dict[str, QuestionScores], dict[str, np.ndarray]]:
    """What `write_answers` wrote."""
    document = read(path)
    by_part = {
        name: QuestionScores(
            np.array(q["right"], dtype=float),
            np.array(q["nats"], dtype=float),
            np.array(q["text"], dtype=np.int64),
            np.full(len(q["nats"]), -1),
        )
        for name, q in document["tasks"].items()
    }
    return by_part, {name: np.array(values) for name, values in document["text"].items()}


def _rounded(values: Any) -> list[Any]:
    return np.round(values, _DECIMALS).tolist() if np.issubdtype(values.dtype, np.floating) else values.tolist()
