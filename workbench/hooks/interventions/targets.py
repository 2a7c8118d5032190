"""The heads that an intervention acts on, checked against the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.heads import Head, KVHead, LayerInfo, Mixer, WorkbenchError

# A head, and whether it belongs to the linear mixer of its layer.
HeadKey = tuple[Head, bool]


@dataclass(frozen=True, slots=True)
class ChosenHeads:
    """Heads to act on, by the mixer they belong to."""

    softmax: tuple[Head, ...]
    linear: tuple[Head, ...]

    @property
    def all(self) -> list[HeadKey]:
        """Every head with whether it is linear."""
        return [(h, False) for h in self.softmax] + [(h, True) for h in self.linear]


def layer_of(layers: Sequence[LayerInfo], index: int, mixer: Mixer | None = None) -> LayerInfo | None:
    """The mixer of a layer; of two the softmax one, which comes first, unless `mixer` names the other."""
    return next((i for i in layers if i.index == index and mixer in (None, i.mixer)), None)


def choose_heads(layers: Sequence[LayerInfo], heads: Iterable[Head], mixer: Mixer | None) -> ChosenHeads:
    """Sort heads by their mixer.

    Raises:
        WorkbenchError: for heads the model does not have.
    """
    softmax: list[Head] = []
    linear: list[Head] = []
    for head in heads:
        info = layer_of(layers, head.layer, mixer)
        if info is None or not 0 <= head.head < info.n_heads:
            raise WorkbenchError(f"layer {head.layer} has no head {head.head}; the model has {heads_of(layers)}")
        (linear if info.kind == "linear" else softmax).append(head)
    return ChosenHeads(tuple(softmax), tuple(linear))


def check_kv_head(layers: Sequence[LayerInfo], head: KVHead) -> None:
    """Refuse a head that cannot be restricted.

    Raises:
        WorkbenchError: if the model has no such key/value head of softmax attention.
    """
    info = layer_of(layers, head.layer)
    if info is None or not 0 <= head.kv_head < info.n_kv_heads:
        raise WorkbenchError(
            f"layer {head.layer} has no key/value head {head.kv_head}; the model has {heads_of(layers)}"
        )
    if info.mixer != "softmax":
        raise WorkbenchError(
            f"layer {head.layer} is {info.mixer} attention, which has no window to set; only softmax heads can be "
            "restricted"
        )


def check_linearisable(layers: Sequence[LayerInfo], head: KVHead) -> None:
    """Refuse a head that cannot have linear attention.

    Raises:
        WorkbenchError: if the model has no such key/value head of softmax attention over its whole past.
    """
    check_kv_head(layers, head)
    info = layer_of(layers, head.layer)
    if info is not None and info.kind != "full":
        raise WorkbenchError(
            f"layer {head.layer} is {info.kind}: {head} does not see its whole past already; only heads of full layers "
            "can be given linear attention"
        )


def heads_of(layers: Sequence[LayerInfo]) -> str:
    """The range of a model's heads, for messages."""
    return f"layers {layers[0].index} … {layers[-1].index} with {max(i.n_heads for i in layers)} heads"
