"""What one pretraining run is: variant, seed, steps, learning rates, and which steps become checkpoints. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from workbench.heads import WorkbenchError

Variant = Literal["full", "sliding", "hybrid", "linear"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_STEPS: dict[Variant, int] = {"full": 480, "sliding": 420, "hybrid": 420, "linear": 560}
_QUICK_STEPS: dict[Variant, int] = {"full": 300, "sliding": 240, "hybrid": 300, "linear": 400}
_QUICK_CHECKPOINTS = 12
_EARLY = (0, 8, 16)  # steps kept before the logarithmic ones, which begin at step 24
_FIRST_LOG_STEP = 24


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that determines a run. Learning rates are peaks: linear warm-up, then a cosine to `final_lr` of the peak.

    `batch` is in sequences per step, `length` in tokens per sequence, `warmup` in steps. `n_checkpoints` counts step 0.

    Raises:
        WorkbenchError: for a number below its least.
    """

    variant: Variant
    seed: int = 0
    steps: int = 420
    batch: int = 32
    length: int = 64
    n_checkpoints: int = 20
    lr_matrices: float = 1e-2
    lr_embeddings: float = 2e-2
    lr_rest: float = 5e-3
    warmup: int = 20
    final_lr: float = 0.5

    def __post_init__(self) -> None:
        least = {"seed": 0, "steps": 1, "batch": 1, "length": 2, "n_checkpoints": 4, "warmup": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise WorkbenchError(f"{name} is {getattr(self, name)}; expected at least {smallest}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps 0, 8, 16, then logarithmically spaced to the last; fewer where the run is too short for them."""
        spaced = np.geomspace(min(_FIRST_LOG_STEP, self.steps), self.steps, self.n_checkpoints - len(_EARLY))
        return tuple(sorted({s for s in _EARLY if s < self.steps} | {round(float(s)) for s in spaced} | {self.steps}))

    def lr_scale(self, step: int) -> float:
        """Share of the peak learning rates that the update after `step` finished steps uses."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rise * (self.final_lr + (1 - self.final_lr) * fall)


def recipe(variant: str, *, seed: int = 0, quick: bool = False) -> Recipe:
    """The tuned recipe of a variant; `quick` stops earlier, with fewer checkpoints, when induction has just formed.

    Raises:
        WorkbenchError: for an unknown variant or a negative seed.
    """
    if variant not in VARIANTS:
        raise WorkbenchError(f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    if quick:
        return Recipe(variant, seed, steps=_QUICK_STEPS[variant], n_checkpoints=_QUICK_CHECKPOINTS)
    return Recipe(variant, seed, steps=_STEPS[variant])
