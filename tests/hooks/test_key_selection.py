"""Layers that attend to the keys of an indexer: their patterns, scores and interventions are those of the model."""

import copy
import importlib
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.brute import ON_TOKENS, scores
from tests.causal_types import tiny_config
from tests.detectors.test_exactness import assert_same
from tests.families import WINDOW, random_tokens, tiny
from tests.planning.plans import plan_of
from tests.selecting_families import SELECTED, SELECTING_CONFIGS
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks.interventions.gates import gated
from workbench.hooks.recording.needs import NEEDS
from workbench.hooks.taps.attention_call import MaskTaken
from workbench.hooks.taps.attention_interface import _lazy_mask
from workbench.kernels import CausalMask, Far, Request, SelectedMask, SoftmaxLayer, attention_statistics
from workbench.kernels.masks import visible_tile
from workbench.store.conversions import Window

TOKENS = random_tokens(2, 37)
MASK = (torch.arange(37) >= torch.tensor([0, 11])[:, None]).long()


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("deepseek_v32"))


@contextmanager
def indexed(model):
    """Yield a list that fills with what the model's indexers select."""
    selected = []
    handles = [
        module.register_forward_hook(lambda _, __, out: selected.append(out))
        for module in model.modules()
        if hasattr(module, "index_topk")
    ]
    yield selected
    for handle in handles:
        handle.remove()


def as_sets(indices):
    """What rows select that see more keys than are selected."""
    return [set(row) for row in indices[:, SELECTED:].flatten(0, 1).tolist()]


@pytest.mark.parametrize("family", SELECTING_CONFIGS)
def test_selection_patterns_and_logits_are_those_of_the_models_eager_attention(family):
    m, eager = open_model(tiny(family)), tiny(family, "eager")
    with torch.no_grad(), indexed(eager) as own:
        out = eager(input_ids=TOKENS[:1], output_attentions=True, use_cache=False)
    with torch.no_grad(), m.in_force(), indexed(m.model) as ours:
        logits = m.model(input_ids=TOKENS[:1], use_cache=False).logits
    assert len(own) == len(ours) > 0
    assert all(as_sets(a) == as_sets(b) for a, b in zip(own, ours, strict=True))
    assert (logits - out.logits).abs().max() < 1e-5
    for layer, pattern in m.patterns(TOKENS[:1]).items():
        assert (pattern - out.attentions[layer][0]).abs().max() < 1e-5
        if m.layers[layer].kind == "sparse":
            assert (pattern > 0).sum(-1).max() == SELECTED


@pytest.mark.parametrize("family", ["deepseek_v32", "hy_v4"])
def test_scores_equal_brute_force_over_eager_patterns_behind_padding_too(family):
    m, eager = open_model(tiny(family)), tiny(family, "eager")
    table = score(m, ON_TOKENS, TOKENS, attention_mask=MASK, far=Far(5))
    assert_same(table, scores(eager, TOKENS, attention_mask=MASK, far_window=5), 2e-5)


def test_a_sparse_layer_is_one_whose_keys_are_selected_and_says_how_many():
    kinds = {
        family: [info.kind for info in open_model(tiny(family)).layers] for family in ("glm_moe_dsa", "dots3_note")
    }
    assert kinds == {"glm_moe_dsa": ["sparse"] * 3, "dots3_note": ["sparse", "sliding"]}
    m = open_model(tiny("dots3_note"))
    assert m.summary().n_selected.tolist()[0] == SELECTED
    assert [info.n_selected for info in m.layers] == [SELECTED, None]
    assert [info.window for info in m.layers] == [None, WINDOW]
    assert f": 2 layers KS, 4 heads, 4 KV heads, window {WINDOW}, {SELECTED} selected keys" in repr(m)


def test_a_number_of_keys_beyond_any_text_costs_no_longer_pass_and_hides_nothing(m):
    model = copy.deepcopy(tiny("deepseek_v32"))
    for module in model.modules():
        if hasattr(module, "index_topk"):
            module.index_topk = 2048
    wide, lengths = open_model(model), []
    handle = model.register_forward_pre_hook(lambda _, __, kwargs: lengths.append(kwargs), with_kwargs=True)
    assert [info.n_selected for info in open_model(model).layers] == [2048, 2048]
    handle.remove()
    assert {kwargs["input_ids"].shape[1] for kwargs in lengths} == {3}
    assert all(module.index_topk == 2048 for module in model.modules() if hasattr(module, "index_topk"))
    rows = wide.pattern(TOKENS[0], 1, 0)
    assert ((rows > 0) == torch.ones_like(rows).tril().bool()).all()


@pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4", "dots3_note"])
def test_pieces_through_the_cache_give_the_numbers_of_one_pass(family):
    m, probe = open_model(tiny(family)), probes.copy_needle(97, 16, length=48, n_sequences=2)
    needs = {need for need in NEEDS if not need.endswith("_per_key")}
    whole, pieces = m.record(probe, needs, far=Far(5)), m.record(probe, needs, far=Far(5), prefill=7)
    for need, expected in whole.sums.items():
        assert torch.equal(pieces[need].rows, expected.rows), need
        assert torch.allclose(pieces[need].total, expected.total, atol=2e-4, rtol=1e-5, equal_nan=True), need
    assert torch.allclose(pieces.answers.loss_nats, whole.answers.loss_nats, atol=1e-4)


@pytest.mark.parametrize("family", ["deepseek_v32", "dots3_note"])
def test_packed_documents_and_padded_texts_score_as_they_do_alone(family):
    m = open_model(tiny(family))
    needs = ("entropy", "induction", "mean_distance", "sink_mass", "far_mass")
    documents = torch.tensor([[1] * 13 + [2] * 24, [0] * 4 + [7] * 17 + [8] * 10 + [0] * 6])
    packed = m.record(TOKENS, needs, documents, far=Far(5))
    for d, (row, start, stop) in enumerate([(0, 0, 13), (0, 13, 37), (1, 4, 21), (1, 21, 31)]):
        alone = m.record(TOKENS[row, start:stop], needs, far=Far(5))
        for need in needs:
            assert torch.equal(packed[need].rows[d], alone[need].rows[0])
            assert torch.allclose(packed[need].total[d], alone[need].total[0], atol=1e-4)
    padded, alone = m.record(TOKENS[1:], needs, MASK[1:], far=Far(5)), m.record(TOKENS[1:, 11:], needs, far=Far(5))
    assert all(torch.allclose(padded[need].total, alone[need].total, atol=1e-4) for need in needs)


@contextmanager
def also_hiding(model, hidden):
    """Inside the block, eager attention hides these cells after the selection, and gives zero to rows without a key."""
    module = importlib.import_module(type(model).__module__)
    plain = module.eager_attention_forward

    def attend(module, q, k, v, attention_mask, scaling, **kwargs):
        if module.layer_idx in hidden:
            attention_mask = attention_mask + torch.where(hidden[module.layer_idx], -torch.inf, 0.0)
        is_blind = (attention_mask < -1e30).all(-1)
        out, weights = plain(module, q, k, v, attention_mask.clamp_min(-1e30), scaling, **kwargs)
        return out.masked_fill(is_blind.expand(out.shape[0], out.shape[2], -1).mT[..., None], 0), weights

    module.eager_attention_forward = attend
    yield
    module.eager_attention_forward = plain


def test_a_restricted_head_sees_the_selected_keys_of_its_window_and_sinks(m):
    i, j = torch.arange(37)[:, None], torch.arange(37)
    hidden = torch.zeros(1, 4, 37, 37, dtype=torch.bool)
    hidden[:, 2] = (i - j >= 6) & (j >= 2)
    eager = tiny("deepseek_v32", "eager")
    with torch.no_grad(), also_hiding(eager, {1: hidden}):
        expected = eager(input_ids=TOKENS, use_cache=False).logits
    plain = m.pattern(TOKENS[0], 1, 2)
    with m.restrict([KVHead(1, 2)], 6, 2), torch.no_grad():
        restricted = m.model(input_ids=TOKENS, use_cache=False).logits
        pattern = m.pattern(TOKENS[0], 1, 2)
    assert (restricted - expected).abs().max() < 5e-5
    assert torch.equal(pattern > 0, (plain > 0) & ~hidden[0, 2])
    assert not torch.equal(pattern > 0, plain > 0)


def test_an_ablated_head_of_a_sparse_layer_gives_nothing(m):
    before = m.head_outputs([Head(0, 1)], TOKENS)[Head(0, 1)]
    with m.ablate([Head(0, 1)]):
        assert m.head_outputs([Head(0, 1)], TOKENS)[Head(0, 1)].eq(0).all()
    with m.ablate([Head(0, 1)], "uniform"):
        uniform = m.pattern(TOKENS[0], 0, 1)
    assert before.abs().max() > 0
    assert torch.allclose(uniform[uniform > 0], (1 / (uniform > 0).sum(-1, keepdim=True)).expand(37, 37)[uniform > 0])


@pytest.mark.parametrize("family", ["deepseek_v32", "hy_v4"])
@pytest.mark.filterwarnings("ignore:the cache of")
def test_generation_with_a_cache_is_that_without_one_under_interventions_and_behind_padding(family):
    m = open_model(tiny(family))
    options = {"attention_mask": MASK, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with m.restrict([KVHead(0, 1), KVHead(1, 0)], 9, 1), torch.no_grad():
        tokens = [m.model.generate(TOKENS, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*tokens)


def test_gradients_through_the_selected_keys_are_those_of_eager_attention(m):
    gradients = []
    for model in (m.model, tiny("deepseek_v32", "eager")):
        model.zero_grad()
        if model is m.model:
            with m.in_force():
                model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        else:
            model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "attn" in n])
        model.zero_grad()
    assert len(gradients[0]) > 10
    for ours, own in zip(*gradients, strict=True):
        assert (ours - own).abs().max() <= 1e-5 * own.abs().max().clamp_min(1e-3)


def test_gates_of_sparse_heads_have_the_slopes_of_finite_differences(m):
    gates = torch.full((1, 8), 0.5, dtype=torch.float32, requires_grad=True)

    def loss(gates):
        with gated(m, gates, Window(4, 1)):
            return m.model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss

    (slope,) = torch.autograd.grad(loss(gates), gates)
    step, head = 0.02, torch.nn.functional.one_hot(torch.tensor([4]), 8)  # of the last layer: no selection follows it
    with torch.no_grad():
        sides = [loss(gates + sign * step * head) for sign in (1, -1)]
    assert slope.abs().max() > 0
    assert float((sides[0] - sides[1]) / (2 * step)) == pytest.approx(float(slope[0, 4]), rel=0.05, abs=1e-5)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made inside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, list | tuple) else (out,):
            self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


def test_statistics_under_a_selection_make_no_tensor_of_tokens_times_tokens():
    n, width, generator = 4096, 16, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, n, 8, generator=generator)
    selected = (torch.rand(1, n, width, generator=generator) * torch.arange(1, n + 1)[None, :, None]).int()
    layer = SoftmaxLayer(q, k, SelectedMask(CausalMask(n), selected), 1.0)
    with Largest() as largest:
        _, statistics = attention_statistics(layer, v, Request(entropy=True))
    assert largest.numbers < n * n / 4
    keys, row = selected[0, 777].unique().long(), 777
    lse = (q[0, 0, row] @ k[0, 0, keys].mT).logsumexp(-1)
    assert float(statistics.lse[0, 0, row]) == pytest.approx(float(lse), abs=1e-5)


def test_the_mask_that_an_indexer_reads_is_the_models_own():
    mask = _lazy_mask(
        q_length=5, kv_length=9, q_offset=4, attention_mask=torch.ones(2, 9).index_fill(1, torch.tensor([0]), 0)
    )
    visible = mask[:, 0, :, :]
    assert torch.equal(visible, visible_tile(mask, slice(0, 2), torch.arange(5), 9))
    assert torch.equal(visible, mask[:, 0])
    assert visible[0, 0].tolist() == [False, True, True, True, True, False, False, False, False]
    with pytest.raises(MaskTaken, match=r"only rows can be cut"):
        mask[..., 0]


def test_keys_that_are_none_select_nothing_and_a_whole_selection_hides_nothing():
    mask = _lazy_mask(q_length=3, kv_length=3)
    chosen = mask.selecting(torch.tensor([[[[0, -1, 7], [1, 1, 1], [2, 0, -1]]]]))
    expected = torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 0, 1]]]).bool()
    for each in (chosen, chosen.simplest()):
        assert torch.equal(visible_tile(each, slice(0, 1), torch.arange(3), 3), expected)
    assert chosen[:, :, 1:3, :].selected.tolist() == [[[[1, 1, 1], [2, 0, -1]]]]
    whole = mask.selecting(torch.tensor([[[[2, 1, 0]] * 3]]))
    assert whole.is_plain_causal
    assert isinstance(whole.simplest(), CausalMask)


def test_attention_that_is_not_of_the_selected_keys_alone_is_refused(monkeypatch):
    model = copy.deepcopy(tiny("deepseek_v32"))
    module = importlib.import_module(type(model).__module__)
    plain = module.eager_attention_forward
    monkeypatch.setattr(
        module,
        "eager_attention_forward",
        lambda *args, **kwargs: [x if x is None else 2 * x for x in plain(*args, **kwargs)],
    )
    with pytest.raises(
        WorkbenchError, match=r"own attention to the keys that layer 0 \(DeepseekV32Attention\).* is another"
    ):
        open_model(model)
    monkeypatch.undo()
    model.model.layers[1].self_attn.indexer.index_topk = 7
    with pytest.raises(WorkbenchError, match="select keys, how many is not known"):
        open_model(model)


def test_a_plan_of_sparse_layers_is_applied_in_force_and_written_to_no_folder(m, tmp_path):
    plan = plan_of(m.layers, [(0, 1)], window=4)
    with m.apply(plan):
        pattern = m.patterns(TOKENS[:1])[0]
    far = torch.ones(37, 37).tril(-4).bool()
    assert pattern[0][far].eq(0).all()
    assert pattern[1][far].gt(0).any()
    for write in (lambda: m.save_planned(plan, tmp_path / "planned"), plan.to_layer_types):
        with pytest.raises(WorkbenchError, match=r"layers \[0, 1\] attend to keys that an indexer selects"):
            write()
    assert not (tmp_path / "planned").exists()


def test_a_selection_that_is_not_of_every_row_is_refused(m):
    attention = m.model.model.layers[1].self_attn
    indexer = attention.indexer.register_forward_hook(lambda _, __, out: out[:, :-1])
    with pytest.raises(WorkbenchError, match=r"\['indices'\], which may select keys, .* of shape \(2, 36, 5\)"):
        m.record(TOKENS, {"entropy"})
    indexer.remove()


def tied(family):
    """A copy of a model whose index scores are all 0, and which keys its indexers pick then."""
    model, picked = copy.deepcopy(tiny(family)), []
    for module in model.modules():
        if hasattr(module, "index_topk"):
            module.weights_proj.weight.data.zero_()
            module.register_forward_hook(lambda _, __, out: picked.append(out))
    return model, picked


@pytest.mark.parametrize("family", ["deepseek_v32", "dots3_note", "glm5_next"])
def test_among_keys_with_equal_index_scores_those_are_recorded_that_the_model_picked(family):
    model, picked = tied(family)
    m = open_model(model)  # whose check runs its attention twice
    eager = tied(family)[0]
    eager.set_attn_implementation("eager")
    with torch.no_grad(), m.in_force():
        logits = m.model(input_ids=TOKENS[:1], use_cache=False).logits
        assert (logits - eager(input_ids=TOKENS[:1], use_cache=False).logits).abs().max() < 1e-5
    documents = torch.tensor([[1] * 13 + [2] * 24])
    for packed in (None, documents)[: 1 if family == "glm5_next" else 2]:
        picked.clear()
        pattern = m.record(TOKENS[:1], {"selection_distance"}, packed, rows=[9, 12, 30])["selection_distance"]
        first = torch.tensor([0, 0, 0 if packed is None else 13])
        row = torch.tensor([9, 12, 30])
        keys = picked[0][0, row].long()
        seen = (keys >= first[:, None]) & (keys <= row[:, None])
        expected = ((row[:, None] - keys) * seen).sum(-1) / seen.sum(-1)
        assert float(pattern.total[:, 0, 0].sum()) == pytest.approx(float(expected.sum()), rel=1e-6)


def test_an_indexer_that_picks_by_lot_among_equal_scores_is_asked_once_and_followed():
    model, picked = tied("deepseek_v32")
    m, generator = open_model(model), torch.Generator().manual_seed(0)

    def by_lot(hidden, _, __, mask, *___, **____):
        lots = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1)
        return lots.topk(SELECTED, dim=-1).indices.int()

    for layer in model.model.layers:
        layer.self_attn.indexer.forward = by_lot
    for _ in range(2):
        picked.clear()
        patterns = m.patterns(TOKENS[:1])
        assert len(picked) == len(patterns) == 2
        for indices, pattern in zip(picked, patterns.values(), strict=True):
            seen = torch.zeros(37, 37, dtype=torch.bool).scatter_(1, indices[0].long(), True).tril()
            assert torch.equal(pattern > 0, seen.expand(4, -1, -1))


def test_keys_that_are_entries_of_many_tokens_are_refused_and_where_their_weights_are_is_true():
    config = tiny_config("deepseek_v4")
    config.compress_rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(WorkbenchError, match=r"to entries that stand for many tokens each.*output_attentions=True"):
        open_model(model)
    with torch.no_grad():
        attentions = model(input_ids=TOKENS[:, :20], output_attentions=True, use_cache=False).attentions
    entries = [20 // config.compress_rates[kind] for kind in config.layer_types]
    assert [weights.shape[-1] for weights in attentions] == [20 + n for n in entries]
