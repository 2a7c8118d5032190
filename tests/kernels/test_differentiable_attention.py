"""Gradients of row-blocked attention equal float64 autograd on dense attention, under every mask."""

import pytest
import torch

from workbench.hooks.interventions.windows import RestrictedMask
from workbench.kernels import CausalMask, SoftmaxLayer, tiles
from workbench.kernels.masks import visible_tile
from workbench.kernels.softmax.differentiable_attention import differentiable_attention
from workbench.store.conversions import Window


def dense(q, k, v, visible, *, scale, softcap, sinks):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible[:, None], -1e30)
    if sinks is not None:
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights * visible.any(-1)[:, None, :, None]
    return (weights @ v).transpose(1, 2)


def masks(t, n_keys):
    valid = torch.arange(n_keys) >= torch.tensor([0, 5])[:, None]
    offset = n_keys - t
    first = torch.tensor([0, 5])[:, None].expand(2, n_keys)
    return {
        "causal": CausalMask(n_keys, offset=offset),
        "sliding": CausalMask(n_keys, offset=offset, window=7),
        "padded": CausalMask(n_keys, offset=offset, valid=valid),
        "restricted": RestrictedMask(CausalMask(n_keys, offset=offset, valid=valid), Window(4, 2), first, offset),
    }


@pytest.mark.parametrize("mask", ["causal", "sliding", "padded", "restricted"])
@pytest.mark.parametrize(
    ("n_heads", "n_kv", "softcap", "with_sinks"), [(4, 2, None, True), (3, 3, 5.0, False), (4, 1, 2.0, True)]
)
@pytest.mark.parametrize(("t", "n_keys", "small"), [(37, 37, False), (37, 37, True), (13, 30, True)])
def test_gradients_equal_dense_autograd(monkeypatch, mask, n_heads, n_kv, softcap, with_sinks, t, n_keys, small):
    if small:
        monkeypatch.setattr(tiles, "_fastest", lambda _: 1 << 11)
    torch.manual_seed(t + n_heads)
    q = torch.randn(2, n_heads, t, 8, dtype=torch.float64)
    k = torch.randn(2, n_kv, n_keys, 8, dtype=torch.float64)
    v = torch.randn(2, n_kv, n_keys, 6, dtype=torch.float64)
    sinks = torch.randn(n_heads, dtype=torch.float64) if with_sinks else None
    tile_mask = masks(t, n_keys)[mask]
    visible = visible_tile(tile_mask, slice(0, 2), torch.arange(t), n_keys).expand(2, -1, -1)
    d_out = torch.randn(2, t, n_heads, 6, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, *([sinks] if with_sinks else []))]
    expected = dense(*leaves[:3], visible, scale=0.7, softcap=softcap, sinks=leaves[3] if with_sinks else None)
    expected.backward(d_out)
    short = [x.clone().float().requires_grad_() for x in (q, k, v, *([sinks] if with_sinks else []))]
    layer = SoftmaxLayer(*short[:2], tile_mask, 0.7, softcap, short[3] if with_sinks else None)
    out = differentiable_attention(layer, short[2])
    out.backward(d_out.float())
    assert (out.double() - expected).norm() <= 2e-6 * expected.norm()
    for a, b in zip(short, leaves, strict=True):
        assert (a.grad.double() - b.grad).norm() <= 2e-6 * b.grad.norm()


def test_bfloat16_gradients_come_back_in_bfloat16():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 8).bfloat16().requires_grad_() for _ in range(3))
    differentiable_attention(SoftmaxLayer(q, k, CausalMask(20), scale=0.3), v).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    visible = torch.ones(20, 20).tril().bool()[None]
    dense(*exact, visible, scale=0.3, softcap=None, sinks=None).sum().backward()
    for a, b in zip((q, k, v), exact, strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert (a.grad.double() - b.grad).norm() <= 1e-2 * b.grad.norm()
