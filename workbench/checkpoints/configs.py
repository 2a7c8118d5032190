"""Read a checkpoint's config.json, and find changes of the architecture along a series."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from workbench.checkpoints.formats import checkpoint_format
from workbench.checkpoints.gguf_headers import gguf_config
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

CONFIG = "config.json"
# The name of a quantisation, in the configuration of a model whose weights are of dequantised blocks.
DEQUANTISED_FROM = "dequantised_from"
_LFS = b"version https://git-lfs.github.com/spec/"

# Each setting's names in config.json, the most common first. A wrong value often loads without an error, because the
# shapes agree: 8 heads of 16 and 4 heads of 32 have the same projections.
_ARCHITECTURE = {
    "model_type": ("model_type",),
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "n_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "d_head": ("head_dim", "kv_channels"),
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "window": ("sliding_window", "window_size", "attention_chunk_size"),
    "layer_types": ("layer_types",),
}
# What even stages with other windows or layer types have in common: with another value, no head has a counterpart.
VOCABULARY = "vocab_size"
_SHAPE = ("model_type", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_model")
# These may change during training, in a long-context stage or with a token that is added, so a change is reported and
# the checkpoint is not refused. An embedding of another size than the config's does not load.
_RECORDED = {
    "vocab_size": ("vocab_size",),
    "rope": ("rope_parameters", "rope_scaling"),
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "max_positions": ("max_position_embeddings", "n_positions"),
    "quantisation": (DEQUANTISED_FROM,),
}


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One setting of one checkpoint's config.json that its siblings of the same stage do not share.

    `is_fatal`: with this value the weights define another model than at the siblings, so the checkpoint must not be
    scored as one of them.
    """

    checkpoint: str
    setting: str
    value: str
    usual: str
    is_fatal: bool

    def __str__(self) -> str:
        step = "give it a stage of its own in series.toml, or mend the file" if self.is_fatal else "recorded"
        change = f"config.json has {self.setting} {self.value}, its siblings {self.usual}"
        return f"{self.checkpoint}: {change}; {step}"


def read_json_object(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        BadCheckpoint: if the file is missing, a link out of its folder, a git-lfs pointer, or holds no JSON object.
    """
    try:
        content = own_file(path.parent, path).read_bytes()
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
    if content.startswith(_LFS):
        raise BadCheckpoint(f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` in the checkpoint")
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: is not JSON ({len(content)} bytes): {error}") from error
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{path}: holds {type(parsed).__name__}, expected a JSON object")
    return cast("dict[str, object]", parsed)


def read_config(checkpoint: Path) -> dict[str, object]:
    """The checkpoint's config.json; of a GGUF model its settings, under the same names.

    Raises:
        BadCheckpoint: if it is missing or no JSON object, or if the GGUF file is damaged.
    """
    if checkpoint_format(checkpoint) == "gguf":
        return gguf_config(checkpoint)
    path = checkpoint / CONFIG
    if not path.exists():
        raise BadCheckpoint(f"{path}: is missing, expected a Hugging Face checkpoint with a config.json")
    return read_json_object(path)


def has_config(checkpoint: Path) -> bool:
    """Whether a path is a checkpoint that says what model it is, readable or not."""
    return (checkpoint / CONFIG).is_file() or checkpoint_format(checkpoint) == "gguf"


def quantisation(checkpoint: Path) -> str:
    """The quantisation that a checkpoint's weights come from, as Q4_K_M; "" for plain floats or an unreadable one."""
    try:
        return str(read_config(checkpoint).get(DEQUANTISED_FROM) or "")
    except BadCheckpoint:
        return ""


def architecture(checkpoint: Path) -> dict[str, str]:
    """The settings in which checkpoints of a training agree, as JSON, and `vocab_size`, in which nearly all do.

    Empty if config.json does not say them. `quantisation` is among them where the weights are of dequantised blocks.
    """
    settings = _settings(checkpoint)
    if not settings:
        return {}
    shape = {name: settings[name] for name in (*_SHAPE, VOCABULARY)}
    return shape if settings["quantisation"] == "null" else {**shape, "quantisation": settings["quantisation"]}


def config_changes(stages: Iterable[list[tuple[str, Path]]]) -> list[ConfigChange]:
    """Compare the configs of each stage's checkpoints, given as (name, path), with the most common values.

    A change between stages is not reported. A checkpoint whose config.json is missing, unreadable or without a model
    type is skipped; it is refused when it is opened.
    """
    return [change for checkpoints in stages for change in _stage_changes(checkpoints)]


def _stage_changes(checkpoints: list[tuple[str, Path]]) -> list[ConfigChange]:
    settings = {name: _settings(path) for name, path in checkpoints if has_config(path)}
    settings = {name: values for name, values in settings.items() if values}
    changes: list[ConfigChange] = []
    for setting in _ARCHITECTURE | _RECORDED:
        values = {name: values[setting] for name, values in settings.items()}
        if len(set(values.values())) < 2:
            continue
        usual = Counter(values.values()).most_common(1)[0][0]
        changes += [
            ConfigChange(name, setting, value, usual, is_fatal=setting in _ARCHITECTURE)
            for name, value in values.items()
            if value != usual
        ]
    return changes


def _settings(checkpoint: Path) -> dict[str, str]:
    """Each setting as JSON, `null` if the config lacks it; empty for a config without a model type."""
    try:
        config = read_config(checkpoint)
    except BadCheckpoint:
        return {}
    if not config.get("model_type"):
        return {}
    inner = config.get("text_config")
    text = {**config, **cast("dict[str, object]", inner)} if isinstance(inner, dict) else config
    return {
        setting: json.dumps(next((text[name] for name in names if text.get(name) is not None), None), sort_keys=True)
        for setting, names in (_ARCHITECTURE | _RECORDED).items()
    }
