"""Implied rows of linear layers, made block by block, against the recurrence in float64."""

import itertools
import math

import pytest
import torch

from workbench.kernels import (
    BandRows,
    Cells,
    DecayRows,
    DeltaRows,
    DifferenceRows,
    Far,
    MlstmRows,
    Request,
    signed_crop,
    signed_statistics,
)
from workbench.kernels.softmax.reference import linear_pattern, reference_signed_statistics

MAKERS = ["decay", "delta", "delta by channel"]
ALL_MAKERS = [*MAKERS, "band", "mlstm", "difference"]
FAR = Far(window=6, sink=2)


def problem(maker, n_tokens, *, padding=(0, 0), heads=(4, 2), d=8, steep=1.0):
    """A source of rows and its exact pattern, with decays from none to many nats per token."""
    generator = torch.Generator().manual_seed(n_tokens)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    n_heads, n_kv = heads
    valid = torch.arange(n_tokens) >= torch.tensor(padding)[:, None]
    if maker == "band":
        source = BandRows(
            normal(2, n_heads, n_tokens, d), normal(2, n_heads, n_tokens, d), normal(n_heads, d, 5), valid
        )
        return source, band_by_channels(source).mean(2)
    if maker == "difference":
        source = DifferenceRows(normal(2, 2, n_heads, n_tokens, d), normal(2, 2, n_kv, n_tokens, d), 0.7, 0.5, valid)
        return source, difference_by_rows(source)
    if maker == "mlstm":
        # Keys and queries above 0 do not cancel, and gates of some heads leave the divisor at its least.
        q, k = normal(2, n_heads, n_tokens, d).abs(), normal(2, n_heads, n_tokens, d).abs() / d
        forget = -steep * torch.exp(2 * normal(2, n_heads, n_tokens) - 2)
        given = normal(2, n_heads, n_tokens) + torch.tensor([-9.0, -3.0, 0.0, 9.0])[:, None]
        k, given = k * valid[:, None, :, None], torch.where(valid[:, None], given, -30)
        return MlstmRows(q, k, forget, given, 1e-6), mlstm_by_steps(q, k, forget, given, 1e-6)
    q, k = normal(2, n_kv, n_tokens, d), torch.nn.functional.normalize(normal(2, n_kv, n_tokens, d), dim=-1)
    log_decay = -steep * torch.exp(2 * normal(2, n_heads, n_tokens, d if maker == "delta by channel" else 1) - 2)
    strength = 2 * torch.rand(2, n_heads, n_tokens, generator=generator)
    written = strength * valid[:, None]
    if maker != "decay":
        exact = linear_pattern(q, k, log_decay, written, erases=True)
        return DeltaRows(q, k, log_decay, strength, valid), exact
    skip = normal(n_heads)
    exact = linear_pattern(q, k, log_decay, written, erases=False)
    exact += torch.diag_embed(skip[None, :, None].double() * valid[:, None])
    return DecayRows(q, k, log_decay[..., 0], strength, skip, valid), exact


def difference_by_rows(source):
    """The difference of two softmaxes, row by row over the keys that the row sees."""
    _, b, h, t, _ = source.q.shape
    exact = torch.zeros(b, h, t, t, dtype=torch.float64)
    for sequence, head, i in itertools.product(range(b), range(h), range(t)):
        seen = torch.arange(i + 1)[source.valid[sequence, : i + 1]]
        q, k = source.q[:, sequence, head, i].double(), source.k[:, sequence, head * source.k.shape[2] // h].double()
        first, second = (torch.softmax(k[which, seen] @ q[which] * source.scale, -1) for which in (0, 1))
        exact[sequence, head, i, seen] = first - source.lam * second
    return exact


def mlstm_by_steps(q, k, forget, given, eps):
    """The pattern of an mLSTM row by row, from gates as they are, without a running scale but in eps."""
    q, k, forget, given = (x.double() for x in (q, k, forget, given))
    exact = torch.zeros(*forget.shape, forget.shape[-1], dtype=torch.float64)
    gates, scale = torch.zeros_like(given), torch.zeros_like(given[..., 0])
    for i in range(forget.shape[-1]):
        gates = gates * torch.exp(forget[..., i, None])
        gates[..., i] = torch.exp(given[..., i])
        scale = torch.maximum(scale + forget[..., i], given[..., i])
        row = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k) * gates
        exact[:, :, i] = row / (row.sum(-1).abs().clamp_min(1) + eps * torch.exp(scale))[..., None]
    return exact


def band_by_channels(source):
    """The pattern [b, h, c, t, t] of every channel, cell by cell."""
    reads, writes, taps = (x.double() for x in (source.reads, source.writes, source.taps))
    b, h, t, c = reads.shape
    exact = torch.zeros(b, h, c, t, t, dtype=torch.float64)
    for i in range(t):
        for j in range(max(0, i - taps.shape[-1] + 1), i + 1):
            exact[:, :, :, i, j] = reads[:, :, i] * taps[:, :, i - j] * writes[:, :, j] * source.valid[:, None, j, None]
    return exact


def everything(n_tokens, padding, rows=None):
    generator = torch.Generator().manual_seed(1)
    picked = torch.arange(n_tokens) if rows is None else rows
    sequence = torch.randint(2, (150,), generator=generator)
    row = picked[torch.randint(len(picked), (150,), generator=generator)]
    key = (torch.rand(150, generator=generator) * (row + 1)).long()
    order = (sequence * n_tokens + row).argsort(stable=True)
    cells = Cells(sequence[order], row[order], key[order])
    top = torch.unique(torch.stack([cells.sequence, cells.row], -1), dim=0)
    return Request(
        entropy=True,
        distance=True,
        far=FAR,
        first=torch.tensor(padding),
        cells=cells,
        top_rows=top,
        rows=rows,
        windows=(2, 17),
        squares=True,
        features=torch.randn(2, n_tokens, 3, generator=generator),
        row_weights=torch.rand(2, n_tokens, generator=generator),
    )


def assert_equal(fast, exact):
    assert torch.equal(torch.isneginf(fast.lse), torch.isneginf(exact.lse))
    seen = ~torch.isneginf(exact.lse)
    for name in ("lse", "mass", "entropy", "mean_distance", "far_mass", "beyond", "squares", "features"):
        a, b = getattr(fast, name), getattr(exact, name)[seen]
        assert a.dtype == torch.float32
        assert ((a.double()[seen] - b).abs() <= 5e-6 * b.abs().clamp_min(1)).all(), name
    assert (fast.cells.double() - exact.cells).abs().max() <= 5e-6
    assert torch.equal(fast.top_key, exact.top_key)
    assert torch.allclose(fast.columns.double(), exact.columns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile_bytes", [1 << 12, 1 << 22], ids=["many tiles", "one tile"])
@pytest.mark.parametrize("n_tokens", [1, 31, 64, 150])
@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_statistics_equal_the_reference(maker, n_tokens, tile_bytes):
    padding = (0, min(9, n_tokens - 1))
    source, exact = problem(maker, n_tokens, padding=padding)
    request = everything(n_tokens, padding)
    assert_equal(signed_statistics(source, request, tile_bytes=tile_bytes), reference_signed_statistics(exact, request))


@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_sampled_rows_equal_the_same_rows_of_the_full_pass(maker):
    source, exact = problem(maker, 140)
    request = everything(140, (0, 0), torch.tensor([2, 3, 63, 64, 139]))
    fast = signed_statistics(source, request, tile_bytes=1 << 12)
    assert fast.lse.shape == (2, 4, 5)
    assert_equal(fast, reference_signed_statistics(exact, request))


@pytest.mark.parametrize("steep", [0.0, 20.0], ids=["nothing is forgotten", "nearly all is forgotten at once"])
@pytest.mark.parametrize("maker", MAKERS)
def test_decay_of_any_steepness_stays_inside_float32(maker, steep):
    source, exact = problem(maker, 150, steep=steep)
    request = everything(150, (0, 0))
    assert_equal(signed_statistics(source, request), reference_signed_statistics(exact, request))


@pytest.mark.parametrize("n_tokens", [1, 4, 31])
def test_channels_of_a_band_hand_on_their_own_patterns_times_their_values(n_tokens):
    source, _ = problem("band", n_tokens, padding=(0, min(3, n_tokens - 1)))
    v = torch.randn(2, 4, n_tokens, 8, generator=torch.Generator().manual_seed(2))
    exact = torch.einsum("bhcij,bhjc->bhic", band_by_channels(source), v.double())
    assert (source.handed_on(v).double() - exact).abs().max() <= 5e-6 * exact.abs().max()


@pytest.mark.parametrize("maker", ALL_MAKERS)
def test_a_crop_is_that_part_of_the_pattern(maker):
    source, exact = problem(maker, 150)
    queries, keys = torch.tensor([149, 3, 70, 64]), torch.arange(2, 120, 3)
    crop = signed_crop(source, 1, 3, queries=queries, keys=keys)
    assert (crop.double() - exact[1, 3][queries][:, keys]).abs().max() <= 5e-6 * exact.abs().max()


@pytest.mark.parametrize("maker", MAKERS)
def test_later_tokens_do_not_change_a_row(maker):
    source, _ = problem(maker, 100)
    q, k = source.q.clone(), source.k.clone()
    q[:, :, 70:], k[:, :, 70:] = 3.0, -2.0
    changed = type(source)(q, k, source.log_decay, strength=source.strength, valid=source.valid)
    original = type(source)(source.q, source.k, source.log_decay, strength=source.strength, valid=source.valid)
    request = Request(entropy=True, distance=True)
    before, after = (signed_statistics(s, request, tile_bytes=1 << 12) for s in (original, changed))
    torch.testing.assert_close(before.entropy[..., :70], after.entropy[..., :70])
    torch.testing.assert_close(before.mean_distance[..., :70], after.mean_distance[..., :70])


def test_constant_queries_and_keys_leave_the_decay_alone():
    slope, n_tokens = 0.1, 60
    q = k = torch.full((1, 1, n_tokens, 4), 0.5)
    source = DecayRows(q, k, torch.full((1, 1, n_tokens), -slope))
    every = torch.arange(n_tokens)
    weights = signed_crop(source, 0, 0, queries=every, keys=every)
    expected = torch.exp(-slope * (every[:, None] - every).double()).tril()
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=0)
    statistics = signed_statistics(source, Request(far=Far(window=20)))
    sums = (1 - math.exp(-slope * n_tokens)) / (1 - math.exp(-slope))
    assert float(statistics.lse[0, 0, -1]) == pytest.approx(math.log(sums), abs=1e-6)
    far = (math.exp(-slope * 20) - math.exp(-slope * n_tokens)) / (1 - math.exp(-slope * n_tokens))
    assert float(statistics.far_mass[0, 0, -1]) == pytest.approx(far, abs=1e-6)


def test_a_full_strength_write_erases_what_the_same_key_held():
    places = torch.tensor([0, 1, 0, 2, 1, 0])
    keys = torch.eye(4)[places][None, None]
    source = DeltaRows(keys, keys, torch.zeros(1, 1, 6, 1), torch.ones(1, 1, 6))
    weights = signed_crop(source, 0, 0, queries=torch.arange(6), keys=torch.arange(6))
    assert torch.equal(weights, torch.eye(6))
