"""Recording a layer that selects its keys takes about as much memory as recording one that sees its whole past."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV32Config

from tests.families import random_tokens
from tests.more_families import BASE, LATENT
from workbench import open_model
from workbench.detectors import Detector, find_detectors
from workbench.hooks.taps.attention_call import LazyMask
from workbench.kernels import Far

ONE = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
OF_SELECTIONS = ["selection_coverage", "selection_reach", "selection_far", "selection_persistence"]


def peak_bytes(run):
    """The most memory that tensors take while something runs, over what there is before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def opened(config):
    return open_model(AutoModelForCausalLM.from_config(config).eval())


def bytes_of_recording(m, tokens, *more):
    """The most memory that recording what the default detectors read takes, and what `more` of them read."""
    detectors = [d for d in (*find_detectors(None), *find_detectors(more)) if isinstance(d, Detector)]
    needs = {need for d in detectors if not d.needs_answers for need in d.needs}
    m.record(tokens[:, :64], needs, far=Far(16))  # what is made once, is there
    return peak_bytes(lambda: m.record(tokens, needs, far=Far(256)))


@pytest.mark.parametrize(
    ("n_tokens", "n_selected"), [(2048, 128), pytest.param(32_768, 2048, marks=pytest.mark.slow, id="as-published")]
)
def test_a_layer_that_selects_keys_is_recorded_in_the_memory_of_a_full_one(monkeypatch, n_tokens, n_selected):
    sizes = {**BASE, **LATENT, **ONE, "max_position_embeddings": n_tokens, "vocab_size": 4100}
    tokens = random_tokens(1, n_tokens, vocabulary=4000)  # few recur, so that cells of tokens that do are few
    full = opened(DeepseekV3Config(**sizes))
    sparse = opened(DeepseekV32Config(**sizes, head_dim=8, index_topk=n_selected, index_head_dim=16, index_n_heads=2))
    assert [full.layers[0].kind, sparse.layers[0].kind] == ["full", "sparse"]
    # The indexer's own scores of every pair of tokens are the model's, as is the mask that it reads.
    indices = torch.randint(0, n_tokens, (1, n_tokens, n_selected), dtype=torch.int32)
    indices.remainder_(torch.arange(1, n_tokens + 1, dtype=torch.int32)[:, None])
    indexer = sparse.model.model.layers[0].self_attn.indexer
    monkeypatch.setattr(indexer, "forward", lambda hidden, *_, **__: indices[:, : hidden.shape[1]])
    monkeypatch.setattr(LazyMask, "_dense", lambda mask: torch.ones(1, 1, 1, dtype=torch.bool))
    of_full = bytes_of_recording(full, tokens)
    for more in ((), OF_SELECTIONS):
        ratio = bytes_of_recording(sparse, tokens, *more) / of_full
        print(f"{n_tokens} tokens, {n_selected} selected keys, {more}: {of_full / 1e6:.1f} MB, {ratio:.2f} times that")
        assert ratio <= 1.5
