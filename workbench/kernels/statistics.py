"""What can be asked of one attention layer's rows, and what comes back: shared by every form of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cells:
    """A list of single cells of the attention matrix, sorted by (sequence, row).

    `row` and `key` are indices into the layer's queries and keys.
    """

    sequence: Int[Tensor, " n_cells"]
    row: Int[Tensor, " n_cells"]
    key: Int[Tensor, " n_cells"]


@dataclass(frozen=True, slots=True)
class Far:
    """Far mass: the attention of row i on keys first + `sink` <= j <= i − `window` (in tokens)."""

    window: int
    sink: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """Statistics to compute besides the layer's output. Absent means: not computed, not paid for.

    `first`: each sequence's first valid key, from which `far.sink` counts (0 where absent).
    `cells`: cells whose probability is wanted. `top_rows`: (sequence, row) pairs whose arg-max key is wanted.
    `rows`: the query rows to look at (all where absent), sorted; cells and top rows must lie on them.
    """

    entropy: bool = False
    distance: bool = False
    far: Far | None = None
    first: Int[Tensor, " b"] | None = None
    cells: Cells | None = None
    top_rows: Int[Tensor, "n_top 2"] | None = None
    rows: Int[Tensor, " q"] | None = None


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Exact statistics of each requested query row, float32 whatever the model's dtype (float64 in the reference).

    With A the attention probabilities (learned sink not renormalised away; for linear layers A is signed and
    `weights` below are |A| / Σ|A|, for softmax layers `weights` are A):

    `lse`: ln of the softmax denominator, learned sink included; for linear layers ln Σ|A| (−inf: empty row).
    `mass`: Σ_j weights: 1 minus the learned sink's share. `entropy` in nats, the learned sink one outcome.
    `mean_distance`: Σ_j weights · (i − j) in tokens. `far_mass` as `Far` defines it.
    `cells`: the probability at each requested cell; for linear layers the signed A / Σ|A|.
    `top_key`: the arg-max key of each requested row, of |A| for linear layers.
    """

    lse: Float[Tensor, "b n_heads q"]
    mass: Float[Tensor, "b n_heads q"]
    entropy: Float[Tensor, "b n_heads q"] | None
    mean_distance: Float[Tensor, "b n_heads q"] | None
    far_mass: Float[Tensor, "b n_heads q"] | None
    cells: Float[Tensor, "n_cells n_heads"] | None
    top_key: Int[Tensor, "n_top n_heads"] | None
