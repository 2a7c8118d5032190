"""Opening a model finds a layer that does not do what would be recorded of it, and refuses no healthy one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from tests.families import CONFIGS, random_tokens, tiny
from tests.more_families import MORE_CONFIGS
from tests.older_families import OLDER_CONFIGS
from workbench import WorkbenchError, open_model
from workbench.hooks.taps import attention_call


def with_attention(family, kind, method):
    """A copy of a model of which layer 1 has another forward."""
    model = copy.deepcopy(tiny(family))
    module = next(m for m in model.modules() if isinstance(m, kind) and m.layer_idx == 1)
    module.forward = method.__get__(module)
    return model


# Faults


def test_a_layer_that_ignores_what_its_attention_gives_is_refused():
    def forward(self, hidden_states, **kwargs):
        out, weights = type(self).forward(self, hidden_states, **kwargs)
        v = self.v_proj(hidden_states).repeat_interleave(2, -1)
        return self.o_proj(v.cumsum(1)) + 0 * out.nan_to_num(), weights

    model = with_attention("llama", modeling_llama.LlamaAttention, forward)
    with pytest.raises(WorkbenchError, match=r"layer 1 \(LlamaAttention\) go on with something else than"):
        open_model(model)


@pytest.mark.parametrize("weights", ["random", "zero"])
def test_an_older_layer_that_ignores_its_product_is_refused(weights):
    def attend(self, query, key, value, attention_mask=None):
        out, weights = type(self)._attn(self, query, key, value, attention_mask)
        return value + 0 * out.nan_to_num(), weights

    model = copy.deepcopy(tiny("gptj"))
    model.transformer.h[1].attn._attn = attend.__get__(model.transformer.h[1].attn)
    if weights == "zero":
        for parameter in model.parameters():
            parameter.data.zero_()
    with pytest.raises(WorkbenchError, match=r"layer 1 \(GPTJAttention\) go on with something else than"):
        open_model(model)


@pytest.mark.parametrize(
    "unnormalised",
    [
        lambda scores: 2 * functional.softmax(scores, -1),
        lambda scores: functional.softmax(scores, -1).square(),
        lambda scores: functional.softmax(scores, -2),
    ],
)
def test_an_older_layer_whose_weights_are_no_probabilities_is_refused(unnormalised):
    def attend(self, query, key, value, attention_mask=None):
        weights = unnormalised(query.float() @ key.float().transpose(-1, -2) / self.scale_attn + attention_mask)
        return torch.matmul(weights, value), weights

    model = copy.deepcopy(tiny("gptj"))
    model.transformer.h[1].attn._attn = attend.__get__(model.transformer.h[1].attn)
    with pytest.raises(WorkbenchError, match="GPTJBlock of layer 1 multiplies its values with something else"):
        open_model(model)


def test_an_older_layer_with_two_softmaxes_is_refused():
    def attend(self, query, key, value, attention_mask=None):
        scores = query.float() @ key.float().transpose(-1, -2) / self.scale_attn + attention_mask
        once, twice = functional.softmax(scores, -1), functional.softmax(scores / 2, -1)
        return torch.matmul(once - 0.5 * twice, value), once

    model = copy.deepcopy(tiny("gptj"))
    model.transformer.h[0].attn._attn = attend.__get__(model.transformer.h[0].attn)
    with pytest.raises(WorkbenchError, match="GPTJBlock of layer 0 makes attention probabilities that are not"):
        open_model(model)


def test_an_older_layer_that_attends_twice_is_refused():
    def attend(self, query, key, value, attention_mask=None):
        first, weights = type(self)._attn(self, query, key, value, attention_mask)
        second, _ = type(self)._attn(self, key, query, value, attention_mask)
        return first - second, weights

    model = copy.deepcopy(tiny("gptj"))
    model.transformer.h[0].attn._attn = attend.__get__(model.transformer.h[0].attn)
    with pytest.raises(WorkbenchError, match=r"layer 0 \(GPTJAttention\) attend more than once"):
        open_model(model)


def test_probabilities_that_do_not_sum_to_one_are_refused(monkeypatch):
    exact = attention_call.attention_statistics

    def doubled(*args, **kwargs):
        out, statistics = exact(*args, **kwargs)
        return out, replace(statistics, mass=2 * statistics.mass)

    monkeypatch.setattr(attention_call, "attention_statistics", doubled)
    for family in ("llama", "gpt_oss"):
        with pytest.raises(WorkbenchError, match=r"the probabilities of layer 0 .*, layer 1 .* do not sum to 1"):
            open_model(tiny(family))


def test_a_layer_that_sees_later_tokens_is_refused(monkeypatch):
    def both_ways(config, inputs_embeds, attention_mask, **kwargs):
        from transformers.masking_utils import create_bidirectional_mask

        return create_bidirectional_mask(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", both_ways)
    with pytest.raises(
        WorkbenchError, match=r"layer 0 \(LlamaAttention\), layer 1 \(LlamaAttention\) see later tokens"
    ):
        open_model(tiny("llama"))
    monkeypatch.setattr(modeling_gptj, "create_causal_mask", both_ways)
    with pytest.raises(WorkbenchError, match="GPTJBlock of layer 0 attends to other keys than the whole past"):
        open_model(tiny("gptj"))


# Health


@pytest.mark.parametrize("family", [*CONFIGS, *MORE_CONFIGS, *OLDER_CONFIGS])
def test_every_family_is_opened_whatever_its_weights(family):
    open_model(tiny(family))
    model = copy.deepcopy(tiny(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "wte" not in name:
                parameter.zero_()
    assert open_model(model).layers == open_model(tiny(family)).layers
    model = in_bfloat16(copy.deepcopy(tiny(family)))
    assert open_model(model).layers == open_model(tiny(family)).layers


def in_bfloat16(model):
    """As from_pretrained makes it: some families keep modules in float32."""
    model.bfloat16()
    for name, parameter in model.named_parameters():
        if any(kept in name for kept in model._keep_in_fp32_modules_strict or ()):
            parameter.data = parameter.data.float()
    return model


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_the_first_step_of_a_pretraining_run_is_opened(family):
    """Every weight zero: queries and keys of zero, and an output projection that lets nothing through."""
    model = copy.deepcopy(tiny(family))
    for parameter in model.parameters():
        parameter.data.zero_()
    entropy = open_model(model).record(random_tokens(1, 8), {"entropy_per_row"}).per_row["entropy_per_row"]
    assert torch.allclose(entropy[0, 0, 0], torch.arange(1, 9).log(), atol=1e-6)


def test_the_check_leaves_the_model_as_it_came():
    for family in ("llama", "gptj", "falcon_alibi"):
        model = tiny(family)
        hooks = [len(m._forward_hooks) for m in model.modules()]
        with torch.no_grad():
            before = model(input_ids=random_tokens(1, 9)).logits
            open_model(model)
            assert torch.equal(model(input_ids=random_tokens(1, 9)).logits, before)
        assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_opening_costs_two_short_passes():
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=24, num_attention_heads=4
    )
    model, passes = LlamaForCausalLM(config).eval(), []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    open_model(model)
    handle.remove()
    assert passes == [(1, 3), (1, 3)]
