"""The models that rankings are compared on, and their probes. Small ones are trained where they are missing.

- `demo`: the demo's full-attention model, 2 layers of 4 heads; needles copied over 24, 32 and 40 tokens.
- `study`: that of the quick conversion study, 2 layers of 8 heads; needles over 16 to 52 tokens.
- `large`: that of the medium one, 4 layers of 16 heads, trained on multi-hop and counting tasks as well; needles over
  16 to 52 tokens, names one and two assignments away, the most frequent words of a text, a third each.

These see 64 tokens, and a seed is another model. The folder of a conversion study serves as the folder of its models.

- `smollm2`, `gemma3-270m`: as `workbench get` puts them on this disk; needles among others of their kind
  (`niah_multikey_1`) and chains of two assignments (`variable_tracking`) in 768 tokens (1,024 for Gemma, whose own
  windows are 512), answers beyond the window. There is one model, and a seed draws other probes. `smollm2-64` and
  `smollm2-512`: the same with another window, 512 in 1,536 tokens.
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
from workbench.probes import Probe, Vocabulary, build, copy_needle, joined

TRAINED = ("demo", "study", "large")
LENGTH = 64
_WINDOWS = {"smollm2": (128, 4), "gemma3-270m": (128, 4), "smollm2-64": (64, 4), "smollm2-512": (512, 4)}
_LENGTHS = {"smollm2": 768, "gemma3-270m": 1024, "smollm2-64": 768, "smollm2-512": 1536}
PUBLISHED = tuple(_LENGTHS)
MODELS = (*TRAINED, *PUBLISHED)
_STUDIES = {"study": quick_study, "large": medium_study}
_DISTANCES = {"demo": (24, 32, 40), "study": (16, 24, 32, 40, 52), "large": (16, 24, 32, 40, 52)}


@dataclass(frozen=True, slots=True)
class Questions:
    """`ranking`: the probe for ranking; `held_out`: the probe for comparing, and its `kinds` one by one."""

    ranking: Probe
    held_out: Probe
    kinds: tuple[Probe, ...]


def window_of(name: str) -> tuple[int, int]:
    """The last and first tokens that a windowed head sees."""
    return _WINDOWS.get(name, (8, 0))


def counts_of(name: str, n_heads: int) -> list[int]:
    """The numbers of heads kept at which a ranking is judged."""
    if name in PUBLISHED:
        return sorted({0, *(round(share * n_heads) for share in (0.05, 0.1, 0.2, 0.4)), n_heads})
    if n_heads <= 16:
        return list(range(n_heads + 1))
    return [*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, n_heads]


def model_of(name: str, seed: int, folder: Path) -> HookedModel:
    """A trained model, from its folder if that exists; a published one from where `workbench get` has put it."""
    if name in PUBLISHED:
        return open_model(name.removesuffix("-64").removesuffix("-512"))
    if name == "demo":
        return open_model(pretrain_run(recipe("full", seed=seed), folder / f"full{seed}")[-1])
    return open_model(pretrained(_STUDIES[name](), folder, seed))


def questions(name: str, m: HookedModel, seed: int) -> Questions:
    """Of trained models the same for all seeds, of a published one others for each."""
    if name in PUBLISHED:
        ranking, held_out = _texts(m, name, 4, seed=2 * seed + 1), _texts(m, name, 6, seed=2 * seed + 2)
        # Ranked on needles alone: whether chains are carried as well is part of the question.
        return Questions(ranking[0], joined(held_out), held_out)
    ranking, held_out = _kinds(name, 1, seed=0), _kinds(name, 2, seed=1)
    return Questions(joined(ranking), joined(held_out), held_out)


def _kinds(name: str, times: int, *, seed: int) -> tuple[Probe, ...]:
    language, distances = Language(), _DISTANCES[name]
    window, _ = window_of(name)
    words = Vocabulary(torch.tensor(language.words), bos=language.bos)
    n = times * {"demo": 16, "study": 10, "large": 4}[name]
    filler = torch.from_numpy(language.backbone(n * len(distances), LENGTH, np.random.default_rng([1, seed])))
    needles = copy_needle(words, distances, n_sequences=n, filler=filler, seed=seed, name="needles")
    if name != "large":
        return (needles,)
    rng = np.random.default_rng([2, seed])
    hops = chains(medium_study().hops, length=LENGTH, gap=2 * window, n_sequences=20 * times, rng=rng)
    counting = counts(length=LENGTH, gap=2 * window, n_sequences=20 * times, rng=rng)
    return needles, hops, counting


def _texts(m: HookedModel, name: str, n: int, *, seed: int) -> tuple[Probe, ...]:
    """Sequences whose answer no windowed head sees."""
    length, (window, sink) = _LENGTHS[name], _WINDOWS[name]
    return tuple(
        build(
            m,
            f'far_answers:of="{task}:length={length},n_sequences={3 * n},seed={seed}",window={window},sink={sink},'
            f"n_sequences={n},name={task}",
        )
        for task in ("niah_multikey_1", "variable_tracking")
    )
