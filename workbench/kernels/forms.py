"""Which form an operation takes on a device, and why: chosen openly.

A form that was asked for by name and cannot run is refused, never replaced.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from workbench.heads import WorkbenchError
from workbench.kernels.dialect import HAS_TRITON, is_interpreted

Backend = Literal["auto", "torch", "triton", "fla"]
_FORMS = {
    "attention_profile": "row-blocked torch",
    "attention_column_sums": "row-blocked torch",
    "linear_attention": "chunked torch",
    "linear_attention_step": "torch",
    "gated_delta_rule": "chunked torch",
}
_LIMITS = {"gated_delta_rule": "forward only, heads of at most 128 channels; chunked torch serves the rest"}


class Choice(NamedTuple):
    """The form an operation takes, and why."""

    form: str
    why: str


def choose(operation: str, device: torch.device | str, backend: Backend = "auto") -> Choice:
    """The form of one operation on one device.

    Raises:
        WorkbenchError: if the operation is unknown, or the form asked for does not exist or cannot run there.
    """
    if operation not in _FORMS:
        raise WorkbenchError(f"no operation {operation!r}; expected one of {', '.join(_FORMS)}")
    kind = torch.device(device).type
    if backend == "torch":
        return Choice("torch", "asked for")
    if backend == "fla":
        if operation != "gated_delta_rule":
            raise WorkbenchError(f"backend='fla' was asked for {operation}; it serves gated_delta_rule only")
        return Choice("fla", "asked for")
    if backend == "triton":
        if not HAS_TRITON:
            raise WorkbenchError("backend='triton' was asked for, but triton is not installed: pip install triton")
        if kind != "cuda" and not is_interpreted():
            raise WorkbenchError(f"backend='triton' was asked for on {kind}; expected cuda, or backend='auto'")
        return Choice("triton", "asked for")
    if kind != "cuda":
        return Choice("torch", f"{kind}: exact, and Triton's kernels need a GPU")
    if not HAS_TRITON:
        return Choice("torch", "cuda, but triton is not installed")
    return Choice("triton", "cuda: one pass in registers")


def explain(device: torch.device | str | None = None) -> dict[str, str]:
    """For each operation the form it takes on a device (the first GPU, or else the CPU), why, and its limits."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, str] = {}
    for operation, torch_name in _FORMS.items():
        form, why = choose(operation, device)
        limit = f"; {_LIMITS[operation]}" if form == "triton" and operation in _LIMITS else ""
        found[operation] = f"{torch_name if form == 'torch' else 'Triton'} ({why}{limit})"
    found["attention_cells"] = "torch (any device: a product per cell, from the rows' denominators)"
    return found
