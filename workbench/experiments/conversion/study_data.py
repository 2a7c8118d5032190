"""What a study's models are trained on and asked: documents, and in the larger ones multi-hop and counting tasks.

Without tasks every token of every document counts alike. With them, documents come alone at first: copying is learned
from them, and following chains from copying. Then each batch holds sequences of every task in place of documents; of
those only the answers count, together as much as a document: their other tokens cannot be foreseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.experiments.conversion.settings import Conversion, Task
from workbench.experiments.conversion.study_tasks import chains, counts, drills
from workbench.pretrain.language import Language
from workbench.pretrain.recipes import Recipe
from workbench.probes import Probe, Vocabulary, copy_needle, repeats, token_sequences
from workbench.probes.known_answers import octave

_PROBE_SEED = 777
_REPEAT = 28


class _Sizes(TypedDict):
    length: int
    gap: int
    n_sequences: int
    rng: np.random.Generator


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
    """The batches of a run; another `stream` of the same seed is other text, and all but 0 have tasks at once."""
    language = Language()
    for step in range(recipe.steps):
        rng = np.random.default_rng([1 + recipe.seed, stream, step])
        is_alone = stream == 0 and step < study.documents_first
        asked = [] if is_alone else [one for task in study.tasks for one in _trained_on(task, study, rng)]
        n_documents = recipe.batch - sum(len(one.tokens) for one in asked)
        documents = torch.from_numpy(language.documents(n_documents, recipe.length, rng))
        weights = [torch.ones(documents.shape), *(_answers_alone(one) for one in asked)]
        yield Batch(torch.cat([documents, *(one.tokens for one in asked)]), torch.cat(weights))


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
        tasks=tuple(_asked(task, study, n_sequences=2 * study.n_sequences, rng=rng) for task in study.tasks),
    )


def _words() -> Vocabulary:
    language = Language()
    return Vocabulary(torch.tensor(language.words), bos=language.bos)


def _asked(task: Task, study: Conversion, *, n_sequences: int, rng: np.random.Generator) -> Probe:
    """Nothing that is asked about can be seen from the question: the gap is two windows."""
    sizes: _Sizes = {"length": study.length, "gap": 2 * study.window, "n_sequences": n_sequences, "rng": rng}
    return chains(study.hops, **sizes) if task == "hops" else counts(**sizes)


def _trained_on(task: Task, study: Conversion, rng: np.random.Generator) -> list[Probe]:
    asked = _asked(task, study, n_sequences=study.n_task, rng=rng)
    if task == "counting":
        return [asked]
    return [asked, drills(study.hops, length=study.length, n_sequences=study.n_task, rng=rng)]


def _answers_alone(probe: Probe) -> Float[Tensor, "b t"]:
    """The answers of a sequence weigh as much together as all tokens of a document."""
    assert probe.answer_rows is not None
    sequence, row = probe.answer_rows.unbind(-1)
    n_answers = torch.bincount(sequence, minlength=len(probe.tokens))
    weights = torch.zeros(probe.tokens.shape)
    weights[sequence, row + 1] = weights.shape[1] / n_answers[sequence].float()
    return weights


def _by_octave(documents: Probe) -> Probe:
    """Rows by the length of the context that they see, rounded down to a power of two."""
    assert documents.answer_rows is not None
    return replace(documents, classes=octave(documents.answer_rows[:, 1] + 1), class_name="context")
