"""Checkpoint folders of a few bytes, written without torch: a config and one tensor, or nothing at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "vocab_size": 64,
}


def safetensors(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    """The bytes of a safetensors file; each tensor as dtype, shape and data."""
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def checkpoint(path: Path, *, seed: int = 0, config: Mapping[str, object] = CONFIG) -> Path:
    """A folder that looks like a Hugging Face checkpoint; another seed is other weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    data = struct.pack("<4f", *(seed + i for i in range(4)))
    (path / "model.safetensors").write_bytes(safetensors({"w": ("F32", [2, 2], data)}))
    return path


def trainer_state(path: Path, step: int, tokens: int = 0, lrs: Mapping[int, float] | None = None) -> None:
    """Write what the Trainer leaves beside a checkpoint."""
    history = [{"step": at, "learning_rate": lr} for at, lr in (lrs or {}).items()]
    state = {"global_step": step, "num_input_tokens_seen": tokens, "log_history": history}
    (path / "trainer_state.json").write_text(json.dumps(state))
