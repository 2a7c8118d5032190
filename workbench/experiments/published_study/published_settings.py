"""Settings of a study of a published model: windows, rankings, budgets, tasks, lengths, training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.heads import WorkbenchError
from workbench.planning.efforts import Effort, extent
from workbench.store.conversions import check_window

# By what heads are ranked, beside chance: gates, their slope at the model itself, what a window cuts off, what it
# changes of a head's output, and the two priors of the literature.
RANKINGS = ("window_gates", "first_order", "output_error", "far_mass", "retrieval", "induction")
GATES = "window_gates"
# Trained and measured at every length: the ends, the gates, a prior, and as many heads by chance.
MAIN = ("all", "none", GATES, "induction", "random")
_TRAINED_LENGTH, _STEP_TOKENS = 1024, 8192


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Continued pretraining on text with AdamW, measured after each number of `steps`.

    `rate`: the peak, reached after `warmup` steps and then constant, so that a shorter training is the beginning of a
    longer one. `tokens`: of a step, in sequences of `length` tokens.
    """

    steps: tuple[int, ...] = ()
    rate: float = 1e-4
    warmup: int = 10
    length: int = _TRAINED_LENGTH
    tokens: int = _STEP_TOKENS

    def __post_init__(self) -> None:
        if any(isinstance(n, bool) or n < 1 for n in self.steps) or list(self.steps) != sorted(set(self.steps)):
            raise WorkbenchError(f"steps are {self.steps}; expected rising whole numbers from 1")
        if not self.rate > 0:
            raise WorkbenchError(f"a learning rate of {self.rate} was given; expected a number above 0")
        if self.length < 2 or self.tokens < self.length:
            raise WorkbenchError(
                f"a step of {self.tokens} tokens in sequences of {self.length}: expected sequences of 2 tokens or "
                "more, and one of them in a step"
            )

    @property
    def n_sequences(self) -> int:
        """Sequences of a step."""
        return self.tokens // self.length

    def rate_at(self, step: int) -> float:
        """The learning rate of the update after `step` finished steps."""
        return self.rate * min(1.0, (step + 1) / self.warmup)


@dataclass(frozen=True, slots=True)
class PublishedStudy:
    """All settings of a study but how fast it runs. Lengths, windows and sinks are in tokens.

    A seed draws everything that is drawn: the texts that heads are ranked on, those they are judged on, the random
    heads, and the order of the training data.

    `model`: what was named. `weights`: a digest of them. `budgets`: heads kept full, as shares of the heads that a
    window is for. `main`: the budget that is also judged at longer texts, without sinks, as layers, and trained.
    `chance`: the budgets at which random heads are judged. `n_ranked`: texts of a ranking. `nodes`: of the gates' path,
    at most. `n_texts`: of a task, a length and a seed. `longest`: texts to judge on are doubled in length up to this,
    or up to four times the window. `lengths`: in place of those. `tasks`: as `workbench.verdict` takes them; none: all.
    `text`: a digest of the text that is trained on and judged on; "" for none. `linear`: whether heads are converted
    to linear attention, too. `sparse`: whether they are to selected blocks of keys, too.
    """

    model: str
    weights: str
    windows: tuple[int, ...]
    sink: int = 4
    seeds: int = 3
    rankings: tuple[str, ...] = RANKINGS
    budgets: tuple[float, ...] = (0.02, 0.045, 0.1, 0.2, 1 / 3, 0.5)
    main: float = 0.1
    chance: tuple[float, ...] = (0.1, 0.2, 0.5)
    n_ranked: int = 6
    nodes: int = 8
    n_texts: int = 2
    longest: int = 2048
    lengths: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    text: str = ""
    linear: bool = True
    sparse: bool = True
    training: Pretraining = field(default_factory=Pretraining)

    def __post_init__(self) -> None:
        for window in self.windows:
            check_window(window, self.sink)
        for name in ("seeds", "n_ranked", "n_texts"):
            if getattr(self, name) < 1:
                raise WorkbenchError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.windows or len(set(self.windows)) < len(self.windows):
            raise WorkbenchError(f"windows are {self.windows}; expected one or more, each once")
        if GATES not in self.rankings:
            raise WorkbenchError(f"rankings are {self.rankings}; expected {GATES} among them")
        if self.main not in self.budgets or not set(self.chance) <= set(self.budgets):
            raise WorkbenchError(f"budgets are {self.budgets}; expected {self.main} and {self.chance} among them")

    def n_kept(self, share: float, n_heads: int) -> int:
        """A budget in heads: at least one, and one fewer than all at most."""
        return max(1, min(n_heads - 1, int(share * n_heads)))


def settings_of(effort: Effort, model: str, *, windows: Sequence[int], **changes: Any) -> PublishedStudy:
    """The settings that an effort pays for, with changes.

    `quick`: one seed, three budgets, short texts. `standard`: three seeds, six budgets. `thorough`: three times the
    texts and five seeds.
    """
    extent(effort)  # refuses what is none
    study = PublishedStudy(model, "", tuple(windows))
    if effort == "quick":
        few = (0.045, 0.1, 1 / 3)
        study = replace(study, seeds=1, budgets=few, chance=(0.1,), n_texts=2, n_ranked=4, longest=1024)
        study = replace(study, linear=False, sparse=False)
    if effort == "thorough":
        study = replace(study, seeds=5, n_texts=6, n_ranked=12, nodes=12, longest=8192)
    return replace(study, **changes)
