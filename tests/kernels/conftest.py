"""Kernels run in Triton's interpreter here, on poisoned memory and fresh random inputs; or on a GPU, see on_device."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec

import pytest
import torch

from tests.kernels.on_device import DEVICE

if find_spec("triton") is not None and DEVICE == "cpu":
    from tests.kernels import interpreted_bf16, interpreter_scope

    interpreted_bf16.install()
    interpreter_scope.install()
else:
    collect_ignore = ["interpreted_bf16.py", "interpreter_scope.py"]


@pytest.fixture
def poisoned():
    """Every torch.empty holds NaN (or the largest integer), so that what a kernel leaves unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def generator():
    """Fresh random numbers; the seed is printed with a failure. WORKBENCH_SEED repeats a run."""
    seed = int(os.environ.get("WORKBENCH_SEED") or secrets.randbits(32))
    print(f"WORKBENCH_SEED={seed}")
    return torch.Generator().manual_seed(seed)
