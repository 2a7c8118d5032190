"""How far back a head looks, window by window: the mass beyond 16, 64, 256, 1,024 and 4,096 tokens.

1 less these masses is the distribution function of the distance. A window as long as a model's next sliding layer says
what that layer would lose.

Reference:
    The identity behind it, mass beyond a window = 1 − exp(lse within − lse), holds for any mask and learned sink.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import FarSum, PerSequence, Recording

WINDOWS = (16, 64, 256, 1024, 4096)


def _rung(window: int) -> None:
    name = f"far_mass_{window}"

    @detector(name, needs={FarSum(name, window)}, by_default=False)
    def far_mass_beyond(recording: Recording) -> PerSequence:
        """Attention a given number of tokens back or more, on rows with as many tokens before them."""
        return recording[name]


for _window in WINDOWS:
    _rung(_window)
