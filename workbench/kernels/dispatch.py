"""Choose the backend of each operation, and of recording a layer, before anything runs, and give the reason.

A backend that is requested by name and cannot run is refused, never replaced. The environment variable
WORKBENCH_KERNELS sets what "auto" means: "auto", Triton on CUDA and torch elsewhere; "torch"; or "triton", which off
the GPU needs Triton's interpreter (TRITON_INTERPRET=1) and is for testing. With every setting, "auto" takes Triton only
where compiled kernels are known to be sound: on the GPUs, head widths and types that `launch_shapes` lists.

Recording a softmax layer takes the Triton kernels for masks that are one run of keys per row, or keys selected of one,
and for statistics that a profile holds, and the row-blocked torch code for everything else.
"""

from __future__ import annotations

import os
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.dialect import HAS_TRITON, capability, is_interpreted
from workbench.kernels.key_intervals import has_inner_padding
from workbench.kernels.launch_shapes import ARCHITECTURES, NARROWEST, WIDEST
from workbench.kernels.masks import CausalMask, SelectedMask
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Request, beyond_a_profile

Backend = Literal["auto", "torch", "triton", "fla"]
SETTING = "WORKBENCH_KERNELS"
TORCH_NAMES = {
    "attention_profile": "row-blocked torch",
    "attention_column_sums": "row-blocked torch",
    "linear_attention": "chunked torch",
    "linear_attention_step": "torch",
    "gated_delta_rule": "chunked torch",
}
_LIMITS = {"gated_delta_rule": "forward only"}


class Choice(NamedTuple):
    """The backend of an operation, and why."""

    backend: str
    why: str


def choose(operation: str, device: torch.device | str, backend: Backend = "auto") -> Choice:
    """The backend of one operation on one device.

    Raises:
        WorkbenchError: if the operation or the setting is unknown, or the requested backend does not exist or cannot
            run there.
    """
    if operation not in TORCH_NAMES:
        raise WorkbenchError(f"no operation {operation!r}; expected one of {', '.join(TORCH_NAMES)}")
    kind = torch.device(device).type
    requested, source = backend, f"backend={backend!r}"
    if backend == "auto":
        requested = setting()
        source = f"{SETTING}={requested}"
    if requested == "torch":
        return Choice("torch", f"asked for by {source}")
    if backend == "fla":
        if operation != "gated_delta_rule":
            raise WorkbenchError(f"backend='fla' was asked for {operation}; it serves gated_delta_rule only")
        return Choice("fla", f"asked for by {source}")
    if requested == "triton":
        if not HAS_TRITON:
            raise WorkbenchError(f"{source} was asked for, but triton is not installed: pip install triton")
        if kind != "cuda" and not is_interpreted():
            raise WorkbenchError(
                f"{source} was asked for on {kind}; expected cuda, or {source.partition('=')[0]}=auto, or "
                "TRITON_INTERPRET=1 for Triton's interpreter, which is slow"
            )
        return Choice("triton", f"asked for by {source}{'' if kind == 'cuda' else ', interpreted'}")
    return _choose_by_device(torch.device(device))


def _choose_by_device(device: torch.device) -> Choice:
    if device.type != "cuda":
        return Choice("torch", f"{device.type}: exact, and Triton's kernels need a GPU")
    if not HAS_TRITON:
        return Choice("torch", "cuda, but triton is not installed")
    arch = capability(device)
    if arch and arch not in ARCHITECTURES:
        known = ", ".join(f"{a / 10:.1f}" for a in ARCHITECTURES)
        why = f"cuda {arch / 10:.1f}: kernels are compiled and checked for {known}; ask for Triton by name to try them"
        return Choice("torch", why)
    return Choice("triton", "cuda: one pass in registers")


def choose_for(operation: str, tensors: tuple[Tensor, ...], backend: Backend = "auto") -> Choice:
    """As `choose`, for these tensors: "auto" takes torch for heads that have no sound kernel.

    Args:
        tensors: those that are as wide as heads, on one device and of one element type.

    Raises:
        WorkbenchError: as `choose`.
    """
    choice = choose(operation, tensors[0].device, backend)
    if choice.backend != "triton" or backend != "auto":
        return choice
    dtype, width = tensors[0].dtype, max(x.shape[-1] for x in tensors)
    widest = WIDEST[operation].get(dtype)
    if widest is None:
        return Choice("torch", f"{_dtype_name(dtype)} has no kernel")
    if width > widest:
        why = f"heads of {width} channels in {_dtype_name(dtype)}: compiled kernels are sound up to {widest}"
        return Choice("torch", why)
    if width < NARROWEST:
        why = f"heads of {width} channels: compiled kernels are checked from {NARROWEST} on"
        return choice if is_interpreted() else Choice("torch", why)
    return choice


def choose_route(layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"], request: Request) -> Choice:
    """The backend that records this layer, "triton" or "torch", and why.

    Raises:
        WorkbenchError: if WORKBENCH_KERNELS requests what this machine does not have.
    """
    choice = choose_for("attention_profile", (layer.q, v))
    if choice.backend == "torch":
        return choice
    refusal = _refusal(layer, request)
    return choice if refusal is None else Choice("torch", refusal)


def _refusal(layer: SoftmaxLayer, request: Request) -> str | None:
    """Why the kernels cannot record the rows of this layer; None if they can."""
    mask = layer.mask.base if isinstance(layer.mask, SelectedMask) else layer.mask
    if not isinstance(mask, CausalMask):
        return f"a {type(mask).__name__} is not one run of keys per row"
    if mask.valid is not None and has_inner_padding(mask.valid):
        return "a sequence has padding between valid keys"
    if layer.q.shape[2] > mask.n_keys:
        return "there are more queries than keys"
    beyond = beyond_a_profile(request)
    return f"a profile does not hold {', '.join(beyond)}" if beyond else None


def setting() -> Literal["auto", "torch", "triton"]:
    """The value of WORKBENCH_KERNELS; "auto" where it is not set.

    Raises:
        WorkbenchError: if it has any other value.
    """
    value = os.environ.get(SETTING) or "auto"
    if value not in ("auto", "torch", "triton"):
        raise WorkbenchError(f"{SETTING}={value} is set; expected auto, torch or triton")
    return value


def explain(device: torch.device | str | None = None) -> dict[str, str]:
    """For each operation its backend on a device (the first GPU, or else the CPU), why, and for which heads."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    lines: dict[str, str] = {}
    for operation, torch_name in TORCH_NAMES.items():
        backend, why = choose(operation, device)
        if backend == "triton":
            limits = [_LIMITS[operation]] if operation in _LIMITS else []
            why = "; ".join([why, *limits, widest_heads(operation), f"else {torch_name}"])
        lines[operation] = f"{torch_name if backend == 'torch' else 'Triton'} ({why})"
    lines["attention_cells"] = "torch (any device: a product per cell, from the rows' denominators)"
    return lines


def explain_routes(device: torch.device | str | None = None) -> dict[str, str]:
    """For each kind of layer how it is recorded on a device (the first GPU, or else the CPU), and why."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    backend, why = choose("attention_profile", device)
    rows = TORCH_NAMES["attention_profile"]
    plain = f"{rows} ({why})"
    if backend == "triton":
        plain = f"Triton ({why}; {widest_heads('attention_profile')}; else {rows})"
    only = "exact, any device; the only backend of this operation"
    return {
        "recording: causal, sliding and padded layers": plain,
        "recording: sparse layers": f"{plain}; keys that no row of a tile selects are not read",
        "recording: chunked, packed and restricted layers": f"{rows} ({only})",
        "recording: ladders of windows, squares, features, column sums, value norms": f"{rows} ({only})",
        "recording: implied patterns of linear layers": f"{rows} ({only})",
        "recording: families without an attention function": f"{rows} ({only})",
        "output without statistics": f"torch sdpa for plain causal layers; else as recording; {rows} for gradients",
    }


def widest_heads(operation: str) -> str:
    """The heads for which "auto" takes Triton on CUDA, as a phrase."""
    by_width = groupby(WIDEST[operation].items(), key=lambda item: item[1])
    widths = [f"{width} channels in {' and '.join(_dtype_name(x) for x, _ in group)}" for width, group in by_width]
    return f"heads of {NARROWEST} to {', '.join(widths)}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
