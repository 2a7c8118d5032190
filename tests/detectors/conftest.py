"""A small model with a real tokenizer."""

import pytest
import torch

from workbench.hooks import HookedModel


@pytest.fixture(scope="module")
def speaking():
    """A small model with a real tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.probes.models import bpe_model

    config = LlamaConfig(
        vocab_size=1500,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return HookedModel(LlamaForCausalLM(config).eval(), tokenizer=bpe_model("bytes").tokenizer)
