"""Writes runs with the tables of a real scan and made-up numbers: heads that emerge, layers of all kinds."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.made_once import made_once
from workbench.heads import Kind, Metric, Row
from workbench.store import Origin, Store, canonical_digest

STEPS = (0, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072)
DISTANCES = (8, 16, 32, 64, 128, 256)
PROBE_OF = {
    "previous_token": "repeats",
    "current_token": "repeats",
    "duplicate_token": "repeats",
    "induction": "repeats",
    "sink": "text",
    "learned_sink": "text",
    "entropy": "text",
    "mean_distance": "text",
    "far_mass": "text",
    "retrieval": "copy_needle",
    "retrieval_top1": "copy_needle",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a made-up run and what its layers are: one kind a layer, repeated as often as needed.

    A step that is None is of a checkpoint whose name, `main`, gives none.
    """

    kinds: tuple[Kind, ...] = ("full",)
    n_layers: int = 3
    n_heads: int = 4
    n_kv_heads: int = 2
    steps: tuple[int | None, ...] = STEPS
    tokens_per_step: int | None = 8192
    seed: int = 0
    detectors: tuple[str, ...] = tuple(PROBE_OF)

    def kind(self, layer: int) -> Kind:
        return self.kinds[layer % len(self.kinds)]


DEMO = {
    "full": Shape(("full",), seed=1),
    "sliding": Shape(("sliding",), seed=2),
    "hybrid": Shape(("sliding", "sliding", "full"), seed=3),
    "linear": Shape(("linear", "linear", "full"), seed=4),
}


def write_run(path: Path, shape: Shape, *, upto: int | None = None) -> Path:
    """Write a run, or only its first `upto` checkpoints; the plan always names all of them.

    A whole one is a copy of one that is made once for all tests.
    """
    if upto is None and not path.exists():
        name = f"{path.name}-{canonical_digest(asdict(shape))}"
        return Path(shutil.copytree(made_once(f"runs/{name}/{path.name}", partial(_write_run, shape=shape)), path))
    return _write_run(path, shape, upto=upto)


def _write_run(path: Path, shape: Shape, *, upto: int | None = None) -> Path:
    store = Store.create(path, job={"checkpoints": "synthetic"}, versions={"workbench": "0.1.0"})
    names = [_name(step) for step in shape.steps]
    units = [{"probe": PROBE_OF[d], "detector": d, "version": 1, "table": "scores"} for d in shape.detectors]
    units += [{"probe": p, "detector": m, "version": 1, "table": "metrics"} for p, m in _METRICS]
    store.write_plan({"checkpoints": names, "units": units})
    origins = [_origin(path, shape, step) for step in shape.steps]
    store.write_checkpoints(
        [
            {
                "name": origin.ckpt,
                "stage": origin.stage,
                "branch": origin.branch,
                "step": origin.step,
                "step_total": origin.step_total,
                "tokens": origin.tokens,
            }
            for origin in origins
        ]
    )
    for i, origin in enumerate(origins[:upto]):
        write_checkpoint(store, shape, origin, index=i)
    return path


def write_checkpoint(store: Store, shape: Shape, origin: Origin, *, index: int) -> None:
    """Commit all units of one checkpoint."""
    for detector in shape.detectors:
        rows = _rows(shape, detector, index)
        unit = canonical_digest([origin.weights, detector])
        store.commit_scores(origin, unit, rows, probe_digest=PROBE_OF[detector], seq_len=512)
    for probe, name in _METRICS:
        unit = canonical_digest([origin.weights, probe, name])
        metrics = _metrics(shape, name, index)
        options = {"probe_digest": probe, "seq_len": 512, "detector": name, "version": 1}
        store.commit_metrics(origin, unit, metrics, **options)


def _name(step: int | None) -> str:
    return "main" if step is None else f"step{step}"


def _late(step: int | None) -> float:
    """How far training is; a checkpoint without a step is the trained model."""
    return math.log(1 + (STEPS[-1] if step is None else step))


def _origin(path: Path, shape: Shape, step: int | None) -> Origin:
    tokens = None if shape.tokens_per_step is None or step is None else step * shape.tokens_per_step
    weights = canonical_digest([path.name, shape.seed, step])
    return Origin(path.name, _name(step), weights, "c" * 32, None, None, step, step, tokens)


_METRICS = (("text", "loss_nats"), ("copy_needle", "copy_accuracy"))


def _rows(shape: Shape, detector: str, index: int) -> list[Row]:
    rng = np.random.default_rng([shape.seed, list(PROBE_OF).index(detector)])
    size = (shape.n_layers, shape.n_heads)
    strong = rng.random(size) < (0.5 if shape.n_layers < 8 else 0.08)
    final = np.where(strong, rng.uniform(0.4, 0.97, size), rng.beta(1, 16, size))
    onset, slope = rng.normal(5.6, 0.5, size), rng.uniform(2, 6, size)
    late = _late(shape.steps[index])
    score = final / (1 + np.exp(-slope * (late - onset)))
    score += rng.normal(0, 0.006, (len(shape.steps), *size))[index]
    rows: list[Row] = []
    for layer in range(shape.n_layers):
        kind = shape.kind(layer)
        for head in range(shape.n_heads):
            value = _in_its_range(detector, kind, float(score[layer, head]))
            missing = math.isnan(value)
            rows.append(
                Row(
                    layer=layer,
                    head=head,
                    kv_head=head // (shape.n_heads // shape.n_kv_heads),
                    kind=kind,
                    window=64 if kind == "sliding" else None,
                    detector=detector,
                    version=1,
                    probe=PROBE_OF[detector],
                    score=value,
                    half_a=value * 0.98,
                    half_b=value * 1.02,
                    sd_seq=0.05,
                    n_seq=0 if missing else 16,
                    n=0 if missing else 4096,
                    ci_lo=value - 0.03 * abs(value),
                    ci_hi=value + 0.03 * abs(value),
                )
            )
    return rows


def _in_its_range(detector: str, kind: Kind, score: float) -> float:
    if detector == "learned_sink":
        return min(max(score, 0.0), 1.0) if kind == "sliding" else math.nan
    if detector == "entropy":
        return 5.5 - 4.5 * min(max(score, 0.0), 1.0)
    if detector == "mean_distance":
        return (30 if kind == "sliding" else 200) * min(max(score, 0.02), 1.0)
    if kind == "linear":
        return min(max(score * 1.4 - 0.25, -1.0), 1.0)
    if kind == "sliding" and detector.startswith(("retrieval", "far_mass")):
        score *= 0.1
    return min(max(score, 0.0), 1.0)


def _metrics(shape: Shape, name: str, index: int) -> list[Metric]:
    late = _late(shape.steps[index])
    rise = 1 / (1 + math.exp(-3 * (late - 5.2 - 0.25 * shape.seed)))
    if name == "loss_nats":
        value = 5.2 - (2.2 if "full" in shape.kinds else 1.7) * rise - 0.12 * late
        return [Metric("text", name, None, None, value, value, value, 8192, value - 0.02, value + 0.02)]
    by_distance: list[Metric] = []
    for distance in DISTANCES:
        reach = 1.0 if "full" in shape.kinds else float(distance <= 64)
        value = min(0.04 + 0.95 * rise * reach * (1 - 0.1 * math.log2(distance / 8)), 1.0)
        by_distance.append(
            Metric("copy_needle", name, distance, None, value, value, value, 256, value - 0.03, value + 0.03)
        )
    pooled = sum(m.value for m in by_distance) / len(by_distance)
    return [Metric("copy_needle", name, None, None, pooled, pooled, pooled, 1536, pooled, pooled), *by_distance]
