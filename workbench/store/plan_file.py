"""The plan file: which key/value heads keep the whole context and what the others get, as JSON. No torch.

The file is one JSON object with the fields of `Plan`; heads are written [layer, kv_head]. A field that changes its
meaning raises `version`; files of newer versions are refused. In version 1 every head that is not kept has the window.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Protocol, get_args, get_type_hints, runtime_checkable

import pandas as pd

from workbench.files.plain_json import json_text
from workbench.heads import KVHead, LayerInfo, WorkbenchError, some_of
from workbench.store.cache_sizes import bytes_held, bytes_under, keys_read, keys_under, saved_under, seen_tokens
from workbench.store.conversions import (
    MOST_TOKENS,
    Choice,
    Conversions,
    LinearAttention,
    SparseAttention,
    Window,
    heads_beyond,
    name_of,
    softmax_heads,
)
from workbench.store.layer_type_families import why_ignored
from workbench.store.length_verdict import LengthVerdict
from workbench.store.plan_exports import SPEC_VERSION, fingerprint, spec_of_layers, write_duo, write_text

VERSION = 2


@runtime_checkable
class SavesPlanned(Protocol):
    """A model that writes itself under a plan: a `HookedModel`."""

    def save_planned(self, plan: Any, folder: str | Path) -> Path: ...


# Fields that files of version 1 do not have.
_SINCE_2 = ("conversions", "costs", "remarks", "verdict")
Unit = Literal["head", "layer"]


@dataclass(frozen=True, slots=True)
class KVBytes:
    """A budget: the bytes of key/value cache of softmax layers at the plan's context, in 16-bit numbers.

    States of linear attention are counted in float32.
    """

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

    `nats`: loss per answer; `recovered`: share of the gap between all converted and none, NaN where there is no gap,
    with its 95 % interval over sequences, `ci_lo` to `ci_hi`; `accuracy`: share of answers that are right; `kv_saved`:
    share of the key/value cache that is not needed.
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
class HeadCosts:
    """What a window, linear and sparse attention cost a head, in nats per answer, by gates towards each.

    `linear_error`: share of the variance of its outputs that `form` leaves unexplained. `linear_flags`: why it gets no
    linear attention whatever that costs, `ladder_end` or `error_above_1`, separated by `;`. Without a `form` the head
    cannot have linear attention, and the numbers are NaN. `sparse_form`: the sparse attention that `sparse_nats` is of;
    without one there was no such choice.
    """

    layer: int
    kv_head: int
    window_nats: float
    linear_nats: float
    linear_error: float
    linear_flags: str = ""
    form: LinearAttention | None = None
    sparse_nats: float = math.nan
    sparse_form: SparseAttention | None = None

    @property
    def head(self) -> KVHead:
        return KVHead(self.layer, self.kv_head)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every ranked key/value head of a model gets: the whole context, a window, linear or sparse attention.

    `keep`: the heads that see everything. `conversions`: those that have linear or sparse attention where they are
    not kept. All others that are ranked see `sink` first and `window` last keys. Heads that see no further than the
    window by themselves need no choice and are not ranked; they stay as they are.

    `layers`: those of the model; a model of other layers is refused. `unit`: whether heads or whole layers are kept.
    `ranking`: best first, by `method` on `probe`. `curve`: of this ranking and its baselines. `evidence`: numbers
    of the method, such as its completeness error. `context`: the tokens that cache sizes are counted for. `costs`: of
    each conversion, where there was a choice. `remarks`: what to know before relying on the numbers. `verdict`: what
    the plan loses at several lengths, where that was measured (`workbench.verdict`).
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
    conversions: dict[KVHead, LinearAttention | SparseAttention] = field(default_factory=dict)
    costs: tuple[HeadCosts, ...] = ()
    remarks: tuple[str, ...] = ()
    verdict: LengthVerdict | None = None

    def __repr__(self) -> str:
        linear = f", {len(self.linear)} linear" if self.linear else ""
        linear += f", {len(self.sparse)} sparse" if self.sparse else ""
        heads = f"{len(self.keep)} of {len(self.ranking)} heads kept{linear}, window {self.window}, sink {self.sink}"
        saved = f"{self.kv_saved:.0%} of the cache saved at {self.context} tokens"
        saved += f", {self.keys_saved:.0%} of the keys not read" if self.sparse else ""
        parts = ".choices, .table(), .curves(), .evidence, .remarks, .verdict"
        return f"Plan({self.model}: {heads}, {saved}, by {self.method} on {self.probe}; {parts})"

    @property
    def choices(self) -> dict[KVHead, Choice]:
        """Every ranked head in order, with "full", its `Window`, its `LinearAttention` or its `SparseAttention`."""
        window, keep = Window(self.window, self.sink), set(self.keep)
        return {
            head: "full" if head in keep else self.conversions.get(head, window)
            for head in sorted(r.head for r in self.ranking)
        }

    @property
    def windowed(self) -> tuple[KVHead, ...]:
        """The heads that lose the far context, in order."""
        return tuple(head for head, choice in self.choices.items() if isinstance(choice, Window))

    @property
    def linear(self) -> dict[KVHead, LinearAttention]:
        """The heads that have linear attention, in order, each with its form, as `HookedModel.linearize` takes them."""
        return {head: choice for head, choice in self.choices.items() if isinstance(choice, LinearAttention)}

    @property
    def sparse(self) -> dict[KVHead, SparseAttention]:
        """The heads that have sparse attention, in order, as `HookedModel.sparsify` takes them.

        They keep their whole cache, so that they save nothing of it: `kv_saved` counts them as full. See `keys_read`.
        """
        return {head: choice for head, choice in self.choices.items() if isinstance(choice, SparseAttention)}

    @property
    def keys_read(self) -> int:
        """Keys that the newest of `context` tokens attends to, summed over the key/value heads of softmax layers.

        What sparse heads read to select their blocks is not counted.
        """
        return keys_under(self.layers, self.choices, context=self.context)

    @property
    def keys_saved(self) -> float:
        """The share of the keys that the newest of `context` tokens attends to in the model itself and not here.

        It says how much less is read, `kv_saved` how much less is held.
        """
        in_all = keys_under(self.layers, {}, context=self.context)
        return 1 - self.keys_read / in_all if in_all else 0.0

    @property
    def sparse_in_words(self) -> str:
        """How many heads are sparse, what they attend to, and the keys and cache of the whole plan; "" where none is.

        Sizes are at `context` tokens.
        """
        if not self.sparse:
            return ""
        counts = Counter(form.in_words for form in self.sparse.values())
        forms = "; ".join(f"{n} {'head attends' if n == 1 else 'heads attend'} to {w}" for w, n in counts.items())
        bound = " Selecting by oracle reads every key: it is the bound of what a trained selector could reach."
        by_oracle = any(form.rule == "oracle" for form in self.sparse.values())
        return (
            f"{forms}, and they keep their whole cache. {self.keys_at([self.context])}; {self.kv_saved:.0%} of the "
            f"cache is saved.{bound if by_oracle else ''}"
        )

    def keys_at(self, lengths: Sequence[int]) -> str:
        """How many keys a token reads under the plan at these lengths of the context, in words."""
        read, in_all = ([keys_under(self.layers, to, context=n) for n in lengths] for to in (self.choices, {}))
        counts = [f"{own:,} of {of:,} keys at {n:,} tokens" for own, of, n in zip(read, in_all, lengths, strict=True)]
        return f"A token reads {', '.join(counts)}"

    @property
    def kv_bytes(self) -> int:
        """Bytes of key/value cache and linear states of softmax layers under the plan, at `context` tokens."""
        return bytes_under(self.layers, self._converted, context=self.context)

    @property
    def kv_saved(self) -> float:
        """The share of the key/value cache of softmax layers that the plan saves, at `context` tokens.

        Keys and values are counted in 16-bit numbers, states of linear attention in float32.
        """
        return saved_under(self.layers, self._converted, context=self.context)

    @property
    def _converted(self) -> Conversions:
        return {head: choice for head, choice in self.choices.items() if choice != "full"}

    def keeping(self, heads: Collection[KVHead]) -> Plan:
        """The plan with these heads full; the others are converted, each to its own.

        A verdict on other heads does not hold for them and is left out.
        """
        verdict = self.verdict if set(heads) == set(self.keep) else None
        return replace(self, keep=tuple(sorted(heads)), verdict=verdict)

    def table(self) -> pd.DataFrame:
        """One row per ranked head, best first: its score, its choice, and what each conversion costs it.

        Columns: layer, kv_head, choice (`full`, `window`, `linear` or `sparse`), score, ci_lo, ci_hi, window_nats,
        linear_nats, linear_error, sparse_nats, linear_flags, features, sharpness, decay, bytes, keys_read. The last
        two are what the head holds at `context` tokens, and how many keys a token reads of it. The form is the head's
        choice, or the one it was fitted with; NaN where there is none.
        """
        costs, choices = {c.head: c for c in self.costs}, self.choices
        infos = {info.index: info for info in self.layers if info.mixer == "softmax"}
        rows: list[dict[str, Any]] = []
        for ranked in self.ranking:
            own, choice, info = costs.get(ranked.head), choices[ranked.head], infos[ranked.layer]
            form = choice if isinstance(choice, LinearAttention) else None if own is None else own.form
            rows.append(
                {
                    "head_name": str(ranked.head),
                    "layer": ranked.layer,
                    "kv_head": ranked.kv_head,
                    "choice": name_of(choice),
                    **{name: getattr(ranked, name) for name in ("score", "ci_lo", "ci_hi")},
                    **{
                        name: math.nan if own is None else getattr(own, name)
                        for name in ("window_nats", "linear_nats", "linear_error", "sparse_nats")
                    },
                    "linear_flags": "" if own is None else own.linear_flags,
                    "features": "" if form is None else form.features,
                    **{n: math.nan if form is None else getattr(form, n) for n in ("sharpness", "decay")},
                    "bytes": bytes_held(choice, info.d_head, seen_tokens(info, self.context)),
                    "keys_read": keys_read(choice, seen_tokens(info, self.context)),
                }
            )
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """The curve as a table, one row per method, probe and number of heads kept."""
        names = [f.name for f in fields(CurvePoint)]
        return pd.DataFrame([asdict(point) for point in self.curve], columns=names)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            WorkbenchError: if the file cannot be written.
        """
        conversions = [
            [*head, {"form": name_of(form), **asdict(form)}] for head, form in sorted(self.conversions.items())
        ]
        costs = [_written_costs(own) for own in self.costs]
        document = {"version": VERSION, **asdict(self), "conversions": conversions, "costs": costs}
        if self.verdict is None:
            del document["verdict"]
        write_text(path, json_text(document, indent=1) + "\n")

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
        version = document.pop("version")
        if version > VERSION:
            raise WorkbenchError(f"{path}: was written by a newer workbench; upgrade it to read the plan")
        if version < 2:
            newer = [name for name in _SINCE_2 if name in document]
            if newer:
                raise WorkbenchError(f"{path}: is no plan of version {version}, which has no {newer[0]}")
            document |= {name: [] for name in _SINCE_2 if name != "verdict"}
        try:
            typed: dict[str, Any] = {**document, **_typed_fields(document)}
            plan = cls(**typed)
            cells = () if plan.verdict is None else plan.verdict.cells
            selections = [own.sparse_form for own in plan.costs if own.sparse_form is not None]
            forms = (*plan.conversions.values(), *selections)
            records = (*plan.layers, *plan.ranking, *plan.curve, *plan.costs, *forms, *cells)
            for record in (plan, *records):
                _require_types(record)
        except (TypeError, KeyError, ValueError, AttributeError, WorkbenchError) as error:
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

        Layers without softmax heads have a row of zeros, so that rows are layers. Beside it the `config.json` is
        written from which DuoAttention reads window and sink, as `recent_size` and `sink_size`; what else one of
        DuoAttention's says stays.

        Raises:
            WorkbenchError: if heads have linear attention, a file cannot be written, or a `config.json` of something
                else, such as a model's, is there.
        """
        self._refuse_linear("DuoAttention's file knows full heads and windows alone")
        n_columns = max(info.n_kv_heads for info in self.layers if info.mixer == "softmax")
        n_rows = max(info.index for info in self.layers) + 1
        rows = [["0.0"] * n_columns for _ in range(n_rows)]
        for layer, kv_head in self.keep:
            rows[layer][kv_head] = "1.0"
        write_duo(path, rows, Window(self.window, self.sink))

    def to_json_spec(self, path: str | Path) -> None:
        """Write the plan as a JSON for engines that serve models: what each key/value head of each layer sees.

        `schema`: "attention-plan". `schema_version`: raised when a field changes its meaning. `model`: `name`, and
        `fingerprint`, the sha256 of `layers` without `kv_heads`, as JSON with sorted keys and without spaces.
        `context`, `kv_bytes`: tokens, and what the plan holds of them. `layers`: one object per token mixer, in order:
        `index, kind, mixer, window, has_sinks, n_heads, n_kv_heads, d_head` as the model has them, and `kv_heads`, one
        object per key/value head of softmax attention. Its `kind` is `full`, as the layer itself; `window`, with
        `window` and `sink`: the first `sink` keys and the last `window`, the query's own included; or `linear`, with
        `features`, `sharpness` and `decay` as of `LinearAttention`.

        Raises:
            WorkbenchError: if the file cannot be written.
        """
        spec = {
            "schema": "attention-plan",
            "schema_version": SPEC_VERSION,
            "model": {"name": self.model, "fingerprint": fingerprint(self.layers)},
            "context": self.context,
            "kv_bytes": self.kv_bytes,
            "layers": spec_of_layers(self.layers, self.choices),
        }
        write_text(path, json_text(spec, indent=1) + "\n")

    def save_model(self, m: SavesPlanned, folder: str | Path) -> Path:
        """Write a model under the plan as a folder that transformers loads; see `HookedModel.save_planned`.

        Raises:
            WorkbenchError: as there.
        """
        return m.save_planned(self, folder)

    def to_layer_types(self, model_type: str | None = None) -> dict[str, Any]:
        """A layer-wise plan as the settings of a Hugging Face config: `layer_types`, `sliding_window` if any slides.

        A kept sliding layer does not change, and a windowed one keeps its own window where that is narrower. Not every
        family reads these settings: with the `model_type` of a config, one that would ignore them is refused.

        Raises:
            WorkbenchError: if the family ignores them, or the plan keeps some heads of a layer and not others, or
                sinks, or needs two windows, or gives heads linear attention, or a layer selects keys.
        """
        ignored = None if model_type is None else why_ignored(model_type)
        if ignored is not None:
            raise WorkbenchError(ignored)
        self._refuse_linear("the linear_attention of layer_types is a mixer with weights of its own")
        selecting = [info.index for info in self.layers if info.kind == "sparse"]
        if selecting:
            raise WorkbenchError(
                f"layers {selecting} attend to keys that an indexer selects, and layer_types know no windows on them; "
                "apply the plan with m.apply(plan)"
            )
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

    def _refuse_linear(self, why: str) -> None:
        if self.sparse:
            raise WorkbenchError(
                f"the plan gives {some_of([str(head) for head in self.sparse])} sparse attention, which this file "
                "cannot say; apply the plan with m.apply(plan), or write it with plan.save or to_json_spec"
            )
        if self.linear:
            names = some_of([str(head) for head in self.linear])
            raise WorkbenchError(
                f"the plan gives {names} linear attention, and {why}; make it with choices=('window',)"
            )

    def _kept_by_layer(self) -> dict[int, set[bool]]:
        is_kept: dict[int, set[bool]] = {}
        for r in sorted(self.ranking, key=lambda r: r.layer):
            is_kept.setdefault(r.layer, set()).add(r.head in self.keep)
        return is_kept

    def _kind(self, info: LayerInfo) -> tuple[str, int | None]:
        """A layer's name in `layer_types` under the plan, and its window where it slides."""
        if info.mixer != "softmax":
            return "linear_attention", None
        if info.index not in {r.layer for r in self.ranking} or KVHead(info.index, 0) in self.keep:
            return f"{info.kind}_attention", info.window if info.kind == "sliding" else None
        return "sliding_attention", self.window if info.window is None else min(info.window, self.window)


def _inconsistency(plan: Plan) -> str | None:
    """What is inconsistent in a plan; None if nothing is."""
    ranked = [r.head for r in plan.ranking]
    unknown = [str(head) for head in plan.keep if head not in ranked]
    if unknown:
        return f"keeps {', '.join(unknown)}, which its ranking does not have"
    if not (1 <= plan.window < MOST_TOKENS and 0 <= plan.sink < MOST_TOKENS):
        return f"has a window of {plan.window!r} and a sink of {plan.sink!r} tokens"
    heads = softmax_heads(plan.layers)
    is_each_once = len(set(ranked)) == len(ranked)
    if not (is_each_once and set(heads_beyond(plan.layers, plan.window)) <= set(ranked) <= set(heads)):
        return f"ranks {len(ranked)} heads, which are not the {len(heads)} softmax heads of its layers"
    if plan.unit not in get_args(Unit):
        return f"has the unit {plan.unit!r}, which is neither 'head' nor 'layer'"
    if len(set(plan.keep)) < len(plan.keep):
        return "keeps a head twice"
    if plan.context < 1:
        return f"counts caches at a context of {plan.context!r} tokens"
    return _inconsistent_conversion(plan)


def _inconsistent_conversion(plan: Plan) -> str | None:
    """What is inconsistent in a plan's linear attention; None if nothing is."""
    kinds = {info.index: info.kind for info in plan.layers if info.mixer == "softmax"}
    ranked = {r.head for r in plan.ranking}
    for head, form in plan.conversions.items():
        if head not in ranked:
            return f"gives {head} {name_of(form)} attention, which its ranking does not have"
        kind = kinds[head.layer]
        if kind != "full":
            return f"gives {head} {name_of(form)} attention, whose layer is {kind} and does not see its whole past"
    unknown = [str(costs.head) for costs in plan.costs if costs.head not in ranked]
    return f"has costs of {unknown[0]}, which its ranking does not have" if unknown else None


def _typed_fields(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "layers": tuple(LayerInfo(**info) for info in document["layers"]),
        "keep": tuple(KVHead(*map(_whole, head)) for head in document["keep"]),
        "ranking": tuple(RankedHead(**_numbers(r)) for r in document["ranking"]),
        "curve": tuple(CurvePoint(**_numbers(p)) for p in document["curve"]),
        "evidence": _numbers(document["evidence"]),
        "conversions": dict(map(_conversion, document["conversions"])),
        "costs": tuple(map(_costs, document["costs"])),
        "remarks": tuple(map(_text, document["remarks"])),
        "verdict": None if document.get("verdict") is None else LengthVerdict.read(document["verdict"]),
    }


def _conversion(entry: Sequence[Any]) -> tuple[KVHead, LinearAttention | SparseAttention]:
    layer, kv_head, form = entry
    if form.get("form") not in ("linear", "sparse"):
        raise ValueError(f"conversions hold a form {form.get('form')!r}; expected 'linear' or 'sparse'")
    settings = {k: v for k, v in form.items() if k != "form"}
    own = SparseAttention(**settings) if form["form"] == "sparse" else _form(settings)
    return KVHead(_whole(layer), _whole(kv_head)), own


def _written_costs(costs: HeadCosts) -> dict[str, Any]:
    """The costs as the file has them, which says of sparse attention only where that was a choice."""
    record = asdict(costs)
    if costs.sparse_form is None:
        del record["sparse_nats"], record["sparse_form"]
    return record


def _costs(record: dict[str, Any]) -> HeadCosts:
    form, sparse = record["form"], record.get("sparse_form")
    changed: dict[str, Any] = {
        **_numbers(record),
        "form": None if form is None else _form(form),
        "sparse_form": None if sparse is None else SparseAttention(**sparse),
    }
    return HeadCosts(**changed)


def _form(settings: dict[str, Any]) -> LinearAttention:
    return LinearAttention(**_numbers(settings))


def _text(remark: object) -> str:
    if not isinstance(remark, str):
        raise TypeError(f"remarks hold {remark!r}; expected texts")
    return remark


def _whole(number: object) -> int:
    """A head's number; JSON that another program wrote may hold 1.0 or "1"."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"keep holds {number!r}; expected whole numbers")
    return number


def _require_types(record: Any) -> None:
    """Raise TypeError where a text, number or missing value is of another type than its field's."""
    hints = get_type_hints(type(record))
    for own in fields(record):
        value, hint = getattr(record, own.name), hints[own.name]
        expected = int | float if hint is float else hint
        is_plain = isinstance(expected, UnionType) or (isinstance(expected, type) and not get_args(expected))
        if is_plain and not isinstance(value, expected):
            raise TypeError(f"{own.name} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in record.items()}
