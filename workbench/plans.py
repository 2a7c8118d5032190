"""A Plan: which key/value heads keep the whole context, with the evidence, as JSON that other tools can take. No torch.

The file is one JSON object with the fields of `Plan`; heads are written [layer, kv_head]. `version` is raised when a
field changes its meaning, and files of newer versions are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from workbench.heads import KVHead, LayerInfo, WorkbenchError

VERSION = 1
Unit = Literal["head", "layer"]


@dataclass(frozen=True, slots=True)
class KVBytes:
    """A budget: the bytes of key/value cache of softmax layers at the plan's context, in 16-bit numbers."""

    n: int


@dataclass(frozen=True, slots=True)
class LossTolerance:
    """A budget: as few heads as leave the held-out loss within so many nats of the full model's."""

    nats: float


# A share of the heads (or layers) to keep, 0 to 1, or one of the others.
Budget = float | KVBytes | LossTolerance


@dataclass(frozen=True, slots=True)
class RankedHead:
    """A key/value head in the order of a ranking: `score` in the method's units, with its interval over sequences."""

    layer: int
    kv_head: int
    score: float
    ci_lo: float
    ci_hi: float

    @property
    def head(self) -> KVHead:
        return KVHead(self.layer, self.kv_head)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What is left on a held-out probe when the first `n_kept` heads of a ranking keep the whole context.

    `nats`: loss per answer; `recovered`: the share of the gap between all windowed and none that is back; `accuracy`:
    share of answers that are right; `kv_saved`: share of the key/value cache that is not needed.
    """

    method: str
    probe: str
    n_kept: int
    nats: float
    recovered: float
    accuracy: float
    kv_saved: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Which heads of a model keep the whole context; all other softmax heads see `sink` first and `window` last keys.

    `layers`: what the model's layers are, by which a plan knows its model. `unit`: whether heads or whole layers are
    kept. `ranking`: best first, by `method` on `probe`. `curve`: of this ranking and its baselines. `evidence`: numbers
    of the method, such as its completeness error. `context`: the tokens that cache sizes are counted for.
    """

    model: str
    layers: tuple[LayerInfo, ...]
    window: int
    sink: int
    unit: Unit
    method: str
    units: str
    probe: str
    probe_digest: str
    seed: int
    context: int
    keep: tuple[KVHead, ...]
    ranking: tuple[RankedHead, ...]
    curve: tuple[CurvePoint, ...]
    evidence: dict[str, float]

    @property
    def windowed(self) -> tuple[KVHead, ...]:
        """The heads that lose the far context, in order."""
        return tuple(sorted(r.head for r in self.ranking if r.head not in self.keep))

    @property
    def kv_saved(self) -> float:
        """The share of the key/value cache of softmax layers that the plan does without, at `context` tokens."""
        return kv_saved(self.layers, self.keep, window=self.window, sink=self.sink, context=self.context)

    def curves(self) -> pd.DataFrame:
        """The curve as a table, one row per method, probe and number of heads kept."""
        names = [f.name for f in fields(CurvePoint)]
        return pd.DataFrame([asdict(point) for point in self.curve], columns=names)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            WorkbenchError: if the file cannot be written.
        """
        written = {"version": VERSION, **asdict(self)}
        try:
            Path(path).write_text(json.dumps(_plain(written), indent=1) + "\n")
        except OSError as error:
            raise WorkbenchError(f"{path}: the plan cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            WorkbenchError: if the file is missing, no plan, inconsistent or of a newer version.
        """
        try:
            read = json.loads(Path(path).read_text())
        except OSError as error:
            raise WorkbenchError(f"{path}: no plan can be read: {error.strerror}") from error
        except ValueError as error:
            raise WorkbenchError(f"{path}: is not JSON: {error}; expected a plan saved by plan.save()") from error
        if not isinstance(read, dict) or not isinstance(read.get("version"), int):
            raise WorkbenchError(f"{path}: is no plan; expected a file saved by plan.save()")
        if read.pop("version") > VERSION:
            raise WorkbenchError(f"{path}: was written by a newer workbench; upgrade it to read the plan")
        try:
            plan = cls(**{**read, **_typed(read)})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise WorkbenchError(f"{path}: is no plan of this version: {error}") from error
        strangers = [str(head) for head in plan.keep if head not in {r.head for r in plan.ranking}]
        if strangers:
            raise WorkbenchError(f"{path}: keeps {', '.join(strangers)}, which its ranking does not have")
        return plan

    def check(self, layers: Sequence[LayerInfo]) -> None:
        """Raises:
        WorkbenchError: if the plan is for a model of other layers.
        """
        other = [(mine, theirs) for mine, theirs in zip(self.layers, layers, strict=False) if mine != theirs]
        if other:
            raise WorkbenchError(
                f"the plan is for {self.model or 'another model'}, whose layer {other[0][0].index} is {other[0][0]}; "
                f"this model has {other[0][1]}: make a plan for it"
            )
        if len(self.layers) != len(layers):
            raise WorkbenchError(
                f"the plan is for {self.model or 'another model'} with {len(self.layers)} layers; this model has "
                f"{len(layers)}: make a plan for it"
            )

    def to_duo_attention(self, path: str | Path) -> None:
        """Write DuoAttention's head file: a row per layer of 1 for a kept and 0 for a windowed head, tab-separated.

        Layers without softmax heads have a row of zeros, so that rows are layers.
        """
        n_columns = max(r.kv_head for r in self.ranking) + 1
        n_rows = max(info.index for info in self.layers) + 1
        rows = [["0.0"] * n_columns for _ in range(n_rows)]
        for layer, kv_head in self.keep:
            rows[layer][kv_head] = "1.0"
        Path(path).write_text("".join("\t".join(row) + "\n" for row in rows))

    def to_layer_types(self) -> dict[str, Any]:
        """A layer-wise plan as the settings of a Hugging Face config: `layer_types` and `sliding_window`.

        Raises:
            WorkbenchError: if the plan keeps some heads of a layer and not others, or sinks.
        """
        by_layer: dict[int, set[bool]] = {}
        for r in self.ranking:
            by_layer.setdefault(r.layer, set()).add(r.head in self.keep)
        mixed = sorted(layer for layer, kept in by_layer.items() if len(kept) > 1)
        if mixed:
            raise WorkbenchError(
                f"layers {mixed} keep some heads and not others, which layer_types cannot say; make the plan with "
                "unit='layer'"
            )
        if self.sink:
            raise WorkbenchError(f"layer_types know no sinks, and the plan keeps {self.sink}; make it with sink=0")
        names = {True: "full_attention", False: "sliding_attention"}
        types = [
            names[by_layer[info.index] == {True}] if info.mixer == "softmax" else "linear_attention"
            for info in self.layers
        ]
        return {"layer_types": types, "sliding_window": self.window}


def kv_bytes(layers: Sequence[LayerInfo], keep: Collection[KVHead], *, window: int, sink: int, context: int) -> int:
    """Bytes of softmax key/value cache after `context` tokens, in 16-bit numbers, if only `keep` see all of them.

    A sliding layer never holds more than its own window. Values are counted as wide as keys.
    """
    tokens_kept = 0
    for info in (i for i in layers if i.mixer == "softmax"):
        own = context if info.window is None else min(context, info.window)
        for h in range(info.n_kv_heads):
            is_kept = KVHead(info.index, h) in keep
            tokens_kept += info.d_head * (own if is_kept else min(own, window + sink))
    return 2 * 2 * tokens_kept


def kv_saved(layers: Sequence[LayerInfo], keep: Collection[KVHead], *, window: int, sink: int, context: int) -> float:
    """The share of a softmax key/value cache of `context` tokens that is not needed if only `keep` see all of it."""
    everything = [KVHead(i.index, h) for i in layers for h in range(i.n_kv_heads)]
    needed, in_all = (
        kv_bytes(layers, set(heads), window=window, sink=sink, context=context) for heads in (keep, everything)
    )
    return 1 - needed / in_all if in_all else 0.0


def _typed(read: dict[str, Any]) -> dict[str, Any]:
    return {
        "layers": tuple(LayerInfo(**info) for info in read["layers"]),
        "keep": tuple(KVHead(*head) for head in read["keep"]),
        "ranking": tuple(RankedHead(**_numbers(r)) for r in read["ranking"]),
        "curve": tuple(CurvePoint(**_numbers(p)) for p in read["curve"]),
        "evidence": _numbers(read["evidence"]),
    }


def _numbers(read: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in read.items()}


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
