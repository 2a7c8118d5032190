"""Ways of running that not every model can be run in: several documents to a sequence, and piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.interventions.ablation import Ablation
from workbench.hooks.interventions.windows import Interventions
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.taps.eager import blocks, is_without_interface
from workbench.kernels import Far


def check_packed(model: PreTrainedModel, layers: Sequence[LayerInfo], far: Far) -> None:
    """Raises:
    WorkbenchError: if documents packed into a sequence would run into each other.
    """
    _check_all_softmax(model, layers, "packed documents", "pass them one to a sequence, padded")
    if is_without_interface(model):
        raise WorkbenchError(
            f"{type(model).__name__} cannot be told where packed documents begin; pass them one to a sequence, padded"
        )
    if far.sink:
        raise WorkbenchError(f"far.sink is {far.sink}; with packed documents expected 0")


def check_prefill(
    model: PreTrainedModel,
    layers: Sequence[LayerInfo],
    batch: Sequences,
    prefill: int,
    interventions: Interventions,
) -> None:
    """Raises:
    WorkbenchError: if pieces through a cache would not give the numbers of one pass.
    """
    if prefill < 1:
        raise WorkbenchError(f"prefill is {prefill}; expected at least 1 token")
    # transformers itself continues Mamba and lightning layers wrongly from a cache.
    _check_all_softmax(model, layers, "pieces through a cache", "leave prefill= out")
    if batch.is_packed:
        raise WorkbenchError("packed documents cannot be run piece by piece; leave prefill= out")
    replacements = interventions.replacements.values()
    if any(isinstance(r, Ablation) and r.how == "mean" and r.mean is None for r in replacements):
        raise WorkbenchError("a head's mean over its own batch is not known piece by piece; pass reference=")


def has_convolutions(model: PreTrainedModel) -> bool:
    """True if a layer mixes neighbouring tokens before it attends, as short convolutions of keys and values do."""
    return any(isinstance(module, nn.Conv1d) for _, block in blocks(model) for module in block.modules())


def _check_all_softmax(model: PreTrainedModel, layers: Sequence[LayerInfo], what: str, instead: str) -> None:
    other = next((info for info in layers if info.mixer != "softmax"), None)
    if other is not None:
        raise WorkbenchError(
            f"{what} need a model of softmax layers alone; layer {other.index} is {other.mixer} attention: {instead}"
        )
    if has_convolutions(model):
        raise WorkbenchError(
            f"{what} need a model of softmax layers alone; {type(model).__name__} has short convolutions over "
            f"neighbouring tokens beside them: {instead}"
        )
