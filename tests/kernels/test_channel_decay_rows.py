"""Rows of channels that each forget at their own rate, made block by block, against a sum over channels in float64."""

import pytest
import torch

from workbench.kernels import ChannelDecayRows, Request, SignedRows, signed_crop, signed_pattern, signed_statistics
from workbench.kernels.softmax.reference import reference_signed_statistics


def problem(n_tokens, *, steep, sees_itself, n_heads=2, n_channels=6, n=3):
    """A source of rows and its exact pattern, by differences of sums of log decays for every channel and pair."""
    generator = torch.Generator().manual_seed(n_tokens)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    q, k = normal(2, n_tokens, n), normal(2, n_tokens, n)
    log_decay = -steep * torch.exp(2 * normal(2, n_tokens, n_channels) - 2)
    rates, strength = torch.exp(normal(n_channels, n)), torch.rand(2, n_tokens, n_channels, generator=generator)
    read, skip = normal(2, n_tokens, n_channels), normal(1, 1, n_channels)
    valid = torch.arange(n_tokens) >= torch.tensor([0, min(5, n_tokens - 1)])[:, None]
    source = ChannelDecayRows(n_heads, q, k, log_decay, rates, strength, read, skip, valid, sees_itself)
    exact = torch.zeros(2, n_channels, n_tokens, n_tokens, dtype=torch.float64)
    for i in range(n_tokens):
        last = i if sees_itself else i - 1
        for j in range(last + 1):
            nats = log_decay[:, j + 1 : last + 1].double().sum(1)
            held = torch.exp(nats[..., None] * rates.double()) * (q[:, i] * k[:, j]).double()[:, None]
            exact[:, :, i, j] = held.sum(-1) * (strength[:, j] * read[:, i] * valid[:, j, None]).double()
        exact[:, :, i, i] += (skip[0, 0] * valid[:, i, None]).double()
    return source, exact


@pytest.mark.parametrize("sees_itself", [True, False])
@pytest.mark.parametrize("steep", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("n_tokens", [1, 2, 33])
def test_rows_are_the_mean_over_the_channels_of_a_head(n_tokens, steep, sees_itself):
    source, by_channel = problem(n_tokens, steep=steep, sees_itself=sees_itself)
    exact = by_channel.unflatten(1, (2, 3)).mean(2)
    scale = by_channel.abs().unflatten(1, (2, 3)).mean(2).amax(-1, keepdim=True).clamp_min(1e-30)
    assert isinstance(source, SignedRows)
    assert ((signed_pattern(source).double() - exact).abs() / scale).max() <= 5e-6
    found = signed_pattern(source.by_channel()).double()
    assert (found - by_channel).abs().max() <= 5e-6 * by_channel.abs().max().clamp_min(1e-30)


@pytest.mark.parametrize("sees_itself", [True, False])
def test_sampled_rows_and_small_tiles_give_the_rows_of_the_whole(sees_itself):
    source, by_channel = problem(33, steep=1.0, sees_itself=sees_itself)
    exact = by_channel.unflatten(1, (2, 3)).mean(2)
    rows = torch.tensor([0, 3, 4, 19, 32])
    request = Request(entropy=True, distance=True, rows=rows, windows=(2,))
    expected = reference_signed_statistics(exact, request)
    for tile_bytes in (200, 1 << 20):
        found = signed_statistics(source, request, tile_bytes=tile_bytes)
        for name in ("lse", "entropy", "mean_distance", "beyond", "mass"):
            a, b = getattr(found, name).double(), getattr(expected, name)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)
    queries, keys = torch.tensor([32, 7, 7, 0]), torch.tensor([0, 31, 7])
    crop = signed_crop(source, 1, 1, queries=queries, keys=keys).double()
    assert (crop - exact[1, 1][queries][:, keys]).abs().max() <= 1e-5


@pytest.mark.parametrize("sees_itself", [True, False])
def test_values_go_through_the_rows_of_their_own_channel(sees_itself):
    source, by_channel = problem(33, steep=1.0, sees_itself=sees_itself)
    v = torch.randn(2, 2, 33, 3, generator=torch.Generator().manual_seed(2))
    exact = torch.einsum("bhcij,bhjc->bhic", by_channel.unflatten(1, (2, 3)), v.double())
    assert (source.handed_on(v).double() - exact).abs().max() <= 1e-5 * exact.abs().max()
