"""What a key/value head may become: a sliding window, linear attention, or sparse attention to selected blocks of keys.

A head without any of them sees everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from workbench.heads import KVHead, LayerInfo, WorkbenchError

Features = Literal["elu", "taylor"]
# How a sparse head scores the blocks of its past, and what makes one selection.
Rule = Literal["oracle", "mean", "minmax"]
Per = Literal["row", "query_block"]
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


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """A sparse head attends, row by row, to `n_blocks` selected blocks of `block` keys of its past.

    Blocks count from the first token that is no padding, or from the beginning of a packed document. The block that
    holds the row, and the first `sink_blocks`, are always among them; the others are those of the highest score, the
    earlier of two equal ones. The query heads of a key/value head share one selection: their scores are summed.

    `rule`: how a block is scored. `oracle`: by the attention that the dense head gives it, which reads every key, and
    is the bound that the cheap rules are held against. `mean`: q · the mean of its keys. `minmax`: the most that q · k
    can be for keys between the smallest and the largest number of each channel in it; since keys are rotated by their
    position, it selects otherwise where padding shifts positions.
    `per`: each row selects for itself, or all rows of one block together, by the sum of their scores. In that case
    early rows of a block are served by what later ones select, so that no cache can go on from it token by token.

    A sparse head keeps its whole cache. It reads `n_read` keys of it for a token.

    Raises:
        WorkbenchError: for sizes that are no whole numbers of at least 1, blocks that do not hold the row's own and the
            sinks, or an unknown rule.

    Reference:
        `mean`: Lu et al. 2025, MoBA: Mixture of Block Attention, arXiv 2502.13189, section 2.2, which selects for each
        query head. `minmax`: Tang et al. 2024, Quest, arXiv 2406.10774, algorithm 1, whose pages hold 16 keys.
    """

    block: int = 64
    n_blocks: int = 8
    sink_blocks: int = 0
    rule: Rule = "oracle"
    per: Per = "row"

    def __post_init__(self) -> None:
        sizes = {"block": (self.block, 1), "n_blocks": (self.n_blocks, 1), "sink_blocks": (self.sink_blocks, 0)}
        for name, (size, least) in sizes.items():
            if isinstance(size, bool) or not isinstance(size, Integral) or not least <= size < MOST_TOKENS:
                raise WorkbenchError(f"{name} is {size!r}; expected a whole number of at least {least}, below 2**62")
        if self.n_blocks <= self.sink_blocks:
            raise WorkbenchError(
                f"{self.n_blocks} blocks were to be selected, and the row's own with {self.sink_blocks} sink blocks "
                f"are {self.sink_blocks + 1}; pass n_blocks={self.sink_blocks + 1} or more"
            )
        if self.rule not in get_args(Rule):
            raise WorkbenchError(f"rule is {self.rule!r}; expected 'oracle', 'mean' or 'minmax'")
        if self.per not in get_args(Per):
            raise WorkbenchError(f"per is {self.per!r}; expected 'row' or 'query_block'")

    @property
    def n_read(self) -> int:
        """Keys that a token's attention reads at most, at any length of the context; selecting them is not counted."""
        return self.block * self.n_blocks

    @property
    def in_words(self) -> str:
        """What a row attends to."""
        first = "first" if self.sink_blocks == 1 else f"first {self.sink_blocks}"
        sinks = f", the {first} among them" if self.sink_blocks else ""
        shared = "" if self.per == "row" else ", the same for all rows of a block"
        blocks = f"{self.n_blocks} block{'s' * (self.n_blocks > 1)} of {self.block} key{'s' * (self.block > 1)}"
        return f"{blocks} by {self.rule}{sinks}{shared}"


# What one head becomes.
Conversion = Window | LinearAttention | SparseAttention
# What a plan chooses for a head.
Choice = Literal["full"] | Conversion
# Each converted head with what it becomes.
Conversions = Mapping[KVHead, Conversion]
# The form of linear attention of each converted head.
Forms = Mapping[KVHead, LinearAttention]
# The sparse attention of each converted head.
Selections = Mapping[KVHead, SparseAttention]


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


def name_of(choice: Choice) -> Literal["full", "window", "linear", "sparse"]:
    """The name of a head's choice, as tables have it."""
    if isinstance(choice, Window):
        return "window"
    if isinstance(choice, SparseAttention):
        return "sparse"
    return "linear" if isinstance(choice, LinearAttention) else "full"


def softmax_heads(layers: Sequence[LayerInfo]) -> tuple[KVHead, ...]:
    """The key/value heads of softmax layers, in order."""
    return tuple(KVHead(i.index, h) for i in layers if i.mixer == "softmax" for h in range(i.n_kv_heads))


def heads_beyond(layers: Sequence[LayerInfo], window: int) -> tuple[KVHead, ...]:
    """The key/value heads of softmax layers that see further back than `window` tokens by themselves, in order.

    A window changes nothing for the others: their layer has one that is no wider.
    """
    return softmax_heads([i for i in layers if i.window is None or i.window > window])
