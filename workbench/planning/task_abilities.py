"""Whether a model can do a task, and needs the far context for it: what cannot judge a plan is left out, and said.

The model answers as it is and with every head windowed. A verdict like that of `emergence.right_answers`, where the
windowed model takes the place of the control: `does`, at least half of the answers are right, and more than windowed by
a whole interval; `not far`, at least half, and no more than windowed; `partly` and `cannot`, less than half, and more
or no more than windowed. On natural text, where nothing is asked, the loss alone is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from workbench.emergence.right_answers import HALF
from workbench.planning.conversion_objective import Game
from workbench.planning.question_scores import QuestionScores, mean_interval
from workbench.store.length_verdict import Measure

Verdict = Literal["does", "not far", "partly", "cannot"]


@dataclass(frozen=True, slots=True)
class TaskAbility:
    """What a model gets of a task, as it is and with every head windowed.

    `right`, `nats`: (as it is, windowed). `gain`: what the far context is worth, as a share of right answers or in
    nats, as `measure` says, with its 95 % interval over questions or texts.
    """

    measure: Measure
    right: tuple[float, float]
    nats: tuple[float, float]
    gain: float
    gain_lo: float
    gain_hi: float

    @property
    def verdict(self) -> Verdict:
        low = self.gain if math.isnan(self.gain_lo) else self.gain_lo
        if self.measure == "nats" or self.right[0] >= HALF:
            return "does" if low > 0 else "not far"
        return "partly" if low > 0 else "cannot"

    @property
    def reason(self) -> str:
        """Why the task cannot judge a plan, without a subject's name and full stop; "" where it can."""
        interval = "" if math.isnan(self.gain_lo) else f" (95 % interval {self.gain_lo:.2f} to {self.gain_hi:.2f})"
        full, windowed = self.right
        if self.verdict == "does":
            return ""
        if self.measure == "nats":
            return f"the far context is worth {self.gain:.2f} nats to the model{interval}, no more than nothing"
        if self.verdict == "not far":
            return (
                f"the model gets {full:.2f} of its answers right and {windowed:.2f} with every head windowed, no more "
                f"beyond the interval{interval}: it needs nothing far"
            )
        return (
            f"the model gets {full:.2f} of its answers right, less than half ({windowed:.2f} with every head windowed)"
        )


def ability(measure: Measure, full: QuestionScores, windowed: QuestionScores, *, seed: int = 0) -> TaskAbility:
    """What a model gets of a task from its questions, as it is and with every head windowed."""
    gains = full.right - windowed.right if measure == "right" else windowed.nats - full.nats
    return TaskAbility(
        measure,
        (float(full.right.mean()), float(windowed.right.mean())),
        (float(full.nats.mean()), float(windowed.nats.mean())),
        float(gains.mean()),
        *mean_interval(gains, full.text, seed=seed),
    )


def unable(game: Game) -> list[str]:
    """A remark where the model gets less than half of a probe's answers right, so that losing them says little."""
    right = game.outcome().accuracy
    if game.probe.metric is None or right >= HALF:
        return []
    return [
        f"{game.probe.name}: the model itself gets {right:.2f} of the answers right, less than half, so that a plan "
        "judged on it says little; pass probes that it can do (`workbench score MODEL` says which)"
    ]
