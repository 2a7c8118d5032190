"""Arms of a study, computed again with plain transformers: one additive mask per head, made by hand.

The same on SmolLM2, where it is there, with a tolerance of 1e-3 nats.
"""

import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import tiny
from workbench import KVHead, open_model
from workbench.experiments.published_study.study_arms import StudyArm, as_arm
from workbench.hooks.interventions.gates import converted_heads
from workbench.store.conversions import Window

SMOLLM2 = Path(os.environ.get("WORKBENCH_MODELS", "/nowhere")) / "smollm2"


def additive(n_heads, windowed, *, length, window, sink):
    """0 where a query head sees a key, the lowest number where it does not; key by key."""
    mask = torch.full((1, n_heads, length, length), torch.finfo(torch.float32).min)
    for head in range(n_heads):
        for query in range(length):
            first = max(0, query - window + 1) if head in windowed else 0
            mask[0, head, query, first : query + 1] = 0
            mask[0, head, query, : min(sink, query + 1)] = 0
    return mask


def plain_nats(model, tokens, full, *, window, sink):
    """The loss of every token with these key/value heads full, by masks that each layer is handed."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    handles = []
    for index, layer in enumerate(model.model.layers):
        windowed = {h for h in range(config.num_attention_heads) if KVHead(index, h // group) not in full}
        mask = additive(config.num_attention_heads, windowed, length=tokens.shape[1], window=window, sink=sink)

        def replace(_, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.self_attn.register_forward_pre_hook(replace, with_kwargs=True))
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits.double()
    for handle in handles:
        handle.remove()
    return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def three_arms(m, window, sink):
    heads = converted_heads(m.layers, Window(window, sink))
    some = tuple(heads[1::3])
    return heads, [
        StudyArm("none", 0, sink, ()),
        StudyArm("some", len(some), sink, some),
        StudyArm("none without sinks", 0, 0, ()),
    ]


def agree(model, tokens, *, window, sink, tolerance):
    m = open_model(model)
    heads, arms = three_arms(m, window, sink)
    with torch.no_grad():
        full = plain_nats(model, tokens, set(heads), window=window, sink=sink)
    for arm in arms:
        with torch.no_grad(), as_arm(m, arm, heads, window=window, forms={}):
            logits = m.model(input_ids=tokens, use_cache=False).logits.double()
        ours = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        expected = plain_nats(model, tokens, set(arm.heads), window=window, sink=arm.sink)
        assert (ours - expected).abs().max() < tolerance, arm.name
        assert (expected - full).abs().max() > 10 * tolerance, arm.name


def test_three_arms_of_a_tiny_model_are_those_of_masks_made_by_hand():
    model = deepcopy(tiny("llama"))
    tokens = torch.randint(0, model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    agree(model, tokens, window=4, sink=1, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="WORKBENCH_MODELS names no folder with smollm2")
def test_three_arms_of_smollm2_are_those_of_masks_made_by_hand():
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32, attn_implementation="sdpa").eval()
    from workbench.probes import build

    tokens = build(open_model(SMOLLM2), "niah_multikey_1:length=384,n_sequences=1,seed=5").tokens
    agree(model, tokens, window=128, sink=4, tolerance=1e-3)
