"""A model under its plan: the same logits as the intervention, generation, and gradients that training can use."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.families import CONFIGS, random_tokens, tiny
from tests.planning.plans import layers_of, plan_of
from workbench import KVHead, LinearAttention, Plan, WorkbenchError, open_model, probes

WINDOW, SINK = 6, 2
TOKENS = random_tokens(2, 40)
KEEP = {"llama": [(0, 1), (1, 0)], "gemma2": [(1, 1)], "gpt_oss": [(0, 0), (1, 1)], "minimax": [(1, 0)]}


def planned(m, keep, sink=SINK):
    return plan_of(m.layers, keep, window=WINDOW, sink=sink, model=m.name)


def own(family):
    """A model of its own, to be trained."""
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    model.load_state_dict(tiny(family).state_dict())
    return model


def logits(m, tokens=TOKENS):
    with torch.no_grad():
        return m.model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("family", KEEP)
def test_a_plan_is_the_intervention_it_was_computed_with(family, tmp_path):
    m = open_model(tiny(family))
    plan = planned(m, KEEP[family])
    plan.save(tmp_path / "plan.json")
    plain = logits(m)
    with m.restrict(plan.windowed, WINDOW, SINK):
        expected = logits(m)
    with m.apply(Plan.load(tmp_path / "plan.json")):
        assert (logits(m) - expected).abs().max() < 1e-5
    assert (expected - plain).abs().max() > 1e-3
    assert torch.equal(logits(m), plain)


# Of a full layer in each family, beside heads that are kept and windowed.
LINEAR_HEADS = {"llama": [(0, 0), (1, 1)], "gemma2": [(1, 0)], "minimax": [(1, 1)]}


@pytest.mark.parametrize("family", LINEAR_HEADS)
def test_a_plan_is_its_windows_and_its_linear_heads_at_once(family, tmp_path):
    m = open_model(tiny(family))
    forms = {KVHead(*head): LinearAttention("elu", 2.0, 0.9 ** (1 + i)) for i, head in enumerate(LINEAR_HEADS[family])}
    keep = [] if family == "llama" else KEEP[family][:1] if family == "minimax" else []
    plan = plan_of(m.layers, keep, window=WINDOW, sink=SINK, conversions=forms)
    plan.save(tmp_path / "plan.json")
    assert set(plan.windowed) | set(forms) | set(plan.keep) == {r.head for r in plan.ranking}
    with m.restrict(plan.windowed, WINDOW, SINK), m.linearize(forms):
        expected = logits(m)
    with m.restrict(plan.windowed, WINDOW, SINK):
        windows_alone = logits(m)
    with m.apply(Plan.load(tmp_path / "plan.json")):
        assert (logits(m) - expected).abs().max() < 1e-5
        assert m.interventions.forms == forms
    assert (expected - windows_alone).abs().max() > 1e-3
    assert not m.interventions.windows
    assert not m.interventions.forms


def test_a_plan_that_keeps_all_heads_changes_nothing_and_one_for_another_model_is_refused():
    m = open_model(tiny("llama"))
    with m.apply(planned(m, [(layer, h) for layer in range(2) for h in range(2)])):
        within = logits(m)
    assert torch.equal(within, logits(m))
    with pytest.raises(WorkbenchError, match="make a plan for it"), m.apply(plan_of(layers_of(m.layers[0]), [])):
        pass


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(keep=(KVHead(0, 2),)), "the plan keeps L0KV2, which its ranking does not have; make one with wb.plan"),
        (dict(keep=(KVHead(7, 0),)), "the plan keeps L7KV0"),
        (dict(conversions={KVHead(7, 0): LinearAttention()}), "the plan gives L7KV0 linear attention, which its"),
        (dict(window=0), "the plan has a window of 0"),
        (dict(keep=(), ranking=()), "the plan ranks 0 heads, which are not the 4 softmax heads of its layers"),
    ],
)
def test_a_plan_that_does_not_fit_itself_is_not_applied(change, told):
    m = open_model(tiny("llama"))
    with pytest.raises(WorkbenchError, match=told), m.apply(replace(planned(m, [(0, 0)]), **change)):
        pass
    m.record(random_tokens(1, 9), {"sink_mass"})


@pytest.mark.parametrize("padding", [0, 3, 36])
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_what_is_generated_is_what_the_windowed_model_says_token_by_token(family, padding):
    """Also where a sliding layer's cache has let the first tokens go, and behind padding of any length."""
    m = open_model(tiny(family))
    mask = torch.ones_like(TOKENS)
    mask[1, :padding] = 0
    with m.apply(planned(m, KEEP[family])):
        found = m.model.generate(
            TOKENS, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=2
        )
        for sequence, first in ((0, 0), (1, padding)):
            expected = TOKENS[sequence : sequence + 1, first:]
            for _ in range(8):
                expected = torch.cat([expected, logits(m, expected)[:, -1:].argmax(-1)], -1)
            assert torch.equal(found[sequence : sequence + 1, first:], expected)


def dense_mask(plan, layer, n_heads, n_tokens):
    """What each query head of a layer may see, as numbers to add to its scores."""
    group = n_heads // 2
    i, j = torch.arange(n_tokens)[:, None], torch.arange(n_tokens)
    seen = torch.stack([j <= i] * n_heads)
    for head in plan.windowed:
        if head.layer == layer:
            mine = slice(head.kv_head * group, (head.kv_head + 1) * group)
            seen[mine] &= (i - j < plan.window) | (j < plan.sink)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None]


@contextlib.contextmanager
def masked_by_hand(model, plan):
    """transformers' own eager attention with a dense four-dimensional mask per layer."""
    handles = []
    for layer, block in enumerate(model.model.layers):
        mask = dense_mask(plan, layer, model.config.num_attention_heads, TOKENS.shape[1])

        def put(_, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(block.self_attn.register_forward_pre_hook(put, with_kwargs=True))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(before)
    for handle in handles:
        handle.remove()


def loss_of(model):
    return cross_entropy(model(input_ids=TOKENS, use_cache=False).logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


@pytest.mark.parametrize("sink", [0, 2])
def test_every_gradient_is_that_of_an_eager_model_with_a_dense_mask(sink):
    model = own("llama")
    m = open_model(model)
    plan = planned(m, KEEP["llama"], sink)
    found = []
    for block in (m.apply(plan), masked_by_hand(model, plan)):
        model.zero_grad()
        with block:
            loss = loss_of(model)
            loss.backward()
        found.append((float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for name, gradient in found[1][1].items():
        assert gradient.abs().max() > 0
        assert (found[0][1][name] - gradient).abs().max() < 1e-4, name


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_gradients_are_slopes_where_there_are_sinks_and_softcaps(family):
    model = own(family)
    m = open_model(model)
    names = ["model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight"]
    if family == "gpt_oss":
        names.append("model.layers.1.self_attn.sinks")
    parameters = dict(model.named_parameters())
    eps = 2e-2
    with m.apply(planned(m, KEEP[family])):
        loss_of(model).backward()
        for name in names:
            p, gradient = parameters[name], parameters[name].grad
            at = tuple(int(i) for i in torch.unravel_index(gradient.abs().argmax(), gradient.shape))
            with torch.no_grad():
                middle = float(p[at])
                losses = []
                for by in (eps, -eps):
                    p[at] = middle + by
                    losses.append(float(loss_of(model)))
                p[at] = middle
            slope = (losses[0] - losses[1]) / (2 * eps)
            assert float(gradient[at]) == pytest.approx(slope, rel=3e-2, abs=1e-4), name


def test_training_under_a_plan_brings_the_windowed_models_loss_down():
    model = own("llama").train()
    m = open_model(model)
    plan = planned(m, [(1, 0)])
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    with m.apply(plan):
        for _ in range(8):
            loss = loss_of(model)
            optimiser.zero_grad()
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimiser.step()
            losses.append(float(loss.detach()))
        after = float(loss_of(model).detach())
    assert after < 0.8 * losses[0]
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert model.training


def test_a_plan_holds_for_recording_and_answers():
    m = open_model(tiny("llama"))
    probe = probes.copy_needle(97, 20, length=36, n_sequences=3)
    plan = planned(m, [(0, 0), (0, 1)], sink=0)
    assert plan.windowed == (KVHead(1, 0), KVHead(1, 1))
    with m.apply(plan):
        distance = m.record(probe, {"mean_distance"})["mean_distance"]
        inside = m.answers(probe).loss_nats
    assert (distance.total / distance.rows)[:, 1].max() < WINDOW
    assert not torch.equal(inside, m.answers(probe).loss_nats)
