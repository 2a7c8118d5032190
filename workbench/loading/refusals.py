"""Reasons, from the configuration alone, why a model cannot be recorded, each with the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from workbench.heads import WorkbenchError

_EXPECTED = "expected a decoder-only causal language model"
# Whose language model alone, given token ids, is not the model that was trained: what stood before the text.
_PREFIX_MODELS = {
    "paligemma": "a picture and a prompt whose tokens see each other, later ones too",
    "git": "a picture before the text, whose patches see each other, later ones too",
}
# Multimodal models are language models where they are given token ids alone.
_LANGUAGE_MODELS: tuple[Mapping[Any, Any], ...] = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)


def refuse_other_models(config: Any, name: str) -> None:
    """Refuse configurations of models that are no causal language models.

    Raises:
        WorkbenchError: for an encoder, an encoder-decoder, a prefix language model, or a model without vocabulary.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise WorkbenchError(
            f"{name} is an encoder-decoder (model type {config.model_type!r}): its layers attend to a second sequence, "
            f"which has no scores here; {_EXPECTED}. Leave this model out"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise WorkbenchError(
            f"{name} is an encoder (model type {config.model_type!r}, is_decoder not set in its configuration): its "
            f"tokens see later ones, and the scores are of causal attention; {_EXPECTED}. Leave this model out, or set "
            "is_decoder if it was trained as a decoder"
        )
    if config.model_type in _PREFIX_MODELS:
        raise WorkbenchError(
            f"{name} is a prefix language model (model type {config.model_type!r}): it was trained with "
            f"{_PREFIX_MODELS[config.model_type]}, and the scores are of causal attention; {_EXPECTED}. Leave this "
            "model out"
        )
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise WorkbenchError(
            f"{name} (model type {config.model_type!r}) has no vocabulary of tokens; {_EXPECTED}. Leave this model out"
        )
    if getattr(config.get_text_config(), "num_hidden_layers", None) is None:
        parts = [key for key, part in vars(config).items() if hasattr(part, "num_hidden_layers")]
        if len(parts) > 1:
            raise WorkbenchError(
                f"{name} is made of several transformers ({', '.join(parts)}) with layers of their own, so that the "
                "number of a layer does not name one; expected one stack of layers. Leave this model out"
            )
        raise WorkbenchError(
            f"the configuration of {name} does not say how many layers it has; expected num_hidden_layers. Set it, or "
            "leave this model out"
        )


def language_model_class(config: Any) -> Any:
    """The class of the language model that a configuration describes; None if transformers has none.

    A configuration of several, as of a multimodal model and its text model, names its own among its architectures.
    """
    classes: list[Any] = []
    for mapping in _LANGUAGE_MODELS:
        listed = mapping.get(type(config), ())
        classes += listed if isinstance(listed, list | tuple) else [listed]
    architectures = getattr(config, "architectures", None) or []
    return next((c for c in classes if c.__name__ in architectures), classes[0] if classes else None)


def why_unknown(config: Mapping[str, object]) -> str:
    """Why a config.json that transformers cannot read describes no known model; empty if its model type is known."""
    model_type, code = config.get("model_type"), config.get("auto_map")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return ""
    if isinstance(code, dict) and code:
        files = sorted({f"{value.split('.')[0]}.py" for value in code.values() if isinstance(value, str)})
        return (
            f"model type {model_type!r} needs code of its own ({', '.join(files)}), which is never run from a "
            "checkpoint; expected a model type that transformers has. If you trust the code, load the model yourself "
            "with trust_remote_code=True and pass it to open_model"
        )
    if not isinstance(model_type, str) or not model_type:
        return "names no model_type; expected one that transformers knows, as in the config.json of the model's origin"
    return (
        f"model type {model_type!r} is unknown to transformers {transformers.__version__}; upgrade transformers, or "
        "convert the checkpoint to a model type that it has"
    )


def why_no_language_model(config: Any) -> str:
    """Why a configuration that transformers knows is not of a causal language model; empty if it is."""
    try:
        refuse_other_models(config, "the model")
    except WorkbenchError as error:
        return str(error)
    if language_model_class(config) is not None:
        return ""
    return (
        f"model type {config.model_type!r} has no causal language model in transformers {transformers.__version__}; "
        f"{_EXPECTED}. Leave this checkpoint out"
    )
