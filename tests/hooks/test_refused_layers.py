"""A model that cannot be recorded is refused by what it does, in a sentence that says what to do."""

import copy
import re

import pytest
import torch
from torch import nn

from tests import causal_types
from tests.families import tiny
from workbench.heads import WorkbenchError
from workbench.hooks import open_model
from workbench.loading.refusals import refuse_other_models

REASONS = {
    "hrm_text": r"runs its layers several times a pass \(HrmTextAttention of layer 0 ran \d times\)",
    "reformer": r"LocalSelfAttention attends inside of chunks of tokens",
    "xlnet": r"not multiplied with the values in one product",
    "prophetnet": r"not multiplied with the values in one product",
    "cpmant": r"attends to other keys than the whole past",
    "xmod": r"set_default_language.* set it and pass the model in memory to open_model",
}


@pytest.mark.parametrize("model_type", REASONS)
def test_the_sentence_says_what_the_model_does_and_the_next_step(model_type):
    with pytest.raises(WorkbenchError, match=REASONS[model_type]) as refused:
        open_model(causal_types.tiny(model_type))
    assert re.search(r"[Ll]eave this model out", str(refused.value))
    assert "unknown class" not in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("model_type", ["cpmant", "hrm_text", "prophetnet", "xlnet"])
def test_a_refused_model_returns_the_probabilities_that_its_sentence_names(model_type):
    model = causal_types.tiny(model_type)
    with pytest.raises(WorkbenchError, match="attn_implementation='eager' and output_attentions=True"):
        open_model(model)
    model.set_attn_implementation("eager")
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        attentions = model(input_ids=tokens, output_attentions=True, use_cache=False).attentions
    assert len(attentions) >= 2
    for probabilities in attentions:
        assert probabilities.shape == (1, 4, 6, 6)


def test_attention_of_several_softmaxes_that_no_reader_knows_is_refused():
    model = causal_types.tiny("diffllama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = type("OtherDifference", (type(layer.self_attn),), {})
    with pytest.raises(
        WorkbenchError, match=r"OtherDifference\) attend more than once per pass: its heads have several"
    ):
        open_model(model)


def test_a_model_of_several_transformers_is_refused_by_its_parts():
    with pytest.raises(WorkbenchError, match=r"several transformers \(\w+_config, .*Leave this model out"):
        refuse_other_models(causal_types.tiny_config("blt"), "BltForCausalLM")


def test_a_model_of_another_family_that_runs_a_layer_twice_gets_the_sentence_too():
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, **kwargs):
            return self.layer(self.layer(x, **kwargs), **kwargs)

    model = copy.deepcopy(tiny("llama"))
    model.model.layers[1] = Twice(model.model.layers[1])
    with pytest.raises(WorkbenchError, match=r"several times a pass \(LlamaAttention of layer 1 ran 2 times\)"):
        open_model(model)


def test_a_model_with_a_language_set_opens_as_its_refusal_says():
    model = copy.deepcopy(causal_types.tiny("xmod"))
    model.set_default_language(next(iter(model.config.languages)))
    assert [layer.kind for layer in open_model(model).layers] == ["full", "full"]
