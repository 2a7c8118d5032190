"""Triton where it is installed; elsewhere kernel modules still import, and a launch is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.heads import WorkbenchError

__all__ = ["HAS_TRITON", "arch_of", "capability", "is_interpreted", "jit", "launching_on", "precision_of", "tl"]

HAS_TRITON = find_spec("triton") is not None

if TYPE_CHECKING:
    import triton.language as tl

    def jit(function: Callable[..., Any]) -> Any:
        """Make a kernel, which is launched as kernel[grid](...)."""
        ...
elif HAS_TRITON:
    import triton.language as tl
    from triton import jit
else:
    tl = None

    def jit(function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kernel unchanged, a plain function that is never launched."""
        return function


def is_interpreted() -> bool:
    """True if TRITON_INTERPRET=1 makes kernels run in Triton's interpreter, on tensors of any device."""
    return HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def launching_on(x: Tensor) -> AbstractContextManager[Any]:
    """The context of a launch: the tensor's own GPU.

    Raises:
        WorkbenchError: if Triton is not installed, or the tensor is not on a GPU and kernels are not interpreted.
    """
    if not HAS_TRITON:
        raise WorkbenchError("triton is not installed; expected it for backend='triton': pip install triton")
    if x.device.type == "cuda":
        return torch.cuda.device(x.device)
    if not is_interpreted():
        raise WorkbenchError(
            f"backend='triton' was given tensors on {x.device}; expected CUDA: move them, or leave backend='auto'"
        )
    return nullcontext()


def arch_of(x: Tensor) -> int:
    """Compute capability as one number, 90 for Hopper; 0 off the GPU."""
    return capability(x.device)


def capability(device: torch.device) -> int:
    """Compute capability of a device as one number, 90 for Hopper; 0 where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def precision_of(dtype: torch.dtype) -> str:
    """How tensor cores multiply: float32 inputs exactly, narrower ones as they are."""
    return "ieee" if dtype == torch.float32 else "tf32"
