"""Row-blocked torch against the float64 reference, over lengths, groups, windows, sinks, caps and prefixes."""

from dataclasses import replace

import pytest
import torch

from workbench.heads import WorkbenchError
from workbench.kernels import CausalMask, Cells, Far, Request, SoftmaxLayer, attention_crop
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.reference import reference_pattern, reference_statistics

CASES = {
    "causal": dict(heads=(2, 2), n=(37, 37)),
    "gqa": dict(heads=(8, 2), n=(61, 61)),
    "one kv head": dict(heads=(3, 1), n=(53, 53)),
    "prefix": dict(heads=(4, 2), n=(17, 71)),
    "window": dict(heads=(4, 2), n=(67, 67), window=9),
    "window and prefix": dict(heads=(4, 2), n=(20, 67), window=9),
    "sinks": dict(heads=(4, 2), n=(41, 41), sinks=True),
    "sinks and window": dict(heads=(4, 2), n=(41, 41), sinks=True, window=7),
    "softcap": dict(heads=(4, 4), n=(45, 45), softcap=3.0),
    "left padding": dict(heads=(4, 2), n=(47, 47), padding=(0, 11)),
    "wide values": dict(heads=(4, 2), n=(33, 33), d_v=24),
    "one token": dict(heads=(2, 1), n=(1, 1)),
}

FAR = Far(window=6, sink=2)


def problem(case, dtype=torch.float32, seed=0):
    spec = CASES[case]
    (n_heads, n_kv), (n_q, n_k) = spec["heads"], spec["n"]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, size=1.0):
        return (size * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    padding = torch.tensor(spec.get("padding", (0, 0)))
    valid = torch.arange(n_k) >= padding[:, None] if padding.any() else None
    return dict(
        q=normal(2, n_heads, n_q, 16, size=2.0),
        k=normal(2, n_kv, n_k, 16, size=2.0),
        v=normal(2, n_kv, n_k, spec.get("d_v", 16)),
        mask=CausalMask(n_k, offset=n_k - n_q, window=spec.get("window"), valid=valid),
        first=padding,
        softcap=spec.get("softcap"),
        sinks=normal(n_heads, size=2.0) if spec.get("sinks") else None,
    )


def layer_of(p, **changes):
    layer = SoftmaxLayer(p["q"], p["k"], p["mask"], scale=0.25, softcap=p["softcap"], sinks=p["sinks"])
    return replace(layer, **changes)


def everything(p, rows=None, far=FAR):
    """A request for all statistics, with random visible and hidden cells on the requested rows."""
    n_q, n_k = p["q"].shape[2], p["k"].shape[2]
    generator = torch.Generator().manual_seed(1)
    picked = torch.arange(n_q) if rows is None else rows
    sequence = torch.randint(2, (200,), generator=generator)
    row = picked[torch.randint(len(picked), (200,), generator=generator)]
    key = (torch.rand(200, generator=generator) * (row + n_k - n_q + 1)).long()
    order = (sequence * n_q + row).argsort(stable=True)
    cells = Cells(sequence[order], row[order], key[order])
    top = torch.unique(torch.stack([cells.sequence, cells.row], -1), dim=0)
    return Request(
        entropy=True,
        distance=True,
        far=far,
        first=p["first"],
        cells=cells,
        top_rows=top,
        rows=rows,
        windows=(3, 11, 40),
        squares=True,
        features=torch.randn(2, n_k, 3, generator=generator),
        row_weights=torch.rand(2, n_q, generator=generator) * (torch.rand(2, n_q, generator=generator) > 0.2),
        value_norms=True,
    )


def assert_equal(fast, exact, p, tolerance=2e-6):
    (out_fast, fast), (out_exact, exact) = fast, exact
    seen = exact.mass > 0
    keep = seen if p["sinks"] is None else torch.ones_like(seen)
    names = ["lse", "mass", "entropy", "mean_distance", "far_mass", "beyond", "squares", "features"]
    for name in [*names, "value_norm", "output_norm"]:
        if getattr(exact, name) is None:
            continue
        a, b = getattr(fast, name).double()[keep], getattr(exact, name)[keep]
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())), name
    assert (fast.cells.double() - exact.cells).abs().max() <= tolerance
    assert torch.equal(fast.top_key, exact.top_key)
    if exact.columns is not None:
        assert (fast.columns.double() - exact.columns).abs().max() <= tolerance * max(1.0, float(exact.columns.max()))
    if exact.first_value_norm is not None:
        assert torch.allclose(fast.first_value_norm.double(), exact.first_value_norm, rtol=1e-6)
    if out_fast is not None:
        rows_seen = seen[:, 0]
        assert (out_fast.double() - out_exact)[rows_seen].abs().max() <= 5 * tolerance


@pytest.mark.parametrize("tile_bytes", [1 << 12, 1 << 22], ids=["many tiles", "one tile"])
@pytest.mark.parametrize("case", CASES)
def test_blockwise_softmax_equals_the_reference(case, tile_bytes):
    p = problem(case)
    request = everything(p)
    fast = blockwise_statistics(layer_of(p), p["v"], request, tile_bytes=tile_bytes)
    exact = reference_statistics(layer_of(p), p["v"], request)
    assert_equal(fast, exact, p)


@pytest.mark.parametrize("case", ["gqa", "window", "prefix", "left padding"])
def test_sampled_rows_equal_the_same_rows_of_the_full_pass(case):
    p = problem(case)
    n_q = p["q"].shape[2]
    rows = torch.arange(n_q - 1, -1, -3).flip(0)
    request = everything(p, rows)
    fast = blockwise_statistics(layer_of(p), p["v"], request, tile_bytes=1 << 12)
    exact = reference_statistics(layer_of(p), p["v"], request)
    assert fast[0].shape[1] == len(rows)
    assert_equal(fast, exact, p)


def test_a_row_that_sees_nothing_has_zero_output_and_mass():
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    valid = torch.tensor([[False, False, True, True, True]])
    layer = SoftmaxLayer(q, k, CausalMask(5, valid=valid), scale=0.5)
    out, stats = blockwise_statistics(layer, v, Request(entropy=True, distance=True))
    assert torch.equal(out[0, :2], torch.zeros(2, 2, 4))
    assert torch.equal(stats.mass[0, :, :2], torch.zeros(2, 2))
    assert torch.isneginf(stats.lse[0, :, :2]).all()
    assert torch.isfinite(stats.entropy).all()


def test_future_tokens_do_not_change_a_rows_statistics():
    p = problem("gqa")
    request = Request(entropy=True, distance=True, far=Far(6))
    before = blockwise_statistics(layer_of(p), p["v"], request)[1]
    k, v = p["k"].clone(), p["v"].clone()
    k[:, :, 40:], v[:, :, 40:] = 7.0, -3.0
    after = blockwise_statistics(layer_of(p, k=k), v, request)[1]
    for name in ("lse", "entropy", "mean_distance", "far_mass"):
        torch.testing.assert_close(getattr(before, name)[..., :40], getattr(after, name)[..., :40])


def test_a_window_as_long_as_the_context_changes_nothing():
    p = problem("gqa")
    request = everything(p)
    full = blockwise_statistics(layer_of(p, mask=CausalMask(61)), p["v"], request)
    wide = blockwise_statistics(layer_of(p, mask=CausalMask(61, window=61)), p["v"], request)
    torch.testing.assert_close(full[0], wide[0])
    torch.testing.assert_close(full[1].entropy, wide[1].entropy)


def test_far_mass_beyond_a_layers_own_window_is_exactly_zero():
    p = problem("window")
    request = Request(far=Far(window=9))
    stats = blockwise_statistics(layer_of(p), p["v"], request)[1]
    assert torch.equal(stats.far_mass, torch.zeros_like(stats.far_mass))


def test_uneven_groups_are_refused_with_both_numbers():
    q, k = torch.zeros(1, 3, 4, 2), torch.zeros(1, 2, 4, 2)
    with pytest.raises(WorkbenchError, match="3 query heads cannot share 2"):
        blockwise_statistics(SoftmaxLayer(q, k, CausalMask(4), scale=1.0), k, Request())


@pytest.mark.parametrize("case", ["gqa", "window", "sinks", "softcap", "prefix"])
def test_a_crop_holds_the_patterns_own_probabilities(case):
    p = problem(case)
    n_q, n_k = p["q"].shape[2], p["k"].shape[2]
    queries, keys = torch.tensor([n_q - 1, 0, n_q // 2]), torch.tensor([n_k - 1, 0, n_k - n_q, 3])
    kv_head = 1 // (p["q"].shape[1] // p["k"].shape[1])
    sinks = None if p["sinks"] is None else p["sinks"][1:2]
    head = layer_of(p, q=p["q"][1:2, 1:2], k=p["k"][1:2, kv_head : kv_head + 1], sinks=sinks)
    crop = attention_crop(head, queries=queries, keys=keys)
    pattern, _ = reference_pattern(layer_of(p))
    assert (crop - pattern[1, 1][queries][:, keys]).abs().max() <= 2e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_keys_that_are_no_numbers_change_no_row_before_them(value):
    p = problem("gqa")
    plain, _ = blockwise_statistics(layer_of(p), p["v"], Request(rows=torch.arange(60)))
    broken = p["k"].clone()
    broken[:, :, 60] = value
    out, statistics = blockwise_statistics(layer_of(p, k=broken), p["v"], Request(entropy=True, rows=torch.arange(60)))
    assert torch.equal(out, plain)
    assert bool(statistics.entropy.isfinite().all())


def test_layers_that_share_a_request_have_each_the_statistics_of_their_own_mask():
    masked = {name: problem(name) for name in ("sinks", "left padding", "wide values", "window")}
    for name, p in masked.items():
        p["first"] = torch.zeros(2, dtype=torch.long)
        masked[name] = {**p, "q": p["q"][:, :, :33], "k": p["k"][:, :, :33], "v": p["v"][:, :, :33]}
        valid = p["mask"].valid
        masked[name]["mask"] = replace(p["mask"], n_keys=33, valid=None if valid is None else valid[:, :33])
    shared = everything(masked["sinks"])
    for p in [*masked.values(), *masked.values()]:
        out, statistics = blockwise_statistics(layer_of(p), p["v"], shared)
        out_alone, alone = blockwise_statistics(layer_of(p), p["v"], everything(p))
        assert torch.equal(out, out_alone)
        for field in ("lse", "entropy", "mean_distance", "far_mass", "cells", "top_key"):
            assert torch.equal(getattr(statistics, field), getattr(alone, field)), field
