"""A layer of transformers' cache that holds of each head what later queries see: sinks and a window, a state, or all.

Models rotate keys before they cache them, so that keys between sinks and window can be let go without changing others.
A layer begins as the one that it stands for, whole. Once the attention function receives the very keys and values that
the layer has handed to the model, it cuts itself. From then on it hands out stand-ins of the same shape that hold
nothing, and the attention function takes the keys from here. A model that changes keys on their way from the cache to
its attention so keeps a whole cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks.interventions.block_selection import sparse_output
from workbench.hooks.interventions.held_keys import MOST_TAKEN_BACK, HeldKeys
from workbench.hooks.interventions.held_states import HeldStates
from workbench.hooks.interventions.linear_attention import linearised
from workbench.hooks.interventions.windows import (
    Interventions,
    has_uniform_heads,
    intervened_output,
    with_replacements,
)
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.cached_keys import hand_out, stand_in
from workbench.hooks.taps.scored_call import ScoredCall
from workbench.kernels import CausalMask
from workbench.store.conversions import LinearAttention, SparseAttention, Window


class CutLayer(CacheLayerMixin):
    """A cache layer of converted heads; until it is cut, the layer that it stands for does the work.

    `interventions` returns those in force. `on_kept_whole` is called with the reason if the layer cannot be cut.
    """

    is_croppable = False  # no more than what the newest pass brought can be taken back

    def __init__(
        self,
        whole: DynamicLayer,
        layer: int,
        interventions: Callable[[], Interventions],
        on_kept_whole: Callable[[str], None],
    ):
        self.whole, self.layer = whole, layer
        self.held: tuple[HeldKeys | HeldStates, ...] = ()
        self.handed: tuple[Tensor, Tensor] | None = None
        self._interventions, self._on_kept_whole = interventions, on_kept_whole
        self._own: tuple[Window, ...] = ()
        self._n_seen = 0

    @property
    def keys(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All keys; of a layer that was cut, a stand-in of their shape that is no number."""
        return self._stand_in(lambda held: held.k) if self.held else self.whole.keys

    @property
    def values(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All values, as `keys`."""
        return self._stand_in(lambda held: held.v) if self.held else self.whole.values

    def _stand_in(self, of: Callable[[HeldKeys | HeldStates], Tensor]) -> Tensor:
        own = of(self.held[0])
        n_heads = sum(len(held.heads) for held in self.held)
        return stand_in(own.new_empty(len(own), n_heads, 0, own.shape[3]), self._n_seen)

    @property
    def is_initialized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it was ever written to."""
        return bool(self.held) or self.whole.is_initialized

    @property
    def is_sliding(self) -> bool:
        """Whether the model's own layer has a window."""
        return bool(self.whole.is_sliding)

    def tensors(self) -> list[Tensor]:
        """The keys and values that it holds."""
        held = [x for group in self.held for x in group.tensors()]
        return held or [x for x in (self.keys, self.values) if x is not None]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the layer ready before its first keys come."""
        self.whole.lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys and values, and hand out all, or stand-ins for them.

        Raises:
            WorkbenchError: if windows that the layer was cut to are no longer in force.
        """
        if not self.held:
            if self.handed is not None:  # the attention function has not received the pair before this one
                self._on_kept_whole("it changes keys on their way from the cache to attention")
            return hand_out(self, *self.whole.update(key_states, value_states, *args, **kwargs))
        self._check_conversions()
        n_keys, _ = self.get_mask_sizes(key_states.shape[2])
        for held in self.held:
            held.add(key_states, value_states)
        self._n_seen += key_states.shape[2]
        return hand_out(self, stand_in(key_states, n_keys), stand_in(value_states, n_keys))

    def _check_conversions(self) -> None:
        interventions = self._interventions()
        for held in self.held:
            for head in (KVHead(self.layer, h) for h in held.heads):
                if isinstance(held, HeldStates):
                    is_in_force = interventions.forms.get(head) == held.form
                else:
                    is_in_force = set(held.windows) <= set(interventions.windows.get(head, ()))
                if not is_in_force:
                    raise WorkbenchError(
                        f"this cache was cut to what {head} sees under a window or linear attention that is no longer "
                        "in force, and the rest is gone; go on inside the block, or begin with a new cache"
                    )

    def output(self, call: AttentionCall, interventions: Interventions) -> Float[Tensor, "b q n_heads d_v"]:
        """The layer's attention output, after which the layer lets go what no later query sees."""
        if not self.held:
            out = intervened_output(call, interventions)
            self._cut(call, interventions)
            return out
        if has_uniform_heads(call, interventions) or not isinstance(call.mask.simplest(), CausalMask):
            raise WorkbenchError(
                f"the cache of layer {self.layer} was cut to windows, and uniform heads or a mask of the model's own "
                "making may need what is gone; begin with a new cache, or use use_cache=False"
            )
        n_b, n_heads, n_q, _ = call.q.shape
        out = call.v.new_empty(n_b, n_q, n_heads, call.v.shape[-1])
        by_kv_head = rearrange(out, "b q (kv g) d -> b q kv g d", kv=call.k.shape[1])
        for held in self.held:
            for heads, windows, form in self._alike(held.heads, interventions):
                if isinstance(held, HeldStates):
                    group_out = held.output(call, heads, windows)
                elif form is None:
                    group_out = held.output(call, heads, windows + self._own)
                elif isinstance(form, SparseAttention):
                    group_out = self._sparse_output(call, held, heads, form)
                else:
                    group_out = self._linear_output(call, held, heads, form)
                by_kv_head[:, :, list(heads)] = rearrange(group_out, "b q (kv g) d -> b q kv g d", kv=len(heads))
            held.trim(n_q)
        return with_replacements(call, interventions, out)

    def _alike(
        self, heads: tuple[int, ...], interventions: Interventions
    ) -> list[tuple[tuple[int, ...], tuple[Window, ...], LinearAttention | SparseAttention | None]]:
        """Heads by what they are converted to now."""
        by_conversion: dict[tuple[tuple[Window, ...], LinearAttention | SparseAttention | None], tuple[int, ...]] = {}
        for head in heads:
            key = KVHead(self.layer, head)
            form = interventions.forms.get(key) or interventions.selections.get(key)
            conversion = interventions.windows.get(key, ()), form
            by_conversion[conversion] = (*by_conversion.get(conversion, ()), head)
        return [(group, windows, form) for (windows, form), group in by_conversion.items()]

    def _sparse_output(
        self, call: AttentionCall, held: HeldKeys, heads: tuple[int, ...], to: SparseAttention
    ) -> Float[Tensor, "b q h d_v"]:
        """Sparse attention over all keys, which are held whole."""
        group = call.q.shape[1] // call.k.shape[1]
        outputs: list[Tensor] = []
        for head in heads:
            queries, local = slice(head * group, (head + 1) * group), [held.heads.index(head)]
            sinks = None if call.sinks is None else call.sinks[queries]
            whole = replace(call, q=call.q[:, queries], k=held.k[:, local], v=held.v[:, local], sinks=sinks)
            outputs.append(sparse_output(whole, to))
        return torch.cat(outputs, 2)

    def _linear_output(
        self, call: AttentionCall, held: HeldKeys, heads: tuple[int, ...], form: LinearAttention
    ) -> Float[Tensor, "b q h d_v"]:
        """Linear attention that came later, over all keys of heads that were not converted before."""
        group = call.q.shape[1] // call.k.shape[1]
        local = [held.heads.index(h) for h in heads]
        queries = [h * group + i for h in heads for i in range(group)]
        whole = replace(call, q=call.q[:, queries], k=held.k[:, local], v=held.v[:, local], sinks=None)
        return linearised(whole, [form] * len(queries)).output()

    def _cut(self, call: AttentionCall, interventions: Interventions) -> None:
        """Hold from now on what later queries see, if that is less than all."""
        mask, first = call.mask.simplest(), call.first_keys()
        if not isinstance(mask, CausalMask) or isinstance(call, ScoredCall):
            if call.q.shape[2] == 1:  # a prompt may have a mask that the tokens after it do not have
                self._on_kept_whole("its attention has more than a causal mask, a window and padding")
            return
        is_packed = bool((first != first[:, :1]).any())
        # A sequence of which no token has come yet, behind padding longer than the first piece of the prompt.
        is_to_come = mask.valid is not None and not bool(mask.valid.any(-1).all())
        if is_packed or is_to_come:
            return
        if has_uniform_heads(call, interventions):
            return
        own = () if mask.window is None else (Window(mask.window),)
        pieces = _Pieces(call, first[:, 0] + call.mask.key_offset, mask.window)
        held: list[HeldKeys | HeldStates] = []
        for heads, windows, form in self._alike(tuple(range(call.k.shape[1])), interventions):
            piece = pieces.states(heads, form) if isinstance(form, LinearAttention) else pieces.held(heads, windows)
            if piece is None:
                return
            held.append(piece)
        if not any(isinstance(piece, HeldStates) or piece.windows for piece in held):
            return
        self.held, self._own, self._n_seen = tuple(held), own, call.mask.key_offset + call.k.shape[2]
        self.whole.reset()

    def get_seq_length(self) -> int:
        """Tokens that the layer has seen."""
        return self._n_seen if self.held else self.whole.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys that are handed out for this many queries, and the position of the first one."""
        if not self.held:
            return self.whole.get_mask_sizes(query_length)
        if not self.is_sliding:
            return self._n_seen + query_length, 0
        offset = max(0, self._n_seen - int(self.whole.sliding_window) + 1)  # type: ignore[attr-defined]
        return self._n_seen - offset + query_length, offset

    def get_max_length(self) -> int:
        """As of the layer that it stands for."""
        return self.whole.get_max_length()

    def reset(self) -> None:
        """Forget everything; the layer is whole again."""
        self.held, self.handed, self._n_seen = (), None, 0
        self.whole.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Take the newest −`tokens_to_remove` tokens back.

        Raises:
            WorkbenchError: if keys are gone that would be needed then.
        """
        if not self.held:
            self.whole.crop(tokens_to_remove)
            return
        n = abs(tokens_to_remove)
        if not all(held.can_take_back(n) for held in self.held):
            raise WorkbenchError(
                f"{n} tokens cannot be taken back from this cache, which was cut to windows and holds no keys from "
                "before them; begin with a new cache"
            )
        for held in self.held:
            held.take_back(n)
        self._n_seen -= n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the sequences of other beams in the place of these."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)), lambda: self.whole.reorder_cache(beam_idx))  # pyright: ignore[reportArgumentType]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0), lambda: self.whole.batch_repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences."""
        self._change(lambda x: x[indices], lambda: self.whole.batch_select_indices(indices))

    def _change(self, sequences: Callable[[Tensor], Tensor], whole: Callable[[], None]) -> None:
        if not self.held:
            whole()
        for held in self.held:
            held.change(sequences)


class _Pieces:
    """Cuts the keys of a call into those of heads that are held together.

    `first`: the position of each sequence's first token; `own`: the window of the layer itself.
    """

    def __init__(self, call: AttentionCall, first: Int[Tensor, " b"], own: int | None):
        self._call, self._first, self._own = call, first, own
        self._offset, self._n_new = call.mask.key_offset, call.q.shape[2]
        self._n_seen = self._offset + call.k.shape[2]

    def held(self, heads: tuple[int, ...], windows: tuple[Window, ...]) -> HeldKeys | None:
        """What is held of these heads; None where the sequences are too short to let any key go."""
        band, n_sinks = self._extent(windows)
        if band is None:
            return self._piece(heads, windows, None, self._offset, 0)
        earliest = max(self._offset, int(self._first.max()) + n_sinks) if n_sinks else self._offset
        latest = self._n_seen - (band - 1)
        if latest < earliest and windows:
            return None
        start = max(latest - min(self._n_new, MOST_TAKEN_BACK), earliest)
        return self._piece(heads, windows, band, start, n_sinks)

    def states(self, heads: tuple[int, ...], form: LinearAttention) -> HeldStates:
        """What is held of heads with linear attention."""
        k, v = self._call.k[:, list(heads)], self._call.v[:, list(heads)]
        held = HeldStates(heads, form, self._call.scale, k, v, self._call.mask.valid)
        held.trim(self._n_new)
        return held

    def _extent(self, windows: tuple[Window, ...]) -> tuple[int | None, int]:
        """How many keys a query sees of the newest, None for all, and of the first ones."""
        if not windows:
            return self._own, 0
        band, n_sinks = min(w.window for w in windows), max(w.sink for w in windows)
        if self._own is None:
            return band, n_sinks
        # Sinks that have left the layer's own window, or soon will, are not held apart.
        is_apart = n_sinks and band + n_sinks < self._own and self._offset == 0
        return (band, n_sinks) if is_apart else (self._own if n_sinks else min(band, self._own), 0)

    def _piece(
        self, heads: tuple[int, ...], windows: tuple[Window, ...], band: int | None, start: int, n_sinks: int
    ) -> HeldKeys:
        k, v = (self._slots(x[:, list(heads)], start, n_sinks) for x in (self._call.k, self._call.v))
        return HeldKeys(heads, windows, band, k, v, n_sinks, self._first, start)

    def _slots(self, x: Float[Tensor, "b h k d"], start: int, n_sinks: int) -> Float[Tensor, "b h slots d"]:
        sinks = self._first[:, None] + torch.arange(n_sinks, device=x.device)
        sinks = repeat(sinks, "b s -> b h s d", h=x.shape[1], d=x.shape[3])
        return torch.cat([x.gather(2, sinks), x[:, :, start - self._offset :]], 2)
