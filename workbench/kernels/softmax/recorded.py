"""The recorder's row statistics from one profile: same signature as the row-blocked form, for masks that are intervals.

What a profile does not hold, single cells, is read back from the rows' denominators at O(cells · width).
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels import ops
from workbench.kernels.dispatch import choose_route
from workbench.kernels.intervals import Intervals, intervals_of
from workbench.kernels.masks import CausalMask, TileMask
from workbench.kernels.softmax import blockwise
from workbench.kernels.softmax.profiles import ProfileRequest
from workbench.kernels.softmax.statistics import Request, RowStatistics, beyond_a_profile

# Cells whose keys are gathered at a time: 64 MiB for 32 heads of 128 channels.
_CELLS = 4096


def attention_cells(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    lse: Float[Tensor, "b n_heads q"],
    seen: Intervals,
    cells: tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]],
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "n n_heads"]:
    """Probabilities of single cells (sequence, row, key), exp(score − lse); 0 where the row does not see the key."""
    group = q.shape[1] // k.shape[1]
    found = torch.empty(len(cells[0]), q.shape[1], device=q.device)
    for first in range(0, len(found), _CELLS):
        sequence, row, key = (x[first : first + _CELLS] for x in cells)
        queries = rearrange(q[sequence, :, row].float(), "n (kv g) d -> n kv g d", g=group)
        scores = scale * einsum(queries, k[sequence, :, key].float(), "n kv g d, n kv d -> n kv g")
        scores = rearrange(scores, "n kv g -> n (kv g)")
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        low, high = (x[sequence % len(x), row] for x in (seen.low, seen.high))
        is_seen = rearrange((key >= low) & (key < high), "n -> n 1")
        found[first : first + _CELLS] = torch.where(is_seen, torch.exp(scores - lse[sequence, :, row]), 0)
    return found


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
    """Softmax attention's output and the statistics of its rows, by the backend that `choose_route` names."""
    if choose_route(q, v, mask, request).backend == "torch":
        return blockwise.attention_statistics(q, k, v, mask, request, scale=scale, softcap=softcap, sinks=sinks)
    return profile_statistics(q, k, v, mask, request, scale=scale, softcap=softcap, sinks=sinks, backend="triton")


def profile_statistics(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
    backend: ops.Backend = "auto",
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows; both of `request.rows` only, where given.

    Raises:
        WorkbenchError: if the mask is a function of positions, or has padding between valid keys.
    """
    if not isinstance(mask, CausalMask):
        raise WorkbenchError(
            f"a {type(mask).__name__} was given; expected a CausalMask, whose rows see one run of keys each: use the "
            "row-blocked form for any other mask"
        )
    if beyond := beyond_a_profile(request):
        raise WorkbenchError(f"a profile does not hold {', '.join(beyond)}; use the row-blocked form for them")
    seen = intervals_of(mask, q.shape[2], q.device)
    place = torch.arange(q.shape[2], device=q.device)
    if request.rows is not None:
        picked = request.rows.to(q.device)
        place[picked] = torch.arange(len(picked), device=q.device)
        q, seen = q[:, :, picked], seen.rows(picked)
    windows = () if request.far is None else (request.far.window,)
    asked = ProfileRequest(
        entropy=request.entropy, top=request.top_rows is not None, distance=request.distance, windows=windows
    )
    sinks = None if sinks is None else sinks.float()
    profile = ops.attention_profile(q, k, v, seen, asked, scale=scale, softcap=softcap, sinks=sinks, backend=backend)
    assert profile.out is not None
    far_mass = cells = top_key = None
    if profile.beyond is not None:
        far_mass = profile.beyond[..., 0] - _sink_columns(
            q, k, profile.lse, seen, request, scale=scale, softcap=softcap
        )
    if request.cells is not None:
        at = (request.cells.sequence, place[request.cells.row], request.cells.key)
        cells = attention_cells(q, k, profile.lse, seen, at, scale=scale, softcap=softcap)
    if request.top_rows is not None and profile.top_key is not None:
        top_key = profile.top_key[request.top_rows[:, 0], :, place[request.top_rows[:, 1]]].long().clamp_min(0)
    mass = torch.isfinite(profile.lse).float()
    if profile.sink_mass is not None:
        mass = 1 - profile.sink_mass
    statistics = RowStatistics(profile.lse, mass, profile.entropy, profile.mean_distance, far_mass, cells, top_key)
    return rearrange(profile.out, "b h q d -> b q h d"), statistics


def _sink_columns(
    q: Tensor, k: Tensor, lse: Tensor, seen: Intervals, request: Request, *, scale: float, softcap: float | None
) -> Tensor:
    """Mass beyond the window on the first keys of each sequence, which far mass leaves out."""
    assert request.far is not None
    total = torch.zeros_like(lse)
    n_sequences, n_rows = len(q), q.shape[2]
    row = torch.arange(n_rows, device=q.device)
    first = torch.zeros(n_sequences, dtype=torch.long) if request.first is None else request.first.long()
    for b in range(n_sequences):
        for key in range(int(first[b]) + request.far.sink):
            is_far = seen.position - key >= request.far.window
            cells = (torch.full_like(row, b), row, torch.full_like(row, min(key, k.shape[2] - 1)))
            mass = attention_cells(q, k, lse, seen, cells, scale=scale, softcap=softcap)
            total[b] += torch.where(is_far, rearrange(mass, "q h -> h q"), 0)
    return total
