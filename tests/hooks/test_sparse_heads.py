"""Sparse attention to selected blocks: against brute force in float64, in every way that a model is run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests.families import tiny
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.block_selection import sparse_output
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.store.conversions import SparseAttention

HEADS = (KVHead(1, 0), KVHead(1, 1))


@pytest.fixture(scope="module")
def m() -> HookedModel:
    return wb.open_model(deepcopy(tiny("llama")).double())


def _tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 90, (1, n), generator=torch.Generator().manual_seed(seed))


def _call(m: HookedModel, tokens: Tensor, layer: int) -> AttentionCall:
    calls: list[AttentionCall] = []

    def attend(call: AttentionCall) -> Tensor:
        calls.extend([call] if call.layer == layer else [])
        return call.output()

    with torch.no_grad(), handling(m.model, attend):
        m.model(tokens)
    return calls[0]


def _brute(call: AttentionCall, head: int, to: SparseAttention) -> Tensor:
    """The patterns of the query heads of a key/value head, row by row, block by block."""
    size = call.q.shape[1] // call.k.shape[1]
    q, k = call.q[0, head * size : (head + 1) * size].double(), call.k[0, head].double()
    n = k.shape[0]
    blocks = [list(range(b, min(n, b + to.block))) for b in range(0, n, to.block)]
    scores = torch.einsum("hqd,kd->hqk", q, k) * call.scale
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    dense = scores.masked_fill(~causal, -torch.inf).softmax(-1)

    def score(row: int, block: list[int]) -> float:
        if to.rule == "oracle":
            return float(dense[:, row, block].sum())
        if to.rule == "mean":
            return float((q[:, row] @ k[block].mean(0)).sum())
        low, high = k[block].amin(0), k[block].amax(0)
        return float(torch.maximum(q[:, row] * low, q[:, row] * high).sum())

    patterns = torch.zeros_like(scores)
    for row in range(n):
        own = row // to.block
        rows = [row] if to.per == "row" else blocks[own]
        rank = sorted(range(own), key=lambda b: -sum(score(r, blocks[b]) for r in rows))
        sinks = list(range(min(to.sink_blocks, own + 1)))
        chosen = list(dict.fromkeys([own, *sinks, *rank]))[: to.n_blocks]
        keys = [key for b in chosen for key in blocks[b] if key <= row]
        patterns[:, row, keys] = scores[:, row, keys].softmax(-1)
    return patterns


@pytest.mark.parametrize(
    "to",
    [
        SparseAttention(4, 3),
        SparseAttention(3, 3, sink_blocks=1, rule="mean"),
        SparseAttention(4, 3, rule="minmax"),
        SparseAttention(4, 3, sink_blocks=1, per="query_block"),
        SparseAttention(4, 2, rule="minmax", per="query_block"),
    ],
    ids=str,
)
def test_a_sparse_head_has_the_pattern_of_brute_force(m: HookedModel, to: SparseAttention) -> None:
    tokens = _tokens(38)
    call = _call(m, tokens, 1)
    with m.sparsify({HEADS[1]: to}):
        pattern = m.patterns(tokens, layers=[1])[1].double()
        alone = m.pattern(tokens, 1, call.q.shape[1] - 1).double()
        recording = m.record(tokens, {"sink_mass"})
    brute = _brute(call, 1, to)
    size = len(brute)
    torch.testing.assert_close(pattern[-size:], brute, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, brute[-1], atol=1e-5, rtol=0)
    sink_mass = recording.sums["sink_mass"].total[0, 1, -size:].double()
    torch.testing.assert_close(sink_mass, brute[..., 0].sum(-1), atol=1e-4, rtol=0)
    dense = m.patterns(tokens, layers=[1])[1].double()
    torch.testing.assert_close(pattern[:-size], dense[:-size], atol=1e-5, rtol=0)
    assert not torch.allclose(dense[-size:], brute, atol=1e-3)


@pytest.mark.parametrize("rule", ["oracle", "mean", "minmax"])
def test_outputs_are_those_of_the_pattern_and_selected_keys_alone(m: HookedModel, rule: Any) -> None:
    to, tokens = SparseAttention(4, 3, rule=rule), _tokens(38)
    call = _call(m, tokens, 1)
    with m.sparsify({HEADS[0]: to}):
        outputs = m.head_outputs([wb.Head(1, 0)], tokens)[wb.Head(1, 0)]
    torch.testing.assert_close(outputs[0], _brute(call, 0, to)[0] @ call.v[0, 0], atol=1e-6, rtol=0)


def test_with_all_blocks_selected_the_model_is_unchanged(m: HookedModel) -> None:
    tokens = _tokens(38)
    with torch.no_grad():
        dense = m.model(tokens).logits
        with m.sparsify(dict.fromkeys(HEADS, SparseAttention(4, 10))):
            torch.testing.assert_close(m.model(tokens).logits, dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["oracle", "mean", "minmax"])
def test_left_padding_and_batches_change_nothing(m: HookedModel, rule: Any) -> None:
    short, long = _tokens(26, 1), _tokens(31, 2)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1)
    mask = torch.ones(2, 31, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad(), m.sparsify(dict.fromkeys(HEADS, SparseAttention(4, 3, rule=rule))):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        together = m.model(torch.cat([padded, long]), attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(together[0, 5:], m.model(short).logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together[1], m.model(long).logits[0], atol=1e-5, rtol=0)


def test_blocks_of_packed_documents_begin_with_each_document(m: HookedModel) -> None:
    first, second = _tokens(18, 1), _tokens(23, 2)
    positions = torch.cat([torch.arange(18), torch.arange(23)])[None]
    with torch.no_grad(), m.sparsify(dict.fromkeys(HEADS, SparseAttention(4, 2))):
        packed = m.model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(packed[:, :18], m.model(first).logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(packed[:, 18:], m.model(second).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 6])
def test_generate_with_a_cache_gives_what_the_uncached_pass_gives(m: HookedModel, window: int | None) -> None:
    tokens, to = _tokens(20), {HEADS[1]: SparseAttention(4, 2, sink_blocks=1)}
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    heads = [] if window is None else [HEADS[0]]
    with m.restrict(heads, window or 6), m.sparsify(to):
        cached, uncached = (m.model.generate(tokens, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.scores), torch.stack(uncached.scores), atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_selected_keys(m: HookedModel) -> None:
    to, tokens = SparseAttention(4, 3), _tokens(38)
    call = _call(m, tokens, 1)
    pattern = _brute(call, 0, to)
    q, k, v = (x.detach().clone().requires_grad_() for x in (call.q, call.k, call.v))
    size = q.shape[1] // k.shape[1]
    one = replace(call, q=q[:, :size], k=k[:, :1], v=v[:, :1])
    out = sparse_output(one, to)
    ours = torch.autograd.grad(out.square().sum(), (q, k, v))
    scores = torch.einsum("hqd,kd->hqk", q[0, :size], k[0, 0]) * call.scale
    dense = scores.masked_fill(pattern == 0, -torch.inf).softmax(-1) @ v[0, 0]
    expected = torch.autograd.grad(dense.square().sum(), (q, k, v))
    for own, of_pattern in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, of_pattern, atol=2e-5, rtol=1e-4)


def test_gates_towards_sparse_heads_share_out_what_sparse_attention_costs(m: HookedModel) -> None:
    float_m = wb.open_model(tiny("llama"))
    probe = wb.probes.key_value(float_m)
    to = dict.fromkeys(HEADS, SparseAttention(4, 1))
    gates = wb.window_gates(float_m, probe, to, progress=False)
    assert gates.heads == HEADS
    with float_m.sparsify(to):
        sparse = float(float_m.answers(probe).loss_nats.mean())
    assert gates.windowed == pytest.approx(sparse, abs=1e-4)
    assert abs(gates.scores.sum() - (gates.windowed - gates.full)) <= max(1e-4, 0.05 * abs(gates.windowed - gates.full))


def test_what_cannot_be_is_refused_in_a_sentence(m: HookedModel) -> None:
    with pytest.raises(WorkbenchError, match="n_blocks=3 or more"):
        SparseAttention(4, 2, sink_blocks=2)
    with pytest.raises((WorkbenchError, jaxtyping.TypeCheckError), match="oracle"):
        SparseAttention(rule="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorkbenchError, match="expected a SparseAttention"), m.sparsify({HEADS[0]: 4}):
        pass
    to = SparseAttention(4, 2)
    with (
        m.restrict([HEADS[0]], 4),
        pytest.raises(WorkbenchError, match="a window and sparse"),
        m.sparsify({HEADS[0]: to}),
    ):
        pass
    with (
        m.sparsify({HEADS[0]: SparseAttention(4, 2, per="query_block")}),
        pytest.raises(WorkbenchError, match="use_cache=False"),
    ):
        m.model.generate(_tokens(20), max_new_tokens=3, do_sample=False, pad_token_id=0)
