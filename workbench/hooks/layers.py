"""What a model's layers are, confirmed by a first short forward pass: who attends, how wide, with which sinks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.heads import Kind, LayerInfo, WorkbenchError
from workbench.hooks.attention import AttentionCall, handling
from workbench.hooks.linear import linear_layers
from workbench.hooks.linear.checking import checking_linear
from workbench.hooks.linear.lightning import warn_of_rounded_decay

# What configurations call a layer that mixes no tokens.
_NO_MIXER = ("mlp", "moe")


def survey(model: PreTrainedModel) -> tuple[LayerInfo, ...]:
    """The token mixers of a model in order of layers, from what three tokens cause in each.

    A layer with two mixers has two entries, the softmax one first; a layer without any (the MLP and MoE layers of
    Nemotron-H) has none. Linear layers are run against their implied patterns.

    Raises:
        WorkbenchError: naming the layers that mix tokens in a way that would go unrecorded, attend more than once, or
            do not give what their implied pattern says.

    Warns:
        RoundedDecayWarning: if the model holds decay rates in a precision in which some heads never forget.
    """
    calls: dict[int, list[AttentionCall]] = {}

    def note(call: AttentionCall) -> Tensor:
        calls.setdefault(call.layer, []).append(call)
        return call.output()

    config = model.config.get_text_config()
    tokens = torch.arange(3, device=model.device)[None] % int(config.vocab_size)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(), handling(model, note), checking_linear(model, valid) as is_right:
        model(input_ids=tokens, use_cache=False)
    linear = linear_layers(model)
    mute = _without_mixer(config)
    silent = [i for i in range(int(config.num_hidden_layers)) if not (i in calls or i in is_right or i in mute)]
    twice = sorted(i for i, made in calls.items() if len(made) != 1)
    misread = sorted(i for i in linear if not is_right.get(i, False))
    if silent or twice or misread:
        raise WorkbenchError(_refusal(model, silent=silent, twice=twice, misread=misread))
    warn_of_rounded_decay(model)
    infos = [_softmax_layer(config, i, made[0]) for i, made in calls.items()]
    infos += [layer.info for layer in linear.values()]
    return tuple(sorted(infos, key=lambda info: info.index))


def _without_mixer(config: Any) -> set[int]:
    kinds = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or []
    return {i for i, kind in enumerate(kinds) if kind in _NO_MIXER}


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


def _refusal(model: PreTrainedModel, *, silent: list[int], twice: list[int], misread: list[int]) -> str:
    classes = {int(i): type(m).__name__ for m in model.modules() if isinstance(i := getattr(m, "layer_idx", None), int)}

    def told(layers: list[int]) -> str:
        return ", ".join(f"layer {i} ({classes.get(i, 'no module with a layer number')})" for i in layers)

    parts: list[str] = []
    if silent:
        parts.append(f"no attention call reached the recorder from {told(silent)}")
    if twice:
        parts.append(f"layers {twice} attend more than once per pass")
    if misread:
        parts.append(
            f"the output of {told(misread)} is not its implied pattern times v in this version of transformers"
        )
    return (
        f"{type(model).__name__} cannot be recorded exactly: {'; '.join(parts)}. Expected softmax attention through "
        "transformers' AttentionInterface, or lightning attention, a gated delta net, Kimi delta attention or Mamba-2, "
        "in every layer that mixes tokens"
    )
