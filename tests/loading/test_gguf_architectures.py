"""Every architecture that is said to be read is: a tiny file of each has the weights of transformers' own loader."""

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.gguf_files import words, write_llama
from workbench.checkpoints.gguf_headers import read_gguf_header
from workbench.loading.gguf_weights import ARCHITECTURES, Places, read_gguf_config
from workbench.loading.pretrained import load_pretrained
from workbench.loading.quiet_transformers import quiet

_NONE = {
    "attention.head_count_kv": None,
    "attention.layer_norm_rms_epsilon": None,
    "rope.dimension_count": None,
    "rope.freq_base": None,
}
_LAYER_NORM = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
_GEMMA = {
    "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 256, "rope.dimension_count": None,
    "attention.sliding_window": 64,
}  # fmt: skip
_SETTINGS = {
    "bloom": {**_NONE, "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 1024},
    "falcon": {**_LAYER_NORM, "attention.head_count_kv": 1, "feed_forward_length": 1024},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "gpt2": {**_NONE, "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 1024},
    "nemotron": {"rope.dimension_count": 32},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"attention.key_length": 128, "rope.dimension_count": 128, "attention.head_count": 2},
    "stablelm": {**_LAYER_NORM, "rope.dimension_count": 16},
    "starcoder2": _LAYER_NORM,
}
# Of several experts, or of types that only their own files have: read by the same tables, and not tried here.
_UNTRIED = {"llama", "gpt-oss", "minimax-m2", "qwen2moe", "qwen3moe"}


def settings_of(architecture):
    own = {f"{architecture}.{name}": value for name, value in _SETTINGS[architecture].items()}
    return {**own, **words(padding_token_id=0)}


def write(path, architecture):
    """A file with every tensor that transformers has a name for, in GGUF's shapes."""
    named = settings_of(architecture)
    # First the configuration alone, for the shapes.
    first = write_llama(path / "first" / "model.gguf", architecture=architecture, settings=named)
    config = read_gguf_config(first)
    draw = np.random.default_rng(0)
    shapes = shapes_by_name(Places(first, read_gguf_header(first), config))
    tensors = {name: draw.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in shapes.items()}
    return write_llama(path / "model.gguf", "F32", architecture=architecture, settings=named, tensors=tensors)


def shapes_by_name(places):
    state, tied = places.model.state_dict(), set(places.model.all_tied_weights_keys)
    transposed = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    is_turned = places.model.config.model_type == "gpt2"
    shapes = {name: tuple(state[own].shape) for name, own in places.names.items() if own not in tied}
    return {name: s[::-1] if is_turned and name.endswith(transposed) else s for name, s in shapes.items()}


@pytest.mark.parametrize("architecture", sorted(_SETTINGS))
def test_a_tiny_file_has_the_weights_that_transformers_gives_it(tmp_path, architecture):
    path = write(tmp_path, architecture)
    with quiet():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    state, theirs = load_pretrained(path, device="cpu").model.state_dict(), expected.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)


def test_each_architecture_is_tried_or_said_not_to_be():
    assert set(_SETTINGS) | _UNTRIED == set(ARCHITECTURES)
