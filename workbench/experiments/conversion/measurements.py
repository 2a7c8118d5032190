"""Measurements of every model of a study: loss and accuracy by class of question, and scores of its heads."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch

from workbench.detectors import score
from workbench.experiments.conversion.study_data import Probes
from workbench.hooks import HookedModel
from workbench.planning.answer_loss import answer_batches
from workbench.probes import Probe

# The detectors of head scores, and the probe of each.
_DETECTORS = {
    "induction": "repeats",
    "previous_token": "repeats",
    "sink": "documents",
    "retrieval": "ranking",
}


class Measurement(TypedDict):
    """`label`: the class of the answers (distance, tokens of context, hops, rank), or None for all."""

    probe: str
    label: int | None
    nats: float
    accuracy: float
    n: int


class HeadScore(TypedDict):
    """`lifted`: with full attention in every head, whether or not the model is converted."""

    layer: int
    head: int
    detector: str
    lifted: bool
    score: float


def measurements(m: HookedModel, probes: Probes) -> list[Measurement]:
    """Loss and accuracy on needles, documents and tasks, under the interventions on the model."""
    return [row for probe in (probes.needles, probes.documents, *probes.tasks) for row in _on(m, probe)]


def head_scores(m: HookedModel, probes: Probes) -> list[HeadScore]:
    """Every head's score by every detector, without windows and linear attention."""
    return [
        row for detector, name in _DETECTORS.items() for row in _scored(m, detector, getattr(probes, name), lifted=True)
    ]


def converted_retrieval(m: HookedModel, probes: Probes) -> list[HeadScore]:
    """Every head's attention on the needle beyond the window, under the interventions on the model."""
    return _scored(m, "retrieval", probes.ranking, lifted=False)


def _scored(m: HookedModel, detector: str, probe: Probe, *, lifted: bool) -> list[HeadScore]:
    return [
        {
            "layer": int(row["layer"]),
            "head": int(row["head"]),
            "detector": detector,
            "lifted": lifted,
            "score": float(row["score"]),
        }
        for row in score(m, [detector], probes=[probe]).to_dict("records")
    ]


def _on(m: HookedModel, probe: Probe) -> list[Measurement]:
    answers = [m.answers(batch) for batch in answer_batches(probe)]
    nats = torch.cat([a.loss_nats for a in answers]).double().numpy()
    is_right = torch.cat([a.is_right for a in answers]).double().numpy()
    assert probe.classes is not None
    classes = probe.classes.numpy()
    rows: list[Measurement] = []
    for label in (None, *np.unique(classes).tolist()):
        in_class = np.ones(len(nats), dtype=bool) if label is None else classes == label
        rows.append(
            {
                "probe": probe.name,
                "label": label,
                "nats": float(nats[in_class].mean()),
                "accuracy": float(is_right[in_class].mean()),
                "n": int(in_class.sum()),
            }
        )
    return rows
