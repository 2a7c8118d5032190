"""The heads that an intervention acts on, checked against the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.heads import Head, KVHead, LayerInfo, Mixer, WorkbenchError
from workbench.hooks.head_inputs import HeadsLike, heads_of, layer_of, query_heads
from workbench.store.conversions import LinearAttention, SparseAttention

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


def choose_heads(layers: Sequence[LayerInfo], heads: HeadsLike, mixer: Mixer | None) -> ChosenHeads:
    """Sort heads by their mixer.

    Raises:
        WorkbenchError: for heads the model does not have, and for anything that names none.
    """
    chosen = query_heads(layers, heads, mixer)
    is_linear = {
        h: info is not None and info.kind == "linear" for h in chosen for info in [layer_of(layers, h.layer, mixer)]
    }
    return ChosenHeads(tuple(h for h in chosen if not is_linear[h]), tuple(h for h in chosen if is_linear[h]))


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
    _check_full(layers, head, "linear attention")


def check_sparsifiable(layers: Sequence[LayerInfo], head: KVHead) -> None:
    """Refuse a head that cannot have sparse attention.

    Raises:
        WorkbenchError: if the model has no such key/value head of softmax attention over its whole past.
    """
    _check_full(layers, head, "sparse attention")


def _check_full(layers: Sequence[LayerInfo], head: KVHead, what: str) -> None:
    check_kv_head(layers, head)
    info = layer_of(layers, head.layer)
    if info is not None and info.kind != "full":
        raise WorkbenchError(
            f"layer {head.layer} is {info.kind}: {head} does not see its whole past already; only heads of full layers "
            f"can be given {what}"
        )


def check_form(head: KVHead, form: object) -> None:
    """Refuse what is no form of linear attention.

    Raises:
        WorkbenchError: naming the head.
    """
    if not isinstance(form, LinearAttention):
        raise WorkbenchError(
            f"the form of {head} is a {type(form).__name__}; expected a LinearAttention, as fit_linear_attention gives"
        )


def check_selection(head: KVHead, selection: object) -> None:
    """Refuse what is no sparse attention.

    Raises:
        WorkbenchError: naming the head.
    """
    if not isinstance(selection, SparseAttention):
        raise WorkbenchError(
            f"{head} was to become a {type(selection).__name__}; expected a SparseAttention, as "
            "SparseAttention(block=64, n_blocks=8)"
        )
