"""Row statistics of a softmax layer as recording takes them: from one profile by the kernels, or else row by row.

What a profile does not hold, single cells, is read back from the rows' denominators at O(cells · width).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels import ops
from workbench.kernels.dispatch import Backend, choose_route
from workbench.kernels.key_intervals import intervals_of
from workbench.kernels.masks import CausalMask, SelectedMask
from workbench.kernels.softmax import blockwise
from workbench.kernels.softmax.crops import attention_cells, first_keys_mass
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Cells, Request, RowStatistics, beyond_a_profile


def attention_statistics(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"], request: Request
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """The output and the statistics of a layer's rows; both of `request.rows` only, where given.

    `workbench.kernels.dispatch.choose_route` chooses the backend.

    Raises:
        WorkbenchError: if WORKBENCH_KERNELS requests what this machine does not have, or memory runs out on single
            rows.
    """
    if choose_route(layer, v, request).backend == "torch":
        return blockwise.blockwise_statistics(layer, v, request)
    return profile_statistics(layer, v, request, backend="triton")


def profile_statistics(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"], request: Request, *, backend: Backend = "auto"
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """As `attention_statistics`, from a profile; for a CausalMask, or a SelectedMask of one.

    Raises:
        WorkbenchError: if the mask is of another kind or has padding between valid keys, or the request has statistics
            that a profile does not hold.
    """
    selection = layer.mask if isinstance(layer.mask, SelectedMask) else None
    causal = layer.mask if selection is None else selection.base
    if not isinstance(causal, CausalMask):
        raise WorkbenchError(
            f"a {type(causal).__name__} was given; expected a CausalMask, whose rows see one run of keys each: use "
            "blockwise_statistics for any other mask"
        )
    if beyond := beyond_a_profile(request):
        raise WorkbenchError(f"a profile does not hold {', '.join(beyond)}; use blockwise_statistics for them")
    n_queries, device = layer.q.shape[2], layer.q.device
    seen = intervals_of(causal, n_queries, device)
    # The number of each query row among the computed rows.
    number = torch.arange(n_queries, device=device)
    if request.rows is not None:
        rows = request.rows.to(device)
        number[rows] = torch.arange(len(rows), device=device)
        layer, seen = replace(layer, q=layer.q[:, :, rows]), seen.rows(rows)
        selection = None if selection is None else replace(selection, selected=selection.selected[:, rows])
    layer = replace(layer, mask=seen if selection is None else replace(selection, base=seen))
    layer = replace(layer, sinks=None if layer.sinks is None else layer.sinks.float())
    windows = () if request.far is None else (request.far.window,)
    of_profile = Request(
        entropy=request.entropy, top=request.top_rows is not None, distance=request.distance, windows=windows
    )
    profile = ops.attention_profile(layer, v, of_profile, backend=backend)
    assert profile.out is not None
    far_mass = cells = top_key = None
    if profile.beyond is not None:
        far_mass = profile.beyond[..., 0] - first_keys_mass(layer, profile.lse, request)
    if request.cells is not None:
        requested = Cells(request.cells.sequence, number[request.cells.row], request.cells.key)
        cells = attention_cells(layer, profile.lse, requested)
    if request.top_rows is not None and profile.top_key is not None:
        top_key = profile.top_key[request.top_rows[:, 0], :, number[request.top_rows[:, 1]]].long().clamp_min(0)
    mass = torch.isfinite(profile.lse).float()
    if profile.sink_mass is not None:
        mass = 1 - profile.sink_mass
    statistics = RowStatistics(profile.lse, mass, profile.entropy, profile.mean_distance, far_mass, cells, top_key)
    return rearrange(profile.out, "b h q d -> b q h d"), statistics
