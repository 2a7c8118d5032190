"""Compare a GGUF file's settings with the configuration that transformers makes of them.

transformers' reader passes some settings on and leaves the rest at the defaults of the model's class: the rotary base
of StarCoder2, the windows of Phi-3, scaled rotary frequencies, factors that only the code of llama.cpp knows. Such a
model loads and computes something else, without a word. Every setting of the architecture is therefore compared, and
one that is unknown here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from workbench.checkpoints.gguf_headers import GgufHeader

# Settings that do not change what the model computes on tokens within its context, or that shapes of tensors show.
_WITHOUT_EFFECT = frozenset(
    {
        "context_length", "feed_forward_length", "expert_feed_forward_length", "tensor_data_layout",
        "expert_shared_feed_forward_length", "leading_dense_block_count",
    }
)  # fmt: skip
# Factors that are neutral at 1, where no configuration names them.
_NEUTRAL_AT_ONE = frozenset({"logit_scale", "residual_scale", "embedding_scale", "rope.scale_linear"})
# llama.cpp scales the queries of these by hidden size and heads; the file does not say so.
_SCALED_BY_SIZE = {("gemma2", 46), ("gemma3", 62)}
_CLOSE = 1e-5  # float32 in the file, a decimal number in a configuration


def why_unlike(header: GgufHeader, config: Any) -> str:
    """Which settings of the file the configuration does not have; "" if it has all of them.

    Settings of the tokenizer and general ones (name, licence) are not compared.
    """
    text, prefix = config.get_text_config(), f"{header.architecture}."
    settings = {name.removeprefix(prefix): v for name, v in header.settings.items() if name.startswith(prefix)}
    unlike = [
        f"{prefix}{name} is {value!r} in the file, and {_shown(name, text)} for transformers"
        for name, value in settings.items()
        if not _agrees(name, value, text, settings)
    ]
    if (header.architecture, settings.get("block_count")) in _SCALED_BY_SIZE:
        unlike.append("the queries of this size are scaled by a factor that the file does not name")
    elif header.architecture in ("gemma2", "gemma3") and text.query_pre_attn_scalar != text.head_dim:
        unlike.append(f"queries are scaled for {text.query_pre_attn_scalar} dimensions, and heads have {text.head_dim}")
    return f"transformers' reader does not pass on what the file says: {'; '.join(unlike)}" if unlike else ""


def _agrees(name: str, value: Any, config: Any, settings: Mapping[str, Any]) -> bool:
    if name in _WITHOUT_EFFECT:
        return True
    if name in _NEUTRAL_AT_ONE:
        return value == 1
    if name.startswith("rope.scaling."):
        return _scaling_agrees(name, value, config, settings)
    read = _READ.get(name)
    if read is None:
        return False
    known = read(config)
    if name == "attention.sliding_window":
        return (value or None) == known
    if isinstance(value, list):
        return value == known or (isinstance(known, int | float) and set(value) == {known})
    return known is not None and _close(value, known)


def _scaling_agrees(name: str, value: Any, config: Any, settings: Mapping[str, Any]) -> bool:
    """Rotary scaling, by its type and factor; `none` and a factor of 0 or 1 are no scaling."""
    kind = settings.get("rope.scaling.type", "linear")
    rope = _rope(config)
    is_none = kind == "none" or settings.get("rope.scaling.factor", 1) in (0, 1)
    if is_none:
        return rope.get("rope_type", "default") == "default"
    if name == "rope.scaling.type":
        return rope.get("rope_type") == value
    key = {"original_context_length": "original_max_position_embeddings", "attn_factor": "attention_factor"}
    suffix = name.removeprefix("rope.scaling.")
    known = rope.get(key.get(suffix, suffix))
    return known is not None and _close(value, known)


def _close(value: Any, known: Any) -> bool:
    if isinstance(value, bool) or isinstance(known, bool | str) or isinstance(value, str):
        return value == known
    return math.isclose(value, known, rel_tol=_CLOSE)


def _shown(name: str, config: Any) -> str:
    read = _READ.get(name)
    if name.startswith("rope.scaling."):
        return f"{_rope(config).get('rope_type', 'default')!r}"
    return "unknown" if read is None else repr(read(config))


def _first(*names: str) -> Callable[[Any], Any]:
    return lambda config: next((v for name in names if (v := getattr(config, name, None)) is not None), None)


def _rope(config: Any) -> Mapping[str, Any]:
    """Rotary settings; of a model with several kinds of layers those of full attention."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("full_attention", parameters)


def _local_rope(config: Any) -> Mapping[str, Any]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("sliding_attention", parameters)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rotary_dim(config: Any) -> int:
    share = _rope(config).get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return getattr(config, "rotary_dim", None) or int(_head_dim(config) * (1 if share is None else share))


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon-7B
    return (
        getattr(config, "num_key_value_heads", None)
        or getattr(config, "num_kv_heads", None)
        or config.num_attention_heads
    )


def _attention_scale(config: Any) -> float:
    return (getattr(config, "query_pre_attn_scalar", None) or _head_dim(config)) ** -0.5


def _window(config: Any) -> int | None:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)


def _is_sliding(config: Any) -> list[bool]:
    return [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or []]


_READ: dict[str, Callable[[Any], Any]] = {
    "block_count": _first("num_hidden_layers"),
    "embedding_length": _first("hidden_size"),
    "vocab_size": _first("vocab_size"),
    "attention.head_count": _first("num_attention_heads"),
    "attention.head_count_kv": _kv_heads,
    "attention.key_length": _head_dim,
    "attention.value_length": _head_dim,
    "attention.layer_norm_rms_epsilon": _first("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": _first("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _is_sliding,
    "attention.scale": _attention_scale,
    "attention.causal": lambda _: True,
    "rope.dimension_count": _rotary_dim,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "rope.freq_base_swa": lambda config: _local_rope(config).get("rope_theta"),
    "attn_logit_softcapping": _first("attn_logit_softcapping"),
    "final_logit_softcapping": _first("final_logit_softcapping"),
    "use_parallel_residual": _first("use_parallel_residual"),
    "expert_count": _first("num_experts", "num_local_experts"),
    "expert_used_count": _first("num_experts_per_tok"),
}
