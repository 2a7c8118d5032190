"""What softmax heads hold of a context, in bytes of a cache or of a state, and how many of its keys a token reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from workbench.heads import KVHead, LayerInfo
from workbench.store.conversions import Choice, Conversions, LinearAttention, SparseAttention, Window, softmax_heads

# States are summed in float32 whatever the model's precision; keys and values of a cache are counted at 16 bits.
_STATE_BYTES, _CACHE_BYTES = 4, 2


def bytes_held(choice: Choice, d_head: int, n_seen: int) -> int:
    """Bytes that a head holds of `n_seen` tokens: keys and values in 16-bit numbers, or a state in float32.

    Values are counted as wide as keys. A sparse head holds as much as a full one: it reads less of its cache, see
    `keys_read`, and lets nothing go.
    """
    if isinstance(choice, LinearAttention):
        return _STATE_BYTES * choice.state_size(d_head)
    n_held = min(n_seen, choice.window + choice.sink) if isinstance(choice, Window) else n_seen
    return 2 * _CACHE_BYTES * d_head * n_held


def keys_read(choice: Choice, n_seen: int) -> int:
    """Keys that the newest of `n_seen` tokens attends to in a head; of linear attention none, which reads its state.

    What a sparse head reads to select its blocks is not counted: every key by the rule `oracle`, and one or two vectors
    for each block by the others.
    """
    if isinstance(choice, LinearAttention):
        return 0
    if isinstance(choice, SparseAttention):
        return min(n_seen, choice.n_read)
    return n_seen if choice == "full" else min(n_seen, choice.window + choice.sink)


def seen_tokens(info: LayerInfo, context: int) -> int:
    """The tokens that a softmax layer holds of a context by itself: no more than its own window."""
    return context if info.window is None else min(context, info.window)


def bytes_under(layers: Sequence[LayerInfo], conversions: Conversions, *, context: int) -> int:
    """Bytes that softmax layers hold after `context` tokens with these heads converted, and all others full.

    A sliding layer never holds more than its own window.
    """
    return sum(
        bytes_held(conversions.get(KVHead(info.index, h), "full"), info.d_head, seen_tokens(info, context))
        for info in layers
        if info.mixer == "softmax"
        for h in range(info.n_kv_heads)
    )


def saved_under(layers: Sequence[LayerInfo], conversions: Conversions, *, context: int) -> float:
    """The share of a softmax key/value cache of `context` tokens that is not needed with these heads converted.

    It is negative where states of linear attention are larger than the cache.
    """
    in_all = bytes_under(layers, {}, context=context)
    return 1 - bytes_under(layers, conversions, context=context) / in_all if in_all else 0.0


def keys_under(layers: Sequence[LayerInfo], choices: Mapping[KVHead, Choice], *, context: int) -> int:
    """Keys that the newest of `context` tokens attends to under these choices, summed over all softmax heads.

    The heads are key/value heads; those without a choice are full. See `keys_read`.
    """
    return sum(
        keys_read(choices.get(KVHead(info.index, h), "full"), seen_tokens(info, context))
        for info in layers
        if info.mixer == "softmax"
        for h in range(info.n_kv_heads)
    )


def kv_bytes(layers: Sequence[LayerInfo], keep: Collection[KVHead], *, window: int, sink: int, context: int) -> int:
    """`bytes_under` a window on every head but `keep`."""
    return bytes_under(layers, _windowed(layers, keep, Window(window, sink)), context=context)


def kv_saved(layers: Sequence[LayerInfo], keep: Collection[KVHead], *, window: int, sink: int, context: int) -> float:
    """`saved_under` a window on every head but `keep`."""
    return saved_under(layers, _windowed(layers, keep, Window(window, sink)), context=context)


def _windowed(layers: Sequence[LayerInfo], keep: Collection[KVHead], window: Window) -> Conversions:
    return {head: window for head in softmax_heads(layers) if head not in keep}
