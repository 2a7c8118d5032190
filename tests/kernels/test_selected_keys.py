"""Layers whose rows see selected keys alone: statistics of the keys that a tile reads are those of the whole mask."""

import pytest
import torch

from tests.kernels.test_blockwise import assert_equal, everything, layer_of, problem
from workbench.kernels import CausalMask, Request, SelectedMask, SoftmaxLayer
from workbench.kernels.key_intervals import intervals
from workbench.kernels.masks import seen_keys, visible_tile
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.differentiable_attention import differentiable_attention
from workbench.kernels.softmax.reference import reference_pattern, reference_statistics


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
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("case", ["gqa", "prefix", "window", "sinks", "softcap", "left padding"])
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
            chosen = mask.selected[:, rows]
            assert columns.tolist() == [j for j in range(*seen.keys) if (chosen == j // block).any()]


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
    out = differentiable_attention(layer_of({**p, **narrow}), narrow["v"])
    found = torch.autograd.grad(out, list(narrow.values()), upstream)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
