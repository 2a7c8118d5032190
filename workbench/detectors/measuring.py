"""Measure a model on a probe: one recording pass for all detectors together, scores of heads and of the model out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.detectors.decoded_probes import decode, decoded
from workbench.detectors.registry import Detector, WeightDetector, find_detectors
from workbench.detectors.scoring import bootstrap, concatenate, score_rows
from workbench.detectors.weight_measuring import measure_weights
from workbench.heads import Metric, Row, WorkbenchError
from workbench.hooks import Answers, HookedModel, PerSequence, Recording, open_model
from workbench.hooks.model import DEFAULT_FAR
from workbench.hooks.recording.forward_pass import Rows
from workbench.hooks.recording.needs import Need
from workbench.kernels import Far
from workbench.probes import Probe, default, make_probe, split

# Tokens of a batch: enough to keep the matrix products busy, few enough to keep its activations in hundreds of MB.
_BATCH_TOKENS = 4096
_BATCH_LOGITS = 1 << 26


@dataclass(frozen=True, slots=True)
class Measured:
    """The scores of every head by detector name, and the model-level numbers, of one probe.

    `forward_s`: seconds of the model's passes, with the statistics that are taken inside them.
    """

    rows: dict[str, list[Row]]
    metrics: list[Metric]
    forward_s: float = 0.0


def measure(
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

    Detectors that read what the model says have it decoded first, once, and then a pass over its decode rows for each
    way of choosing instances.
    """
    given = [d for d in detectors if d.decoding is None]
    parts = _parts(probe, model.vocab_size)
    started = time.perf_counter()
    recordings = _record(model, parts, given, rows=rows, far=far, prefill=prefill)
    forward_s = time.perf_counter() - started
    flags = f"far_window={far.window};far_sink={far.sink}"
    measured = {
        d.name: (concatenate([d.function(r) for r in recordings]), flags if "far_mass" in d.needs else "")
        for d in given
    }
    started = time.perf_counter()
    measured |= _decoded(model, probe, [d for d in detectors if d.decoding is not None], far=far, prefill=prefill)
    forward_s += time.perf_counter() - started
    scores = {
        d.name: score_rows(
            measured[d.name][0],
            model.layers,
            detector=d.name,
            version=d.version,
            probe=probe.name,
            seed=seed,
            flags=measured[d.name][1],
        )
        for d in detectors
    }
    return Measured(scores, _metrics(probe, parts, recordings, seed=seed), forward_s)


def score(
    m: HookedModel | nn.Module,
    detectors: Iterable[str] | None = None,
    tokens: Int[Tensor, "b t"] | Int[Tensor, " t"] | None = None,
    attention_mask: Tensor | None = None,
    probes: Probe | Iterable[Probe] | None = None,
    rows: Rows = "all",
    seed: int = 0,
    *,
    far: Far | None = None,
    prefill: int | None = None,
) -> pd.DataFrame:
    """Head scores as a tidy table: layer, head, kv_head, kind, detector, probe, score, n, n_seq, ci_lo, ci_hi and more.

    Args:
        m: an opened model, or one in memory that `open_model` takes, such as a TransformerBridge.
        detectors: names; default those that `docs/detectors.md` calls default. On `tokens`, detectors that need answers
            are refused if named, skipped if not. Those that read weights have one row per head, under the probe
            `weights`.
        tokens: given sequences to score on, with `attention_mask`, which may number packed documents (see
            `HookedModel.record`); else `probes`; else `probes.default(m)`.
        rows: all query rows, or how many to sample; see `HookedModel.record`.
        far: window and sink of `far_mass`; default 256 and 0.
        prefill: run the model over pieces of this many tokens; see `HookedModel.record`.

    Raises:
        WorkbenchError: for unknown detectors, both tokens and probes, a named detector without its answers, or one
            that reads weights of a model that TransformerLens cannot open.
    """
    found = find_detectors(detectors)
    chosen = tuple(d for d in found if isinstance(d, Detector))
    model = m if isinstance(m, HookedModel) else open_model(m)
    if tokens is not None and probes is not None:
        raise WorkbenchError("both tokens and probes were given; pass one of them")
    if tokens is not None:
        without = [d.name for d in chosen if d.needs_answers]
        if detectors is not None and without:
            raise WorkbenchError(f"{without} need a probe with answers, not bare tokens; pass probes=")
        chosen = tuple(d for d in chosen if not d.needs_answers)
        batch = tokens if tokens.ndim == 2 else tokens[None]
        mask = None if attention_mask is None else attention_mask.reshape(batch.shape).long().cpu()
        chosen_probes = [make_probe("tokens", batch.cpu(), attention_mask=mask)]
    elif probes is None:
        chosen_probes = default(model) if chosen else []
    else:
        chosen_probes = [probes] if isinstance(probes, Probe) else list(probes)
        _check_fit(chosen, chosen_probes)
    measured = [
        measure(model, probe, chosen, far=far or DEFAULT_FAR, seed=seed, rows=rows, prefill=prefill).rows
        for probe in (chosen_probes if chosen else [])
    ]
    measured.append(measure_weights(model, [d for d in found if isinstance(d, WeightDetector)]))
    table = [asdict(row) for one in measured for scored in one.values() for row in scored]
    first = ["layer", "head", "kv_head", "kind", "detector", "probe", "score", "n", "n_seq", "ci_lo", "ci_hi"]
    frame = pd.DataFrame(table)
    return frame.reindex(columns=first + [c for c in frame.columns if c not in first])


def _check_fit(chosen: Sequence[Detector], probes: Sequence[Probe]) -> None:
    for d in chosen:
        for probe in probes:
            if (d.needs_pairs or d.decoding) and not d.fits(probe):
                what = (
                    "pairs of sequences: probes.gold_document(m)" if d.needs_pairs else "answers that can be looked up"
                )
                raise WorkbenchError(f"detector {d.name!r} does not fit probe {probe.name!r}; expected {what}")


def series_far(model: HookedModel, probe: Probe) -> Far:
    """The window of `far_mass` in a scan: the model's smallest, else 256 or a quarter of the probe, at least 1."""
    windows = [info.window for info in model.layers if info.window is not None]
    return Far(window=min(windows) if windows else max(1, min(256, probe.tokens.shape[1] // 4)))


def _record(
    model: HookedModel,
    parts: Sequence[Probe],
    detectors: Sequence[Detector],
    *,
    rows: Rows,
    far: Far,
    prefill: int | None,
) -> list[Recording]:
    needs = frozenset[Need]().union(*(d.needs for d in detectors))
    return [model.record(part, needs, rows=rows, far=far, prefill=prefill) for part in parts]


def _decoded(
    model: HookedModel, probe: Probe, detectors: Sequence[Detector], *, far: Far, prefill: int | None
) -> dict[str, tuple[PerSequence, str]]:
    """The measurements of detectors that read what the model says, and how many instances counted."""
    said = decode(model, probe) if detectors else []
    measured: dict[str, tuple[PerSequence, str]] = {}
    for decoding in dict.fromkeys(d.decoding for d in detectors):
        mine = [d for d in detectors if d.decoding == decoding]
        counted = decoded(model, probe, decoding, said=said)
        flags = f"counted={0 if counted is None else len(counted.tokens)}/{len(said)}"
        if counted is None or counted.answer_rows is None:
            measured |= {d.name: (_nothing(model), flags) for d in mine}
            continue
        parts, rows = _parts(counted, model.vocab_size), torch.unique(counted.answer_rows[:, 1])
        recordings = _record(model, parts, mine, rows=rows, far=far, prefill=prefill)
        measured |= {d.name: (concatenate([d.function(r) for r in recordings]), flags) for d in mine}
    return measured


def _nothing(model: HookedModel) -> PerSequence:
    """One sequence on which no head has a row."""
    shape = (1, len(model.layers), max(layer.n_heads for layer in model.layers))
    return PerSequence(torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.long))


def _parts(probe: Probe, vocab_size: int) -> list[Probe]:
    n_tokens = probe.tokens.shape[1]
    kept = 1 if probe.answer_rows is None else len(torch.unique(probe.answer_rows[:, 1]))
    step = max(1, min(_BATCH_TOKENS // n_tokens, _BATCH_LOGITS // max(1, kept * vocab_size)))
    if probe.is_paired:
        step = max(2, step // 2 * 2)
    return split(probe, step)


def _metrics(probe: Probe, parts: Sequence[Probe], recordings: Sequence[Recording], *, seed: int) -> list[Metric]:
    """Loss and share of right answers, pooled and by class."""
    if probe.answer_rows is None or len(probe.answer_rows) == 0:
        return []
    answers = [r.answers for r in recordings if r.answers is not None]
    sequence = _sequence_of(parts, recordings)
    values = {"loss_nats": torch.cat([a.loss_nats for a in answers]).double().numpy()}
    if probe.metric is not None:
        values[probe.metric] = torch.cat([a.is_right for a in answers]).double().numpy()
    n_sequences = len(probe.tokens)
    classes = None if probe.classes is None else probe.classes.numpy()
    metrics = []
    for name, value in values.items():
        metrics.append(_metric(probe, name, None, value, sequence, n_sequences, seed))
        for c in [] if classes is None else np.unique(classes):
            mine = classes == c
            metrics.append(_metric(probe, name, int(c), value[mine], sequence[mine], n_sequences, seed))
    return metrics


def _sequence_of(parts: Sequence[Probe], recordings: Sequence[Recording]) -> Int[np.ndarray, " n"]:
    start, found = 0, []
    for piece, recording in zip(parts, recordings, strict=True):
        answers: Answers | None = recording.answers
        if answers is not None:
            found.append(answers.at[:, 0].numpy() + start)
        start += len(piece.tokens)
    return np.concatenate(found)


def _metric(
    probe: Probe,
    name: str,
    label: int | None,
    value: Float[np.ndarray, " n"],
    sequence: Int[np.ndarray, " n"],
    n_sequences: int,
    seed: int,
) -> Metric:
    n = np.bincount(sequence, minlength=n_sequences)
    means = np.bincount(sequence, weights=value, minlength=n_sequences) / np.maximum(n, 1)
    counted = n > 0
    low, high = bootstrap(means[:, None], counted[:, None], seed=seed)
    # The store has columns for two kinds of class; any other stands in the metric's name: recall_hops_2.
    has_column = label is None or probe.class_name in ("distance", "position")
    by_half = [_average(means[h::2], counted[h::2]) for h in (0, 1)]
    return Metric(
        probe=probe.name,
        metric=name if has_column else f"{name}_{probe.class_name}_{label}",
        distance=label if probe.class_name == "distance" else None,
        position=label if probe.class_name == "position" else None,
        value=_average(means, counted),
        half_a=by_half[0],
        half_b=by_half[1],
        n=int(n.sum()),
        ci_lo=float(low[0]),
        ci_hi=float(high[0]),
    )


def _average(means: Float[np.ndarray, " n"], counted: np.ndarray) -> float:
    return float(means[counted].mean()) if counted.any() else float("nan")
