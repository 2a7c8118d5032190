"""What users hand in as heads, read in one place: `Head`, `KVHead`, "L1H3", "L1KV0" and pairs of numbers.

A pair is a query head. Where query heads share their keys and values, it could be meant as either, and is refused for
key/value heads; so is a query head without the others of its group.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor

from workbench.heads import Head, KVHead, LayerInfo, Mixer, WorkbenchError

# One head or several.
HeadsLike = Head | KVHead | str | Iterable[Any] | Any
Value = TypeVar("Value")

_EXPECTED = 'as Head(1, 3), KVHead(1, 0), "L1H3", "L1KV0" or (layer, head)'
_LABEL = re.compile(r"\s*[Ll](\d+)(?P<kind>[Hh]|[Kk][Vv])(\d+)\s*", re.ASCII)


class _Pair(tuple[int, int]):
    """Two numbers that do not say which kind of head they are."""


def query_heads(layers: Sequence[LayerInfo], heads: HeadsLike, mixer: Mixer | None = None) -> list[Head]:
    """Query heads, each once, in the order in which they are handed in.

    Raises:
        WorkbenchError: for heads the model does not have, key/value heads of several query heads, and other things.
    """
    return list(dict.fromkeys(_query_head(layers, head, mixer) for head in _listed(heads)))


def query_head(layers: Sequence[LayerInfo], layer: Any, head: Any, mixer: Mixer | None = None) -> Head:
    """One query head, from a layer and a number in it, or from a head alone with `head` None.

    Raises:
        WorkbenchError: for heads the model does not have, a head and a number beside it, and other things.
    """
    if head is None:
        if _is_index(layer):
            raise WorkbenchError(f"layer {layer} was given without a head; pass both, or one head {_EXPECTED}")
        chosen = query_heads(layers, layer, mixer)
        if len(chosen) != 1:
            raise WorkbenchError(f"{len(chosen)} heads were given, expected one; call once for each")
        return chosen[0]
    if not _is_index(layer) or not _is_index(head):
        raise WorkbenchError(
            f"layer is {layer!r} and head {head!r}; expected two whole numbers, or one head {_EXPECTED} alone"
        )
    chosen = Head(operator.index(layer), operator.index(head))
    info = layer_of(layers, chosen.layer, mixer)
    if info is None or not 0 <= chosen.head < info.n_heads:
        raise WorkbenchError(f"there is no head {chosen}; the model has {heads_of(layers)}")
    return chosen


def kv_heads(layers: Sequence[LayerInfo], heads: HeadsLike) -> list[KVHead]:
    """Key/value heads, each once, in the order in which they are handed in.

    Raises:
        WorkbenchError: for heads the model does not have, query heads without the others that share their keys, pairs
            that may mean either, and other things.
    """
    listed = _listed(heads)
    named = {head for head in listed if isinstance(head, Head)}
    return list(dict.fromkeys(_kv_head(layers, head, named) for head in listed))


def by_kv_head(layers: Sequence[LayerInfo], values: Mapping[Any, Value] | Any) -> dict[KVHead, Value]:
    """A mapping whose keys are read as key/value heads.

    Raises:
        WorkbenchError: as `kv_heads`; for no mapping, or two keys for one head.
    """
    if not isinstance(values, Mapping):
        raise WorkbenchError(f"a {type(values).__name__} was given; expected a mapping from key/value heads")
    by_key = cast("Mapping[Any, Value]", values)
    keys = {key: kv_heads(layers, key) for key in by_key}
    by_head = {head: by_key[key] for key, heads in keys.items() for head in heads}
    if len(by_head) != len(keys):
        raise WorkbenchError(f"{len(keys)} keys name {len(by_head)} key/value heads; expected one for each")
    return by_head


def layer_of(layers: Sequence[LayerInfo], index: int, mixer: Mixer | None = None) -> LayerInfo | None:
    """The mixer of a layer; of two the softmax one, which comes first, unless `mixer` names the other."""
    return next((i for i in layers if i.index == index and mixer in (None, i.mixer)), None)


def heads_of(layers: Sequence[LayerInfo]) -> str:
    """The range of a model's heads, for messages."""
    return f"layers {layers[0].index} … {layers[-1].index} with {max(i.n_heads for i in layers)} heads"


def _listed(heads: Any) -> list[Head | KVHead | _Pair]:
    one = _read(heads)
    if one is not None:
        return [one]
    if isinstance(heads, str | Mapping) or not isinstance(heads, Iterable):
        raise WorkbenchError(f"{heads!r} is no head and no list of heads; expected heads {_EXPECTED}")
    listed: list[Head | KVHead | _Pair] = []
    for entry in cast("Iterable[Any]", heads):
        head = _read(entry)
        if head is None:
            raise WorkbenchError(f"{entry!r} is no head; expected heads {_EXPECTED}")
        listed.append(head)
    return listed


def _read(entry: Any) -> Head | KVHead | _Pair | None:
    """One head; None for anything that is none."""
    if isinstance(entry, Head | KVHead):
        numbers = [_index(number) for number in entry]
        return None if None in numbers else type(entry)(*cast("list[int]", numbers))
    if isinstance(entry, str):
        match = _LABEL.fullmatch(entry)
        if match is None:
            return None
        kind = Head if match["kind"].lower() == "h" else KVHead
        return kind(int(match[1]), int(match[3]))
    if isinstance(entry, tuple | list | np.ndarray | Tensor):
        pair = [_index(number) for number in cast("Sequence[Any]", entry)] if _length(entry) == 2 else []
        if len(pair) == 2 and None not in pair:
            names = getattr(entry, "_fields", ())  # a row of a table says which kind it is
            kind = KVHead if names == ("layer", "kv_head") else Head if names == ("layer", "head") else None
            return _Pair(cast("list[int]", pair)) if kind is None else kind(*cast("list[int]", pair))
    return None


def _length(entry: Any) -> int:
    return 0 if getattr(entry, "ndim", 1) == 0 else len(entry)


def _query_head(layers: Sequence[LayerInfo], head: Head | KVHead | _Pair, mixer: Mixer | None) -> Head:
    info = layer_of(layers, head[0], mixer)
    if isinstance(head, KVHead):
        _check(layers, head, None if info is None else info.n_kv_heads, "key/value head")
        members = _group(cast("LayerInfo", info), head)
        if len(members) > 1:
            raise WorkbenchError(
                f"{head} is a key/value head of the query heads {', '.join(map(str, members))}; expected query heads: "
                "pass these, or some of them"
            )
        return members[0]
    head = Head(*head)
    _check(layers, head, None if info is None else info.n_heads, "head")
    return head


def _kv_head(layers: Sequence[LayerInfo], head: Head | KVHead | _Pair, named: set[Head]) -> KVHead:
    info = layer_of(layers, head[0])
    if isinstance(head, KVHead):
        _check(layers, head, None if info is None else info.n_kv_heads, "key/value head")
        return head
    _check(layers, head, None if info is None else info.n_heads, "head")
    info = cast("LayerInfo", info)
    kv_head = KVHead(info.index, info.kv_head(head[1]))
    members = _group(info, kv_head)
    if len(members) == 1 or (isinstance(head, Head) and named.issuperset(members)):
        return kv_head
    if isinstance(head, Head):
        raise WorkbenchError(
            f"{head} shares its keys and values with {', '.join(str(m) for m in members if m != head)}, and only all "
            f'of them together can be changed so; pass "{kv_head}"'
        )
    meant = dict.fromkeys([f'"L{head[0]}KV{head[1]}"', f'"{kv_head}"'])
    raise WorkbenchError(
        f"{tuple(head)} may be the key/value head L{head[0]}KV{head[1]} or the query head L{head[0]}H{head[1]}, and "
        f"{len(members)} query heads share a key/value head there; pass {' or '.join(meant)}"
    )


def _group(info: LayerInfo, head: KVHead) -> list[Head]:
    """The query heads of a key/value head."""
    return [Head(info.index, h) for h in range(info.n_heads) if info.kv_head(h) == head.kv_head]


def _check(layers: Sequence[LayerInfo], head: tuple[int, int], n_heads: int | None, noun: str) -> None:
    if n_heads is None or not 0 <= head[1] < n_heads:
        raise WorkbenchError(f"layer {head[0]} has no {noun} {head[1]}; the model has {heads_of(layers)}")


def _is_index(number: Any) -> bool:
    return _index(number) is not None


def _index(number: Any) -> int | None:
    """A whole number; None for anything else, truth values among them."""
    if isinstance(number, bool | np.bool_) or (isinstance(number, Tensor) and number.dtype.is_floating_point):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None
