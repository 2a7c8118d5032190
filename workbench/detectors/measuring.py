"""Measure a model on a probe, in one recording for all detectors, or by its weights: head scores and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from workbench.console import watched_bar
from workbench.detectors.bootstrap import bootstrap
from workbench.detectors.decoded_probes import decode, decoded
from workbench.detectors.registry import Detector, PerHead, WeightDetector, find_detectors
from workbench.detectors.scoring import ScoreLabel, concatenate, score_rows, table_rows
from workbench.detectors.unscored import flag_of, in_flags, warn_of_unscored, why_unscored
from workbench.emergence.right_answers import LATER, abilities
from workbench.heads import Head, LayerInfo, Metric, Row, WorkbenchError, brief
from workbench.hooks import HookedModel, PerSequence, Recording, open_model
from workbench.hooks.head_weights import Weights, read_weights
from workbench.hooks.model import DEFAULT_FAR
from workbench.hooks.recording.batch_sizes import batch_tokens
from workbench.hooks.recording.forward_pass import Rows
from workbench.hooks.recording.needs import Need
from workbench.hooks.recording.unreadable_needs import UnreadableNeed
from workbench.kernels import Far
from workbench.loading.pretrained import is_out_of_memory
from workbench.probes import Probe, make_probe, one_model, split
from workbench.probes.token_inputs import TokensLike, read_probes, token_batch

# Called with the name of the probe that comes next, the tokens that are done, and those of all probes.
OnTokens = Callable[[str, int, int], None]
# The probe name of scores of weights.
WEIGHTS = "weights"
_BATCH_LOGITS = 1 << 26
_METRIC_COLUMNS = pd.Index([field.name for field in fields(Metric)])
_FIRST_COLUMNS = ["layer", "head", "kv_head", "kind", "detector", "probe", "score", "n", "n_seq", "ci_lo", "ci_hi"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The scores of every head by detector name, and the model's own metrics, on one probe.

    `forward_s`: seconds of the model's passes, with the statistics taken inside them. `unscored`: by detector, why it
    has no score for any head. `refused`: of those, the error of each that this model or probe cannot have.
    """

    rows: dict[str, list[Row]]
    metrics: list[Metric]
    forward_s: float = 0.0
    unscored: dict[str, str] = field(default_factory=dict[str, str])
    refused: dict[str, Exception] = field(default_factory=dict[str, Exception])

    def __repr__(self) -> str:
        return brief(self)


def measure(  # noqa: PLR0913  (keywords that callers pass)
    model: HookedModel,
    probe: Probe,
    detectors: Sequence[Detector],
    *,
    far: Far,
    seed: int = 0,
    rows: Rows = "all",
    prefill: int | None = None,
) -> Measured:
    """One pass over the probe for all detectors; sequences go through in batches of a few thousand tokens.

    For detectors of decoded answers the model decodes once. Each way of choosing instances then takes one more pass,
    over its decode rows.
    """
    batches = _batches(probe, model)
    started = time.perf_counter()
    recorder = _Recorder(model, far, prefill)
    readable = _readable(recorder, batches, [d for d in detectors if d.decoding is None], rows=rows)
    forward_s = time.perf_counter() - started
    measured = _Totals(refused=readable.refused)
    for d in readable.detectors:
        far_flags = f"far_window={far.window};far_sink={far.sink}" if "far_mass" in d.needs else ""
        measured.add(d, readable.recordings, far_flags)
    started = time.perf_counter()
    _measure_decoded(recorder, probe, [d for d in detectors if d.decoding is not None], measured)
    forward_s += time.perf_counter() - started
    scores: dict[str, list[Row]] = {}
    unscored: dict[str, str] = {}
    for d in detectors:
        totals, flags = measured.of.get(d.name, (_no_rows(model), ""))
        if not bool((totals.rows > 0).any()):
            counted = flags.removeprefix("counted=") if d.decoding is not None else ""
            error = measured.refused.get(d.name)
            reason = why_unscored(d, probe, model, far, counted=counted) if error is None else in_flags(error)
            unscored[d.name] = reason
            if not counted:  # of replies the flags say already that none counted
                flags = ";".join(flag for flag in (flags, flag_of(reason)) if flag)
        label = ScoreLabel(d.name, d.version, probe.name)
        scores[d.name] = score_rows(totals, model.layers, label, seed=seed, flags=_with_quantisation(flags, model))
    metrics = _metrics(probe, batches, readable.recordings, seed=seed)
    return Measured(scores, metrics, forward_s, unscored, measured.refused)


def measure_weights(m: HookedModel, detectors: Sequence[WeightDetector]) -> Measured:
    """The scores of every head by detector name; the weights are read once.

    A model that TransformerLens cannot open, or that has no weights per head, refuses all of them.
    """
    totals, refused = dict[str, PerHead](), dict[str, Exception]()
    weights: Weights | None = None
    for d in detectors:
        try:
            weights = read_weights(m) if weights is None else weights
            totals[d.name] = d.function(weights)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            refused[d.name] = error
            if weights is None:  # no weights for any of them
                refused |= dict.fromkeys([d.name for d in detectors], error)
                break
    quantised = _with_quantisation("", m)
    scores: dict[str, list[Row]] = {}
    for d in detectors:
        flags = ";".join(
            flag for flag in (quantised, flag_of(in_flags(refused[d.name])) if d.name in refused else "") if flag
        )
        rows = _weight_rows(d, totals.get(d.name, _no_scores(m)), m.layers)
        scores[d.name] = [replace(row, flags=flags) for row in rows] if flags else rows
    return Measured(scores, [], 0.0, {name: in_flags(error) for name, error in refused.items()}, refused)


def score(  # noqa: PLR0913, PLR0917  (the notebook's function; `tokens` is documented as positional)
    m: HookedModel | nn.Module | Any,
    detectors: Iterable[str] | Any | None = None,
    tokens: TokensLike | Probe | None = None,
    attention_mask: Any = None,
    probes: Probe | str | Iterable[Probe | str] | None = None,
    rows: Rows = "all",
    seed: int = 0,
    *,
    far: Far | int | None = None,
    prefill: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Head scores as a tidy table: head_name, layer, head, kv_head, kind, detector, probe, score, n, n_seq and more.

    `ci_lo`, `ci_hi`: the 95 % interval. `score_flags`: the column `flags` under a name that is no attribute of a table.

    Scores of answers on a default probe that the model cannot do have `cannot=` in their flags, the share of right
    answers and that on the control: they say where the head looks, not that it retrieves.

    Args:
        m: an opened model, or anything that `open_model` takes, such as a TransformerBridge.
        detectors: names; default those that `docs/detectors.md` calls default. On `tokens`, detectors that need answers
            are refused if named, skipped if not; skipped are also, if not named, `retrieval` and its like on probes
            that do not say where answers can be read, and `learned_sink` where the model has none. Those of weights
            have one row per head, under the probe `weights`.
        tokens: sequences to score on (ids, text or a tokenizer's output, as in `HookedModel.record`), with
            `attention_mask`, which may number packed documents; else `probes`; else `probes.one_model(m)`.
        probes: probes, or their names and arguments as `probes.build` reads them.
        rows: all query rows, or how many to sample; see `HookedModel.record`.
        far: window and sink of `far_mass`, or the window alone, in tokens; default 256 and 0, on probes of up to 256
            tokens a quarter of their length. The row's flags hold it.
        prefill: run the model over pieces of this many tokens; see `HookedModel.record`.
        progress: a bar on a terminal and in a notebook, in tokens.

    Raises:
        WorkbenchError: for unknown detectors or probes, both tokens and probes, a named detector without its answers,
            or where no detector that was named can be had of the model, as one of weights that TransformerLens cannot
            open. An error in a detector of your own is raised as it is.

    Warns:
        UnscoredWarning: where a detector has no score for any head on a probe, or cannot be had of the model, with the
            reason, which is also in the rows' flags as `no_rows=`. The other detectors have their scores.
    """
    with watched_bar("token", shown=progress) as show:

        def on_tokens(probe: str, done: int, total: int) -> None:
            show(done, total, probe)

        return score_and_measure(
            m,
            detectors,
            tokens,
            attention_mask,
            probes,
            rows,
            seed,
            far=far,
            prefill=prefill,
            controls=False,
            on_progress=on_tokens,
        )[0]


def score_and_measure(  # noqa: PLR0913, PLR0917  (the arguments of `score`)
    m: HookedModel | nn.Module | Any,
    detectors: Iterable[str] | Any | None = None,
    tokens: TokensLike | Probe | None = None,
    attention_mask: Any = None,
    probes: Probe | str | Iterable[Probe | str] | None = None,
    rows: Rows = "all",
    seed: int = 0,
    *,
    far: Far | int | None = None,
    prefill: int | None = None,
    controls: bool = True,
    on_progress: OnTokens | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of `score`, and the model's own metrics on the probes: probe, metric, distance, position, value, ….

    `controls`: measure those of the default probes even where no detector needs answers. `on_progress`: called before
    each probe, and at the end. Other arguments and errors as in `score`.
    """
    chosen = find_detectors(detectors)
    if not chosen:
        raise WorkbenchError("no detector was named; expected at least one, or None for those that run by default")
    of_sequences = [d for d in chosen if isinstance(d, Detector)]
    model = m if isinstance(m, HookedModel) else open_model(m)
    of_all = _read_far(far)
    if isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise WorkbenchError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")
    if tokens is not None and probes is not None:
        raise WorkbenchError("both tokens and probes were given; pass one of them")
    if isinstance(tokens, Probe):
        tokens, probes = None, tokens
    if tokens is None and attention_mask is not None:
        raise WorkbenchError("an attention_mask was given without tokens; probes have one of their own: leave it out")
    if tokens is not None:
        without = [d.name for d in of_sequences if d.needs_answers]
        if detectors is not None and without:
            raise WorkbenchError(f"{without} need a probe with answers, not bare tokens; pass probes=")
        of_sequences = [d for d in of_sequences if not d.needs_answers]
        ids, mask = token_batch(tokens, attention_mask, tokenizer=model.tokenizer)
        chosen_probes = [make_probe("tokens", ids.cpu(), attention_mask=None if mask is None else mask.long().cpu())]
    elif probes is None:
        chosen_probes = list(one_model(model).values()) if of_sequences else []
        if not controls and not any(d.needs_answers for d in of_sequences):
            chosen_probes = [probe for probe in chosen_probes if not probe.is_control]
    else:
        chosen_probes = read_probes(model, probes)
        _check_fit(of_sequences, chosen_probes)
    if detectors is None:
        of_sequences = _with_rows(of_sequences, model)
    measured: list[Measured] = []
    for probe in _announced(chosen_probes if of_sequences else [], on_progress):
        fitting = _fitting(of_sequences, probe, is_by_default=detectors is None)
        of_probe = of_all or _default_far(probe)
        measured.append(measure(model, probe, fitting, far=of_probe, seed=seed, rows=rows, prefill=prefill))
    measured.append(measure_weights(model, [d for d in chosen if isinstance(d, WeightDetector)]))
    _raise_refused(measured)
    named = [*(probe.name for probe in chosen_probes if of_sequences), WEIGHTS]
    unscored = {
        (name, probe): why for probe, each in zip(named, measured, strict=True) for name, why in each.unscored.items()
    }
    warn_of_unscored(unscored, stacklevel=4)
    metrics = _table([metric for each in measured for metric in each.metrics]).reindex(columns=_METRIC_COLUMNS)
    tables = [each.rows for each in measured]
    frame = _table([row for by_name in tables for scores in by_name.values() for row in scores])
    frame = frame.reindex(columns=_FIRST_COLUMNS + [c for c in frame.columns if c not in _FIRST_COLUMNS])
    return _named(_marked(frame, metrics, {d.name for d in of_sequences if d.needs_answers})), metrics


def _raise_refused(measured: Sequence[Measured]) -> None:
    """Raise an error that is no mistake of use, and any where nothing is scored; else such rows have no scores."""
    errors = [error for each in measured for error in each.refused.values()]
    own = [e for e in errors if not isinstance(e.__cause__ if isinstance(e, UnreadableNeed) else e, WorkbenchError)]
    is_all = all(name in each.refused for each in measured for name in each.rows)
    if own or (errors and is_all):
        raise (own or errors)[0]


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """The scores with the names of heads first, and flags under a second name.

    `frame.head` and `frame.flags` are attributes of every DataFrame: `frame.head_name` and `frame.score_flags` are not.
    """
    layers, heads = frame["layer"].tolist(), frame["head"].tolist()
    names = [str(Head(layer, head)) for layer, head in zip(layers, heads, strict=True)]
    frame.insert(0, "head_name", pd.Series(names, index=frame.index, dtype=object))
    return frame.assign(score_flags=frame["flags"])


def _table(rows: Sequence[Row] | Sequence[Metric]) -> pd.DataFrame:
    """One row per entry, one column per field; asdict copies every value, and took 3 % of the time of a scan."""
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame({field.name: [getattr(row, field.name) for row in rows] for field in fields(rows[0])})


def series_far(model: HookedModel, probe: Probe) -> Far:
    """The window of `far_mass` in a scan: the model's smallest, else 256 or a quarter of the probe, at least 1."""
    windows = [info.window for info in model.layers if info.window is not None]
    return Far(window=min(windows) if windows else max(1, min(256, probe.tokens.shape[1] // 4)))


def _with_quantisation(flags: str, model: HookedModel) -> str:
    """The flags, and the quantisation that the model's weights come from."""
    return ";".join(flag for flag in (flags, model.quantisation and f"quantised={model.quantisation}") if flag)


def _read_far(far: Any) -> Far | None:
    """Window and sink, of which a whole number is the window."""
    if far is None or isinstance(far, Far):
        return far
    if isinstance(far, bool) or not isinstance(far, int):
        raise WorkbenchError(f"far is {far!r}; expected wb.Far(window, sink), or a window in tokens")
    return Far(far)


def _announced(probes: Sequence[Probe], on_progress: OnTokens | None) -> Iterator[Probe]:
    """The probes one after the other; before each, and after the last, how many tokens are done."""
    total, done = sum(probe.tokens.numel() for probe in probes), 0
    for probe in probes:
        if on_progress is not None:
            on_progress(probe.name, done, total)
        yield probe
        done += probe.tokens.numel()
    if on_progress is not None and probes:
        on_progress("", done, total)


def _fitting(detectors: Sequence[Detector], probe: Probe, *, is_by_default: bool) -> list[Detector]:
    """The detectors to run on a probe: none on a control; of those that nobody named, those that it has answers for."""
    if probe.is_control:
        return []
    return [d for d in detectors if d.fits(probe)] if is_by_default else list(detectors)


def _with_rows(detectors: Sequence[Detector], model: HookedModel) -> list[Detector]:
    """Detectors that nobody named, without those of learned sinks alone where the model has none."""
    has_sinks, of_sinks = any(info.has_sinks for info in model.layers), frozenset[Need](("learned_sink_mass",))
    return [d for d in detectors if has_sinks or d.needs != of_sinks]


def _default_far(probe: Probe) -> Far:
    """The default window; on texts too short for it, as in a scan, a quarter of their length."""
    n_tokens = probe.tokens.shape[1]
    return DEFAULT_FAR if n_tokens > DEFAULT_FAR.window else Far(window=max(1, n_tokens // 4))


def _marked(frame: pd.DataFrame, metrics: pd.DataFrame, of_answers: set[str]) -> pd.DataFrame:
    """The scores, those of answers flagged on probes that the model cannot do."""
    for row in abilities(metrics).to_dict("records"):
        if row["verdict"] == "cannot":
            rows = (frame["probe"] == row["probe"]) & frame["detector"].isin(list(of_answers))
            flag = f"cannot={row['right']:.2f}/{row['chance']:.2f}"
            frame.loc[rows, "flags"] = [f"{flags};{flag}" if flags else flag for flags in frame.loc[rows, "flags"]]
    return frame


def _check_fit(detectors: Sequence[Detector], probes: Sequence[Probe]) -> None:
    for d in detectors:
        for probe in probes:
            if (d.needs_pairs or d.decoding) and not d.fits(probe):
                expected = (
                    "pairs of sequences: probes.gold_document(m)" if d.needs_pairs else "answers that can be looked up"
                )
                raise WorkbenchError(f"detector {d.name!r} does not fit probe {probe.name!r}; expected {expected}")


@dataclass(frozen=True, slots=True)
class _Recorder:
    """A model with the options that all passes of a measurement share."""

    model: HookedModel
    far: Far
    prefill: int | None

    def record(self, batches: Sequence[Probe], detectors: Sequence[Detector], *, rows: Rows) -> list[Recording]:
        needs = frozenset[Need]().union(*(d.needs for d in detectors))
        return [self.model.record(batch, needs, rows=rows, far=self.far, prefill=self.prefill) for batch in batches]


@dataclass(frozen=True, slots=True)
class _Readable:
    """The detectors that a model can be recorded for on a probe, the recordings, and the errors of the others."""

    detectors: list[Detector]
    recordings: list[Recording]
    refused: dict[str, Exception]


def _readable(recorder: _Recorder, batches: Sequence[Probe], detectors: Sequence[Detector], *, rows: Rows) -> _Readable:
    """Record what the detectors need; where a need cannot be read, once more without the detectors that it is of."""
    left, refused = list(detectors), dict[str, Exception]()
    while True:
        try:
            return _Readable(left, recorder.record(batches, left, rows=rows), refused)
        except UnreadableNeed as error:
            without = {d.name: error for d in left if any(_name(need) in error.needs for need in d.needs)}
            if not without:
                raise
            refused |= without
            left = [d for d in left if d.name not in without]


def _name(need: Need) -> str:
    return need if isinstance(need, str) else need.name


@dataclass(frozen=True, slots=True)
class _Totals:
    """By detector: what it measured, with flags; or the error that it ended with."""

    of: dict[str, tuple[PerSequence, str]] = field(default_factory=dict[str, tuple[PerSequence, str]])
    refused: dict[str, Exception] = field(default_factory=dict[str, Exception])

    def add(self, d: Detector, recordings: Sequence[Recording], flags: str) -> None:
        """Run a detector's function; an error of its own is its failure, and not that of the others."""
        try:
            self.of[d.name] = concatenate([d.function(r) for r in recordings]), flags
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.refused[d.name] = error


def _measure_decoded(recorder: _Recorder, probe: Probe, detectors: Sequence[Detector], measured: _Totals) -> None:
    """Add the measurements of detectors of decoded answers; their flags say how many instances counted."""
    model = recorder.model
    try:
        instances = decode(model, probe) if detectors else []
    except WorkbenchError as error:
        measured.refused.update({d.name: error for d in detectors})
        return
    for decoding in dict.fromkeys(d.decoding for d in detectors):
        of_decoding = [d for d in detectors if d.decoding == decoding]
        counted = decoded(model, probe, decoding, instances=instances)
        flags = f"counted={0 if counted is None else len(counted.tokens)}/{len(instances)}"
        if counted is None or counted.answer_rows is None:
            measured.of.update({d.name: (_no_rows(model), flags) for d in of_decoding})
            continue
        batches, rows = _batches(counted, model), torch.unique(counted.answer_rows[:, 1])
        readable = _readable(recorder, batches, of_decoding, rows=rows)
        measured.refused.update(readable.refused)
        for d in readable.detectors:
            measured.add(d, readable.recordings, flags)


def _no_rows(model: HookedModel) -> PerSequence:
    """One sequence on which no head has a row."""
    shape = (1, len(model.layers), max(layer.n_heads for layer in model.layers))
    return PerSequence(torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.long))


def _no_scores(model: HookedModel) -> PerHead:
    """No score of weights for any head."""
    shape = (len(model.layers), max(layer.n_heads for layer in model.layers))
    return PerHead(torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.long))


def _batches(probe: Probe, model: HookedModel) -> list[Probe]:
    n_tokens = probe.tokens.shape[1]
    n_logit_rows = 1 if probe.answer_rows is None else len(torch.unique(probe.answer_rows[:, 1]))
    n_together = batch_tokens(model.model, model.interventions) // n_tokens
    step = max(1, min(n_together, _BATCH_LOGITS // max(1, n_logit_rows * model.vocab_size)))
    if probe.is_paired:
        step = max(2, step // 2 * 2)
    return split(probe, step)


def _weight_rows(detector: WeightDetector, measured: PerHead, layers: Sequence[LayerInfo]) -> list[Row]:
    """One Row per query head; without sequences there are no halves, no spread and no interval."""
    n = np.where(np.isfinite(measured.score.numpy()), measured.n.numpy(), 0)
    label = ScoreLabel(detector.name, detector.version, WEIGHTS)
    return table_rows(layers, {"score": measured.score.double().numpy()}, label, n=n, n_seq=np.zeros_like(n))


def _metrics(probe: Probe, batches: Sequence[Probe], recordings: Sequence[Recording], *, seed: int) -> list[Metric]:
    """Loss and share of right answers, pooled and by class."""
    if probe.answer_rows is None or len(probe.answer_rows) == 0:
        return []
    answers = [r.answers for r in recordings if r.answers is not None]
    sequence = _sequence_of_answers(batches, recordings)
    values = {"loss_nats": torch.cat([a.loss_nats for a in answers]).double().numpy()}
    if probe.metric is not None:
        values[probe.metric] = torch.cat([a.is_right for a in answers]).double().numpy()
    classes = None if probe.classes is None else probe.classes.numpy()
    metrics: list[Metric] = []
    for name, value in values.items():
        pooled = _by_sequence(value, sequence, len(probe.tokens))
        metrics.append(_metric(probe, name, pooled, label=None, seed=seed))
        if classes is not None and probe.class_name == "distance" and 0 < (classes > 0).sum() < len(classes):
            later = _by_sequence(value[classes > 0], sequence[classes > 0], len(probe.tokens))
            metrics.append(_metric(probe, name + LATER, later, label=None, seed=seed))
        for c in [] if classes is None else np.unique(classes):
            of_class = _by_sequence(value[classes == c], sequence[classes == c], len(probe.tokens))
            metrics.append(_metric(probe, name, of_class, label=int(c), seed=seed))
    return metrics


def _sequence_of_answers(batches: Sequence[Probe], recordings: Sequence[Recording]) -> Int[np.ndarray, " n"]:
    start, sequences = 0, []
    for batch, recording in zip(batches, recordings, strict=True):
        if recording.answers is not None:
            sequences.append(recording.answers.at[:, 0].numpy() + start)
        start += len(batch.tokens)
    return np.concatenate(sequences)


@dataclass(frozen=True, slots=True)
class _BySequence:
    """Mean of a value over the answers of each sequence, and their number; the mean is 0 where there are none."""

    means: Float[np.ndarray, " n_seq"]
    n: Int[np.ndarray, " n_seq"]

    def average(self, start: int = 0, step: int = 1) -> float:
        """The mean over every `step`-th sequence that has answers."""
        means, has_answers = self.means[start::step], self.n[start::step] > 0
        return float(means[has_answers].mean()) if has_answers.any() else float("nan")


def _by_sequence(value: Float[np.ndarray, " n"], sequence: Int[np.ndarray, " n"], n_sequences: int) -> _BySequence:
    value, sequence = value[np.isfinite(value)], sequence[np.isfinite(value)]
    n = np.bincount(sequence, minlength=n_sequences)
    return _BySequence(np.bincount(sequence, weights=value, minlength=n_sequences) / np.maximum(n, 1), n)


def _metric(probe: Probe, name: str, values: _BySequence, *, label: int | None, seed: int) -> Metric:
    low, high = bootstrap(values.means[:, None], (values.n > 0)[:, None], seed=seed)
    # The store has columns for two kinds of class; any other stands in the metric's name: recall_hops_2.
    has_column = label is None or probe.class_name in ("distance", "position")
    return Metric(
        probe=probe.name,
        metric=name if has_column else f"{name}_{probe.class_name}_{label}",
        distance=label if probe.class_name == "distance" else None,
        position=label if probe.class_name == "position" else None,
        value=values.average(),
        half_a=values.average(0, 2),
        half_b=values.average(1, 2),
        n=int(values.n.sum()),
        ci_lo=float(low[0]),
        ci_hi=float(high[0]),
    )
