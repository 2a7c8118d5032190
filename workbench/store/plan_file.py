"""The plan file: which key/value heads keep the whole context, with the evidence, as JSON. No torch.

The file is one JSON object with the fields of `Plan`; heads are written [layer, kv_head]. A field that changes its
meaning raises `version`; files of newer versions are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

import pandas as pd

from workbench.files.atomic import replace_file
from workbench.files.plain_json import json_text
from workbench.heads import KVHead, LayerInfo, StoreNotWritable, WorkbenchError

VERSION = 1
# Tokens that no context has; larger numbers are no positions.
_MOST = 1 << 62
Unit = Literal["head", "layer"]


@dataclass(frozen=True, slots=True)
class KVBytes:
    """A budget: the bytes of key/value cache of softmax layers at the plan's context, in 16-bit numbers."""

    n: int


@dataclass(frozen=True, slots=True)
class LossTolerance:
    """A budget: the fewest heads that keep the held-out loss within this many nats of the full model's."""

    nats: float | int


# A share of the heads (or layers) to keep, 0 to 1, or one of the classes above.
Budget = float | int | KVBytes | LossTolerance


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
    """The outcome on a held-out probe when the first `n_kept` heads of a ranking keep the whole context.

    `nats`: loss per answer; `recovered`: share of the gap between all windowed and none, with its 95 % interval over
    sequences, `ci_lo` to `ci_hi`; `accuracy`: share of answers that are right; `kv_saved`: share of the key/value cache
    that is not needed.
    """

    method: str
    probe: str
    n_kept: int
    nats: float
    recovered: float
    accuracy: float
    kv_saved: float
    ci_lo: float = math.nan
    ci_hi: float = math.nan


@dataclass(frozen=True, slots=True)
class Plan:
    """Which heads of a model keep the whole context; all other softmax heads see `sink` first and `window` last keys.

    `layers`: those of the model; a model of other layers is refused. `unit`: whether heads or whole layers are kept.
    `ranking`: best first, by `method` on `probe`. `curve`: of this ranking and its baselines. `evidence`: numbers
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
        """The share of the key/value cache of softmax layers that the plan saves, at `context` tokens."""
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
        _write(path, json_text({"version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            WorkbenchError: if the file is missing, no plan, inconsistent or of a newer version.
        """
        try:
            document = json.loads(Path(path).read_text())
        except OSError as error:
            raise WorkbenchError(f"{path}: no plan can be read: {error.strerror}") from error
        except ValueError as error:
            raise WorkbenchError(f"{path}: is not JSON: {error}; expected a plan saved by plan.save()") from error
        if not isinstance(document, dict) or not isinstance(document.get("version"), int):
            raise WorkbenchError(f"{path}: is no plan; expected a file saved by plan.save()")
        if document.pop("version") > VERSION:
            raise WorkbenchError(f"{path}: was written by a newer workbench; upgrade it to read the plan")
        try:
            plan = cls(**{**document, **_typed_fields(document)})
            for record in (plan, *plan.layers, *plan.ranking, *plan.curve):
                _require_types(record)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise WorkbenchError(f"{path}: is no plan of this version: {error}") from error
        problem = _inconsistency(plan)
        if problem:
            raise WorkbenchError(f"{path}: {problem}; expected a plan saved by plan.save()")
        return plan

    def check(self, layers: Sequence[LayerInfo]) -> None:
        """Raises:
        WorkbenchError: if the plan is for a model of other layers, or inconsistent.
        """
        problem = _inconsistency(self)
        if problem:
            raise WorkbenchError(f"the plan {problem}; make one with wb.plan")
        different = [
            (planned, actual) for planned, actual in zip(self.layers, layers, strict=False) if planned != actual
        ]
        if different:
            planned, actual = different[0]
            raise WorkbenchError(
                f"the plan is for {self.model or 'another model'}, whose layer {planned.index} is {planned}; "
                f"this model has {actual}: make a plan for it"
            )
        if len(self.layers) != len(layers):
            raise WorkbenchError(
                f"the plan is for {self.model or 'another model'} with {len(self.layers)} layers; this model has "
                f"{len(layers)}: make a plan for it"
            )

    def to_duo_attention(self, path: str | Path) -> None:
        """Write DuoAttention's head file: a row per layer of 1 for a kept and 0 for a windowed head, tab-separated.

        Layers without softmax heads have a row of zeros, so that rows are layers. DuoAttention reads window and sink
        from a file beside it, config.json, as recent_size and sink_size.

        Raises:
            WorkbenchError: if the file cannot be written.
        """
        n_columns = max(r.kv_head for r in self.ranking) + 1
        n_rows = max(info.index for info in self.layers) + 1
        rows = [["0.0"] * n_columns for _ in range(n_rows)]
        for layer, kv_head in self.keep:
            rows[layer][kv_head] = "1.0"
        _write(path, "".join("\t".join(row) + "\n" for row in rows))

    def to_layer_types(self) -> dict[str, Any]:
        """A layer-wise plan as the settings of a Hugging Face config: `layer_types`, `sliding_window` if any slides.

        A kept sliding layer does not change, and a windowed one keeps its own window where that is narrower.

        Raises:
            WorkbenchError: if the plan keeps some heads of a layer and not others, or sinks, or needs two windows.
        """
        mixed = [i for i, is_kept in self._kept_by_layer().items() if len(is_kept) > 1]
        if mixed:
            raise WorkbenchError(
                f"layers {mixed} keep some heads and not others, which layer_types cannot say; make the plan with "
                "unit='layer'"
            )
        if self.sink:
            raise WorkbenchError(f"layer_types know no sinks, and the plan keeps {self.sink}; make it with sink=0")
        # The softmax mixer of a layer with two mixers comes last and gives its type.
        first_linear = sorted(self.layers, key=lambda info: info.mixer == "softmax")
        kinds = {info.index: self._kind(info) for info in first_linear}
        windows = sorted({window for _, window in kinds.values() if window is not None})
        if len(windows) > 1:
            raise WorkbenchError(
                f"a config has one sliding_window, and the plan's layers need {' and '.join(map(str, windows))}; make "
                f"it with window={windows[0]}"
            )
        types = [kinds[index][0] for index in sorted(kinds)]
        return {"layer_types": types, **({"sliding_window": windows[0]} if windows else {})}

    def _kept_by_layer(self) -> dict[int, set[bool]]:
        is_kept: dict[int, set[bool]] = {}
        for r in sorted(self.ranking, key=lambda r: r.layer):
            is_kept.setdefault(r.layer, set()).add(r.head in self.keep)
        return is_kept

    def _kind(self, info: LayerInfo) -> tuple[str, int | None]:
        """A layer's name in `layer_types` under the plan, and its window where it slides."""
        if info.mixer != "softmax":
            return "linear_attention", None
        if KVHead(info.index, 0) in self.keep:
            return f"{info.kind}_attention", info.window if info.kind == "sliding" else None
        return "sliding_attention", self.window if info.window is None else min(info.window, self.window)


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


def _write(path: str | Path, text: str) -> None:
    path = Path(path)
    try:
        if path.is_file() or (path.parent.is_dir() and not path.exists()):
            replace_file(path, text.encode())
        else:
            # Pipes and devices are written directly. The system refuses a folder, and a path in a missing folder.
            path.write_text(text)
    except StoreNotWritable as error:
        raise WorkbenchError(f"the plan cannot be written: {error}") from error
    except OSError as error:
        raise WorkbenchError(f"{path}: the plan cannot be written: {error.strerror}") from error


def _inconsistency(plan: Plan) -> str | None:
    """What is inconsistent in a plan; None if nothing is."""
    ranked = [r.head for r in plan.ranking]
    unknown = [str(head) for head in plan.keep if head not in ranked]
    if unknown:
        return f"keeps {', '.join(unknown)}, which its ranking does not have"
    heads = [KVHead(i.index, h) for i in plan.layers if i.mixer == "softmax" for h in range(i.n_kv_heads)]
    if sorted(ranked) != heads:
        return f"ranks {len(ranked)} heads, which are not the {len(heads)} softmax heads of its layers"
    if plan.unit not in get_args(Unit):
        return f"has the unit {plan.unit!r}, which is neither 'head' nor 'layer'"
    if len(set(plan.keep)) < len(plan.keep):
        return "keeps a head twice"
    if not (1 <= plan.window < _MOST and 0 <= plan.sink < _MOST):
        return f"has a window of {plan.window!r} and a sink of {plan.sink!r} tokens"
    if plan.context < 1:
        return f"counts caches at a context of {plan.context!r} tokens"
    return None


def _typed_fields(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "layers": tuple(LayerInfo(**info) for info in document["layers"]),
        "keep": tuple(KVHead(*map(_whole, head)) for head in document["keep"]),
        "ranking": tuple(RankedHead(**_numbers(r)) for r in document["ranking"]),
        "curve": tuple(CurvePoint(**_numbers(p)) for p in document["curve"]),
        "evidence": _numbers(document["evidence"]),
    }


def _whole(number: object) -> int:
    """A head's number; JSON that another program wrote may hold 1.0 or "1"."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"keep holds {number!r}; expected whole numbers")
    return number


def _require_types(record: Any) -> None:
    """Raise TypeError where a text, number or missing value is of another type than its field's."""
    hints = get_type_hints(type(record))
    for field in fields(record):
        value, hint = getattr(record, field.name), hints[field.name]
        expected = int | float if hint is float else hint
        is_plain = isinstance(expected, UnionType) or (isinstance(expected, type) and not get_args(expected))
        if is_plain and not isinstance(value, expected):
            raise TypeError(f"{field.name} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in record.items()}
