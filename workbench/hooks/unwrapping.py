"""The plain transformers model inside of what holds one: torch.compile, data parallelism, PEFT, a pipeline, nnsight.

Only where the plain model computes exactly what the wrapper does. Otherwise the message says what was handed in, and
how to get a model out of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.bridge import is_bridge, unbridged
from workbench.hooks.taps.evaluation_mode import evaluating

# Wrappers that hand their input on to the model in this attribute, unchanged: torch.compile, torch's data parallelism
# and averaging, DeepSpeed's engine.
_INNER = {
    ("OptimizedModule", "torch"): "_orig_mod",
    ("DataParallel", "torch"): "module",
    ("DistributedDataParallel", "torch"): "module",
    ("AveragedModel", "torch"): "module",
    ("DeepSpeedEngine", "deepspeed"): "module",
}
_EXPECTED = "expected a transformers PreTrainedModel, a TransformerBridge, or the path of a checkpoint"


class PlainModel(NamedTuple):
    """A transformers model, and the tokenizer that came with it, None if none did."""

    model: PreTrainedModel
    tokenizer: Any


def plain_model(source: object) -> PlainModel:
    """The model inside of an object, with its weights in memory.

    Raises:
        WorkbenchError: for an object without such a model, with the next step.
    """
    if is_bridge(source):
        bridge: Any = source
        return PlainModel(unbridged(bridge), bridge.tokenizer)
    inner, tokenizer = _of_library(source)
    model = _unwrapped(inner)
    if is_bridge(model):
        return PlainModel(*plain_model(model))
    if not isinstance(model, PreTrainedModel):
        raise WorkbenchError(_why_none(model))
    _refuse_absent_weights(model, source)
    return PlainModel(model, tokenizer)


def is_model_like(source: object) -> bool:
    """Whether an object is, or holds, a model in memory; a path is not."""
    return isinstance(source, nn.Module) or is_bridge(source) or _of_library(source)[0] is not source


def _is_a(source: object, name: str, package: str) -> bool:
    """Whether a class of this name and package is among an object's; imports nothing."""
    return any(c.__name__ == name and c.__module__.partition(".")[0] == package for c in type(source).__mro__)


def _of_library(source: object) -> tuple[object, Any]:
    """The model of a pipeline or of nnsight, and its tokenizer; other objects as they are."""
    holder: Any = source
    if _is_a(source, "Pipeline", "transformers"):
        return holder.model, getattr(holder, "tokenizer", None)
    if _is_of_nnsight(source):
        for attribute in ("_model", "_module", "local_model"):
            inner: Any = getattr(holder, attribute, None)
            if isinstance(inner, nn.Module):
                return inner, getattr(holder, "tokenizer", None)
        raise WorkbenchError(
            f"this {type(source).__name__} of nnsight holds no torch module; load it with dispatch=True, "
            "and pass it or its ._model"
        )
    return source, None


def _is_of_nnsight(source: object) -> bool:
    return any(c.__module__.partition(".")[0] in ("nnsight", "nnterp") for c in type(source).__mro__)


def _unwrapped(source: object) -> object:
    for (name, package), attribute in _INNER.items():
        if _is_a(source, name, package):
            return _unwrapped(getattr(source, attribute))
    if _is_a(source, "PeftModel", "peft"):
        return _unwrapped(_without_peft(source))
    return source


def _without_peft(wrapper: Any) -> nn.Module:
    """The model that PEFT put adapters into; refused where PEFT's own forward does something else, as prompts do."""
    base: nn.Module = wrapper.get_base_model()
    config: Any = getattr(wrapper, "active_peft_config", None)
    kind = str(getattr(getattr(config, "peft_type", None), "value", "PEFT"))
    if bool(getattr(config, "is_prompt_learning", False)) or not _computes_the_same(wrapper, base):
        raise WorkbenchError(
            f"this {type(wrapper).__name__} ({kind}) does not compute what the {type(base).__name__} inside it does: "
            "it adds tokens or steps of its own, which have no heads here; expected adapters inside of the layers, as "
            "LoRA's. Merge it if it can be merged (merge_and_unload()), or pass get_base_model() for the model without"
        )
    return base


@torch.no_grad()
def _computes_the_same(wrapper: Any, base: Any) -> bool:
    """Whether both give the same logits of a few tokens, without dropout. Tensors that are elsewhere are not tried."""
    if any(tensor.is_meta for tensor in base.parameters()):
        return True
    tokens = torch.arange(5, device=base.device)[None] % int(base.config.get_text_config().vocab_size)
    with evaluating(wrapper):
        logits: tuple[Tensor, ...] = tuple(m(input_ids=tokens, use_cache=False).logits for m in (wrapper, base))
    return torch.equal(*logits)


def _refuse_absent_weights(model: PreTrainedModel, source: object) -> None:
    """Refuse a model whose weights are not in memory: on the meta device, offloaded, or sharded over processes."""
    name = type(model).__name__
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if sharded := [n for n, t in tensors if type(t).__name__ == "DTensor" or hasattr(t, "ds_shape")]:
        raise WorkbenchError(
            f"{len(sharded)} tensors of this {name} are sharded over processes ({sharded[0]}, …); expected whole ones. "
            "Save the whole model, as with save_pretrained or a full state dict, and open that folder"
        )
    absent = [n for n, t in tensors if t.is_meta]
    if not absent:
        return
    if any(getattr(module, "_hf_hook", None) is not None for module in model.modules()):
        raise WorkbenchError(
            f"accelerate has offloaded {len(absent)} tensors of this {name} ({absent[0]}, …); expected all in memory. "
            "Load the model without offloading (no device_map, or one of devices alone), or pass the checkpoint's path"
        )
    step = "load it with dispatch=True" if _is_of_nnsight(source) else "load the weights, as from_pretrained does"
    raise WorkbenchError(
        f"{len(absent)} tensors of this {name} are on the meta device and have no numbers ({absent[0]}, …); {step}, or "
        "pass the checkpoint's path"
    )


def _why_none(source: object) -> str:
    name = type(source).__name__
    if isinstance(source, type):
        return f"cannot open the class {source.__name__}: expected a model of it, or the path of a checkpoint"
    if _is_a(source, "HookedTransformer", "transformer_lens") or _is_a(source, "HookedRootModule", "transformer_lens"):
        return (
            f"cannot record a {name} of TransformerLens, which rewrites the weights that it is given; {_EXPECTED}. "
            "Pass the Hugging Face model that it was made of, or TransformerBridge.boot_transformers(NAME)"
        )
    if _is_a(source, "FullyShardedDataParallel", "torch"):
        return (
            f"cannot record a {name}: its weights are sharded over processes; {_EXPECTED}. Save the full state dict "
            "with its config.json, and open that folder"
        )
    if isinstance(source, nn.Module):
        inside = ((n, m) for n, m in source.named_modules() if n and isinstance(m, PreTrainedModel))
        attribute, model = next(inside, ("", None))
        hint = f". It holds a {type(model).__name__}: pass its .{attribute}" if model is not None else ""
        return f"cannot record a {name}; {_EXPECTED}{hint}"
    return f"cannot open a {name}; {_EXPECTED}"
