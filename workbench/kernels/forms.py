"""Which form an operation takes on a device, and why: chosen openly.

A form that was asked for by name and cannot run is refused, never replaced. The environment variable WORKBENCH_KERNELS
says what "auto" means: "auto", Triton on CUDA and torch elsewhere; "torch"; or "triton", which off the GPU needs
Triton's interpreter (TRITON_INTERPRET=1) and is for testing. Whatever it says, "auto" takes Triton only where compiled
kernels are known to be sound: on the kinds of GPU and for the widths and types of heads that `configs` names.
"""

from __future__ import annotations

import os
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.dialect import HAS_TRITON, capability, is_interpreted
from workbench.kernels.launch_shapes import ARCHITECTURES, NARROWEST, WIDEST

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
    """The form an operation takes, and why."""

    form: str
    why: str


def choose(operation: str, device: torch.device | str, backend: Backend = "auto") -> Choice:
    """The form of one operation on one device.

    Raises:
        WorkbenchError: if the operation or the setting is unknown, or the form asked for does not exist or cannot run
            there.
    """
    if operation not in TORCH_NAMES:
        raise WorkbenchError(f"no operation {operation!r}; expected one of {', '.join(TORCH_NAMES)}")
    kind = torch.device(device).type
    asked, by = backend, f"backend={backend!r}"
    if backend == "auto":
        asked = setting()
        by = f"{SETTING}={asked}"
    if asked == "torch":
        return Choice("torch", f"asked for by {by}")
    if backend == "fla":
        if operation != "gated_delta_rule":
            raise WorkbenchError(f"backend='fla' was asked for {operation}; it serves gated_delta_rule only")
        return Choice("fla", f"asked for by {by}")
    if asked == "triton":
        if not HAS_TRITON:
            raise WorkbenchError(f"{by} was asked for, but triton is not installed: pip install triton")
        if kind != "cuda" and not is_interpreted():
            raise WorkbenchError(
                f"{by} was asked for on {kind}; expected cuda, or {by.partition('=')[0]}=auto, or TRITON_INTERPRET=1 "
                "for Triton's interpreter, which is slow"
            )
        return Choice("triton", f"asked for by {by}{'' if kind == 'cuda' else ', interpreted'}")
    if kind != "cuda":
        return Choice("torch", f"{kind}: exact, and Triton's kernels need a GPU")
    if not HAS_TRITON:
        return Choice("torch", "cuda, but triton is not installed")
    arch = capability(torch.device(device))
    if arch and arch not in ARCHITECTURES:
        known = ", ".join(f"{a / 10:.1f}" for a in ARCHITECTURES)
        why = f"cuda {arch / 10:.1f}: kernels are compiled and checked for {known}; ask for Triton by name to try them"
        return Choice("torch", why)
    return Choice("triton", "cuda: one pass in registers")


def choose_for(operation: str, tensors: tuple[Tensor, ...], backend: Backend = "auto") -> Choice:
    """The form of one operation on given tensors: as `choose`, but "auto" leaves heads without a sound kernel to torch.

    Args:
        tensors: those that are as wide as heads, on one device and of one element type.

    Raises:
        WorkbenchError: as `choose`.
    """
    choice = choose(operation, tensors[0].device, backend)
    if choice.form != "triton" or backend != "auto":
        return choice
    dtype, width = tensors[0].dtype, max(x.shape[-1] for x in tensors)
    widest = WIDEST[operation].get(dtype)
    if widest is None:
        return Choice("torch", f"{_name(dtype)} has no kernel")
    if width > widest:
        why = f"heads of {width} channels in {_name(dtype)}: compiled kernels are sound up to {widest}"
        return Choice("torch", why)
    if width < NARROWEST:
        why = f"heads of {width} channels: compiled kernels are checked from {NARROWEST} on"
        return choice if is_interpreted() else Choice("torch", why)
    return choice


def widest_heads(operation: str) -> str:
    """In words, the heads for which "auto" takes Triton on CUDA."""
    by_width = groupby(WIDEST[operation].items(), key=lambda item: item[1])
    parts = [f"{width} channels in {' and '.join(_name(x) for x, _ in group)}" for width, group in by_width]
    return f"heads of {NARROWEST} to {', '.join(parts)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def setting() -> Literal["auto", "torch", "triton"]:
    """What WORKBENCH_KERNELS says; "auto" where it is not set.

    Raises:
        WorkbenchError: if it says anything else.
    """
    said = os.environ.get(SETTING) or "auto"
    if said not in ("auto", "torch", "triton"):
        raise WorkbenchError(f"{SETTING}={said} is set; expected auto, torch or triton")
    return said


def explain(device: torch.device | str | None = None) -> dict[str, str]:
    """For each operation the form it takes on a device (the first GPU, or else the CPU), why, and for which heads."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, str] = {}
    for operation, torch_name in TORCH_NAMES.items():
        form, why = choose(operation, device)
        if form == "triton":
            limits = [_LIMITS[operation]] if operation in _LIMITS else []
            why = "; ".join([why, *limits, widest_heads(operation), f"else {torch_name}"])
        found[operation] = f"{torch_name if form == 'torch' else 'Triton'} ({why})"
    found["attention_cells"] = "torch (any device: a product per cell, from the rows' denominators)"
    return found
