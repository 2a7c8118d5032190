"""What a study's models are trained on and asked: documents, and in the larger one multi-hop and counting tasks.

Without tasks every token of every document counts alike. With them, each batch holds sequences of every class of every
task in place of documents; of those only the answers count, half as much as a document each: their other tokens are
drawn at random and cannot be foreseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.experiments.settings import Conversion, Task
from workbench.pretrain.language import Language
from workbench.pretrain.recipes import Recipe
from workbench.probes import Probe, Vocabulary, copy_needle, majority, repeats, token_sequences, variable_tracking
from workbench.probes.probe import octave

RANKS = (1, 2)
_PROBE_SEED = 777
_TRAINING_SEED = 10**7  # of tasks to train on, far from those of the probes
_REPEAT = 28


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences to train on; `weight` is how much the prediction of each token counts."""

    tokens: Int[Tensor, "b t"]
    weight: Float[Tensor, "b t"]


@dataclass(frozen=True, slots=True)
class Probes:
    """What models are asked. `ranking`: needles from beyond the window, other ones than in `needles`."""

    ranking: Probe
    needles: Probe
    documents: Probe
    repeats: Probe
    tasks: tuple[Probe, ...]


def batches(study: Conversion, recipe: Recipe, *, stream: int) -> Iterator[Batch]:
    """The batches of a run; another `stream` of the same seed is other text."""
    language = Language()
    n_documents = recipe.batch - study.n_task * sum(len(_classes(task, study)) for task in study.tasks)
    for step in range(recipe.steps):
        rng = np.random.default_rng([1 + recipe.seed, stream, step])
        tokens = torch.from_numpy(language.documents(n_documents, recipe.length, rng))
        weight = torch.ones(tokens.shape)
        for i, task in enumerate(study.tasks):
            seed = _TRAINING_SEED * (1 + recipe.seed) + 10**6 * (2 * stream + i) + step
            asked = _asked(task, study, n_sequences=study.n_task, seed=seed)
            tokens = torch.cat([tokens, asked.tokens])
            weight = torch.cat([weight, _answers_alone(asked, recipe.length / 2)])
        yield Batch(tokens, weight)


def probes(study: Conversion) -> Probes:
    """The same for all seeds: models differ, questions do not."""
    language, words = Language(), _words()
    rng = np.random.default_rng(_PROBE_SEED)

    def needles(distances: tuple[int, ...], name: str, seed: int) -> Probe:
        n = study.n_sequences * len(distances)
        filler = torch.from_numpy(language.backbone(n, study.length, rng))
        return copy_needle(words, distances, n_sequences=study.n_sequences, filler=filler, seed=seed, name=name)

    n_repeat = min(_REPEAT, (study.length - 8) // 2)
    documents = torch.from_numpy(language.documents(2 * study.n_sequences, study.length, rng))
    return Probes(
        ranking=needles(study.far, "far_needle", _PROBE_SEED),
        needles=needles(study.distances, "needle", _PROBE_SEED + 1),
        documents=_by_octave(token_sequences(documents, name="documents")),
        repeats=repeats(words, n=n_repeat, n_sequences=study.n_sequences, seed=_PROBE_SEED),
        tasks=tuple(_asked(task, study, n_sequences=study.n_sequences, seed=_PROBE_SEED) for task in study.tasks),
    )


def _words() -> Vocabulary:
    language = Language()
    return Vocabulary(torch.tensor(language.words), bos=language.bos)


def _classes(task: Task, study: Conversion) -> tuple[int, ...]:
    return study.hops if task == "variable_tracking" else RANKS


def _asked(task: Task, study: Conversion, *, n_sequences: int, seed: int) -> Probe:
    length = study.length
    if task == "variable_tracking":
        return variable_tracking(
            _words(), hops=study.hops, n_chains=2, length=length, n_sequences=n_sequences, seed=seed
        )
    # The gap is two windows: nothing that is counted can be seen from the question.
    n_candidates = 4 if length >= 128 else 2
    gap = 2 * study.window
    return majority(
        _words(), k=RANKS, length=length, gap=gap, n_candidates=n_candidates, n_sequences=n_sequences, seed=seed
    )


def _answers_alone(probe: Probe, weight: float) -> Float[Tensor, "b t"]:
    assert probe.answer_rows is not None
    sequence, row = probe.answer_rows.unbind(-1)
    weights = torch.zeros(probe.tokens.shape)
    weights[sequence, row + 1] = weight
    return weights


def _by_octave(documents: Probe) -> Probe:
    """Rows by the length of the context that they see, rounded down to a power of two."""
    assert documents.answer_rows is not None
    return replace(documents, classes=octave(documents.answer_rows[:, 1] + 1), class_name="context")
