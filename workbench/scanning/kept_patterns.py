"""The patterns that a scan keeps: one sequence of each probe, all heads pooled, those that stand out kept finer.

They are made in a forward pass of their own over that one sequence, after the scores, which say who stands out. A part
is known by what determines it, as scores are, so that a scan run again makes what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from workbench.detectors import THRESHOLDS, series_far
from workbench.heads import Head
from workbench.hooks import HookedModel
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.pattern_maps import PatternMaps, record_maps
from workbench.probes import Probe
from workbench.store import MAPS_SCHEMA, MapArrays, Origin, QueriesKeys, Store, canonical_digest
from workbench.store.parts import read_label, read_rows

# Detectors of heads that reach far back, and the scores above which a head stands out. That of teacher-forced retrieval
# is the one at which the app counts heads.
_LONG_RANGE = ("induction", "duplicate_token", "retrieval_wu")
FLAGS = {t.detector: float(t.value) for t in THRESHOLDS if t.detector in _LONG_RANGE} | {"retrieval": 0.3}
MOST_FLAGGED = 8


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What a scan keeps of patterns. `keep_qk`: queries and keys of flagged heads too; the others as in `Job`."""

    keep_qk: bool = False
    dtype: str | None = None
    far_window: int | None = None


def unmapped(store: Store, origin: Origin, probes: Sequence[Probe], options: MapOptions) -> list[Probe]:
    """The probes whose patterns at this checkpoint are not there yet."""
    return [p for p in probes if not store.has_maps(origin, map_unit(origin, p, options))]


def map_unit(origin: Origin, probe: Probe, options: MapOptions) -> str:
    """The key of a part of patterns: what determines its numbers and where it is filed."""
    return canonical_digest(
        {
            "maps": MAPS_SCHEMA,
            "weights": origin.weights,
            "config": origin.config,
            "place": [origin.stage, origin.branch, origin.step],
            "probe": [probe.name, probe.digest],
            "dtype": options.dtype,
            "far": options.far_window,
            "keep_qk": options.keep_qk,
        }
    )


def map_probe(
    store: Store, origin: Origin, model: HookedModel, probe: Probe, options: MapOptions, *, fine: Sequence[Head]
) -> int:
    """Make and commit the patterns of a probe's first sequence; returns the part's bytes. See `make_map`.

    Raises:
        StoreNotWritable: if the disk is full or refuses; nothing is left behind.
    """
    return commit_map(store, origin, probe, make_map(model, probe, options, fine=fine), options)


def make_map(model: HookedModel, probe: Probe, options: MapOptions, *, fine: Sequence[Head]) -> MapArrays:
    """The patterns of a probe's first sequence (its first document), in a pass of its own.

    Padding is left out: the sequence runs alone. `fine`: the heads to keep finer, as `flagged` names them.
    """
    recorded = record_maps(
        model,
        first_document(probe),
        far=options.far_window or series_far(model, probe).window,
        fine=fine,
        keep_qk=options.keep_qk,
    )
    return arrays_of(recorded, model.tokenizer)


def commit_map(store: Store, origin: Origin, probe: Probe, arrays: MapArrays, options: MapOptions) -> int:
    """Put the patterns of a probe in place and return the part's bytes.

    Raises:
        StoreNotWritable: if the disk is full or refuses; nothing is left behind.
    """
    unit = map_unit(origin, probe, options)
    size = store.commit_maps(origin, unit, arrays, probe=probe.name, probe_digest=probe.digest)
    store.forgive(origin.ckpt, unit)
    return size


def first_document(probe: Probe) -> Int[Tensor, " t"]:
    """The tokens of the first sequence of a probe, or of its first document where several are packed; no padding."""
    mask = None if probe.attention_mask is None else probe.attention_mask[:1].long()
    first = sequences(probe.tokens[:1], mask)
    return first.tokens[first.document == 0]


def flagged(store: Store, origin: Origin) -> list[Head]:
    """The heads whose stored scores at this checkpoint are highest above a long-range detector's threshold.

    At most MOST_FLAGGED, by score over threshold, on whichever probe it is highest.
    """
    best: dict[Head, float] = {}
    for path in sorted((store.path / "scores" / origin.folder).glob("*.parquet")):
        part = read_label(store.path, path)
        if part.label.detector not in FLAGS:
            continue
        rows = read_rows(store.path, part).select(["layer", "head", "score"]).to_pylist()
        for row in rows:
            ratio = row["score"] / FLAGS[part.label.detector]
            if row["head"] is not None and ratio > 1:
                head = Head(row["layer"], row["head"])
                best[head] = max(ratio, best.get(head, 0.0))
    return sorted(best, key=lambda head: (-best[head], head))[:MOST_FLAGGED]


def arrays_of(recorded: PatternMaps, tokenizer: Any) -> MapArrays:
    """Recorded patterns as the store writes them."""
    start = np.cumsum([0, *(layer.n_heads for layer in recorded.layers)])
    summaries = recorded.summaries

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(s, name).numpy() for s in summaries])

    return MapArrays(
        ids=recorded.tokens.numpy(),
        pieces=pieces_of(tokenizer, recorded.tokens.tolist()),
        layers=tuple(
            {"layer": i.index, "kind": i.kind, "mixer": i.mixer, "window": i.window, "n_heads": i.n_heads}
            for i in recorded.layers
        ),
        layer=np.repeat([i.index for i in recorded.layers], [i.n_heads for i in recorded.layers]),
        head=np.concatenate([np.arange(i.n_heads) for i in recorded.layers]),
        is_signed=np.repeat([i.kind == "linear" for i in recorded.layers], [i.n_heads for i in recorded.layers]),
        block=recorded.block,
        far=recorded.far,
        distances=recorded.distances,
        peak=joined("peak"),
        beyond=joined("beyond"),
        sink=joined("sink"),
        links=rearrange(np.stack([joined("link_row"), joined("link_key")]), "two h n -> h n two"),
        link_value=joined("link_value"),
        fine={
            int(start[place]) + h: {block: peak.numpy() for block, peak in levels.items()}
            for (place, h), levels in recorded.fine.items()
        },
        qk={
            int(start[place]) + h: QueriesKeys(
                q=kept.q.numpy(),
                k=kept.k.numpy(),
                lse=kept.lse.numpy(),
                low=kept.low.numpy(),
                scale=kept.scale,
                softcap=kept.softcap,
            )
            for (place, h), kept in recorded.kept.items()
        },
    )


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...] | None:
    """The text of each token, with the space it begins with; None without a tokenizer."""
    if tokenizer is None:
        return None
    words = tokenizer.convert_ids_to_tokens(list(ids))
    pieces: list[str] = []
    for i, word in zip(ids, words, strict=True):
        text = tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        begins = isinstance(word, str) and word.startswith("▁") and not text.startswith(" ")
        pieces.append(" " + text if begins else text)
    return tuple(pieces)
