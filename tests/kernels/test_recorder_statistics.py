"""Row statistics from a profile against the float64 reference."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.on_device import on_device
from tests.kernels.test_blockwise import everything as everything_there_is
from tests.kernels.test_blockwise import layer_of, problem
from workbench.heads import WorkbenchError
from workbench.kernels import CausalMask, Request, SoftmaxLayer
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.softmax.recorder_statistics import profile_statistics
from workbench.kernels.softmax.reference import reference_statistics

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")


SHARES = ("mass", "far_mass", "cells")
STATISTICS = ("lse", "mass", "entropy", "mean_distance", "far_mass")


def everything(p, rows=None):
    """Every statistic that a profile holds."""
    request = everything_there_is(p, rows)
    return replace(request, windows=(), squares=False, features=None, row_weights=None, value_norms=False)


def assert_equal(fast, exact, p):
    """To 2e-6 in the mean square, relative to the statistic, or to all mass."""
    (out_fast, fast), (out_exact, exact) = fast, exact
    keep = exact.mass > 0 if p["sinks"] is None else torch.ones_like(exact.mass, dtype=torch.bool)
    pairs = {x: (getattr(fast, x)[keep], getattr(exact, x)[keep]) for x in STATISTICS}
    rows_seen = (exact.mass > 0)[:, 0]
    pairs |= {"cells": (fast.cells, exact.cells), "out": (out_fast[rows_seen], out_exact[rows_seen])}
    for name, (a, b) in pairs.items():
        scale = b.square().mean().sqrt().clamp_min(1 if name in SHARES else 0)
        assert (a.double() - b).square().mean().sqrt() <= 2e-6 * scale, name
    assert torch.equal(fast.top_key, exact.top_key)


def test_what_a_profile_does_not_hold_is_refused():
    p = problem("gqa")
    with pytest.raises(WorkbenchError, match="a profile does not hold a ladder of windows"):
        profile_statistics(layer_of(p), p["v"], Request(windows=(3,)))


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("case", ["gqa", "prefix", "sinks and window", "softcap", "left padding", "wide values"])
def test_recorded_statistics_equal_the_reference(case, backend, poisoned):
    p = problem(case)
    request = everything(p)
    fast = on_device(profile_statistics)(layer_of(p), p["v"], request, backend=backend)
    exact = reference_statistics(layer_of(p), p["v"], request)
    assert_equal(fast, exact, p)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("case", ["gqa", "window", "left padding"])
def test_sampled_rows_equal_the_same_rows_of_the_full_pass(case, backend, poisoned):
    p = problem(case)
    rows = torch.arange(p["q"].shape[2] - 1, -1, -3).flip(0)
    request = everything(p, rows)
    fast = on_device(profile_statistics)(layer_of(p), p["v"], request, backend=backend)
    assert_equal(fast, reference_statistics(layer_of(p), p["v"], request), p)


def test_padding_between_valid_keys_is_refused():
    q = torch.zeros(1, 1, 4, 16)
    mask = CausalMask(4, valid=torch.tensor([[True, False, True, True]]))
    with pytest.raises(WorkbenchError, match="padding between valid keys"):
        profile_statistics(SoftmaxLayer(q, q, mask, scale=1.0), q, Request())


def test_a_mask_of_another_kind_is_refused_by_its_name():
    class Checkerboard:
        def key_range(self, rows):
            return 0, 4

        def hidden(self, batch, rows, keys):
            return []

    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(WorkbenchError, match="a Checkerboard was given; expected a CausalMask"):
        profile_statistics(SoftmaxLayer(q, q, Checkerboard(), scale=1.0), q, Request())
