"""The verdict on a plan over the length of the context: tasks × lengths × arms, and what they support. No torch.

Three arms answer the same questions: the model itself (`full`), under the plan (`planned`), and with every head
windowed (`windowed`). What the plan loses is the difference to the model itself, question by question.

1. At a length the plan *loses* where on some task the whole interval of its loss lies above the tolerance.
2. It *holds* where on every task the whole interval lies at or below it.
3. Else it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.console import fixed

Arm = Literal["full", "planned", "windowed"]
Measure = Literal["right", "nats"]
ARMS: tuple[Arm, ...] = ("full", "planned", "windowed")


@dataclass(frozen=True, slots=True)
class VerdictCell:
    """One arm on one task at one length, with 95 % intervals.

    `right`: share of answer tokens that are right. `nats`: loss per answer. `lost`: nats per answer more than the model
    itself. `measure`: the score that a figure draws. `n_texts`: sequences; intervals are over them from 5 on, else over
    the questions. `left_out`: why the task says nothing about the plan at this length; "" where it does.
    """

    task: str
    length: int
    arm: str
    right: float
    right_lo: float
    right_hi: float
    nats: float
    nats_lo: float
    nats_hi: float
    lost: float
    lost_lo: float
    lost_hi: float
    n_questions: int
    n_texts: int
    measure: str = "right"
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class LengthVerdict:
    """What a plan loses on tasks at several lengths, in tokens.

    `tolerance`: nats per answer that the plan may lose. `context`: the length the model was made for; 0 where it names
    none. Longer lengths are flagged.
    """

    tolerance: float
    context: int
    cells: tuple[VerdictCell, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths tried, rising."""
        return tuple(sorted({cell.length for cell in self.cells}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in their order."""
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    def table(self) -> pd.DataFrame:
        """One row per task, length and arm, with the fields of `VerdictCell` and `beyond_context`."""
        names = [field.name for field in fields(VerdictCell)]
        table = pd.DataFrame([asdict(cell) for cell in self.cells], columns=pd.Index(names))
        table.insert(2, "beyond_context", [self._is_beyond(length) for length in table["length"]])
        return table

    @property
    def area(self) -> pd.DataFrame:
        """The mean score of each arm over the lengths at which the task counts, one row per task and arm.

        The area under the score against log2(length), by the trapezoidal rule, over its width: every doubling weighs
        the same. Columns: task, arm, right, nats, shortest, longest; NaN where only one length counts.
        """
        rows: list[dict[str, Any]] = []
        for task in self.tasks:
            for arm in ARMS:
                cells = sorted(self._counted(arm, task=task), key=lambda cell: cell.length)
                if cells:
                    doublings = np.log2([cell.length for cell in cells])
                    rows.append(
                        {
                            "task": task,
                            "arm": arm,
                            "right": _mean_height(doublings, [cell.right for cell in cells]),
                            "nats": _mean_height(doublings, [cell.nats for cell in cells]),
                            "shortest": cells[0].length,
                            "longest": cells[-1].length,
                        }
                    )
        return pd.DataFrame(rows, columns=pd.Index(["task", "arm", "right", "nats", "shortest", "longest"]))

    def __repr__(self) -> str:
        return f"LengthVerdict({self.sentence} .table(), .area)"

    @property
    def loses_from(self) -> int | None:
        """The shortest length from which on the plan loses at every length tried; None where it does at the longest."""
        states = [(length, state) for length in self.lengths if (state := self.state(length)) != "nothing"]
        first = None
        for length, state in reversed(states):
            if state != "loses":
                break
            first = length
        return first

    def state(self, length: int) -> Literal["loses", "holds", "open", "nothing"]:
        """What the plan does at a length; `nothing` where no task counts."""
        cells = self._counted("planned", length=length)
        if not cells:
            return "nothing"
        if any(cell.lost_lo > self.tolerance for cell in cells):
            return "loses"
        return "holds" if all(cell.lost_hi <= self.tolerance for cell in cells) else "open"

    @property
    def sentence(self) -> str:
        """From which length on the plan loses more than its tolerance, that it does not, or why it cannot be told."""
        states = {length: state for length in self.lengths if (state := self.state(length)) != "nothing"}
        by_state = {state: [n for n in states if states[n] == state] for state in ("loses", "holds", "open")}
        amount = f"{self.tolerance:g} nats per answer"
        if not states:
            return "Nothing can be said of the plan: no task counts at any length."
        first = self.loses_from
        if first is not None and len(states) > 1:
            shorter, longest = [n for n in states if n < first], max(states)
            then = f"; {self._worst(longest)}" if longest > first else ""
            return (
                f"From {_tokens([first])} on the plan loses more than {amount}: {self._worst(first)}{then}"
                f"{self._others(shorter, by_state)}."
            )
        if by_state["loses"]:
            longest = by_state["loses"][-1]
            others = [n for n in states if states[n] != "loses"]
            return (
                f"At {_tokens(by_state['loses'])} the plan loses more than {amount}: {self._worst(longest)}"
                f"{self._others(others, by_state)}."
            )
        if not by_state["open"]:
            return (
                f"The plan loses no more than {amount} up to {_tokens([max(states)])}, the longest tried, on "
                f"{_listed(self._tasks_of(states))}."
            )
        held = f"; at {_tokens(by_state['holds'])} it does not" if by_state["holds"] else ""
        return (
            f"Whether the plan loses more than {amount} cannot be told at {_tokens(by_state['open'])}: "
            f"{self._undecided(by_state['open'])}{held}. More texts narrow it: effort='thorough'."
        )

    @property
    def remarks(self) -> list[str]:
        """Sentences on what does not count, and on lengths that the model was not made for."""
        reasons = dict.fromkeys((cell.task, cell.length, cell.left_out) for cell in self.cells if cell.left_out)
        remarks = [f"{task} at {_tokens([length])} is left out: {reason}." for task, length, reason in reasons]
        if beyond := [length for length in self.lengths if self._is_beyond(length)]:
            remarks.append(f"The model's context has {self.context:,} tokens: {_tokens(beyond)} lie beyond it.")
        return remarks

    def document(self) -> dict[str, Any]:
        """The verdict as plain values, as a plan file holds it."""
        return {"tolerance": self.tolerance, "context": self.context, "cells": [asdict(cell) for cell in self.cells]}

    @classmethod
    def read(cls, document: dict[str, Any]) -> LengthVerdict:
        """A verdict from its document; missing numbers are NaN.

        Raises:
            TypeError, KeyError, AttributeError: for what is no such document.
        """
        records: list[dict[str, Any]] = document["cells"]
        cells = tuple(VerdictCell(**_with_nan(record)) for record in records)
        return cls(float(document["tolerance"]), int(document["context"]), cells)

    def _counted(self, arm: str, *, task: str | None = None, length: int | None = None) -> list[VerdictCell]:
        return [
            cell
            for cell in self.cells
            if cell.arm == arm and not cell.left_out and task in (None, cell.task) and length in (None, cell.length)
        ]

    def _is_beyond(self, length: int) -> bool:
        return 0 < self.context < length

    def _tasks_of(self, lengths: Sequence[int] | dict[int, Any]) -> list[str]:
        counted = {cell.task for length in lengths for cell in self._counted("planned", length=length)}
        return [task for task in self.tasks if task in counted]

    def _worst(self, length: int) -> str:
        cell = max(self._counted("planned", length=length), key=lambda cell: (cell.lost_lo > self.tolerance, cell.lost))
        (full,) = self._counted("full", task=cell.task, length=length)
        right = f", {fixed(cell.right, 2)} right instead of {fixed(full.right, 2)}"
        return f"at {_tokens([length])} {fixed(cell.lost, 2)} ({_interval(cell)}) on {cell.task}{right}"

    def _undecided(self, lengths: Sequence[int]) -> str:
        cells = [cell for length in lengths for cell in self._counted("planned", length=length)]
        cells = [cell for cell in cells if not cell.lost_hi <= self.tolerance]
        cell = max(cells, key=lambda cell: cell.lost)
        if math.isnan(cell.lost_lo):
            return f"{cell.task} has {cell.n_questions} questions, and an interval takes 5"
        return f"at {_tokens([cell.length])} on {cell.task} the {_interval(cell)} includes it"

    def _others(self, lengths: Sequence[int], by_state: dict[str, list[int]]) -> str:
        """What is to be said of the other lengths, to follow a clause."""
        parts = [("it does not", "holds"), ("it cannot be told", "open"), ("it does as well", "loses")]
        clauses = [
            f"; at {_tokens(chosen)} {words}"
            for words, state in parts
            if (chosen := [n for n in lengths if n in by_state[state]])
        ]
        return "".join(clauses)


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in record.items()}


def _mean_height(x: np.ndarray, y: Sequence[float]) -> float:
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else math.nan


def _interval(cell: VerdictCell) -> str:
    return f"95 % interval {fixed(cell.lost_lo, 2)} to {fixed(cell.lost_hi, 2)}"


def _tokens(lengths: Sequence[int]) -> str:
    return f"{_listed([f'{length:,}' for length in lengths])} tokens"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
