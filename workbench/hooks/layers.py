"""What a model's layers are, confirmed by a first short forward pass: who attends, how wide, with which sinks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.heads import Kind, LayerInfo, WorkbenchError
from workbench.hooks.attention import AttentionCall, handling
from workbench.hooks.lightning import lightning_modules


def survey(model: PreTrainedModel) -> tuple[LayerInfo, ...]:
    """The layers of a model in order, from the attention calls that three tokens cause.

    Raises:
        WorkbenchError: naming the layers that made no call, or more than one: their attention would go unrecorded.
    """
    calls: dict[int, list[AttentionCall]] = {}

    def note(call: AttentionCall) -> Tensor:
        calls.setdefault(call.layer, []).append(call)
        return call.output()

    config = model.config.get_text_config()
    tokens = torch.arange(3, device=model.device)[None] % int(config.vocab_size)
    with handling(model, note), torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    lightning = lightning_modules(model)
    n_layers = int(config.num_hidden_layers)
    silent = [i for i in range(n_layers) if i not in calls and i not in lightning]
    twice = sorted(i for i, made in calls.items() if len(made) != 1)
    if silent or twice:
        raise WorkbenchError(_refusal(model, silent, twice))
    infos = [_softmax_layer(config, i, made[0]) for i, made in calls.items()]
    infos += [_lightning_layer(i, module) for i, module in lightning.items()]
    return tuple(sorted(infos, key=lambda info: info.index))


def _softmax_layer(config: Any, index: int, call: AttentionCall) -> LayerInfo:
    kinds = getattr(config, "layer_types", None)
    named = kinds[index] if isinstance(kinds, list | tuple) and len(kinds) > index else None
    kind: Kind = "full"
    if call.mask.window is not None:
        kind = "chunked" if named == "chunked_attention" else "sliding"
    return LayerInfo(
        index=index,
        kind=kind,
        mixer="softmax",
        window=call.mask.window,
        has_sinks=call.sinks is not None,
        n_heads=call.q.shape[1],
        n_kv_heads=call.k.shape[1],
        d_head=call.q.shape[-1],
    )


def _lightning_layer(index: int, module: Any) -> LayerInfo:
    n_heads = int(module.num_attention_heads)
    return LayerInfo(
        index=index,
        kind="linear",
        mixer="lightning",
        window=None,
        has_sinks=False,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=int(module.head_dim),
    )


def _refusal(model: PreTrainedModel, silent: list[int], twice: list[int]) -> str:
    mixers = {
        int(i): type(m).__name__
        for m in model.modules()
        if isinstance(i := getattr(m, "layer_idx", None), int) and i in silent
    }
    told = ", ".join(f"layer {i} ({mixers.get(i, 'no module with a layer number')})" for i in silent)
    parts = []
    if silent:
        parts.append(f"no attention call reached the recorder from {told}")
    if twice:
        parts.append(f"layers {twice} attend more than once per pass")
    return (
        f"{type(model).__name__} cannot be recorded exactly: {'; '.join(parts)}. Expected one softmax attention "
        "through transformers' AttentionInterface, or one lightning attention, per layer"
    )
