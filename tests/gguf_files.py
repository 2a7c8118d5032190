"""Small GGUF files with real blocks of every type, written by the package gguf, and ways to damage them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="pip install gguf")

WIDTH, HEADS, GROUPS, LAYERS, FEED, VOCABULARY = 256, 4, 2, 2, 256, 96
# Types that the package gguf cannot write are drawn as random blocks with a small scale: where their halves stand.
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")

LLAMA = {
    "context_length": 512,
    "embedding_length": WIDTH,
    "block_count": LAYERS,
    "feed_forward_length": FEED,
    "attention.head_count": HEADS,
    "attention.head_count_kv": GROUPS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": WIDTH // HEADS,
    "rope.freq_base": 10000.0,
    "vocab_size": VOCABULARY,
}


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of a llama of two layers under GGUF's names, untied."""
    draw = np.random.default_rng(seed)
    kv = WIDTH // HEADS * GROUPS
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes["output.weight"] = (VOCABULARY, WIDTH)
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{i}.attn_k.weight": (kv, WIDTH),
            f"blk.{i}.attn_v.weight": (kv, WIDTH),
            f"blk.{i}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{i}.ffn_norm.weight": (WIDTH,),
            f"blk.{i}.ffn_gate.weight": (FEED, WIDTH),
            f"blk.{i}.ffn_up.weight": (FEED, WIDTH),
            f"blk.{i}.ffn_down.weight": (WIDTH, FEED),
        }
    return {
        name: (np.ones(shape) if "norm" in name else draw.normal(scale=0.05, size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_llama(
    path: Path,
    kind: str | Callable[[str], str] = "Q4_1",
    *,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    architecture: str = "llama",
) -> Path:
    """A GGUF file of a llama. `kind`: the type of its matrices, or of each by name. A setting of None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer, {**{f"{architecture}.{k}": v for k, v in LLAMA.items()}, **(settings or {})})
    for name, values in (llama_tensors(seed) if tensors is None else tensors).items():
        of_tensor = "F32" if values.ndim == 1 else kind if isinstance(kind, str) else kind(name)
        add_tensor(writer, name, values, of_tensor)
    return finish(writer, path)


def fill(writer: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(name, value)


def finish(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: Any, name: str, values: np.ndarray, kind: str) -> None:
    of_type = gguf.GGMLQuantizationType[kind]
    if kind in _WRITTEN:
        writer.add_tensor(name, gguf.quantize(values, of_type), raw_dtype=of_type)
        return
    block, n_bytes = gguf.GGML_QUANT_SIZES[of_type]
    draw = np.random.default_rng(len(name))
    data = draw.integers(0, 256, (*values.shape[:-1], values.shape[-1] // block, n_bytes), dtype=np.uint8)
    for at in _SCALES[kind]:
        data[..., at : at + 2] = np.frombuffer(np.float16(0.002).tobytes(), dtype=np.uint8)
    writer.add_tensor(name, data.reshape(*values.shape[:-1], -1), raw_dtype=of_type)


def words(n: int = VOCABULARY, *, pre: str = "smollm", bos: int = 1, **more: Any) -> dict[str, Any]:
    """The settings of a byte-level tokenizer: three special tokens, and the first bytes."""
    alphabet = list(bytes_to_unicode().values())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet[: n - 5], "ĠĠ", "Ġ1"]
    kinds = [3, 3, 3, *[1] * (n - 3)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["Ġ Ġ", "Ġ 1"],
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


def bytes_to_unicode() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode as table

    letters = table()
    order = [ord(" "), *range(33, 127), *(b for b in letters if b not in range(32, 127))]
    return {byte: letters[byte] for byte in order}


def write_split(folder: Path, n: int = 3, *, name: str = "model", **settings: Any) -> Path:
    """A llama in `n` files; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(llama_tensors().items())
    for i in range(n):
        path = folder / f"{name}-{i + 1:05d}-of-{n:05d}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        fill(writer, {f"llama.{k}": v for k, v in LLAMA.items()} if i == 0 else {})
        writer.add_uint16("split.no", settings.get("first", 0) + i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", settings.get("n_tensors", len(tensors)))
        for tensor, values in tensors[i::n]:
            add_tensor(writer, tensor, values, "F32" if values.ndim == 1 else "Q8_0")
        finish(writer, path)
    return folder / f"{name}-00001-of-{n:05d}.gguf"
