"""The models that rankings are compared on, each from several seeds, and their probes. Missing models are trained.

- `demo`: the demo's full-attention model, 2 layers of 4 heads; needles copied over 24, 32 and 40 tokens.
- `study`: that of the quick conversion study, 2 layers of 8 heads; needles over 16 to 52 tokens.
- `large`: that of the medium one, 4 layers of 16 heads, trained on multi-hop and counting tasks as well; needles over
  16 to 52 tokens, names one and two assignments away, the most frequent words of a text, a third each.

All see 64 tokens. The folder of a conversion study serves as the folder of its models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workbench.experiments import medium_study, quick_study
from workbench.experiments.conversion.arms import pretrained
from workbench.experiments.conversion.study_data import chains, counts
from workbench.hooks import HookedModel, open_model
from workbench.pretrain import Language, pretrain_run, recipe
from workbench.probes import Probe, Vocabulary, copy_needle, make_probe

MODELS = ("demo", "study", "large")
LENGTH, WINDOW = 64, 8
_STUDIES = {"study": quick_study, "large": medium_study}
_DISTANCES = {"demo": (24, 32, 40), "study": (16, 24, 32, 40, 52), "large": (16, 24, 32, 40, 52)}


@dataclass(frozen=True, slots=True)
class Questions:
    """`ranking`: the probe for ranking; `held_out`: the probe for comparing, and its `kinds` one by one."""

    ranking: Probe
    held_out: Probe
    kinds: tuple[Probe, ...]


def model_of(name: str, seed: int, folder: Path) -> HookedModel:
    """A trained model, from its folder if that exists."""
    if name == "demo":
        return open_model(pretrain_run(recipe("full", seed=seed), folder / f"full{seed}")[-1])
    return open_model(pretrained(_STUDIES[name](), folder, seed))


def questions(name: str) -> Questions:
    """The same for all seeds."""
    ranking, held_out = _kinds(name, 1, seed=0), _kinds(name, 2, seed=1)
    return Questions(_together(ranking), _together(held_out), held_out)


def _kinds(name: str, times: int, *, seed: int) -> tuple[Probe, ...]:
    language, distances = Language(), _DISTANCES[name]
    words = Vocabulary(torch.tensor(language.words), bos=language.bos)
    n = times * {"demo": 16, "study": 10, "large": 4}[name]
    filler = torch.from_numpy(language.backbone(n * len(distances), LENGTH, np.random.default_rng([1, seed])))
    needles = copy_needle(words, distances, n_sequences=n, filler=filler, seed=seed, name="needles")
    if name != "large":
        return (needles,)
    rng = np.random.default_rng([2, seed])
    hops = chains(medium_study().hops, length=LENGTH, gap=2 * WINDOW, n_sequences=20 * times, rng=rng)
    counting = counts(length=LENGTH, gap=2 * WINDOW, n_sequences=20 * times, rng=rng)
    return needles, hops, counting


def _together(kinds: tuple[Probe, ...]) -> Probe:
    """One probe of all kinds; every sequence has the same weight, whatever its number of answers."""
    if len(kinds) == 1:
        return kinds[0]
    first = np.cumsum([0, *(len(p.tokens) for p in kinds)]).tolist()
    rows, cells = (
        torch.cat(
            [getattr(p, name) + torch.tensor([start, *[0] * width]) for p, start in zip(kinds, first, strict=False)]
        )
        for name, width in (("answer_rows", 1), ("target_cells", 2))
    )
    tokens = torch.cat([p.tokens for p in kinds])
    return make_probe("together", tokens, answer_rows=rows, target_cells=cells)
