"""The sentence that refuses a model whose layers cannot be recorded: what they do, as seen when the model is opened.

The reasons come from what ran (how often a layer ran, how often it attended) and from what a layer holds (rates of
decay per channel, hashes), so that models of a hub with layers of their own are refused in the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from workbench.hooks.taps.attention_call import OWN_PROBABILITIES
from workbench.hooks.taps.key_selection import is_indexer
from workbench.hooks.taps.layer_lists import blocks, numbered

_EXPECTED = (
    "Expected, in every layer that mixes tokens, causal softmax attention (through transformers' AttentionInterface, "
    "or one softmax and one product with the values), lightning attention, a gated delta net, Kimi delta attention, "
    "Mamba-1 or 2, RG-LRU, RWKV-4, a gated short convolution, mLSTM or differential attention; the README lists the "
    "families"
)
_N_NAMED = 3
# What a layer holds, and what it does with it; the first that is there is said.
_HOLDS = (
    ("num_hashes", "hashes keys into buckets, so that a row attends to a sample of the past"),
    ("chunk_length", "attends inside of chunks of tokens, through no softmax over the whole past"),
    ("time_decay", "weights the past by a decay of each channel, so that no head has one pattern"),
    ("time_step_rank", "lets every channel forget at rates of its own (Mamba-1), so that no head has one pattern"),
    ("recurrent_param", "weights the past by a decay of each channel (RG-LRU), so that no head has one pattern"),
    ("igate_preact", "mixes tokens by a state with input and forget gates and a normaliser"),
)


@contextmanager
def counting_runs(model: PreTrainedModel) -> Generator[Counter[int]]:
    """Yield how often the module of each layer number has run inside the block: of several, the one that ran most."""
    runs: Counter[nn.Module] = Counter()
    most: Counter[int] = Counter()
    numbers = _numbers(model)

    def note(module: nn.Module, _: Any) -> None:
        runs[module] += 1
        layer = numbers[module]
        most[layer] = max(most[layer], runs[module])

    handles = [m.register_forward_pre_hook(note) for m in numbers]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()


def why_refused(model: PreTrainedModel, faults: Mapping[str, Sequence[int]], runs: Mapping[int, int]) -> str:
    """The sentence on a model's faults.

    Args:
        faults: sentences with a place for names of layers, and the layers of each.
        runs: how often the module of each layer ran in one pass.
    """
    classes = {i: type(m).__name__ for i, m in blocks(model)}
    classes |= {i: type(m).__name__ for m, i in _numbers(model).items()}
    name = type(model).__name__
    at_fault = sorted({layer for layers in faults.values() for layer in layers})
    repeated = [i for i in at_fault if runs.get(i, 0) > 1]
    if repeated:
        return (
            f"{name} cannot be recorded exactly: it runs its layers several times a pass ({classes[repeated[0]]} of "
            f"layer {repeated[0]} ran {runs[repeated[0]]} times), so that a head has several patterns for one token. "
            f"Expected a model that runs each layer once a pass. Leave this model out; {OWN_PROBABILITIES}, run by run"
        )
    twice = [i for fault, layers in faults.items() if "more than once" in fault for i in layers]
    if twice == at_fault and all(runs.get(i) == 1 for i in twice) and not _share_numbers(model):
        return (
            f"{name} cannot be recorded exactly: {_names(twice, classes)} attend more than once per pass: its heads "
            "have several softmaxes, and their pattern is none of them. Expected one softmax a head, or differential "
            f"attention as DiffLlama has it. Leave this model out; {OWN_PROBABILITIES}"
        )
    reasons = "; ".join(fault.format(_names(layers, classes)) for fault, layers in faults.items() if layers)
    return (
        f"{name} cannot be recorded exactly: {reasons}{_by_what_it_holds(model, at_fault)}. {_EXPECTED}. Leave this "
        "model out, or register a reader of its linear layers with workbench.hooks.mixer"
    )


def _names(layers: Sequence[int], classes: Mapping[int, str]) -> str:
    named = [f"layer {i} ({classes[i]})" if i in classes else f"layer {i}" for i in sorted(layers)]
    n_more = len(named) - _N_NAMED
    return ", ".join(named[:_N_NAMED]) + (f" and {n_more} more" if n_more > 0 else "")


def _by_what_it_holds(model: PreTrainedModel, at_fault: Sequence[int]) -> str:
    """What layers at fault do by what they hold; "" where that says nothing."""
    modules = [m for i, block in blocks(model) if i in at_fault for m in block.modules()]
    for attribute, deed in _HOLDS:
        holder = next((m for m in modules if hasattr(m, attribute) and _is_by_channel(getattr(m, attribute))), None)
        if holder is not None:
            return f" ({type(holder).__name__} {deed})"
    return ""


def _is_by_channel(value: Any) -> bool:
    """False for a parameter with an axis of heads, as the decay of later RWKV: a head may have a pattern there."""
    return not isinstance(value, nn.Parameter) or value.ndim == 1 or value.numel() == value.shape[-1]


def _share_numbers(model: PreTrainedModel) -> bool:
    """True if two modules of one class have the number of the same layer."""
    return max(Counter((type(m), i) for m, i in _numbers(model).items()).values(), default=0) > 1


def _numbers(model: PreTrainedModel) -> dict[nn.Module, int]:
    """The modules that know the number of their layer, indexers left out."""
    return {m: i for m, i in numbered(model).items() if not is_indexer(m)}
