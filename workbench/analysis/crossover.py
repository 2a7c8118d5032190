"""The context length from which linear attention costs less than softmax attention, by the costs that are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from workbench.heads import WorkbenchError

TERMS = ("mixing", "projections", "decode memory")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer: model width, heads, and the key/value heads of its softmax form."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int


MINIMAX_TEXT_01 = LayerShape(d_model=6144, n_heads=64, n_kv_heads=8, d_head=128)


@dataclass(frozen=True, slots=True)
class Crossover:
    """Costs per token, softmax_per_token_of_context · tokens + softmax_fixed against linear_fixed, in FLOP or bytes.

    `tokens`: the context length at which both cost the same.
    """

    unit: str
    softmax_per_token_of_context: float
    softmax_fixed: float
    linear_fixed: float

    @property
    def tokens(self) -> float:
        return (self.linear_fixed - self.softmax_fixed) / self.softmax_per_token_of_context


def crossover(
    shape: LayerShape,
    terms: tuple[str, ...] = ("mixing",),
    *,
    chunk: int = 256,
    skips_upper_half: bool = False,
    state_bytes: int = 4,
    cache_bytes: int = 2,
) -> Crossover:
    """The break-even context length of one layer for the named terms.

    Args:
        terms: "mixing", scores and values: causal softmax 2·D·T FLOP per token and head on average, linear 4·C·D + 4·D²
            (2·C·D if the upper half of the chunk's square is skipped). "projections", the layer's matrices: softmax q
            and out and grouped k, v; linear q, k, v, gate and out, none grouped. "decode memory", alone, bytes per
            decoded token: the key/value cache read once against the state read and written.

    Raises:
        WorkbenchError: if a term is unknown, or FLOP and bytes are to be added.
    """
    unknown = [x for x in terms if x not in TERMS]
    if unknown or not terms:
        raise WorkbenchError(f"terms {terms} were given; expected some of {', '.join(TERMS)}")
    d, heads, kv = shape.d_head, shape.n_heads, shape.n_kv_heads
    if "decode memory" in terms:
        if len(terms) > 1:
            raise WorkbenchError("'decode memory' counts bytes and the other terms FLOP; ask for it alone")
        return Crossover("bytes", 2.0 * kv * d * cache_bytes, 0.0, 2.0 * heads * d * d * state_bytes)
    per_key = softmax = linear = 0.0
    if "mixing" in terms:
        per_key = 2.0 * d * heads
        linear += heads * ((2.0 if skips_upper_half else 4.0) * chunk * d + 4.0 * d * d)
    if "projections" in terms:
        softmax += 2.0 * shape.d_model * d * (2 * heads + 2 * kv)
        linear += 2.0 * shape.d_model * d * 5 * heads
    if not per_key:
        raise WorkbenchError("terms ('projections',) do not depend on the length; add 'mixing'")
    return Crossover("FLOP", per_key, softmax, linear)


def crossover_table(
    shape: LayerShape,
    tokens: Sequence[int] = tuple(2**i for i in range(7, 18)),
    *,
    terms: Sequence[tuple[str, ...]] = (("mixing",), ("mixing", "projections"), ("decode memory",)),
    chunk: int = 256,
) -> pd.DataFrame:
    """Cost per token of both kinds of one layer over context lengths, for each choice of terms.

    Columns: terms, unit (FLOP or bytes), tokens, softmax, linear, break_even.

    Raises:
        WorkbenchError: as `crossover` does.
    """
    rows: list[tuple[str, str, int, float, float, float]] = []
    for counted in terms:
        costs = crossover(shape, counted, chunk=chunk)
        for n in tokens:
            softmax = costs.softmax_fixed + costs.softmax_per_token_of_context * n
            rows.append((" + ".join(counted), costs.unit, n, softmax, costs.linear_fixed, costs.tokens))
    return pd.DataFrame(rows, columns=["terms", "unit", "tokens", "softmax", "linear", "break_even"])
