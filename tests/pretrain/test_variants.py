"""The four models before training: their sizes, their layers, their initialisation."""

import pytest
import torch

from workbench.pretrain import VARIANTS, recipe
from workbench.pretrain.variants import WINDOW, build_model, variant_config

LAYERS = {
    "full": ("LlamaForCausalLM", 120_128),
    "sliding": ("MistralForCausalLM", 120_128),
    "hybrid": ("CwmForCausalLM", 120_128),
    "linear": ("MiniMaxForCausalLM", 186_112),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_the_stock_class_of_the_stated_size(variant):
    model = build_model(recipe(variant))
    assert (type(model).__name__, sum(p.numel() for p in model.parameters())) == LAYERS[variant]
    assert model.training
    assert type(model).__module__.startswith("transformers.")


def test_layer_kinds_and_windows_are_what_the_variants_are_named_after():
    assert variant_config("sliding").sliding_window == WINDOW == variant_config("hybrid").sliding_window
    assert variant_config("hybrid").layer_types == ["sliding_attention", "full_attention"]
    assert variant_config("linear").layer_types == ["full_attention", "linear_attention", "full_attention"]
    assert not hasattr(variant_config("full"), "sliding_window")


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_untrained_model_predicts_every_token_alike_and_adds_nothing_to_its_embeddings(variant):
    model = build_model(recipe(variant)).eval()
    tokens = torch.arange(40)[None]
    seen = model(tokens, output_hidden_states=True)
    assert (seen.logits == 0).all()
    if variant != "linear":  # MiniMax norms what it carries on
        assert torch.equal(seen.hidden_states[0], seen.hidden_states[-2])


def test_embeddings_share_one_vector_and_matrices_keep_their_input_size():
    weights = dict(build_model(recipe("full")).named_parameters())
    embeddings = weights["model.embed_tokens.weight"]
    assert embeddings.var(0).mean().item() == pytest.approx(1.0, abs=0.1)
    assert embeddings.mean(0).std().item() == pytest.approx(0.5, abs=0.15)
    matrix = weights["model.layers.0.self_attn.q_proj.weight"]
    assert matrix.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_a_seed_chooses_the_weights_whatever_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(recipe("linear")).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = build_model(recipe("linear")).state_dict(), build_model(recipe("linear", seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
