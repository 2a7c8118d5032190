"""Layers whose rows see selected keys alone: statistics of the keys that a tile reads are those of the whole mask."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.kernels.on_device import on_device
from tests.kernels.test_attention_stats import assert_top_is_likely, needs_triton
from tests.kernels.test_blockwise import assert_equal, everything, layer_of, problem
from tests.kernels.test_recorder_statistics import assert_equal as assert_recorded
from workbench.kernels import CausalMask, Request, SelectedMask, SoftmaxLayer, ops
from workbench.kernels.dispatch import choose_route
from workbench.kernels.key_intervals import intervals, intervals_of
from workbench.kernels.launch_shapes import ARCHITECTURES, WIDEST, Launch, attention_config, edge_config
from workbench.kernels.masks import seen_keys, visible_tile
from workbench.kernels.selected_tiles import tile_list
from workbench.kernels.softmax import triton_launch
from workbench.kernels.softmax.blockwise import blockwise_profile, blockwise_statistics
from workbench.kernels.softmax.differentiable_attention import differentiable_attention
from workbench.kernels.softmax.recorder_statistics import profile_statistics
from workbench.kernels.softmax.reference import reference_pattern, reference_profile, reference_statistics
from workbench.kernels.softmax.triton_launch import triton_profile


def selection(mask, n_queries, block, generator, *, n_sequences=2, n=3):
    """Blocks that neighbouring rows mostly share, those of the first key and of the row itself among them.

    Some indices are no key, and some are of keys that are hidden.
    """
    n_blocks = -(-mask.n_keys // block)
    own = (torch.arange(n_queries) + mask.offset) // block
    drift = torch.arange(n_queries)[:, None] // 7 * torch.tensor([1, 2, 3])[:n]
    chosen = (drift + torch.randint(n_blocks, (n_sequences, 1, n), generator=generator)) % n_blocks
    chosen = torch.cat([chosen, own.expand(n_sequences, -1)[..., None], torch.zeros_like(chosen[..., :1])], -1)
    absent = torch.tensor([-1, n_blocks]).expand(n_sequences, n_queries, 2)
    return torch.cat([chosen, absent], -1).int()


def selected_layer(case, block, generator):
    p = problem(case)
    chosen = selection(p["mask"], p["q"].shape[2], block, generator)
    return {**p, "mask": SelectedMask(p["mask"], chosen, block)}


@pytest.mark.parametrize("tile_bytes", [1 << 12, 1 << 22], ids=["many tiles", "one tile"])
@pytest.mark.parametrize(
    ("case", "block"), [("gqa", 1), ("prefix", 4), ("window", 4), ("sinks", 1), ("softcap", 5), ("left padding", 4)]
)
def test_statistics_of_selected_keys_equal_the_reference(case, block, tile_bytes, generator):
    p = selected_layer(case, block, generator)
    request = everything(p)
    fast = blockwise_statistics(layer_of(p), p["v"], request, tile_bytes=tile_bytes)
    assert_equal(fast, reference_statistics(layer_of(p), p["v"], request), p)


@pytest.mark.parametrize("block", [1, 5])
def test_the_keys_of_a_tile_and_its_hidden_cells_are_the_mask(block, generator):
    valid = torch.arange(61) >= torch.tensor([[0], [9]])
    for base in (CausalMask(61, valid=valid), CausalMask(61, window=30), intervals(61, 61, window=30)):
        mask = SelectedMask(base, selection(CausalMask(61), 61, block, generator), block)
        for rows in torch.arange(61).split(6):
            seen = seen_keys(mask, slice(0, 2), rows)
            columns = torch.arange(*seen.keys) if seen.columns is None else seen.columns
            visible = torch.zeros(2, len(rows), 61, dtype=torch.bool)
            visible[..., columns] = True
            for first, cells in seen.hidden:
                visible[..., columns[first : first + cells.shape[-1]]] &= ~cells
            assert torch.equal(visible, visible_tile(mask, slice(0, 2), rows, 61))
            blocks = {j // block for j in range(*seen.keys)}
            chosen = blocks & set(mask.selected[:, rows].flatten().tolist())
            read = chosen if len(chosen) <= 7 / 8 * len(blocks) else blocks
            assert columns.tolist() == [j for j in range(*seen.keys) if j // block in read]


def test_keys_that_no_row_of_a_tile_selects_are_not_read(generator):
    n, block = 96, 8
    q, k, v = (torch.randn(1, heads, n, 16, generator=generator) for heads in (4, 2, 2))
    chosen = torch.arange(n)[None, :, None] // block * torch.tensor([0, 1])  # the first block and the row's own
    mask = SelectedMask(CausalMask(n, offset=n - block), chosen[:, -block:], block)
    layer = SoftmaxLayer(q[:, :, -block:], k, mask, 0.25)
    exact, _ = reference_statistics(layer, v, Request())
    v[:, :, block:-block] = torch.nan
    out, statistics = blockwise_statistics(layer, v, Request(entropy=True, distance=True, squares=True))
    assert (out - exact).abs().max() <= 1e-5
    assert statistics.mass.allclose(torch.ones(()))


def test_sampled_rows_of_a_selection_equal_the_same_rows_of_the_full_pass(generator):
    p = selected_layer("gqa", 4, generator)
    request = everything(p, torch.arange(60, -1, -3).flip(0))
    fast = blockwise_statistics(layer_of(p), p["v"], request, tile_bytes=1 << 12)
    assert_equal(fast, reference_statistics(layer_of(p), p["v"], request), p)


def test_rows_that_select_nothing_see_nothing(generator):
    q = torch.randn(1, 1, 20, 8, generator=generator)
    chosen = torch.full((1, 20, 2), -1)
    chosen[:, 10:] = 0
    layer = SoftmaxLayer(q, q, SelectedMask(CausalMask(20), chosen, 4), 1.0)
    for tile_bytes in (None, 4 * 20 * 5):
        out, statistics = blockwise_statistics(layer, q, Request(entropy=True), tile_bytes=tile_bytes)
        assert out[:, :10].eq(0).all()
        assert statistics.mass[..., :10].eq(0).all()
        assert statistics.mass[..., 10:].allclose(torch.ones(()))
        assert statistics.entropy.isfinite().all()


def test_gradients_through_selected_keys_are_those_of_dense_attention(generator):
    p = selected_layer("sinks", 4, generator)
    names = ("q", "k", "v", "sinks")
    wide = {name: p[name].double().requires_grad_() for name in names}
    pattern, _ = reference_pattern(layer_of({**p, **wide}))
    exact = (pattern @ wide["v"].repeat_interleave(2, 1)).transpose(1, 2)
    upstream = torch.randn(exact.shape, generator=generator)
    wanted = torch.autograd.grad(exact, list(wide.values()), upstream.double())
    narrow = {name: p[name].detach().requires_grad_() for name in names}
    layer = layer_of({**p, **narrow})
    profiled_mask = replace(layer.mask, base=intervals_of(layer.mask.base, layer.q.shape[2]))
    profile = ops.attention_profile(replace(layer, mask=profiled_mask), narrow["v"], Request())
    for out in (differentiable_attention(layer, narrow["v"]), profile.out.transpose(1, 2)):
        assert (out - exact).norm() <= 1e-5 * exact.norm()
        found = torch.autograd.grad(out, list(narrow.values()), upstream)
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


PROFILES = [
    pytest.param(on_device(triton_profile), id="triton", marks=needs_triton),
    pytest.param(blockwise_profile, id="torch"),
]


def profiled(block, generator, *, n=45, n_q=45, window=None, sinks=None):
    """A layer of two sequences and grouped heads, and a request for every statistic of a profile."""
    q, k, v = (torch.randn(2, h, t, 16, generator=generator) for h, t in ((2, n_q), (1, n), (1, n)))
    base = CausalMask(n, offset=n - n_q, window=window)
    mask = SelectedMask(intervals(n_q, n, window=window), selection(base, n_q, block, generator), block)
    tags = torch.randint(0, 12, (2, n), generator=generator, dtype=torch.int32)
    request = Request(
        entropy=True, top=True, distance=True, windows=(8, 40), query_tags=tags[:, n - n_q :], key_tags=tags
    )
    return SoftmaxLayer(q, k, mask, 0.25, sinks=sinks), v, request


def assert_profile(found, p):
    exact = reference_profile(*p)
    assert_top_is_likely(found, exact, {"layer": p[0]}, 1e-6)
    for name in ("out", "lse", "entropy", "top_mass", "mean_distance", "beyond", "tag_mass", "sink_mass"):
        a, b = getattr(found, name), getattr(exact, name)
        assert b is None or (a.double() - b).norm() <= 2e-6 * b.norm(), name


@pytest.mark.parametrize("profile_of", PROFILES)
@pytest.mark.parametrize(
    ("block", "sizes"), [(1, {}), (8, {"n_q": 33}), (5, {"window": 30, "sinks": torch.tensor([0.5, 2.0])})]
)
def test_profiles_of_selected_keys_equal_their_definition(block, sizes, profile_of, generator, poisoned):
    p = profiled(block, generator, **sizes)
    assert_profile(profile_of(*p), p)


@needs_triton
def test_tiles_wider_than_a_word_of_bits_select_the_same_keys(generator, monkeypatch, poisoned):
    for name in ("attention_config", "edge_config"):
        monkeypatch.setattr(triton_launch, name, lambda *_, **__: Launch(16, 64, 4, 2))
    p = profiled(1, generator)
    assert_profile(on_device(triton_profile)(*p), p)


@needs_triton
def test_the_kernel_reads_no_tile_of_keys_that_its_rows_do_not_select(generator):
    layer, v, _ = profiled(32, generator, n=128, n_q=128)
    first = torch.zeros_like(layer.mask.selected)  # the first block, and for the last rows the last block too
    first[:, 96:, 0] = 3
    layer = replace(layer, mask=replace(layer.mask, selected=first))
    exact = reference_profile(layer, v, Request())
    v[:, :, 32:96] = torch.nan
    found = on_device(triton_profile)(layer, v, Request(entropy=True))
    assert found.entropy.isfinite().all()
    assert (found.out - exact.out).norm() <= 2e-6 * exact.out.norm()


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_a_list_has_the_tiles_that_hold_a_key_which_is_selected_and_in_reach(block, generator):
    layer, _, _ = profiled(block, generator, n=75, n_q=75, window=30)
    seen, _ = layer.profile_mask
    listed = tile_list(layer.mask, seen, 75, rows=16, columns=8)
    j = torch.arange(75)
    for b, rows in product(range(2), torch.arange(75).split(16)):
        chosen = (layer.mask.selected[b, rows, :, None] == j // block).any(1)
        reached = (j // 8 * 8 < seen.high[0, rows].max()) & (j // 8 * 8 + 8 > seen.low[0, rows].min())
        tiles = (j[chosen.any(0) & reached] // 8).unique()
        at = int(rows[0]) // 16
        assert listed.tiles[b, at, : int(listed.n_tiles[b, at])].tolist() == tiles.tolist()
        bits = listed.words[b, rows][:, j // block // 32] >> (j // block % 32) & 1
        assert torch.equal(bits.bool(), chosen)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
def test_recorded_statistics_of_selected_keys_come_from_a_profile_too(backend, generator, poisoned):
    p = selected_layer("gqa", 4, generator)
    request = everything(p, torch.arange(1, 61, 4))
    request = replace(request, windows=(), squares=False, features=None, row_weights=None, value_norms=False)
    assert choose_route(layer_of(p), p["v"], request).backend == "torch"  # on a CPU
    fast = on_device(profile_statistics)(layer_of(p), p["v"], request, backend=backend)
    assert_recorded(fast, reference_statistics(layer_of(p), p["v"], request), p)


def test_edges_of_windows_are_cut_as_the_kernel_cuts_that_counted_what_lies_beyond():
    for arch, d, dtype, n in product(
        (0, *ARCHITECTURES), (32, 64, 80, 128, 256), WIDEST["attention_profile"], range(6)
    ):
        edge = edge_config(arch, d, dtype, n_statistics=n)
        assert edge[:2] == attention_config(arch, d, dtype, n_statistics=n)[:2]
