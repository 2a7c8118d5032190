"""What a key/value head may become: a sliding window, or linear attention. A head without either sees everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from workbench.heads import KVHead, LayerInfo, WorkbenchError

Features = Literal["elu", "taylor"]
# Tokens that no context has; larger numbers are no positions.
MOST_TOKENS = 1 << 62


@dataclass(frozen=True, slots=True)
class Window:
    """A restricted head sees the first `sink` and the last `window` keys, own position included, in tokens."""

    window: int
    sink: int = 0


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """A form of linear attention: a feature map of queries and keys, and a decay.

    With x = sharpness · √scale · q (or k), and scale the model's own factor of q · k:

    `elu`: φ(x) = elu(x) + 1, of the head's own width. `taylor`: the second-order series of exp(x_q · x_k), of
    1 + d + d (d + 1) / 2 features, whose state is larger than the cache of a short context.
    `decay`: λ, per token, 1 for none.

    Raises:
        WorkbenchError: for unknown features, a sharpness that is no finite number above 0, or a decay outside of 0 to
            1.
    """

    features: Features = "elu"
    sharpness: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.features not in get_args(Features):
            raise WorkbenchError(f"features are {self.features!r}; expected 'elu' or 'taylor'")
        if not 0 < self.sharpness < math.inf:
            raise WorkbenchError(f"sharpness is {self.sharpness}; expected a number above 0")
        if not 0 < self.decay <= 1:
            raise WorkbenchError(f"decay is {self.decay}; expected a number above 0 and at most 1")

    def state_size(self, d_head: int, d_v: int | None = None) -> int:
        """Numbers that a head keeps in place of a cache, at any length of the context."""
        n_features = d_head if self.features == "elu" else 1 + d_head + d_head * (d_head + 1) // 2
        return n_features * ((d_head if d_v is None else d_v) + 1)


# What one head becomes.
Conversion = Window | LinearAttention
# What a plan chooses for a head.
Choice = Literal["full"] | Conversion
# Each converted head with what it becomes.
Conversions = Mapping[KVHead, Conversion]
# The form of linear attention of each converted head.
Forms = Mapping[KVHead, LinearAttention]


def check_window(window: Any, sink: Any) -> Window:
    """A window of these sizes, in tokens.

    Raises:
        WorkbenchError: if the sizes are no whole numbers, the window is shorter than one token or the sink negative.
    """
    sizes = [-1 if isinstance(size, bool) or not isinstance(size, Integral) else int(size) for size in (window, sink)]
    if not (1 <= sizes[0] < MOST_TOKENS and 0 <= sizes[1] < MOST_TOKENS):
        raise WorkbenchError(
            f"window {window!r}, sink {sink!r}: expected a window of at least 1 token and a sink of at least 0, whole "
            "numbers below 2**62"
        )
    return Window(*sizes)


def name_of(choice: Choice) -> Literal["full", "window", "linear"]:
    """The name of a head's choice, as tables have it."""
    if isinstance(choice, Window):
        return "window"
    return "linear" if isinstance(choice, LinearAttention) else "full"


def softmax_heads(layers: Sequence[LayerInfo]) -> tuple[KVHead, ...]:
    """The key/value heads of softmax layers, in order."""
    return tuple(KVHead(i.index, h) for i in layers if i.mixer == "softmax" for h in range(i.n_kv_heads))


def heads_beyond(layers: Sequence[LayerInfo], window: int) -> tuple[KVHead, ...]:
    """The key/value heads of softmax layers that see further back than `window` tokens by themselves, in order.

    A window changes nothing for the others: their layer has one that is no wider.
    """
    return softmax_heads([i for i in layers if i.window is None or i.window > window])
