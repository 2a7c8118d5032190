"""The patterns of all heads of some layers in one forward pass, which ends behind the last of these layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.heads import LayerInfo, Mixer, WorkbenchError
from workbench.hooks.head_inputs import layer_of
from workbench.hooks.interventions.windows import Interventions, crops_of_heads, intervened_output
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.forward_pass import answers_of
from workbench.hooks.recording.tensor_tables import TensorTable
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.linear import LinearCall, reading_linear

# Bytes of patterns that one call gives without a word.
MOST_BYTES = 4 << 30


class LastLayerReached(Exception):
    """Ends a forward pass behind the last layer that is read."""


def chosen_layers(
    layers: Sequence[LayerInfo], chosen: int | Iterable[Any] | slice | None, mixer: Mixer | None
) -> list[LayerInfo]:
    """The token mixers of some layers, by the model's own layer numbers, which may be negative; None: of all layers.

    Raises:
        WorkbenchError: for what is no layer of the model, or has no such mixer.
    """
    numbers = list(dict.fromkeys(info.index for info in layers))
    if chosen is None:
        named = [number for number in numbers if mixer is None or layer_of(layers, number, mixer) is not None]
    elif isinstance(chosen, slice):
        named = list(range(max(numbers) + 1))[chosen]
    else:
        entries: list[Any] = list(chosen) if isinstance(chosen, Iterable) else [chosen]
        named = [_number(entry, numbers) for entry in entries]
    infos = [layer_of(layers, number, mixer) for number in dict.fromkeys(named)]
    if not infos or None in infos:
        of_mixer = "" if mixer is None else f" with {mixer} attention"
        raise WorkbenchError(
            f"layers is {chosen!r}; expected numbers of layers{of_mixer} that mix tokens, of {numbers[0]} to "
            f"{numbers[-1]}, a slice of them, or None for all"
        )
    return [info for info in infos if info is not None]


def check_memory(infos: Sequence[LayerInfo], shape: tuple[int, int], *, most_bytes: int) -> None:
    """Refuse patterns that are larger than a limit.

    Raises:
        WorkbenchError: with the number of bytes, and how to crop.
    """
    n_heads = sum(info.n_heads for info in infos)
    n_bytes = 4 * n_heads * shape[0] * shape[1]
    if n_bytes > most_bytes:
        raise WorkbenchError(
            f"the patterns of {n_heads} heads in {len(infos)} layers, {shape[0]:,} queries by {shape[1]:,} keys in "
            f"float32, take {n_bytes / 2**30:.2f} GiB, more than the limit of {most_bytes / 2**30:.2f} GiB; crop them "
            "with queries= and keys=, take fewer layers=, pass most_bytes= for a larger limit, or use m.record for "
            "statistics that need no pattern"
        )


def read_patterns(
    model: PreTrainedModel,
    batch: Sequences,
    infos: Sequence[LayerInfo],
    interventions: Interventions,
    *,
    queries: Int[Tensor, " q"],
    keys: Int[Tensor, " k"],
) -> dict[int, Float[Tensor, "n_heads q k"]]:
    """The crop of every head of these layers, by layer, under the interventions."""
    softmax = {info.index: info for info in infos if info.kind != "linear"}
    linear = {info.index: info for info in infos if info.kind == "linear"}
    patterns: dict[int, Tensor] = {}

    def keep(layer: int, crops: Float[Tensor, "n_heads q k"]) -> None:
        patterns[layer] = crops
        if len(patterns) == len(infos):
            raise LastLayerReached

    def attend(call: AttentionCall) -> Tensor:
        if call.layer in softmax:
            keep(call.layer, crops_of_heads(call, interventions, queries, keys))
        return intervened_output(call, interventions)

    def read(call: LinearCall) -> None:
        if call.layer in linear:
            heads = range(linear[call.layer].n_heads)
            keep(call.layer, torch.stack([call.crop(head, queries, keys) for head in heads]))

    try:
        with torch.no_grad(), handling(model, attend), reading_linear(model, batch.valid, read):
            answers_of(model, batch)
    except LastLayerReached:
        return TensorTable({info.index: patterns[info.index] for info in infos})
    raise AssertionError(f"of the layers {[info.index for info in infos]} only {sorted(patterns)} attended")


def _number(entry: Any, numbers: Sequence[int]) -> int:
    if isinstance(entry, bool) or not isinstance(entry, Integral):
        raise WorkbenchError(f"layers has {entry!r}; expected whole numbers, the model's own numbers of layers")
    number = int(entry)
    return number if number >= 0 else numbers[-1] + 1 + number
