"""Batches: as large as the caches of a CPU hold, and the same everywhere where a head has its mean over the batch."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.hooks import open_model
from workbench.hooks.recording.batch_sizes import batch_tokens


def llama(width):
    config = LlamaConfig(
        hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=11
    )
    return open_model(LlamaForCausalLM(config))


@pytest.mark.parametrize(("width", "n_tokens"), [(8, 4096), (128, 2048), (576, 512)])
def test_wider_models_run_fewer_tokens_at_once(width, n_tokens):
    m = llama(width)
    assert batch_tokens(m.model, m.interventions) == n_tokens


def test_a_mean_over_the_batch_is_over_as_many_tokens_on_every_machine():
    m = llama(576)
    with m.ablate("L0H1", how="mean"):
        assert batch_tokens(m.model, m.interventions) == 4096
    with m.ablate("L0H1", how="mean", reference=[1, 2, 3]):
        assert batch_tokens(m.model, m.interventions) == 512
