"""Settings of a conversion study: model, pretraining, window, kept heads, continued training. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.heads import WorkbenchError
from workbench.pretrain.recipes import Recipe

Task = Literal["hops", "counting"]
Trained = Literal["all", "main"]
ConvertedTo = Literal["window", "linear"]  # the attention of converted heads
_EARLY = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
_NEEDLE = 8  # words of a needle: the shortest distance to its copy


@dataclass(frozen=True, slots=True)
class Continued:
    """Continued pretraining: steps, and the share of the pretraining's peak learning rates it starts from."""

    steps: int
    lr_share: float = 0.3

    def __str__(self) -> str:
        return f"{self.steps} steps at {self.lr_share:g} of the peak rates"


@dataclass(frozen=True, slots=True)
class Conversion:
    """All settings of a study but its seeds. Lengths, window and distances are in tokens.

    `window`: the last tokens a converted head sees; `sink`: the first tokens it also sees where sinks are kept.
    `n_kept`: heads kept full in the trained arms; `kept_counts`: without training. `continued`: continued pretraining,
    the first for every keep-set, the others for the main ones. `n_random`, `n_random_trained`: random sets drawn per
    seed without and with training. `trained`: train all keep-sets, or only the main ones and their controls.
    `is_from_scratch`: also train some conversions from the start. `distances`: of the needles' copies. `n_sequences`:
    of each class of a probe. `tasks`: mixed into the training data beside documents, `n_task` sequences of every kind
    in a batch (`hops` has two kinds), after `documents_first` steps of documents alone. `hops`: how many assignments
    are followed. `early`: shares of the pretraining after which heads are also chosen, to be kept in the final model.
    `linear`: features of linear attention, for a second conversion; None for windows alone.

    Raises:
        WorkbenchError: for settings that contradict each other.
    """

    n_layers: int = 2
    n_heads: int = 8
    d_head: int = 16
    d_model: int = 64
    rope_theta: float = 10_000.0
    length: int = 64
    batch: int = 32
    steps: int = 600
    window: int = 8
    sink: int = 1
    n_kept: int = 3
    kept_counts: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    continued: tuple[Continued, ...] = (Continued(60), Continued(200))
    n_random: int = 4
    n_random_trained: int = 2
    distances: tuple[int, ...] = (8, 16, 24, 32, 40, 52)
    n_sequences: int = 24
    tasks: tuple[Task, ...] = ()
    n_task: int = 1
    hops: tuple[int, ...] = (1, 2, 3)
    documents_first: int = 0
    trained: Trained = "all"
    is_from_scratch: bool = True
    early: tuple[float, ...] = ()
    linear: Literal["elu", "taylor"] | None = None

    def __post_init__(self) -> None:
        self._check(0 < self.window < self.length, "window", self.window, f"1 to {self.length - 1}")
        self._check(0 < self.n_kept < self.n_heads, "n_kept", self.n_kept, f"1 to {self.n_heads - 1}")
        self._check(self.n_kept in self.kept_counts, "kept_counts", self.kept_counts, f"{self.n_kept} among them")
        self._check(all(0 < share < 1 for share in self.early), "early", self.early, "shares above 0 and below 1")
        self._check(self.n_layers >= 2, "n_layers", self.n_layers, "at least 2, for induction takes two")
        self._check(len(self.continued) > 0, "continued", self.continued, "at least one")
        longest = self.length - _NEEDLE - 1
        fits = bool(self.far) and all(_NEEDLE <= d <= longest for d in self.distances)
        expected = f"{_NEEDLE} to {longest}, one of them beyond the window of {self.window}"
        self._check(fits, "distances", self.distances, expected)

    @property
    def far(self) -> tuple[int, ...]:
        """The distances whose source lies beyond the window."""
        return tuple(d for d in self.distances if d > self.window)

    @property
    def early_steps(self) -> tuple[int, ...]:
        """The steps of the pretraining after which heads are also chosen, rising."""
        return tuple(sorted({max(1, round(share * self.steps)) for share in self.early}))

    def pretraining(self, seed: int) -> Recipe:
        """The pretraining run, also used to train a conversion from scratch."""
        return Recipe("full", seed, steps=self.steps, batch=self.batch, length=self.length, final_lr=0.1)

    def continuing(self, seed: int, continued: Continued) -> Recipe:
        """The run that continues from a pretrained model."""
        first, share = self.pretraining(seed), continued.lr_share
        return Recipe(
            "full",
            seed,
            steps=continued.steps,
            batch=self.batch,
            length=self.length,
            lr_matrices=share * first.lr_matrices,
            lr_embeddings=share * first.lr_embeddings,
            lr_rest=share * first.lr_rest,
            warmup=5,
            final_lr=0.1,
        )

    def _check(self, is_right: bool, name: str, value: object, expected: str) -> None:
        if not is_right:
            raise WorkbenchError(f"{name} is {value}; expected {expected}")


def quick_study() -> Conversion:
    """16 heads, minutes on two cores."""
    return Conversion(early=_EARLY, linear="elu")


def medium_study() -> Conversion:
    """64 heads, both tasks, 64 tokens, the main keep-sets alone, nothing from scratch: 90 minutes of a core."""
    return Conversion(
        n_layers=4,
        n_heads=16,
        rope_theta=100.0,
        steps=1400,
        n_kept=12,
        kept_counts=(4, 8, 12, 16, 24),
        continued=(Continued(80), Continued(240), Continued(80, 1.0)),
        n_random=2,
        n_random_trained=1,
        n_sequences=10,
        tasks=("hops", "counting"),
        n_task=6,
        hops=(1, 2),
        documents_first=350,
        trained="main",
        is_from_scratch=False,
        early=_EARLY,
        linear="elu",
    )


def larger_study() -> Conversion:
    """64 heads, documents mixed with multi-hop and aggregation tasks, three learning rates: half a day."""
    return Conversion(
        n_layers=4,
        n_heads=16,
        d_model=128,
        length=256,
        batch=16,
        steps=3000,
        window=32,
        n_kept=12,
        kept_counts=(4, 8, 12, 16, 24, 32),
        continued=(Continued(150), Continued(600), Continued(2000), Continued(600, 0.1), Continued(600, 1.0)),
        distances=(16, 32, 48, 64, 96, 128, 192, 240),
        n_sequences=16,
        tasks=("hops", "counting"),
        n_task=3,
        documents_first=700,
        early=_EARLY,
        linear="elu",
    )
