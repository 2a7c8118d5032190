"""Statistics from ready-made scores against the float64 reference, which makes its own."""

import pytest
import torch

from tests.kernels.test_blockwise import assert_equal, everything, layer_of, problem
from workbench.kernels import CausalMask, Request
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.precomputed_scores import scored_crop, scored_layer
from workbench.kernels.softmax.reference import reference_pattern, reference_statistics

CASES = ["causal", "gqa", "one kv head", "prefix", "window", "window and prefix", "left padding", "wide values"]


def scored_statistics(scores, v, mask, request, **options):
    return blockwise_statistics(scored_layer(scores, v.shape[1], mask), v, request, **options)


def scores_of(p, scale):
    k = p["k"].repeat_interleave(p["q"].shape[1] // p["k"].shape[1], 1)
    return p["q"] @ k.transpose(2, 3) * scale


@pytest.mark.parametrize("tile_bytes", [1 << 12, 1 << 22], ids=["many tiles", "one tile"])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("case", [*CASES, "one token"])
def test_statistics_of_scores_equal_the_reference(case, step, tile_bytes):
    p = problem(case)
    n_q = p["q"].shape[2]
    request = everything(p, None if step == 1 else torch.arange(n_q - 1, -1, -step).flip(0))
    fast = scored_statistics(scores_of(p, 0.25), p["v"], p["mask"], request, tile_bytes=tile_bytes)
    exact = reference_statistics(layer_of(p), p["v"], request)
    assert_equal(fast, exact, p)


def test_what_a_hidden_cell_holds_changes_nothing():
    p = problem("window")
    scores, request = scores_of(p, 0.25), everything(p)
    other = scores.clone()
    i, j = torch.arange(67)[:, None], torch.arange(67)
    other[..., (j > i) | (i - j >= 9)] = torch.finfo(torch.float32).min
    (out_a, a), (out_b, b) = (scored_statistics(s, p["v"], p["mask"], request) for s in (scores, other))
    assert torch.equal(out_a, out_b)
    assert torch.equal(a.entropy, b.entropy)
    assert torch.equal(a.lse, b.lse)


def test_a_row_that_sees_nothing_has_zero_output_and_mass():
    mask = CausalMask(5, valid=torch.tensor([[False, False, True, True, True]]))
    scores, v = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 4)
    out, stats = scored_statistics(scores, v, mask, Request(entropy=True, distance=True))
    assert torch.equal(out[0, :2], torch.zeros(2, 2, 4))
    assert torch.equal(stats.mass[0, :, :2], torch.zeros(2, 2))
    assert torch.isneginf(stats.lse[0, :, :2]).all()
    assert torch.equal(stats.entropy[0, :, :2], torch.zeros(2, 2))
    assert torch.isfinite(stats.mean_distance).all()


def test_a_crop_equals_the_reference_on_any_queries_and_keys():
    p = problem("window")
    queries, keys = torch.tensor([66, 3, 40, 3]), torch.tensor([2, 39, 60, 0])
    crop = scored_crop(scores_of(p, 0.25)[0, 1], p["mask"], queries=queries, keys=keys)
    exact, _ = reference_pattern(layer_of(p))
    assert (crop.double() - exact[0, 1][queries][:, keys]).abs().max() < 2e-6
