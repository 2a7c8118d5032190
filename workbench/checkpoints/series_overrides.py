"""Read `series.toml` beside the checkpoints: the user's steps, tokens and stages override names and files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from workbench.heads import WorkbenchError

SERIES_FILE = "series.toml"
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class Placement(BaseModel):
    """One `[checkpoints."NAME"]` table: the position of the checkpoint in training, or `skip = true`.

    `step` counts as the names do, `tokens` from the beginning of training.
    """

    model_config = _STRICT

    step: NonNegativeInt | None = None
    tokens: NonNegativeInt | None = None
    stage: str | None = None
    branch: str | None = None
    skip: bool = False


class Overrides(BaseModel):
    """The whole file. `tokens_per_step` is one number, or a table with one per stage.

    In `stage_order` and in that table, "" stands for the checkpoints whose names have no stage.
    """

    model_config = _STRICT

    tokens_per_step: PositiveInt | dict[str, PositiveInt] | None = None
    steps: Literal["cumulative", "per_stage"] | None = None
    stage_order: list[str] | None = None
    checkpoints: dict[str, Placement] = Field(default_factory=dict)

    def tokens_per_step_of(self, stage: str | None) -> int | None:
        """Tokens per step of a stage; None if the user gave none."""
        if isinstance(self.tokens_per_step, dict):
            return self.tokens_per_step.get(stage or "")
        return self.tokens_per_step


def read_overrides(directory: Path) -> Overrides:
    """Read `series.toml` in a directory of checkpoints; without one, nothing is overridden.

    Raises:
        WorkbenchError: naming every key that is unknown or has a wrong value.
    """
    path = directory / SERIES_FILE
    if not path.is_file():
        return Overrides()
    try:
        return Overrides.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {'unknown key' if e['type'] == 'extra_forbidden' else e['msg']}"
            for e in error.errors()
        )
        keys = f"{', '.join(Overrides.model_fields)}; per checkpoint {', '.join(Placement.model_fields)}"
        raise WorkbenchError(f"{path}: {wrong}. Known keys: {keys}") from error
