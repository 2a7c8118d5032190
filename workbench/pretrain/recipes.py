"""The recipe of a pretraining run: model, training data, seed, steps, learning rates, checkpoint steps. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from workbench.heads import WorkbenchError
from workbench.pretrain.synthetic_language import VOCABULARY

Variant = Literal["full", "sliding", "hybrid", "linear"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

Optimiser = Literal["muon", "adamw"]
Windows = Literal["packed", "plain"]
Precision = Literal["float32", "bfloat16"]
Kind = Literal["full_attention", "sliding_attention", "linear_attention"]

_STEPS: dict[Variant, int] = {"full": 480, "sliding": 420, "hybrid": 420, "linear": 560}
_QUICK_STEPS: dict[Variant, int] = {"full": 300, "sliding": 240, "hybrid": 300, "linear": 400}
_QUICK_CHECKPOINTS = 12
_EARLY = (0, 8, 16)  # checkpoint steps before the logarithmically spaced ones
_FIRST_LOG_STEP = 24


def _check_minima(settings: object, minima: Mapping[str, int]) -> None:
    for name, minimum in minima.items():
        value = getattr(settings, name)
        if value < minimum:
            raise WorkbenchError(f"{name} is {value}; expected at least {minimum}")


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model. `window`: tokens that a sliding layer sees; `vocabulary` in tokens.

    `local_per_full`: windowed or linear layers per layer of full attention in the hybrids. The full layer is the last
    of each group in windowed hybrids and the first in linear ones: induction needs two layers of full attention, and a
    linear layer may stand between them.
    """

    n_layers: int = 2
    n_heads: int = 4
    d_head: int = 32
    d_model: int = 64
    d_ff: int = 128
    window: int = 16
    local_per_full: int = 1
    vocabulary: int = VOCABULARY

    def __post_init__(self) -> None:
        _check_minima(self, dict.fromkeys(self.__dataclass_fields__, 1) | {"vocabulary": 2})
        if self.d_head % 2:
            raise WorkbenchError(f"d_head is {self.d_head}; rotary positions need an even number")

    def layer_kinds(self, variant: Variant) -> tuple[Kind, ...]:
        """The kind of each layer, as transformers' configurations name it."""
        group, layers = self.local_per_full + 1, range(self.n_layers)
        match variant:
            case "full":
                return ("full_attention",) * self.n_layers
            case "sliding":
                return ("sliding_attention",) * self.n_layers
            case "hybrid":
                return tuple("sliding_attention" if (i + 1) % group else "full_attention" for i in layers)
            case "linear":
                return tuple("linear_attention" if i % group else "full_attention" for i in layers)


SMALL = Shape()
SMALL_LINEAR = Shape(n_layers=3)
TEXT = Shape(n_layers=4, d_model=128, d_ff=512, window=64, vocabulary=1024)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that determines a run. Learning rates are peaks: linear warm-up, then a cosine to `final_lr` of the peak.

    `batch` is in sequences per step, `length` in tokens per sequence, `warmup` in steps. `n_checkpoints` counts step 0.
    `shape`: None is the demo's. `corpus`: the digest of the text; "" is the synthetic language. `windows` of text:
    `packed` ones may cross the ends of documents, `plain` ones lie within one. `lr_matrices` is the rate of Muon, or of
    AdamW for matrices if `optimiser` is `adamw`. `precision` is that of products; weights, their updates and the loss
    are float32.

    Raises:
        WorkbenchError: for a number out of its range.
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
    shape: Shape | None = None
    corpus: str = ""
    windows: Windows = "packed"
    optimiser: Optimiser = "muon"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        _check_minima(self, {"seed": 0, "steps": 1, "batch": 1, "length": 2, "n_checkpoints": 4, "warmup": 1})
        if not 0 <= self.final_lr <= 1:
            raise WorkbenchError(f"final_lr is {self.final_lr}; expected a share of the peak rates, 0 to 1")

    @property
    def dimensions(self) -> Shape:
        """The shape of the model: `shape`, or the variant's default."""
        if self.shape is not None:
            return self.shape
        return SMALL_LINEAR if self.variant == "linear" else SMALL

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps 0, 8, 16, then logarithmically spaced to the last; fewer if the run is short."""
        spaced = np.geomspace(min(_FIRST_LOG_STEP, self.steps), self.steps, self.n_checkpoints - len(_EARLY))
        return tuple(sorted({s for s in _EARLY if s < self.steps} | {round(float(s)) for s in spaced} | {self.steps}))

    def lr_scale(self, step: int) -> float:
        """Share of the peak learning rates for the update after `step` finished steps."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rise * (self.final_lr + (1 - self.final_lr) * fall)


def recipe(variant: str, *, seed: int = 0, quick: bool = False) -> Recipe:
    """The tuned recipe of a variant; `quick` has fewer checkpoints and ends when induction has just formed.

    Raises:
        WorkbenchError: for an unknown variant or a negative seed.
    """
    known = as_variant(variant)
    if quick:
        return Recipe(known, seed, steps=_QUICK_STEPS[known], n_checkpoints=_QUICK_CHECKPOINTS)
    return Recipe(known, seed, steps=_STEPS[known])


def text_recipe(variant: str, corpus: str, *, seed: int = 0, steps: int = 1_800, shape: Shape = TEXT) -> Recipe:
    """The recipe for real text: 8 windows of 256 tokens a step, 30 checkpoints, rates falling to 0.3 of their peak.

    `corpus` is the digest of the text. The rates were not swept on text.

    Raises:
        WorkbenchError: for an unknown variant or a number below its minimum.
    """
    return Recipe(
        as_variant(variant),
        seed,
        steps=steps,
        batch=8,
        length=256,
        n_checkpoints=30,
        lr_rest=3e-3,
        warmup=50,
        final_lr=0.3,
        shape=shape,
        corpus=corpus,
    )


def as_variant(name: str) -> Variant:
    """The variant of this name.

    Raises:
        WorkbenchError: for another name.
    """
    for variant in VARIANTS:
        if name == variant:
            return variant
    raise WorkbenchError(f"unknown variant {name!r}; expected one of {', '.join(VARIANTS)}")
