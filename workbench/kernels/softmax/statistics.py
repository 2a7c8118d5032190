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
    `windows`: far mass for each of these windows, with no sink left out.
    `squares`: Σ A² of a row, from which its effective support 1 / Σ A² follows.
    `features`: numbers on keys whose attention-weighted sums are wanted, Σ_j A[i, j] f_j for each.
    `row_weights`: what each query row counts for in column sums, Σ_i w_i A[i, j] for each key.
    `value_norms`: Σ_j A[i, j] · ‖v_j‖, the output's norm ‖o_i‖, and the first key's ‖v‖; softmax layers only.
    """

    entropy: bool = False
    distance: bool = False
    far: Far | None = None
    first: Int[Tensor, " b"] | None = None
    cells: Cells | None = None
    top_rows: Int[Tensor, "n_top 2"] | None = None
    rows: Int[Tensor, " q"] | None = None
    windows: tuple[int, ...] = ()
    squares: bool = False
    features: Float[Tensor, "b k f"] | None = None
    row_weights: Float[Tensor, "b queries"] | None = None
    value_norms: bool = False


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
    `beyond`: far mass for each of `Request.windows`. `squares`: Σ weights². `features`: for linear layers with the
    signed A / Σ|A|. `columns`: with weights. `value_norm`, `output_norm`, `first_value_norm` as in `Request`.
    """

    lse: Float[Tensor, "b n_heads q"]
    mass: Float[Tensor, "b n_heads q"]
    entropy: Float[Tensor, "b n_heads q"] | None
    mean_distance: Float[Tensor, "b n_heads q"] | None
    far_mass: Float[Tensor, "b n_heads q"] | None
    cells: Float[Tensor, "n_cells n_heads"] | None
    top_key: Int[Tensor, "n_top n_heads"] | None
    beyond: Float[Tensor, "b n_heads q n_windows"] | None = None
    squares: Float[Tensor, "b n_heads q"] | None = None
    features: Float[Tensor, "b n_heads q f"] | None = None
    columns: Float[Tensor, "b n_heads k"] | None = None
    value_norm: Float[Tensor, "b n_heads q"] | None = None
    output_norm: Float[Tensor, "b n_heads q"] | None = None
    first_value_norm: Float[Tensor, "b n_heads 1"] | None = None


def beyond_a_profile(request: Request) -> list[str]:
    """The requested statistics that cannot be read off an attention profile, by name."""
    names = {
        "a ladder of windows": bool(request.windows),
        "squares": request.squares,
        "features": request.features is not None,
        "column sums": request.row_weights is not None,
        "value norms": request.value_norms,
    }
    return [name for name, is_requested in names.items() if is_requested]
