"""Read stored patterns: a head's block maxima, its strongest links, and exact crops from queries and keys."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open

from workbench.files.token_text import joined
from workbench.heads import Head, WorkbenchError, brief, some_of
from workbench.store.map_codes import decode, decode_signed, encode
from workbench.store.map_parts import MapLabel, map_files, read_map_label
from workbench.store.run_folder import Store
from workbench.store.series_order import in_training_order

Step = int | Literal["last"]
# Tokens. Wider exact crops take a CPU more than a tenth of a second.
WIDEST_CROP = 1024


@dataclass(frozen=True, slots=True)
class HeadMap:
    """A head's pattern in blocks: the entry of largest magnitude in each; rows are queries.

    `edges`: the first token of each block, and the number of tokens at the end. `is_signed`: implied attention of a
    linear layer, not normalised; else probabilities.
    """

    values: Float[np.ndarray, "n n"]
    edges: Int[np.ndarray, " n_edges"]
    is_signed: bool

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a pattern as codes: rows from token `query`, columns from token `key`, `block` tokens a side.

    `scale`: the magnitude that signed codes are relative to; see `workbench.store.map_codes`.
    """

    codes: UInt8[np.ndarray, "q k"]
    query: int
    key: int
    block: int
    is_signed: bool
    scale: float

    def __repr__(self) -> str:
        return brief(self)


class PatternFile:
    """The patterns of every head at one checkpoint, on one sequence of one probe."""

    def __init__(self, path: Path, label: MapLabel | None = None) -> None:
        self.path = path
        self.label = read_map_label(path) if label is None else label

    def __repr__(self) -> str:
        return f"PatternFile({self.label.origin.ckpt}, {self.label.probe}, {self.label.n_tokens} tokens)"

    @cached_property
    def ids(self) -> Int[np.ndarray, " t"]:
        """The token ids of the sequence."""
        return self._read("ids")

    @cached_property
    def pieces(self) -> tuple[str, ...] | None:
        """The text of each token; None where the checkpoint has no tokenizer. A piece of a character: `今 1/3`."""
        if "pieces" not in self._names:
            return None
        return joined(json.loads(self._read("pieces").tobytes().decode()))

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """The heads in stored order; a layer with two mixers has each number twice."""
        pairs = zip(self._read("layer").tolist(), self._read("head").tolist(), strict=True)
        return tuple(Head(layer, head) for layer, head in pairs)

    @cached_property
    def finer(self) -> tuple[Head, ...]:
        """The heads that are also stored in finer blocks."""
        numbers = sorted({int(name.split(".")[2]) for name in self._names if name.startswith("fine.")})
        return tuple(self.heads[h] for h in numbers)

    @cached_property
    def exact(self) -> tuple[Head, ...]:
        """The heads that are stored with their queries and keys."""
        return tuple(self.heads[h] for h in sorted(map(int, self.label.qk)))

    def map(self, layer: int, head: int, *, block: int | None = None, kind: str | None = None) -> HeadMap:
        """A head's pattern in blocks of `block` tokens; None: the coarsest.

        Here and below, `kind` names the mixer where a layer has two; None: the softmax one.

        Raises:
            WorkbenchError: if there is no such head, or no such blocks of it.
        """
        h = self._number(layer, head, kind)
        block = self.label.block if block is None else block
        codes = self._codes(h, block)
        return HeadMap(self._decoded(h, codes), self.edges(block), bool(self._signed[h]))

    def edges(self, block: int) -> Int[np.ndarray, " n_edges"]:
        """The first token of each block, then the number of tokens."""
        return np.append(np.arange(0, self.label.n_tokens, block), self.label.n_tokens)

    def blocks(self, layer: int, head: int, *, kind: str | None = None) -> tuple[int, ...]:
        """The block sizes that a head is stored in, coarse to fine."""
        return self._blocks(self._number(layer, head, kind))

    def atlas(self, layer: int) -> list[Tile]:
        """The coarsest blocks of all heads of a layer, in order.

        Raises:
            WorkbenchError: if there is no such layer.
        """
        numbers = [h for h, head in enumerate(self.heads) if head.layer == layer]
        if not numbers:
            raise WorkbenchError(
                f"there is no layer {layer} in {self.path}; there is {self.heads[0]} … {self.heads[-1]}"
            )
        with safe_open(self.path, framework="numpy") as file:
            codes = file.get_slice("peak")[numbers[0] : numbers[-1] + 1]
        block = self.label.block
        return [Tile(codes[h - numbers[0]], 0, 0, block, bool(self._signed[h]), float(self._scale[h])) for h in numbers]

    def tile(
        self, layer: int, head: int, queries: slice, keys: slice, *, cells: int = 512, kind: str | None = None
    ) -> Tile:
        """A rectangle of a pattern, as fine as stored, with at most `cells` cells a side where the blocks allow that.

        Raises:
            WorkbenchError: if there is no such head.
        """
        h, n = self._number(layer, head, kind), self.label.n_tokens
        (q0, q1), (k0, k1) = (_span(x, n) for x in (queries, keys))
        width = max(q1 - q0, k1 - k0)
        if width <= min(cells, WIDEST_CROP) and str(h) in self.label.qk:
            return Tile(encode(self._crop(h, slice(q0, q1), slice(k0, k1))), q0, k0, 1, is_signed=False, scale=1.0)
        block = next((b for b in self._blocks(h)[::-1] if width <= b * cells), self.label.block)
        rows, columns = (slice(lo // block, -(-hi // block)) for lo, hi in ((q0, q1), (k0, k1)))
        return Tile(
            codes=self._codes(h, block, rows, columns),
            query=rows.start * block,
            key=columns.start * block,
            block=block,
            is_signed=bool(self._signed[h]),
            scale=float(self._scale[h]),
        )

    def crop(
        self,
        layer: int,
        head: int,
        queries: slice = slice(None),
        keys: slice = slice(None),
        *,
        kind: str | None = None,
    ) -> Float[np.ndarray, "q k"]:
        """Exact probabilities of a rectangle of a pattern, from stored queries and keys.

        Raises:
            WorkbenchError: if there is no such head, or its queries and keys are not stored.
        """
        h = self._number(layer, head, kind)
        if str(h) not in self.label.qk:
            exact = ", ".join(map(str, self.exact)) or "none"
            raise WorkbenchError(
                f"queries and keys of L{layer}H{head} are not in {self.path}; kept are those of: {exact}. "
                "`workbench scan --keep qk` keeps those of flagged softmax heads"
            )
        return self._crop(h, queries, keys)

    def links(self, layer: int, head: int, *, kind: str | None = None) -> pd.DataFrame:
        """The strongest entries `label.far` or more tokens back, without the sink: query, key, distance, value."""
        h = self._number(layer, head, kind)
        cells, values = self._row("links", h), self._row("link_value", h)
        table = pd.DataFrame({"query": cells[:, 0], "key": cells[:, 1], "value": values.astype(float)})
        table.insert(2, "distance", table["query"] - table["key"])
        return table.loc[table["value"] != 0].reset_index(drop=True)

    def sink_mass(self, layer: int, head: int, *, kind: str | None = None) -> float:
        """The mean share of attention on the first token."""
        return float(self._row("sink", self._number(layer, head, kind)))

    def distance_profile(self, layer: int, head: int, *, kind: str | None = None) -> pd.DataFrame:
        """The mean share of attention by distance, in bins from `least` to `most` tokens back, without the sink.

        `within` is the share up to `most` tokens back, of all attention that is not on the sink.
        """
        beyond = self._row("beyond", self._number(layer, head, kind)).astype(float)
        least = np.array(self.label.distances)
        most = np.append(least[1:], self.label.n_tokens) - 1
        mass = beyond - np.append(beyond[1:], 0.0)
        return pd.DataFrame(
            {
                "least": least,
                "most": most,
                "mass": mass,
                "within": np.cumsum(mass) / (beyond[0] if beyond[0] > 0 else 1),
            }
        )

    @property
    def far_from(self) -> int:
        """Tokens back from which `far_mass` counts: the stored distance that is nearest to `label.far` by its ratio."""
        distances = [distance for distance in self.label.distances if distance > 0]
        return min(distances, key=lambda distance: abs(math.log(distance / self.label.far)), default=1)

    def far_mass(self) -> Float[np.ndarray, " h"]:
        """The share of attention `far_from` or more tokens back, without the sink, of every head in stored order.

        The mean over the rows that have such a token besides the sink; NaN where the text is too short for any.
        """
        n_rows = self.label.n_tokens - 1 - self.far_from
        if n_rows < 1:
            return np.full(len(self.heads), np.nan)
        beyond = self._read("beyond")[:, self.label.distances.index(self.far_from)].astype(float)
        return beyond * (self.label.n_tokens / n_rows)

    def effective_window(self, layer: int, head: int, share: float = 0.95, *, kind: str | None = None) -> float:
        """Tokens back within which `share` of the attention off the sink lies, interpolated linearly within a bin."""
        profile = self.distance_profile(layer, head, kind=kind)
        index = int(np.searchsorted(profile["within"].to_numpy(), share - 1e-9))
        row = profile.iloc[min(index, len(profile) - 1)]
        before = 0.0 if index == 0 else float(profile["within"].iloc[index - 1])
        gained = max(float(row["within"]) - before, 1e-12)
        return float(row["least"] + (row["most"] - row["least"] + 1) * min(1.0, (share - before) / gained))

    @cached_property
    def _names(self) -> frozenset[str]:
        with safe_open(self.path, framework="numpy") as file:
            return frozenset(file.keys())

    @cached_property
    def _signed(self) -> UInt8[np.ndarray, " h"]:
        return self._read("signed")

    @cached_property
    def _scale(self) -> Float[np.ndarray, " h"]:
        return self._read("scale")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each of `heads`: in a layer with two mixers, that of the head's own mixer."""
        return tuple(str(layer["kind"]) for layer in self.label.layers for _ in range(layer["n_heads"]))

    @cached_property
    def _numbers(self) -> dict[tuple[Head, str | None], int]:
        # Without a kind, the first mixer of a layer with two: the softmax one.
        every = list(enumerate(zip(self.heads, self.kinds, strict=True)))
        return {(head, name): h for h, (head, kind) in reversed(every) for name in (kind, None)}

    def _number(self, layer: int, head: int, kind: str | None) -> int:
        if (Head(layer, head), kind) not in self._numbers:
            noun = f"{kind} head" if kind else "head"
            raise WorkbenchError(
                f"there is no {noun} L{layer}H{head} in {self.path}; there is {self.heads[0]} … {self.heads[-1]}"
            )
        return self._numbers[Head(layer, head), kind]

    def _blocks(self, h: int) -> tuple[int, ...]:
        return (self.label.block, *(b for b in self.label.fine_blocks[::-1] if f"fine.{b}.{h}" in self._names))

    def _codes(
        self, h: int, block: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> UInt8[np.ndarray, "q k"]:
        name = f"fine.{block}.{h}"
        with safe_open(self.path, framework="numpy") as file:
            if block == self.label.block:
                return file.get_slice("peak")[h : h + 1][0][rows, columns]
            if name not in self._names:
                blocks = self._blocks(h)
                raise WorkbenchError(f"{self.heads[h]} is kept in blocks of {blocks} tokens, not of {block}")
            return file.get_slice(name)[rows][:, columns]

    def _decoded(self, h: int, codes: UInt8[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        return decode_signed(codes, float(self._scale[h])) if self._signed[h] else decode(codes)

    def _crop(self, h: int, queries: slice, keys: slice) -> Float[np.ndarray, "q k"]:
        n, scaling = self.label.n_tokens, self.label.qk[str(h)]
        rows, columns = np.arange(n)[queries], np.arange(n)[keys]
        q, k, lse, low = (self._read(f"{name}.{h}") for name in ("q", "k", "lse", "low"))
        scores = (q[rows].astype(np.float32) * np.float32(scaling["scale"])) @ k[columns].astype(np.float32).T
        if (cap := scaling["softcap"]) is not None:
            scores = np.float32(cap) * np.tanh(scores / np.float32(cap))
        is_seen = (columns >= low[rows, None]) & (columns <= rows[:, None])
        return np.where(is_seen, np.exp(np.minimum(scores - lse[rows, None], 0)), 0).astype(np.float32)

    def _read(self, name: str) -> Any:
        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(name)

    def _row(self, name: str, h: int) -> Any:
        with safe_open(self.path, framework="numpy") as file:
            return file.get_slice(name)[h : h + 1][0]


class Maps:
    """The patterns of a run; every method reads the disk anew.

    `choose`: which of the parts there are, as `Run` shows the newest; None: all.
    """

    def __init__(
        self, root: Path, choose: Callable[[Sequence[PatternFile]], Sequence[PatternFile]] | None = None
    ) -> None:
        self._root, self._choose = root, choose
        self._files: dict[tuple[Path, int, int], PatternFile] = {}

    def table(self) -> pd.DataFrame:
        """The patterns in series order: ckpt, step, tokens, probe, n_tokens, bytes, finer and exact (head names)."""
        files = self.files()
        return pd.DataFrame(
            {
                "ckpt": [f.label.origin.ckpt for f in files],
                "step": pd.array([f.label.origin.step for f in files], dtype="Int64"),
                "tokens": pd.array([f.label.origin.tokens for f in files], dtype="Int64"),
                "probe": [f.label.probe for f in files],
                "n_tokens": [f.label.n_tokens for f in files],
                "bytes": [f.path.stat().st_size for f in files],
                "finer": [" ".join(map(str, f.finer)) for f in files],
                "exact": [" ".join(map(str, f.exact)) for f in files],
            }
        )

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have patterns, by name."""
        return tuple(sorted({f.label.probe for f in self.files()}))

    def files(self) -> tuple[PatternFile, ...]:
        """Every part of patterns in series order, then by probe.

        Raises:
            WorkbenchError: naming the first file that is not a whole part.
        """
        files: dict[tuple[Path, int, int], PatternFile] = {}
        for path in map_files(self._root):
            try:
                stat = path.stat()
                key = (path, stat.st_mtime_ns, stat.st_size)
                files[key] = self._files.get(key) or PatternFile(path)
            except FileNotFoundError:
                continue
        self._files = files
        series = Store(self._root).checkpoints()
        origins = [f.label.origin for f in files.values()]
        ranks = {record["name"]: rank for rank, record in enumerate(in_training_order(series, origins))}
        chosen = list(files.values()) if self._choose is None else self._choose(list(files.values()))
        return tuple(sorted(chosen, key=lambda f: (ranks[f.label.origin.ckpt], f.path.parent, f.label.probe)))

    def find(self, *, ckpt: str | None = None, step: Step = "last", probe: str | None = None) -> PatternFile:
        """The patterns of one checkpoint and probe; of two parts the one with more heads stored finely.

        `step` counts within its stage and is ignored with `ckpt`; `probe` may be None where there is one.

        Raises:
            WorkbenchError: if there are none; it says which there are, or how to make some.
        """
        files = self.files()
        if not files:
            raise WorkbenchError(
                f"{self._root} has no maps: `workbench scan` writes them unless --no-maps is given; run the same scan "
                "again without it"
            )
        probes = self.probes
        if probe is None and len(probes) > 1:
            raise WorkbenchError(f"there are maps on several probes, {_listed(probes)}; pass probe=")
        matches = [f for f in files if probe in (None, f.label.probe)]
        if ckpt is not None:
            matches = [f for f in matches if f.label.origin.ckpt == ckpt]
        elif step == "last":
            matches = [f for f in matches if f.label.origin.ckpt == matches[-1].label.origin.ckpt]
        else:
            matches = [f for f in matches if f.label.origin.step == step]
        if not matches:
            raise WorkbenchError(
                f"{self._root} has no maps of {ckpt or f'step {step}'} on {probe or _listed(probes)}; there are maps "
                f"of {_listed({f.label.origin.ckpt for f in files})} on {_listed(probes)}"
            )
        return max(matches, key=lambda f: (len(f.label.qk), len(f.finer)))


def _listed(names: Sequence[str] | set[str]) -> str:
    return some_of(sorted(names), 8)


def _span(x: slice, n: int) -> tuple[int, int]:
    """The tokens of a slice, at least one."""
    start, stop, _ = x.indices(n)
    start = min(start, n - 1)
    return start, max(start + 1, stop)
