"""Massive activations: found where they were put, and the numbers of the model's own hidden states."""

from dataclasses import replace

import pytest
import torch

from tests.families import random_tokens, tiny
from tests.planted import BOS, WIDTH, PlantedModel, current_token_head, uniform_head
from workbench.detectors import massive_activations
from workbench.hooks import open_model


def test_a_planted_activation_is_found_at_its_token_and_channel_from_its_layer_on():
    writer = current_token_head()
    ov = torch.zeros(WIDTH, WIDTH)
    ov[BOS, 3] = 2000.0  # what the first token says to its own residual stream
    m = open_model(PlantedModel([[uniform_head()], [replace(writer, ov=ov)], [uniform_head()]]))
    tokens = torch.cat([torch.zeros(2, 1, dtype=torch.long), torch.randint(1, 50, (2, 11))], 1)
    layers = massive_activations(m, tokens).set_index("layer")
    assert layers.n_massive.tolist() == [0, 1, 1]
    assert layers.largest.tolist() == pytest.approx([1, 2000, 2000])
    assert layers.position[1] == 0
    assert layers.channel[1] == 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_magnitudes_are_those_of_the_models_own_hidden_states(family):
    tokens = random_tokens(3, 20)
    model = tiny(family)
    m = open_model(model)
    before = [list(module._forward_hooks) for module in model.modules()]
    layers = massive_activations(m, tokens, above=0.5, times_median=2).set_index("layer")
    assert [list(module._forward_hooks) for module in model.modules()] == before
    with torch.no_grad():
        hidden = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states[1].abs()
    flat = hidden.flatten(1)
    assert layers.largest[0] == pytest.approx(float(flat.max(-1).values.mean()), rel=1e-4)
    assert layers["median"][0] == pytest.approx(float(flat.median(-1).values.mean()), rel=1e-4)
    limit = 2 * flat.median(-1, keepdim=True).values
    assert layers.n_massive[0] == pytest.approx(float(((flat > 0.5) & (flat > limit)).sum(-1).double().mean()))
    assert hidden[:, layers.position[0], layers.channel[0]].max() == hidden.max()
