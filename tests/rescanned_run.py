"""Writes runs that were scanned more than once: requests, settings and weights as scans leave them, made-up scores."""

from __future__ import annotations

import math
from pathlib import Path

from workbench.heads import Metric, Row
from workbench.store import Origin, Settings, Store, WrittenProbe, canonical_digest

STEPS = (0, 8, 64, 256, 1024)
N_HEADS = 4
DETECTORS = ("induction", "far_mass", "copying")
FIRST = {"dtype": None, "rows": None, "seed": 0, "far": [None, 0]}
# Each with a bias, so that no two of them have an equal score.
SECOND = {
    "rows": {**FIRST, "rows": 8},
    "dtype": {**FIRST, "dtype": "bfloat16"},
    "seed": {**FIRST, "seed": 3},
    "window": {**FIRST, "far": [16, 0]},
    "sink": {**FIRST, "far": [16, 4]},
    "all": {"dtype": "bfloat16", "rows": 8, "seed": 3, "far": [16, 4]},
}


def origin_of(step, weights=""):
    digest = canonical_digest([step, weights])
    return Origin("run", f"step{step}", digest, "c" * 32, None, None, step, step, step * 100)


def settings_of(detector, settings):
    """The settings that touch a detector's numbers."""
    names = {"copying": ["dtype"], "far_mass": ["dtype", "rows", "seed", "far"]}
    return {name: settings[name] for name in names.get(detector, ["dtype", "rows", "seed"])}


def score_at(step, bias):
    """Of the first head."""
    return bias + 0.9 / (1 + math.exp(4 - math.log(1 + step)))


def units_of(settings, detectors=DETECTORS):
    return [
        {
            "table": "metrics" if detector == "metrics" else "scores",
            "detector": detector,
            "probe": "weights" if detector == "copying" else "repeats",
            "version": 1,
            "settings": Settings.of(settings_of(detector, settings)).as_dict(),
        }
        for detector in (*detectors, "metrics")
    ]


def request(store, settings, *, detectors=DETECTORS, digest="p", written="repeats:n=64"):
    units = units_of(settings, detectors)
    store.write_plan({"checkpoints": [f"step{step}" for step in STEPS], "units": units})
    probes = {"repeats": WrittenProbe(written, (digest * 32,))}
    store.write_request(units, probes, checkpoints=Path("/series"))


def commit(store, settings, *, steps=STEPS, bias=0.0, weights="", detectors=DETECTORS, digest="p"):
    """The units of a scan; a head rises with the step."""
    for step in steps:
        origin = origin_of(step, weights)
        store.note_current(origin, {"repeats": digest * 32})
        for detector in (*detectors, "metrics"):
            probe = "weights" if detector == "copying" else "repeats"
            determined = {
                "weights": origin.weights,
                "config": origin.config,
                "place": [None, None, step],
                "detector": [detector, 1],
                "probe": [probe, digest * 32],
                **settings_of(detector, settings),
            }
            unit, rest = canonical_digest(determined), {"seq_len": 64, "determined": determined}
            rest |= {"probe_digest": digest * 32, "detector": detector, "version": 1, "probe": probe}
            value = score_at(step, bias)
            if store.has("metrics" if detector == "metrics" else "scores", origin, unit):
                continue
            if detector == "metrics":
                metric = Metric("repeats", "loss_nats", None, None, value, value, value, 64, value, value)
                store.commit_metrics(origin, unit, [metric], **rest)
                continue
            rows = [
                Row(0, head, head, "full", None, detector, 1, probe, value / (1 + head), 0.0, 0.0, 0.0, 8, 64, 0.0, 1.0)
                for head in range(N_HEADS)
            ]
            store.commit_scores(origin, unit, rows, **rest)


def scanned(path, *scans):
    """A run of these scans, each settings with a bias."""
    store = Store.create(path, job={"checkpoints": "/series"}, versions={})
    store.write_checkpoints(
        [
            {"name": f"step{s}", "stage": None, "branch": None, "step": s, "step_total": s, "tokens": 100 * s}
            for s in STEPS
        ]
    )
    for settings, bias in scans:
        request(store, settings)
        commit(store, settings, bias=bias)
    return store
