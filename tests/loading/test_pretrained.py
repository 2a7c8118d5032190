"""A sound checkpoint is loaded as it is: same numbers, quietly, offline, with its tokenizer where it has one."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tests.families import CONFIGS, tiny
from workbench.heads import BadCheckpoint
from workbench.loading.pretrained import load_pretrained

TOKENS = torch.arange(40)[None]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("loading")
    for family in CONFIGS:
        tiny(family).save_pretrained(root / family)
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(root / "llama")
    return root


@pytest.fixture
def copy(saved, tmp_path):
    return lambda family: Path(shutil.copytree(saved / family, tmp_path / family))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_comes_back_as_it_was_saved(saved, family):
    model = load_pretrained(saved / family, device="cpu").model
    assert not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, tiny(family)(TOKENS).logits, rtol=0, atol=0)


def test_the_dtype_is_float32_on_the_cpu_unless_asked(copy):
    path = copy("llama")
    tensors = {name: t.bfloat16() for name, t in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_pretrained(path, device=torch.device("cpu"))
    assert (loaded.model.dtype, loaded.weights.dtype) == (torch.float32, "BF16")
    assert load_pretrained(path, device="cpu", dtype=torch.float16).model.dtype == torch.float16


def test_tied_embeddings_are_not_missing(tmp_path):
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    model = load_pretrained(tmp_path / "tied", device="cpu").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}),
        ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
    ],
)
def test_buffers_of_older_releases_are_no_fault(copy, family, buffers):
    path = copy(family)
    save_file({**load_file(path / "model.safetensors"), **buffers}, path / "model.safetensors", {"format": "pt"})
    load_pretrained(path, device="cpu")


# Lightning attention


def lightning(model):
    return model.model.layers[0].self_attn


def test_decay_and_state_stay_float32_in_bfloat16(copy):
    model = load_pretrained(copy("minimax"), device="cpu", dtype=torch.bfloat16).model
    layer, exact = lightning(model), lightning(tiny("minimax"))
    for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):
        assert getattr(layer, name).dtype == torch.float32
        torch.testing.assert_close(getattr(layer, name), getattr(exact, name), rtol=0, atol=0)
    assert layer.qkv_proj.weight.dtype == torch.bfloat16
    states = []
    layer.register_forward_hook(lambda *args: states.append(args[-1][1]))
    with torch.no_grad():
        logits = model(TOKENS).logits
    assert states[0].dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        exact_logits = tiny("minimax")(TOKENS).logits
    assert (logits.float() - exact_logits).abs().max() < 0.05 * exact_logits.abs().max()


def test_a_slow_head_still_forgets_in_bfloat16(tmp_path):
    config = CONFIGS["minimax"]()
    config.num_attention_heads, config.num_key_value_heads = 16, 4
    config.num_hidden_layers, config.layer_types = 4, ["full_attention"] * 3 + ["linear_attention"]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "slow")
    model = load_pretrained(tmp_path / "slow", device="cpu", dtype=torch.bfloat16).model
    layer = model.model.layers[3].self_attn
    assert torch.exp(-layer.slope_rate.bfloat16()).max() == 1
    assert torch.exp(-layer.slope_rate).max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decay_that_is_not_in_the_file_follows_from_the_config(copy, dtype):
    path = copy("minimax")
    tensors = {n: t for n, t in load_file(path / "model.safetensors").items() if "decay" not in n and "slope" not in n}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    layer = lightning(load_pretrained(path, device="cpu", dtype=dtype).model)
    torch.testing.assert_close(layer.slope_rate, lightning(tiny("minimax")).slope_rate, rtol=0, atol=0)
    torch.testing.assert_close(layer.key_decay, lightning(tiny("minimax")).key_decay, rtol=0, atol=0)


def test_a_slope_of_the_files_own_is_kept(copy):
    path = copy("minimax")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.slope_rate"].mul_(2)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    layer = lightning(load_pretrained(path, device="cpu").model)
    torch.testing.assert_close(layer.slope_rate, 2 * lightning(tiny("minimax")).slope_rate)
    torch.testing.assert_close(layer.query_decay[:, 0], torch.exp(-layer.slope_rate[:, 0]))


# Tokenizers


def test_a_tokenizer_comes_along(saved):
    loaded = load_pretrained(saved / "llama", device="cpu")
    assert loaded.tokenizer("a b b")["input_ids"] == [1, 2, 2]
    assert loaded.no_tokenizer == ""


def test_a_folder_without_one_says_so(saved):
    loaded = load_pretrained(saved / "gpt2", device="cpu")
    assert loaded.tokenizer is None
    assert "no tokenizer files" in loaded.no_tokenizer


@pytest.mark.parametrize("text", ["{", "{}", '{"version": "1.0", "model": {"type": "BPE", "vocab": 5}}'])
def test_a_broken_tokenizer_does_not_stop_the_model(copy, text):
    path = copy("llama")
    (path / "tokenizer.json").write_text(text)
    loaded = load_pretrained(path, device="cpu")
    assert loaded.tokenizer is None
    assert "cannot be read" in loaded.no_tokenizer
    assert loaded.model(TOKENS).logits.isfinite().all()


# Manners


def test_loading_says_nothing_and_leaves_verbosity_as_it_was(copy, capfd):
    path = copy("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "eos_token_id": 10**6}))
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_pretrained(path, device="cpu")
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity(before[0])
    assert transformers_logging.is_progress_bar_enabled() == before[1]
    assert capfd.readouterr() == ("", "")


def test_settings_are_restored_when_a_checkpoint_is_refused(copy):
    path = copy("llama")
    (path / "config.json").write_text('{"model_type": "nonesuch"}')
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with pytest.raises(BadCheckpoint):
        load_pretrained(path, device="cpu")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("family", ["llama", "minimax"])
def test_no_connection_is_tried(saved, family, monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a connection to {args[1:]} was tried")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_pretrained(saved / family, device="cpu")


def test_a_name_that_is_no_folder_is_not_looked_for_on_the_hub():
    with pytest.raises(BadCheckpoint, match="gpt2: no such folder"):
        load_pretrained(Path("openai-community/gpt2"), device="cpu")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_running_out_of_memory_is_not_the_checkpoints_fault(saved, monkeypatch, error):
    def exhausted(*args, **kwargs):
        raise error

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", exhausted)
    with pytest.raises(type(error), match="memory") as raised:
        load_pretrained(saved / "llama", device="cpu")
    assert raised.value is error


def test_a_configuration_of_a_hundred_thousand_layers_is_refused_before_they_are_made(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 100_000}))
    with pytest.raises(BadCheckpoint, match=r"names 100,000 layers, and the files hold 21 tensors"):
        load_pretrained(tmp_path, device="cpu")
