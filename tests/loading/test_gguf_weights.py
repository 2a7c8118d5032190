"""A GGUF model's weights are transformers' own, bit for bit; every tensor and setting of the file is accounted for."""

import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.gguf_files import GROUPS, HEADS, LAYERS, VOCABULARY, WIDTH, llama_tensors, write_llama, write_split
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.loading.gguf_weights import ARCHITECTURES, read_gguf_config, read_gguf_tensors
from workbench.loading.pretrained import load_config, load_pretrained
from workbench.loading.quiet_transformers import quiet

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def load(path, **options):
    return load_pretrained(path, device="cpu", **options)


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_those_of_transformers_bit_for_bit(tmp_path, kind):
    path = write_llama(tmp_path / "model.gguf", kind)
    with quiet():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    state, theirs = load(path).model.state_dict(), expected.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)


def test_weights_of_plain_floats_are_those_that_were_written(tmp_path):
    tensors = llama_tensors()
    state = load(write_llama(tmp_path / "model.gguf", "F32")).model.state_dict()
    assert torch.equal(state["lm_head.weight"], torch.from_numpy(tensors["output.weight"]))
    assert torch.equal(state["model.layers.1.mlp.down_proj.weight"], torch.from_numpy(tensors["blk.1.ffn_down.weight"]))
    # llama.cpp's converter puts the two halves that RoPE turns beside each other, within each head.
    for name, own, n in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", GROUPS)):
        written = tensors[f"blk.0.{name}.weight"].reshape(n, WIDTH // HEADS // 2, 2, WIDTH)
        expected = torch.from_numpy(np.swapaxes(written, 1, 2).reshape(-1, WIDTH))
        assert torch.equal(state[f"model.layers.0.self_attn.{own}.weight"], expected)


def test_the_model_computes_what_the_same_weights_compute_in_a_plain_llama(tmp_path):
    model = load(write_llama(tmp_path / "model.gguf", "Q8_0")).model
    plain = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=GROUPS, rms_norm_eps=1e-5, tie_word_embeddings=False,
        )
    )  # fmt: skip
    plain.load_state_dict(model.state_dict())
    tokens = torch.arange(40)[None] % VOCABULARY
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain.eval()(tokens).logits, rtol=0, atol=1e-5)


def test_a_set_of_files_is_the_model_of_one_file(tmp_path):
    one = load(write_llama(tmp_path / "one.gguf", "Q8_0")).model.state_dict()
    several = load(write_split(tmp_path / "set").parent).model.state_dict()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_the_output_matrix_is_the_embedding_where_the_file_has_none(tmp_path):
    tensors = llama_tensors()
    del tensors["output.weight"]
    model = load(write_llama(tmp_path / "model.gguf", "Q4_0", tensors=tensors)).model
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_weights_have_the_dtype_that_was_named_and_float32_by_default(tmp_path, dtype):
    path = write_llama(tmp_path / "model.gguf", "Q4_1")
    model = load(path, dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
    exact = load(path).model.lm_head.weight
    assert torch.equal(model.lm_head.weight, exact.to(dtype or torch.float32))


def without(name):
    return {key: values for key, values in llama_tensors().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("blk.1.attn_k.weight"), r"parameters without a tensor: model\.layers\.1\.self_attn\.k_proj\.weight"),
        (without("output_norm.weight"), r"parameters without a tensor: model\.norm\.weight"),
        (
            {**llama_tensors(), "rope_freqs.weight": np.ones(32, np.float32)},
            r"tensors that the model has no place for: rope_freqs\.weight",
        ),
        (
            {**llama_tensors(), "blk.0.attn_q.bias": np.ones(WIDTH, np.float32)},
            r"tensors that the model has no place for: blk\.0\.attn_q\.bias",
        ),
        (
            {**llama_tensors(), "blk.2.attn_q.weight": np.ones((WIDTH, WIDTH), np.float32)},
            r"tensors that the model has no place for: blk\.2\.attn_q\.weight",
        ),
    ],
)
def test_a_tensor_too_many_or_too_few_is_refused_by_name_before_any_is_read(tmp_path, monkeypatch, tensors, message):
    monkeypatch.setattr("workbench.loading.gguf_weights._dequantised", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(BadCheckpoint, match=message):
        load(write_llama(tmp_path / "model.gguf", "Q4_0", tensors=tensors))


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path):
    tensors = {**llama_tensors(), "blk.0.ffn_up.weight": np.ones((512, WIDTH), np.float32)}
    with pytest.raises(
        BadCheckpoint, match=r"layers\.0\.mlp\.up_proj\.weight \(\[512, 256\] in the file, \[256, 256\]"
    ):
        load(write_llama(tmp_path / "model.gguf", "F32", tensors=tensors))


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path):
    tensors = llama_tensors()
    tensors["blk.1.ffn_up.weight"][3, 5] = np.inf
    with pytest.raises(BadCheckpoint, match=r"non-finite numbers in model\.layers\.1\.mlp\.up_proj\.weight"):
        load(write_llama(tmp_path / "model.gguf", "F16", tensors=tensors))


def test_a_header_of_two_thousand_million_layers_is_refused_before_they_are_made(tmp_path):
    path = write_llama(tmp_path / "model.gguf", settings={"llama.block_count": 1 << 31})
    with pytest.raises(BadCheckpoint, match=r"block_count is 2,147,483,648, and it holds 21 tensors"):
        read_gguf_config(path)


def test_an_unknown_architecture_is_refused_with_those_that_are_read(tmp_path):
    with pytest.raises(
        BadCheckpoint, match=r"of the architecture 'rwkv6', which is not read from GGUF; expected bloom"
    ):
        load(write_llama(tmp_path / "model.gguf", architecture="rwkv6"))


def test_every_listed_architecture_is_one_that_transformers_reads():
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    assert {name.replace("-", "_").replace("moe", "_moe") for name in ARCHITECTURES} <= set(
        GGUF_SUPPORTED_ARCHITECTURES
    )


def test_without_the_package_gguf_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = write_llama(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        WorkbenchError, match=r"package gguf, which is missing: pip install 'attention-workbench\[gguf\]'"
    ):
        load(path)


def test_the_configuration_names_the_quantisation_and_that_of_each_layer(tmp_path):
    config = load_config(write_llama(tmp_path / "model.gguf", lambda name: "Q6_K" if "blk.1.ffn" in name else "Q4_K"))
    assert config.dequantised_from == "Q4_K"
    assert config.dequantised_layers == ["Q4_K", "Q4_K+Q6_K"]
    assert not hasattr(load_config(write_llama(tmp_path / "plain.gguf", "F16")), "dequantised_from")


def test_a_model_of_gguf_can_be_saved_and_opens_as_the_same_with_its_quantisation_known(tmp_path):
    model = load(write_llama(tmp_path / "model.gguf")).model
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved").model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.config.dequantised_from == "Q4_1"


def expert_tensors(n=4, width=32):
    draw = np.random.default_rng(3)
    heads = {"attn_q": (64, width), "attn_k": (32, width), "attn_v": (32, width), "attn_output": (width, 64)}
    experts = {"ffn_gate_exps": (n, 16, width), "ffn_up_exps": (n, 16, width), "ffn_down_exps": (n, width, 16)}
    norms = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q_norm": (16,), "attn_k_norm": (16,)}
    of_layer = {**heads, **experts, **norms, "ffn_gate_inp": (n, width)}
    shapes = {"token_embd": (40, width), "output": (40, width), "output_norm": (width,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in of_layer.items()}
    return {f"{name}.weight": draw.normal(scale=0.1, size=s).astype(np.float32) for name, s in shapes.items()}


EXPERTS = {
    "context_length": 128, "embedding_length": 32, "block_count": 2, "feed_forward_length": 16, "vocab_size": 40,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "rope.freq_base": 10000.0,
    "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16, "rope.dimension_count": None,
}  # fmt: skip


def write_experts(path, tensors):
    settings = {f"qwen3moe.{name}": value for name, value in EXPERTS.items()}
    return write_llama(path / "model.gguf", "F32", settings=settings, tensors=tensors, architecture="qwen3moe")


def test_matrices_of_experts_are_joined_from_their_two_tensors(tmp_path):
    tensors = expert_tensors()
    path = write_experts(tmp_path, tensors)
    config = read_gguf_config(path)
    config.moe_intermediate_size = 16  # the file has it, and transformers' reader leaves it out
    state = read_gguf_tensors(path, config, torch.float32)
    for i in range(2):
        gate, up = (tensors[f"blk.{i}.ffn_{name}_exps.weight"] for name in ("gate", "up"))
        joined = torch.from_numpy(np.concatenate([gate, up], axis=1))
        assert torch.equal(state[f"model.layers.{i}.mlp.experts.gate_up_proj"], joined)


def test_a_matrix_of_experts_with_one_of_its_two_tensors_is_refused(tmp_path):
    tensors = expert_tensors()
    del tensors["blk.1.ffn_up_exps.weight"]
    path = write_experts(tmp_path, tensors)
    with pytest.raises(BadCheckpoint, match=r"without a tensor: model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        read_gguf_tensors(path, read_gguf_config(path), torch.float32)
