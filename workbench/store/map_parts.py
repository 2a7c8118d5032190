"""Write, label and check parts of patterns: one safetensors file per checkpoint and probe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from workbench.files.atomic import replace_file
from workbench.heads import StoreTooNew, WorkbenchError, brief
from workbench.store.map_codes import encode, encode_signed
from workbench.store.part_files import Problem
from workbench.store.part_format import Origin, canonical_digest
from workbench.store.score_settings import DEFAULT_DTYPE

MAPS_SCHEMA = 1
FOLDER, SUFFIX = "maps", ".safetensors"


@dataclass(frozen=True, slots=True)
class QueriesKeys:
    """One head's queries and keys before scaling; its pattern is exp(scale · q kᵀ − lse) on keys `low` … row."""

    q: Float[np.ndarray, "t d"]
    k: Float[np.ndarray, "t d"]
    lse: Float[np.ndarray, " t"]
    low: Int[np.ndarray, " t"]
    scale: float
    softcap: float | None

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True)
class MapArrays:
    """The patterns of one sequence to write; heads are numbered through all layers.

    `pieces`: the text of each token; None without a tokenizer. `layers`: one record per token mixer (layer, kind,
    mixer, window, n_heads). `block`: tokens in a side of the blocks of `peak`. `fine` and `qk` hold some heads only, by
    number; `fine` by block size. For the other fields see `workbench.kernels.softmax.pattern_summaries.PatternSummary`.
    """

    ids: Int[np.ndarray, " t"]
    pieces: tuple[str, ...] | None
    layers: tuple[dict[str, Any], ...]
    layer: Int[np.ndarray, " h"]
    head: Int[np.ndarray, " h"]
    is_signed: Bool[np.ndarray, " h"]
    block: int
    far: int
    distances: tuple[int, ...]
    peak: Float[np.ndarray, "h n n"]
    beyond: Float[np.ndarray, "h n_distances"]
    sink: Float[np.ndarray, " h"]
    links: Int[np.ndarray, "h n_links 2"]
    link_value: Float[np.ndarray, "h n_links"]
    fine: Mapping[int, Mapping[int, Float[np.ndarray, "m m"]]] = field(default_factory=dict[int, Any])
    qk: Mapping[int, QueriesKeys] = field(default_factory=dict[int, QueriesKeys])

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True)
class MapSource:
    """The checkpoint, the unit and the probe that a part of patterns comes from."""

    origin: Origin
    unit: str
    probe: str
    probe_digest: str


@dataclass(frozen=True, slots=True)
class MapLabel:
    """What a part of patterns is, as its header describes it."""

    schema: int
    unit: str
    origin: Origin
    probe: str
    probe_digest: str
    n_tokens: int
    block: int
    far: int
    distances: tuple[int, ...]
    layers: tuple[dict[str, Any], ...]
    fine_blocks: tuple[int, ...]
    qk: dict[str, dict[str, float | None]]


def map_path(root: Path, origin: Origin, unit: str) -> Path:
    """The path of a part of patterns; a file there is whole."""
    return root / FOLDER / origin.folder / f"{unit}{SUFFIX}"


def map_unit(
    origin: Origin, probe: str, probe_digest: str, *, dtype: str | None, far_window: int | None, keep_qk: bool
) -> str:
    """The key of a part of patterns: a digest of all that determines its numbers and its place in the run.

    `dtype` as in `Settings`; like a unit of scores, patterns in float32 have none in their key.
    """
    return canonical_digest(
        {
            "maps": MAPS_SCHEMA,
            "weights": origin.weights,
            "config": origin.config,
            "place": [origin.stage, origin.branch, origin.step],
            "probe": [probe, probe_digest],
            "dtype": None if dtype == DEFAULT_DTYPE else dtype,
            "far": far_window,
            "keep_qk": keep_qk,
        }
    )


def is_map_of(label: MapLabel, dtype: str | None, far_window: int | None) -> bool:
    """Whether patterns were made with these settings, as their key says, with or without queries and keys."""
    units = [
        map_unit(label.origin, label.probe, label.probe_digest, dtype=dtype, far_window=far_window, keep_qk=keep_qk)
        for keep_qk in (False, True)
    ]
    return label.unit in units


def write_maps(path: Path, arrays: MapArrays, source: MapSource, *, temporaries: Path) -> int:
    """Put a part of patterns in place in one step and return its size in bytes.

    Raises:
        StoreNotWritable: if the disk is full or refuses; nothing is left behind.
    """
    tensors = _tensors(arrays)
    described = {
        "schema": MAPS_SCHEMA,
        "unit": source.unit,
        "origin": asdict(source.origin),
        "probe": source.probe,
        "probe_digest": source.probe_digest,
        "n_tokens": len(arrays.ids),
        "block": arrays.block,
        "far": arrays.far,
        "distances": arrays.distances,
        "layers": arrays.layers,
        "fine_blocks": sorted({block for levels in arrays.fine.values() for block in levels}),
        "qk": {str(h): {"scale": qk.scale, "softcap": qk.softcap} for h, qk in arrays.qk.items()},
    }
    payload = save(tensors, {"wb": json.dumps(described), "wb.digest": _digest(tensors)})
    replace_file(path, payload, temporaries=temporaries)
    return len(payload)


def read_map_label(path: Path) -> MapLabel:
    """Read what a part of patterns is from its header.

    Raises:
        FileNotFoundError: if it is no longer there.
        WorkbenchError: if it is not a whole part.
        StoreTooNew: if a newer workbench wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})["wb"])
        if described["schema"] > MAPS_SCHEMA:
            raise StoreTooNew(
                f"{path} has schema {described['schema']}, this version reads up to {MAPS_SCHEMA}; "
                "pip install --upgrade attention-workbench"
            )
        lists = {name: tuple(described[name]) for name in ("distances", "layers", "fine_blocks")}
        values: dict[str, Any] = {**described, **lists, "origin": Origin(**described["origin"])}
        label = MapLabel(**values)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WorkbenchError(
            f"{path} is not a whole part of patterns ({str(error) or type(error).__name__}); delete it and run the "
            "scan again"
        ) from error
    return label


def map_files(root: Path) -> list[Path]:
    """Every file that lies where a part of patterns would, in series order."""
    return sorted((root / FOLDER).glob(f"s*-*/*{SUFFIX}"))


def check_maps(root: Path) -> list[Problem]:
    """Read every part of patterns again and list files that are none, or no longer hold what was written."""
    problems: list[Problem] = []
    for path in sorted(p for p in (root / FOLDER).rglob("*") if not p.is_dir()):
        if path.suffix != SUFFIX or path.parent.parent != root / FOLDER:
            problems.append(Problem(path, "not a part: foreign files do not belong here"))
            continue
        try:
            if read_map_label(path).unit != path.stem:
                problems.append(Problem(path, "holds another unit than the one it is named after"))
            elif not _is_as_written(path):
                problems.append(Problem(path, "holds other numbers than were written"))
        except FileNotFoundError:
            continue
        except WorkbenchError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path} ").partition("; ")[0]))
    return problems


def _is_as_written(path: Path) -> bool:
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        return bool((file.metadata() or {}).get("wb.digest") == _digest(tensors))


def _tensors(arrays: MapArrays) -> dict[str, np.ndarray]:
    signed = arrays.is_signed
    sizes = np.abs(arrays.peak).max((1, 2), initial=0)
    for h, levels in arrays.fine.items():
        sizes[h] = max([sizes[h], *(float(np.abs(peak).max()) for peak in levels.values())])
    scale = np.where(signed, sizes, 1).astype(np.float32)

    def coded(h: int, peak: Float[np.ndarray, "m m"]) -> np.ndarray:
        return encode_signed(peak, float(scale[h])) if signed[h] else encode(peak)

    tensors: dict[str, np.ndarray] = {
        "ids": arrays.ids.astype(np.int32),
        "layer": arrays.layer.astype(np.int32),
        "head": arrays.head.astype(np.int32),
        "signed": signed.astype(np.uint8),
        "scale": scale,
        "peak": np.stack([coded(h, peak) for h, peak in enumerate(arrays.peak)]),
        "beyond": arrays.beyond.astype(np.float32),
        "sink": arrays.sink.astype(np.float32),
        "links": arrays.links.astype(np.int32),
        "link_value": arrays.link_value.astype(np.float32),
    }
    if arrays.pieces is not None:
        tensors["pieces"] = np.frombuffer(json.dumps(arrays.pieces).encode(), np.uint8)
    for h, levels in arrays.fine.items():
        tensors |= {f"fine.{block}.{h}": coded(h, peak) for block, peak in levels.items()}
    for h, qk in arrays.qk.items():
        tensors |= {f"q.{h}": qk.q, f"k.{h}": qk.k}
        tensors |= {f"lse.{h}": qk.lse.astype(np.float32), f"low.{h}": qk.low.astype(np.int32)}
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
