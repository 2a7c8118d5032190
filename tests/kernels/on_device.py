"""Kernels called on the device that WORKBENCH_TEST_DEVICE names, so that the same tests prove them on a GPU.

Inputs and results stay on the CPU, where the definitions are computed. Without the setting, Triton's interpreter runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any

import torch

DEVICE = os.environ.get("WORKBENCH_TEST_DEVICE", "cpu")


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its tensors moved to the device and its results back."""
    if DEVICE == "cpu":
        return function

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return moved(function(*moved(args, DEVICE), **moved(kwargs, DEVICE)), "cpu")

    return run


def moved(x: Any, device: str) -> Any:
    """A copy on another device of all tensors in tuples, lists, dictionaries and dataclasses."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{f.name: moved(getattr(x, f.name), device) for f in fields(x) if f.init})
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(moved(item, device) for item in x))
    if isinstance(x, (tuple, list)):
        return type(x)(moved(item, device) for item in x)
    if isinstance(x, dict):
        return {name: moved(item, device) for name, item in x.items()}
    return x
