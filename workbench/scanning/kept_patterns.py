"""The patterns that a scan keeps: of one sequence per probe, pooled for all heads, in finer blocks for flagged heads.

Patterns are made after the scores, which flag heads, in a forward pass of their own over that sequence. The key of a
part is a digest of what determines it, as for scores, so a repeated scan makes only the missing parts.
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
from workbench.files.token_text import pieces_of
from workbench.heads import Head
from workbench.hooks import HookedModel
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.pattern_maps import PatternMaps, record_maps
from workbench.probes import Probe
from workbench.store import MapArrays, Origin, QueriesKeys, Store
from workbench.store.map_parts import map_unit
from workbench.store.part_files import read_label, read_rows

# Detectors of long-range heads, and the scores above which a head is flagged. The threshold of teacher-forced retrieval
# is the one at which the app counts heads.
_LONG_RANGE = ("induction", "duplicate_token", "retrieval_wu")
FLAGS = {t.detector: float(t.value) for t in THRESHOLDS if t.detector in _LONG_RANGE} | {"retrieval": 0.3}
MOST_FLAGGED = 8


@dataclass(frozen=True, slots=True)
class MapOptions:
    """How a scan keeps patterns.

    `keep_qk`: also queries and keys of flagged heads. `dtype`: as in `Settings`; None: float32. `far_window`: as in
    `Job`.
    """

    keep_qk: bool = False
    dtype: str | None = None
    far_window: int | None = None


def probes_without_maps(store: Store, origin: Origin, probes: Sequence[Probe], options: MapOptions) -> list[Probe]:
    """The probes whose patterns of this checkpoint are not stored."""
    return [p for p in probes if not store.settle_maps(origin, map_key(origin, p, options))]


def map_key(origin: Origin, probe: Probe, options: MapOptions) -> str:
    """The key of a part of patterns: a digest of all that determines its numbers and its place in the run."""
    return map_unit(
        origin,
        probe.name,
        probe.digest,
        dtype=options.dtype,
        far_window=options.far_window,
        keep_qk=options.keep_qk,
    )


def map_probe(
    store: Store, origin: Origin, model: HookedModel, probe: Probe, options: MapOptions, *, fine: Sequence[Head]
) -> int:
    """Make and commit the patterns of a probe's first sequence; return the size in bytes. See `make_map`.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written; nothing is left behind.
    """
    return commit_map(store, origin, probe, make_map(model, probe, options, fine=fine), options)


def make_map(model: HookedModel, probe: Probe, options: MapOptions, *, fine: Sequence[Head]) -> MapArrays:
    """The patterns of a probe's first sequence (its first document), in a forward pass of its own, without padding.

    `fine`: the heads to keep in finer blocks.
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
    """Commit the patterns of a probe; return the size in bytes.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written; nothing is left behind.
    """
    unit = map_key(origin, probe, options)
    size = store.commit_maps(origin, unit, arrays, probe=probe.name, probe_digest=probe.digest)
    store.forgive(origin.ckpt, unit)
    return size


def first_document(probe: Probe) -> Int[Tensor, " t"]:
    """The tokens of a probe's first sequence, or of its first document if several are packed; without padding."""
    mask = None if probe.attention_mask is None else probe.attention_mask[:1].long()
    first = sequences(probe.tokens[:1], mask)
    return first.tokens[first.document == 0]


def flagged(store: Store, origin: Origin) -> list[Head]:
    """The heads whose stored scores of this checkpoint exceed a long-range detector's threshold.

    At most MOST_FLAGGED, those with the largest ratio of score to threshold on any probe.
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
    """Recorded patterns in the form that the store writes."""
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
            int(start[layer_slot]) + h: {block: peak.numpy() for block, peak in levels.items()}
            for (layer_slot, h), levels in recorded.fine.items()
        },
        qk={
            int(start[layer_slot]) + h: QueriesKeys(
                q=qk.q.numpy(),
                k=qk.k.numpy(),
                lse=qk.lse.numpy(),
                low=qk.low.numpy(),
                scale=qk.scale,
                softcap=qk.softcap,
            )
            for (layer_slot, h), qk in recorded.qk.items()
        },
    )
