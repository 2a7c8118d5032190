"""Interventions are exact: against eager attention under an explicit mask for every head, in every family."""

import pytest
import torch

from tests.families import SOFTMAX, random_tokens, tiny
from tests.more_families import MORE_CONFIGS
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.kernels import Far

WINDOWS = {KVHead(0, 0): (5, 2), KVHead(1, 1): (3, 0)}


def attention_modules(model):
    return {m.layer_idx: m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int) and has_output(m)}


def has_output(module):
    return any(hasattr(module, name) for name in ("o_proj", "c_proj", "dense")) and hasattr(module, "config")


def eager_logits(family, tokens, mask=None, *, windows=(), zeroed=()):
    """Logits of eager attention with an extra mask for each head, and head outputs zeroed before the projection."""
    model = tiny(family, "eager")
    n_heads = model.config.num_attention_heads
    n_kv = {info.index: info.n_kv_heads for info in open_model(tiny(family)).layers}
    t = tokens.shape[1]
    first = torch.zeros(len(tokens), 1, 1) if mask is None else mask.int().argmax(-1)[:, None, None]
    i, j = torch.arange(t)[None, :, None], torch.arange(t)[None, None, :]
    handles = []
    for layer, module in attention_modules(model).items():
        extra = torch.zeros(len(tokens), n_heads, t, t)
        for head, window, sink in windows:
            if head.layer == layer:
                group = n_heads // n_kv[layer]
                hidden = (i - j >= window) & (j >= first + sink)
                extra[:, head.kv_head * group : (head.kv_head + 1) * group].masked_fill_(hidden[:, None], -1e30)

        def widen(_, args, kwargs, extra=extra):
            return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + extra}

        handles.append(module.register_forward_pre_hook(widen, with_kwargs=True))
        out = next(getattr(module, name) for name in ("o_proj", "c_proj", "dense") if hasattr(module, name))
        mine = [h.head for h in zeroed if h.layer == layer]

        def silence(_, args, mine=mine):
            x = args[0].clone()
            d = x.shape[-1] // n_heads
            for h in mine:
                x[..., h * d : (h + 1) * d] = 0
            return (x, *args[1:])

        handles.append(out.register_forward_pre_hook(silence))
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def restricted(m, windows=WINDOWS):
    from contextlib import ExitStack

    stack = ExitStack()
    for head, (window, sink) in windows.items():
        stack.enter_context(m.restrict([head], window, sink))
    return stack


def logits(m, tokens, mask=None):
    with torch.no_grad():
        return m.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", [*SOFTMAX, *MORE_CONFIGS])
def test_restricted_heads_equal_eager_attention_under_an_explicit_mask(family):
    tokens = random_tokens(2, 41)
    m = open_model(tiny(family))
    kv = {head: w for head, w in WINDOWS.items() if head.kv_head < m.layers[0].n_kv_heads}
    expected = eager_logits(family, tokens, windows=[(h, w, s) for h, (w, s) in kv.items()])
    plain = logits(m, tokens)
    with restricted(m, kv):
        changed = logits(m, tokens)
    assert (changed - expected).abs().max() < 5e-5
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(logits(m, tokens), plain)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "cwm"])
def test_the_sinks_of_padded_sequences_are_their_own_first_tokens(family):
    tokens = random_tokens(2, 41)
    mask = (torch.arange(41) >= torch.tensor([0, 9])[:, None]).long()
    m = open_model(tiny(family))
    expected = eager_logits(family, tokens, mask, windows=[(h, w, s) for h, (w, s) in WINDOWS.items()])
    with restricted(m):
        changed = logits(m, tokens, mask)
    assert ((changed - expected)[mask.bool()]).abs().max() < 1e-4


@pytest.mark.parametrize("family", [*SOFTMAX, *MORE_CONFIGS])
def test_zeroed_heads_equal_eager_attention_without_their_output(family):
    tokens = random_tokens(2, 33)
    m = open_model(tiny(family))
    heads = [Head(0, 3), Head(1, 0)]
    expected = eager_logits(family, tokens, zeroed=heads)
    with m.ablate(heads):
        changed = logits(m, tokens)
    assert (changed - expected).abs().max() < 5e-5
    assert (changed - logits(m, tokens)).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_interventions_compose(family):
    tokens = random_tokens(2, 33)
    m = open_model(tiny(family))
    expected = eager_logits(family, tokens, windows=[(KVHead(0, 0), 5, 2)], zeroed=[Head(1, 2)])
    with m.restrict([KVHead(0, 0)], 5, 2), m.ablate([Head(1, 2)]):
        assert (logits(m, tokens) - expected).abs().max() < 5e-5
    with m.restrict([KVHead(0, 0)], 9, 1), m.restrict([KVHead(0, 0)], 4, 3):
        both = logits(m, tokens)
    twice = eager_logits(family, tokens, windows=[(KVHead(0, 0), 9, 1), (KVHead(0, 0), 4, 3)])
    assert (both - twice).abs().max() < 5e-5


def test_a_restricted_heads_scores_stay_inside_its_window():
    m = open_model(tiny("llama"))
    tokens = random_tokens(2, 40)
    before = score(m, ["far_mass", "mean_distance"], tokens, far=Far(4))
    with m.restrict([KVHead(1, 0)], window=4):
        after = score(m, ["far_mass", "mean_distance"], tokens, far=Far(4))
        row = m.pattern(tokens[0], 1, 1)[30]
    mine = (after.layer == 1) & (after.kv_head == 0)
    assert after[mine & (after.detector == "far_mass")].score.eq(0).all()
    assert after[mine & (after.detector == "mean_distance")].score.lt(3).all()
    assert after[after.layer == 0].score.equals(before[before.layer == 0].score)
    assert row[:27].eq(0).all()
    assert row.sum() == pytest.approx(1, abs=1e-6)


def test_a_window_as_long_as_the_context_changes_nothing():
    m = open_model(tiny("cwm"))
    tokens = random_tokens(2, 40)
    with m.restrict([KVHead(1, 0), KVHead(1, 1)], window=40):
        assert torch.allclose(logits(m, tokens), logits(open_model(tiny("cwm")), tokens), atol=1e-5)


def test_a_uniform_head_weighs_every_allowed_key_alike_and_no_sink():
    m = open_model(tiny("gpt_oss"))
    tokens = random_tokens(1, 20)[0]
    with m.ablate([Head(0, 1), Head(1, 1)], "uniform"):
        full, sliding = m.pattern(tokens, 1, 1), m.pattern(tokens, 0, 1)
    assert torch.allclose(full[19], torch.full((20,), 1 / 20))
    assert torch.allclose(sliding[19, 12:], torch.full((8,), 1 / 8))
    with m.ablate([Head(1, 1)], "uniform"), m.restrict([KVHead(1, 0)], window=5):
        assert torch.allclose(m.pattern(tokens, 1, 1)[19, 15:], torch.full((5,), 1 / 5))


def test_a_mean_ablated_head_says_the_same_everywhere():
    model = tiny("llama")
    m = open_model(model)
    tokens, reference = random_tokens(2, 21), random_tokens(3, 30, seed=5)
    seen = {}
    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    logits(m, reference)
    expected = seen["x"][..., 32:48].mean((0, 1))
    with m.ablate([Head(1, 2)], "mean", reference=reference):
        logits(m, tokens)
    assert torch.allclose(seen["x"][..., 32:48], expected.expand(2, 21, 16), atol=1e-5)
    logits(m, tokens)
    own = seen["x"][..., 32:48].mean((0, 1))
    with m.ablate([Head(1, 2)], "mean"):
        logits(m, tokens)
    assert torch.allclose(seen["x"][..., 32:48], own.expand(2, 21, 16), atol=1e-5)
    handle.remove()


def test_generation_inside_a_block_is_restricted_too():
    m = open_model(tiny("llama"))
    tokens = random_tokens(1, 30)
    with m.restrict([KVHead(0, 0), KVHead(0, 1), KVHead(1, 0), KVHead(1, 1)], window=3):
        made = m.model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=2)
        step = logits(m, made[:, :-1])[0, -1].argmax()
    assert made[0, -1] == step


def test_sampled_rows_see_the_intervention():
    m = open_model(tiny("llama"))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    with m.restrict([KVHead(0, 0)], 5), m.ablate([Head(1, 0)]):
        full = m.record(probe, {"answer_mass", "entropy"})
        sampled = m.record(probe, {"answer_mass", "entropy"}, rows=12)
    assert torch.allclose(full["answer_mass"].total, sampled["answer_mass"].total, atol=1e-6)
    assert torch.allclose(full.answers.loss_nats, sampled.answers.loss_nats, atol=1e-4)


@pytest.mark.parametrize(
    ("enter", "message"),
    [
        (lambda m: m.restrict([KVHead(0, 2)], 4), "layer 0 has no key/value head 2"),
        (lambda m: m.restrict([KVHead(7, 0)], 4), "layer 7 has no key/value head 0"),
        (lambda m: m.restrict([KVHead(0, 0)], 0), "window 0, sink 0: expected a window of at least 1"),
        (lambda m: m.ablate([Head(0, 9)]), "layer 0 has no head 9"),
        (lambda m: m.ablate([Head(0, 0)], "zeroo"), "how is 'zeroo'; expected"),
    ],
)
def test_an_intervention_that_cannot_be_is_refused(enter, message):
    with pytest.raises(WorkbenchError, match=message), enter(open_model(tiny("llama"))):
        pass
