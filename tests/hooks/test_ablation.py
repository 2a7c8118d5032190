"""Another output in a head's place: of linear and softmax heads, from another input, and what an answer needs."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import ModuleList

from tests.families import random_tokens
from tests.families import tiny as tiny_softmax
from tests.linear_families import CONFIGS, tiny
from workbench import Head, KVHead, WorkbenchError, open_model, patch_effects, probes

PROJECTIONS = ("out_proj", "o_proj")


def projection(model, layer):
    """The output projection of a linear layer, found by its class's name and the block it is in."""
    mixers = {"Lightning", "Mixer", "DeltaNet", "DeltaAttention", "MambaLayer", "ShortConv", "xLSTMLayer"}
    block = next(x for x in model.modules() if isinstance(x, ModuleList))[layer]
    for module in block.modules():
        if any(name in type(module).__name__ for name in mixers):
            return next(getattr(module, name) for name in PROJECTIONS if hasattr(module, name))
    raise AssertionError(f"no linear mixer in layer {layer}")


@contextmanager
def watching(module):
    seen = {}
    handle = module.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].clone()))
    yield seen
    handle.remove()


def logits(m, tokens, mask=None):
    with torch.no_grad():
        return m.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_a_zeroed_linear_head_is_gone_from_the_projection_and_no_other_is(family):
    m, tokens = open_model(tiny(family)), random_tokens(2, 29)
    info = next(i for i in m.layers if i.kind == "linear")
    out, head = projection(m.model, info.index), info.n_heads // 2
    plain = logits(m, tokens)
    with watching(out) as before:
        logits(m, tokens)
    with m.ablate([Head(info.index, head)], mixer=info.mixer), watching(out) as after:
        changed = logits(m, tokens)
    d = before["x"].shape[-1] // info.n_heads
    expected = before["x"].clone()
    expected[..., head * d : (head + 1) * d] = 0
    assert torch.equal(after["x"], expected)
    assert (changed - plain).abs().max() > 1e-5
    assert torch.equal(logits(m, tokens), plain)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_mean_ablated_linear_head_says_the_same_at_every_position(family):
    m, tokens, reference = open_model(tiny(family)), random_tokens(2, 21), random_tokens(3, 30, seed=5)
    info = next(i for i in m.layers if i.kind == "linear")
    out = projection(m.model, info.index)
    with watching(out) as seen:
        logits(m, reference)
    head, d = info.n_heads // 2, seen["x"].shape[-1] // info.n_heads
    own = slice(head * d, (head + 1) * d)
    expected = seen["x"][..., own].mean((0, 1))
    with m.ablate([Head(info.index, head)], "mean", reference=reference, mixer=info.mixer), watching(out) as seen:
        logits(m, tokens)
    assert torch.allclose(seen["x"][..., own], expected.expand(2, 21, d), atol=1e-5)


def test_the_mean_of_a_padded_batch_is_over_its_tokens():
    m, tokens = open_model(tiny("minimax")), random_tokens(2, 21)
    mask = (torch.arange(21) >= torch.tensor([0, 9])[:, None]).long()
    out = projection(m.model, 0)
    with watching(out) as before:
        logits(m, tokens, mask)
    with m.ablate([Head(0, 1)], "mean"), watching(out) as after:
        logits(m, tokens, mask)
    d = before["x"].shape[-1] // 4
    expected = before["x"][..., d : 2 * d][mask.bool()].mean(0)
    assert torch.allclose(after["x"][0, 0, d : 2 * d], expected, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "minimax"])
def test_all_heads_patched_in_every_layer_say_what_the_source_says(family):
    """With every mixer's heads from the source, what is left of the input is its own embedding and MLPs."""
    m, tokens, source = open_model(tiny(family)), random_tokens(2, 25), random_tokens(2, 25, seed=8)
    for info in m.layers:
        heads = [Head(info.index, h) for h in range(info.n_heads)]
        from_source = m.head_outputs(heads, source, mixer=info.mixer)
        with m.patch(heads, source, mixer=info.mixer):
            inside = m.head_outputs(heads, tokens, mixer=info.mixer)
        for head in heads:
            assert torch.equal(inside[head], from_source[head])
    with m.patch([Head(1, 0)], tokens):
        assert (logits(m, tokens) - logits(open_model(tiny(family)), tokens)).abs().max() < 5e-5


def test_a_patch_composes_with_other_interventions_and_the_inner_one_holds():
    m, tokens = open_model(tiny("qwen3_next")), random_tokens(1, 20)
    head = Head(0, 1)
    plain = m.head_outputs([head], tokens)[head]
    with m.patch([head], random_tokens(1, 20, seed=4)):
        assert not torch.equal(m.head_outputs([head], tokens)[head], plain)
        with m.ablate([head]), m.ablate([Head(1, 2)]):
            found = m.head_outputs([head, Head(1, 2)], tokens)
            assert bool((found[head] == 0).all())
            assert bool((found[Head(1, 2)] == 0).all())
        assert not bool((m.head_outputs([head], tokens)[head] == 0).all())
    assert torch.equal(m.head_outputs([head], tokens)[head], plain)
    assert sum(len(x._forward_pre_hooks) for x in m.model.modules()) == 0


def test_one_source_sequence_serves_a_batch_and_another_length_is_refused():
    m, tokens = open_model(tiny("minimax")), random_tokens(3, 20)
    for head in (Head(0, 1), Head(1, 1)):
        with m.patch([head], random_tokens(1, 20, seed=4)):
            out = m.head_outputs([head], tokens)[head]
            assert torch.equal(out[0], out[2])
        with (
            m.patch([head], random_tokens(2, 20)),
            pytest.raises(WorkbenchError, match="taken from 2 × 20 tokens and now 3 × 20 tokens run"),
        ):
            logits(m, tokens)
        with (
            m.patch([head], random_tokens(1, 19)),
            pytest.raises(WorkbenchError, match="taken from 1 × 19 tokens and now 3 × 20"),
        ):
            logits(m, tokens)


def test_the_patched_head_that_carries_the_answer_is_the_one_that_does():
    """Brute force: the loss with a head's output exchanged by hand, less the loss without."""
    model = tiny_softmax("llama")
    m = open_model(model)
    probe = probes.key_value(97, n_pairs=6, n_queries=2, gap=4, n_sequences=4)
    source = probes.corrupted(97, probe)
    effects = {(e.layer, e.head): e.effect_nats for e in patch_effects(m, probe, source)}
    assert len(effects) == 8

    def loss(head=None, other=None):
        handles = []
        if head is not None:
            o = model.model.layers[head[0]].self_attn.o_proj
            mine = slice(head[1] * 16, head[1] * 16 + 16)

            def put(_, args):
                x = args[0].clone()
                x[..., mine] = other[..., mine]
                return (x,)

            handles.append(o.register_forward_pre_hook(put))
        out = logits(m, probe.tokens).log_softmax(-1)
        for handle in handles:
            handle.remove()
        s, r = probe.answer_rows.unbind(-1)
        return float(-out[s, r, probe.tokens[s, r + 1]].mean())

    plain = loss()
    for layer, head in effects:
        with watching(model.model.layers[layer].self_attn.o_proj) as seen:
            logits(m, source)
        assert effects[layer, head] == pytest.approx(loss((layer, head), seen["x"]) - plain, abs=2e-5)


def test_effects_of_linear_heads_are_measured_too():
    m = open_model(tiny("kimi_linear"))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    effects = patch_effects(m, probe, probes.corrupted(97, probe), [Head(0, 1), Head(1, 3)])
    assert [(e.layer, e.head, e.mixer) for e in effects] == [(0, 1, "kda"), (1, 3, "softmax")]
    assert all(abs(e.effect_nats) > 0 for e in effects)


def test_patched_heads_are_a_table_with_intervals_and_accuracies_and_the_answers_are_taken_out_by_default():
    m = open_model(tiny_softmax("llama"))
    probe = probes.key_value(m, n_pairs=6, n_queries=2, gap=4, n_sequences=6)
    source = probes.corrupted(m, probe)
    effects = patch_effects(m, probe)
    assert effects == patch_effects(m, probe, source)
    table, before = effects.table, m.answers(probe)
    assert table["head_name"].tolist() == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    row = table.set_index("head_name").loc["L1H2"]
    with m.patch([Head(1, 2)], m.head_outputs([Head(1, 2)], source)):
        after = m.answers(probe)
    assert (before.loss, before.accuracy) == (float(before.loss_nats.mean()), float(before.is_right.float().mean()))
    assert row["effect_nats"] == after.loss - before.loss
    assert row["accuracy_change"] == after.accuracy - before.accuracy
    by_sequence = (after.loss_nats - before.loss_nats).reshape(6, -1).mean(1)
    assert by_sequence.min() <= row["ci_lo"] < row["effect_nats"] < row["ci_hi"] <= by_sequence.max()
    few = patch_effects(m, probes.part(probe, 0, 4), source[:4], ["L0H0"])
    assert few.table[["ci_lo", "ci_hi"]].isna().all(axis=None)


def test_a_corrupted_probe_differs_where_the_answers_stand_and_nowhere_else():
    probe = probes.key_value(97, n_pairs=6, n_queries=2, gap=4, n_sequences=4)
    tokens = probes.corrupted(97, probe)
    places = {(s, k) for s, _, k in probe.target_cells.tolist()}
    assert {tuple(p) for p in (tokens != probe.tokens).nonzero().tolist()} == places
    assert torch.equal(tokens, probes.corrupted(97, probe))
    assert not torch.equal(tokens, probes.corrupted(97, probe, seed=1))


@pytest.mark.parametrize(
    ("enter", "message"),
    [
        (lambda m: m.ablate([Head(0, 1)], "uniform"), "L0H1 is a linear head.*'uniform' is for softmax heads"),
        (lambda m: m.patch([Head(0, 9)], random_tokens(1, 9)), "layer 0 has no head 9"),
        (lambda m: m.patch([Head(0, 1)], {}), "the source has no outputs of L0H1; take them with head_outputs"),
        (lambda m: m.restrict([KVHead(0, 0)], 4), "layer 0 is lightning attention, which has no window to set"),
    ],
)
def test_what_cannot_be_replaced_is_refused(enter, message):
    with pytest.raises(WorkbenchError, match=message), enter(open_model(tiny("minimax"))):
        pass


def test_answers_of_tokens_without_any_are_refused():
    m = open_model(tiny("minimax"))
    with pytest.raises(WorkbenchError, match="has no answers; expected one with answer_rows"):
        m.answers(probes.token_sequences(random_tokens(1, 9)[:, :1]))
