"""What Hugging Face's Trainer writes beside the weights: step, tokens seen and learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from workbench.checkpoints.configs import read_json_object
from workbench.heads import BadCheckpoint

TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The state of a training run at its checkpoint. `tokens` is None where the run did not count them."""

    step: int
    tokens: int | None
    lr: float | None


def read_trainer_state(checkpoint: Path) -> TrainerState | None:
    """The checkpoint's trainer_state.json; None if it has none.

    `num_input_tokens_seen` of 0 means that counting was off, except at step 0. The learning rate is the last
    one logged up to the checkpoint's step.

    Raises:
        BadCheckpoint: if the file is no JSON object or has no global_step.
    """
    path = checkpoint / TRAINER_STATE
    if not path.is_file():
        return None
    state = read_json_object(path)
    step, seen = state.get("global_step"), state.get("num_input_tokens_seen")
    if type(step) is not int or step < 0:
        raise BadCheckpoint(f"{path}: global_step is {step!r}, expected a number of steps")
    counted = type(seen) is int and (seen > 0 or step == 0)
    return TrainerState(step, cast("int", seen) if counted else None, _learning_rate(state.get("log_history"), step))


def _learning_rate(history: object, step: int) -> float | None:
    """The learning rate logged last at or before a step."""
    latest: tuple[float, float] | None = None
    for entry in cast("list[object]", history) if isinstance(history, list) else []:
        if not isinstance(entry, dict):
            continue
        logged = cast("dict[str, object]", entry)
        at, rate = logged.get("step"), logged.get("learning_rate")
        if (
            isinstance(at, int | float)
            and isinstance(rate, int | float)
            and math.isfinite(rate)
            and at <= step
            and (latest is None or at >= latest[0])
        ):
            latest = (at, float(rate))
    return None if latest is None else latest[1]
