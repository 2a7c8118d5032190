"""Bytes that softmax heads hold of a context: a key/value cache, that of a window, or the state of linear attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workbench.heads import KVHead, LayerInfo
from workbench.store.conversions import Choice, Forms, LinearAttention, Window, softmax_heads

# States are summed in float32 whatever the model's precision; keys and values of a cache are counted at 16 bits.
_STATE_BYTES, _CACHE_BYTES = 4, 2


def bytes_held(choice: Choice, d_head: int, n_seen: int) -> int:
    """Bytes that a head holds of `n_seen` tokens: keys and values in 16-bit numbers, or a state in float32.

    Values are counted as wide as keys.
    """
    if isinstance(choice, LinearAttention):
        return _STATE_BYTES * choice.state_size(d_head)
    n_held = n_seen if choice == "full" else min(n_seen, choice.window + choice.sink)
    return 2 * _CACHE_BYTES * d_head * n_held


def seen_tokens(info: LayerInfo, context: int) -> int:
    """The tokens that a softmax layer holds of a context by itself: no more than its own window."""
    return context if info.window is None else min(context, info.window)


def kv_bytes(  # all are sizes
    layers: Sequence[LayerInfo],
    keep: Collection[KVHead],
    *,
    window: int,
    sink: int,
    context: int,
    linear: Forms | None = None,
) -> int:
    """Bytes that softmax layers hold after `context` tokens if only `keep` see all of them.

    The other heads have a cache of the window, in 16-bit numbers, or, if they are `linear`, a state in float32. A
    sliding layer never holds more than its own window. Values are counted as wide as keys.
    """
    n_bytes = 0
    for info in (i for i in layers if i.mixer == "softmax"):
        for h in range(info.n_kv_heads):
            head = KVHead(info.index, h)
            choice: Choice = "full" if head in keep else (linear or {}).get(head, Window(window, sink))
            n_bytes += bytes_held(choice, info.d_head, seen_tokens(info, context))
    return n_bytes


def kv_saved(  # as kv_bytes
    layers: Sequence[LayerInfo],
    keep: Collection[KVHead],
    *,
    window: int,
    sink: int,
    context: int,
    linear: Forms | None = None,
) -> float:
    """The share of a softmax key/value cache of `context` tokens that is not needed if only `keep` see all of it.

    It is negative where states of linear attention are larger than the cache.
    """
    needed = kv_bytes(layers, keep, window=window, sink=sink, context=context, linear=linear)
    in_all = kv_bytes(layers, set(softmax_heads(layers)), window=window, sink=sink, context=context)
    return 1 - needed / in_all if in_all else 0.0
