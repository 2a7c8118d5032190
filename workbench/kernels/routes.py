"""How a softmax layer is recorded, by the Triton kernels or row by row, and why: decided before anything runs.

The rule: on CUDA the kernels, for masks that are one run of keys per row, statistics that a profile holds and heads
whose compiled kernels are sound; the row-blocked form for all else. `WORKBENCH_KERNELS` (see `forms`) overrules the
device, never the rest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.kernels.forms import TORCH_NAMES, Choice, choose, choose_for, widest_heads
from workbench.kernels.intervals import has_inner_padding
from workbench.kernels.masks import CausalMask, TileMask
from workbench.kernels.softmax import blockwise, recorded
from workbench.kernels.softmax.statistics import Request, RowStatistics


def choose_route(
    q: Float[Tensor, "b n_heads q d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
) -> Choice:
    """The form that records this layer, "triton" or "torch", and why.

    Raises:
        WorkbenchError: if WORKBENCH_KERNELS asks for what this machine does not have.
    """
    choice = choose_for("attention_profile", (q, v))
    if choice.form == "torch":
        return choice
    refusal = _refusal(q, mask, request)
    return choice if refusal is None else Choice("torch", refusal)


def attention_statistics(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows, by the form that `choose_route` names."""
    if choose_route(q, v, mask, request).form == "torch":
        return blockwise.attention_statistics(q, k, v, mask, request, scale=scale, softcap=softcap, sinks=sinks)
    return recorded.attention_statistics(
        q, k, v, mask, request, scale=scale, softcap=softcap, sinks=sinks, backend="triton"
    )


def explain_routes(device: torch.device | str | None = None) -> dict[str, str]:
    """How layers are recorded on a device (the first GPU, or else the CPU), by kind of layer."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    form, why = choose("attention_profile", device)
    rows = TORCH_NAMES["attention_profile"]
    plain = f"{rows} ({why})"
    if form == "triton":
        plain = f"Triton ({why}; {widest_heads('attention_profile')}; else {rows})"
    only = "exact, any device; the only form of this operation"
    return {
        "recording: causal, sliding and padded layers": plain,
        "recording: chunked, packed and restricted layers": f"{rows} ({only})",
        "recording: ladders of windows, squares, features, column sums, value norms": f"{rows} ({only})",
        "recording: implied patterns of linear layers": f"{rows} ({only})",
        "recording: families without an attention function": f"{rows} ({only})",
        "output without statistics": f"torch sdpa for plain causal layers; else as recording; {rows} for gradients",
    }


def _refusal(q: Tensor, mask: TileMask, request: Request) -> str | None:
    """Why the kernels cannot record rows under this mask; None if they can."""
    if not isinstance(mask, CausalMask):
        return f"a {type(mask).__name__} is not one run of keys per row"
    if mask.valid is not None and has_inner_padding(mask.valid):
        return "a sequence has padding between valid keys"
    if q.shape[2] > mask.n_keys:
        return "there are more queries than keys"
    beyond = recorded.beyond_a_profile(request)
    return f"a profile does not hold {', '.join(beyond)}" if beyond else None
