"""The recipes for real, three seeds each: which heads form, in which order, and how far the models can copy."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.pretrain import VARIANTS, Language, pretrain_run, recipe

DISTANCES = (8, 12, 16, 24, 32, 40, 52)
REPEAT = 28
NEEDLE = 8
ANSWERS = torch.arange(59, 63)  # rows of the needle's copy at the end that know what is being copied


class Probes(NamedTuple):
    repeats: torch.Tensor
    needles: dict[int, torch.Tensor]


class Scores(NamedTuple):
    """Best over the softmax heads. Retrieval and accuracy by distance."""

    previous_token: float
    induction: float
    retrieval: dict[int, float]
    accuracy: dict[int, float]


@pytest.fixture(scope="module")
def probes():
    language, rng = Language(), np.random.default_rng(777)
    once = rng.choice(language.words, (64, REPEAT))
    needles = {}
    for distance in DISTANCES:
        tokens, needle = language.backbone(64, 64, rng), rng.choice(language.words, (64, NEEDLE))
        start = 64 - NEEDLE - distance
        tokens[:, start : start + NEEDLE] = needle
        tokens[:, 64 - NEEDLE :] = needle
        needles[distance] = torch.from_numpy(tokens)
    bos = np.full((64, 1), language.bos)
    return Probes(torch.from_numpy(np.concatenate([bos, once, once], 1)), needles)


def run_model(model, tokens):
    """Logits, and the patterns of the softmax layers as [head, b, q, k]; lightning layers report no pattern."""
    seen = model(tokens, output_attentions=True, use_cache=False)
    kinds = getattr(model.config, "layer_types", None) or ["softmax"] * len(seen.attentions)
    patterns = [p for p, kind in zip(seen.attentions, kinds, strict=True) if kind != "linear_attention"]
    return seen.logits, torch.cat([pattern.transpose(0, 1) for pattern in patterns])


def best(patterns, rows, back):
    return patterns[:, :, rows, rows - back].mean((1, 2)).max().item()


@torch.no_grad()
def scores(checkpoint: Path, probes: Probes) -> Scores:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    _, patterns = run_model(model, probes.repeats)
    previous_token = best(patterns, torch.arange(4, 2 * REPEAT + 1), 1)
    induction = best(patterns, torch.arange(REPEAT + 1, 2 * REPEAT), REPEAT - 1)
    retrieval, accuracy = {}, {}
    for distance, tokens in probes.needles.items():
        logits, patterns = run_model(model, tokens)
        retrieval[distance] = best(patterns, ANSWERS, distance - 1)
        accuracy[distance] = (logits[:, ANSWERS].argmax(-1) == tokens[:, ANSWERS + 1]).float().mean().item()
    return Scores(previous_token, induction, retrieval, accuracy)


def onset(steps, values):
    """First step from which a score stays at or above half its final value."""
    low = [i for i, value in enumerate(values) if value < values[-1] / 2]
    return steps[low[-1] + 1] if low else steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_emerge_in_order_and_copy_as_far_as_the_attention_reaches(variant, seed, tmp_path, probes):
    chosen = recipe(variant, seed=seed)
    series = [scores(path, probes) for path in pretrain_run(chosen, tmp_path)]
    last = series[-1]
    assert last.previous_token > 0.8
    if variant == "sliding":
        assert min(last.accuracy[d] for d in (8, 12)) > 0.7
        assert max(last.accuracy[d] for d in DISTANCES if d >= 24) < 0.1
        assert last.induction == 0, "a repeat of 28 words lies outside the window"
        return
    assert min(last.accuracy[d] for d in DISTANCES if d >= 12) > 0.8
    assert last.induction >= 0.7
    if variant != "linear":
        assert min(last.retrieval[d] for d in DISTANCES if d >= 12) >= 0.7
    previous_token = onset(chosen.checkpoint_steps, [s.previous_token for s in series])
    induction = onset(chosen.checkpoint_steps, [s.induction for s in series])
    assert 0 < previous_token < induction < chosen.steps / 1.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quick_recipes_still_show_induction_and_the_window_that_prevents_it(seed, tmp_path, probes):
    full = scores(pretrain_run(recipe("full", seed=seed, quick=True), tmp_path / "full")[-1], probes)
    sliding = scores(pretrain_run(recipe("sliding", seed=seed, quick=True), tmp_path / "sliding")[-1], probes)
    assert full.induction > 0.5
    assert min(full.accuracy[d] for d in DISTANCES if d >= 12) > 0.6
    assert min(sliding.accuracy[d] for d in (8, 12)) > 0.6
    assert max(sliding.accuracy[d] for d in DISTANCES if d >= 24) < 0.1
