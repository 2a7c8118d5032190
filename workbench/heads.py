"""The vocabulary of all modules: heads, layers, rows of scores, and the errors that a user can correct. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["full", "sliding", "chunked", "sparse", "linear", "none"]
# "softmax", "lightning", "gdn", "kda", "ssm", "mamba1", "rg_lru", "rwkv4", or the name of a mixer that another package
# registers.
Mixer = str
KINDS: tuple[str, ...] = get_args(Kind)
# Behind the name of a probe: its control, the same tokens with the answers gone from the context.
WITHOUT_ANSWERS = "_without_answers"
# The flag of scores that are NaN for every head on a probe, with the reason.
NO_ROWS = "no_rows"
# The reason of a detector of learned sinks: most models have none, and that is no lack.
NO_LEARNED_SINK = "no layer of the model has a learned sink logit"


# What a record prints of its fields.
_FEW_ENTRIES, _MOST_CHARACTERS = 4, 60


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first ones, and how many others there are, as `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def brief(record: Any) -> str:
    """A dataclass in one line: arrays and tables by their sizes, long collections by their number of entries."""
    named = ((field.name, getattr(record, field.name)) for field in fields(record) if field.repr)
    return f"{type(record).__name__}({', '.join(f'{name}={_in_short(value)}' for name, value in named)})"


def _in_short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        sizes = " × ".join(map(str, shape)) or "one number"
        kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return f"<{sizes} {kind}>" if kind else f"<table of {sizes}>"
    if isinstance(value, tuple | list | set | frozenset | dict) and len(value) > _FEW_ENTRIES:
        return f"<{len(value)} entries>"
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


class WorkbenchError(Exception):
    """A mistake that the user can correct. The message gives the value, what was expected, and the next step.

    `exit_code` is that of the command line.
    """

    exit_code = 2


class BadCheckpoint(WorkbenchError):
    """A checkpoint that must not be scored: truncated, incomplete, non-finite, unsafe or no checkpoint."""

    exit_code = 1


class NoCheckpoints(WorkbenchError):
    """A directory with no checkpoints, or with checkpoints that cannot be put in one order."""

    exit_code = 3


class StoreTooNew(WorkbenchError):
    """A run written by a newer version of the workbench."""

    exit_code = 4


class StoreNotWritable(WorkbenchError):
    """A run directory that cannot be written: read-only or full."""

    exit_code = 5


class RunLocked(WorkbenchError):
    """A run directory that another scan is writing."""

    exit_code = 6


class RoundedDecayWarning(UserWarning):
    """Heads whose decay per token is lost by rounding to the model's precision in memory."""


class Head(NamedTuple):
    """A query head; prints as `L3H7`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, label: str) -> Head:
        """Read `L3H7`.

        Raises:
            WorkbenchError: if the label has another form.
        """
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", label.strip())
        if match is None:
            raise WorkbenchError(f"head {label!r} is not of the form 'L3H7' (layer 3, head 7, both from 0)")
        return cls(int(match[1]), int(match[2]))


class KVHead(NamedTuple):
    """A key/value head, shared by a group of query heads; prints as `L3KV1`."""

    layer: int
    kv_head: int

    def __str__(self) -> str:
        return f"L{self.layer}KV{self.kv_head}"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One token mixer of a model.

    `index` is the model's own layer number; a layer with two mixers has two entries. `window` is in tokens, own
    position included; None if the layer sees the whole past. `has_sinks`: learned sink logits. `n_selected`: of a
    `sparse` layer, which selects keys for each query from its whole past, alone or in blocks: how many at most. None
    for others.
    """

    index: int
    kind: Kind
    mixer: Mixer
    window: int | None
    has_sinks: bool
    n_heads: int
    n_kv_heads: int
    d_head: int
    quantisation: str = field(default="", compare=False)
    n_selected: int | None = None

    @property
    def hook_name(self) -> str | None:
        """TransformerLens's hook for this layer's pattern; None for layers without softmax attention."""
        return f"blocks.{self.index}.attn.hook_pattern" if self.mixer == "softmax" else None

    def kv_head(self, head: int) -> int:
        """The key/value head of query head `head`."""
        return head // (self.n_heads // self.n_kv_heads)

    def query_heads(self, kv_head: int) -> list[Head]:
        """The query heads that read key/value head `kv_head`."""
        group = self.n_heads // self.n_kv_heads
        return [Head(self.index, kv_head * group + i) for i in range(group)]


@dataclass(frozen=True, slots=True)
class Row:
    """One detector's score of one head on one probe.

    `score` is the mean over sequences of the mean over rows. `half_a` and `half_b` are the same on the even and the odd
    sequences, `sd_seq` the standard deviation over sequences, `n` the number of rows, `n_seq` that of sequences with at
    least one row. `ci_lo`, `ci_hi`: 95 % percentile bootstrap over sequences, NaN for fewer than 5. `head` is None for
    scores of a key/value head. `flags` holds `key=value` pairs separated by `;`.
    """

    layer: int
    head: int | None
    kv_head: int
    kind: Kind
    window: int | None
    detector: str
    version: int
    probe: str
    score: float
    half_a: float
    half_b: float
    sd_seq: float
    n_seq: int
    n: int
    ci_lo: float
    ci_hi: float
    flags: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One model-level number on one probe.

    `distance` (tokens between query and source) and `position` (row) give where it was measured. None means pooled, or
    measured for another class, which `metric` names at its end: `recall_hops_2`, `loss_nats_depth_50`. `n` is the
    number of answers. Halves and interval are as in `Row`.
    """

    probe: str
    metric: str
    distance: int | None
    position: int | None
    value: float
    half_a: float
    half_b: float
    n: int
    ci_lo: float
    ci_hi: float
