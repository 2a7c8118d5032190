"""Published suites stand in the order of training however their names come, and no two names fall on one place."""

from __future__ import annotations

import random

import pytest

from tests.checkpoints.folders import CONFIG
from workbench.checkpoints import find_checkpoints
from workbench.heads import NoCheckpoints

TINY_LLAMA = [
    *("step-50K-105b", "intermediate-step-240k-503b", "intermediate-step-480k-1T", "intermediate-step-715k-1.5T"),
    *("intermediate-step-955k-token-2T", "intermediate-step-1195k-token-2.5T", "intermediate-step-1431k-3T"),
]
# The revisions of one repository, in the order of training.
REVISIONS = {
    "Pythia": ["step0", "step1", "step2", "step512", "step1000", "step143000"],
    "stanford-crfm": ["checkpoint-0", "checkpoint-10", "checkpoint-100", "checkpoint-1000", "checkpoint-400000"],
    "OLMo": ["step0-tokens0B", "step1000-tokens4B", "step20000-tokens84B", "step738020-tokens3095B"],
    "OLMo 2": [
        *("stage1-step150-tokens1B", "stage1-step600-tokens3B", "stage1-step928646-tokens3896B"),
        *("stage2-ingredient1-step1000-tokens5B", "stage2-ingredient3-step11931-tokens50B"),
        *("stage2-ingredient1-step23852-tokens101B", "stage2-ingredient2-step23852-tokens101B"),
    ],
    "OLMo 3": [
        "stage1-step0",
        "stage1-step1413814",
        "stage2-ingredient1-step23842",
        "stage2-step47684",
        "stage3-step7",
    ],
    "SmolLM3": [
        *("stage1-step-40000", "stage1-step-3440000", "stage2-step-3480000", "stage3-step-4720000"),
        *("lc-4k-to-32k-step-4000", "lc-4k-to-32k-step-20000", "lc-32k-to-64k-step-4000", "lc-32k-to-64k-step-20000"),
        *("it-mid-training", "it-SFT", "it-soup-APO"),
    ],
    "SmolLM2": ["step-125000", "step-250000", "step-1000000", "step-7200000"],
    "FineWeb": ["step-001000-2BT", "step-002000-4BT", "step-014000-29BT", "step-167000-350BT"],
    "TinyLlama 1.1": ["step-10000", "step-300000", "step-500000"],
    "BLOOM": ["global_step1000", "global_step10000", "global_step100000", "global_step600000"],
    "DataDecide": ["step0-seed-default", "step1250-seed-default", "step10000-seed-default", "step29901-seed-default"],
    "Amber": [f"ckpt_{i:03}" for i in range(0, 359, 13)],
    "Crystal": [
        *("CrystalCoder_phase1_checkpoint_000500", "CrystalCoder_phase1_checkpoint_055500"),
        *("CrystalCoder_phase2_checkpoint_214387", "CrystalCoder_phase3_checkpoint_027728"),
    ],
    "Apertus": ["step50000-tokens210B", "step500000-tokens2100B", "step1194000-tokens5009B", "step2627139-tokens15T"],
    "Baichuan 2": ["train_00220B", "train_00440B", "train_01100B", "train_02200B", "train_02420B"],
    "Poro": ["100B", "200B", "1000B"],
    "Skywork": ["0.5T", "1T", "1.5T", "3.1T"],
    "LLM-jp": ["iter_0000000", "iter_0000001", "iter_0100000", "iter_0988240"],
    "Lucie": ["step0000005", "step0753851", "extension_step0000250", "extension_step0001220", "annealing_step0000250"],
    "Ettin": ["step599525", "ext500", "ext1000", "decay100"],
    "BabyLM": ["chck_1M", "chck_2M", "chck_10M", "chck_100M"],
    "Pico": ["step_0", "step_1000", "step_125000"],
    "StableLM": ["step_10000", "step_290000", "global_step420000"],
}
# A repository per checkpoint: the last parts of their names.
REPOSITORIES = {
    "TinyLlama": [f"TinyLlama-1.1B-{name}" for name in TINY_LLAMA],
    "Ling": [f"Ling-mini-base-2.0-{tokens}" for tokens in ("5T", "10T", "15T", "20T")],
    "Skywork": [f"Skywork-13B-Base-Intermediate-{tokens}" for tokens in ("500B", "1TB", "3TB")],
    "OpenLLaMA": [f"open_llama_7b_{tokens}_preview" for tokens in ("200bt", "400bt", "700bt", "1000bt")],
    "MultiBERTs": [f"multiberts-seed_0-step_{step}" for step in ("0k", "20k", "100k", "2000k")],
}


def weights(name):
    return {"config.json": str(CONFIG).replace("'", '"').encode(), "model.safetensors": name.encode()}


def shuffled(names):
    return random.Random(0).sample(names, len(names))


@pytest.mark.parametrize("suite", REVISIONS)
def test_the_revisions_of_a_suite_are_ordered_and_main_is_the_last(hub, suite):
    ordered = REVISIONS[suite]
    for name in shuffled(ordered):
        hub.put("org/name", name, weights(name))
    hub.put("org/name", "main", weights("main"))
    series = find_checkpoints("org/name", revisions="*")
    assert [c.name for c in series.checkpoints] == [*ordered, "main"]
    places = [(c.stage, c.branch, c.step, c.index, c.tokens_lo) for c in series.checkpoints]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("suite", REPOSITORIES)
def test_a_repository_per_checkpoint_is_one_series(hub, suite):
    ordered = REPOSITORIES[suite]
    for name in shuffled(ordered):
        hub.put(f"org/{name}", "main", weights(name))
    beginning = ordered[-1].partition("-")[0].partition("_")[0]
    hub.put("org/another", "main", weights("another"))
    series = find_checkpoints(f"org/{beginning}*")
    assert [c.name for c in series.checkpoints] == ordered


def test_the_tokens_behind_tiny_llamas_steps_are_read_because_they_grow_with_the_steps(hub):
    for name in REPOSITORIES["TinyLlama"]:
        hub.put(f"org/{name}", "main", weights(name))
    series = find_checkpoints("org/TinyLlama-*")
    last, batch = series.checkpoints[-1], 2_097_152
    assert [c.step for c in series.checkpoints] == [50_000, 240_000, 480_000, 715_000, 955_000, 1_195_000, 1_431_000]
    assert (last.tokens, last.tokens_source) == (1_431_000 * batch, "labels_fit")
    assert series.remarks == ()


def test_a_variant_of_a_step_is_a_branch_behind_its_tokens(hub):
    names = ["t-step-480k-1T", "t-step-715k-1.5T", "t-step-715k-1.5T-lr-5", "t-step-955k-token-2T"]
    for name in names:
        hub.put(f"org/{name}", "main", weights(name))
    series = find_checkpoints("org/t-step-*")
    assert [(c.name, c.branch) for c in series.checkpoints] == [
        *((n, None) for n in names[:2]),
        (names[2], "lr-5"),
        (names[3], None),
    ]


def test_a_repository_that_is_called_like_a_size_counts_no_tokens(hub):
    for name in ("7B", "13B"):
        hub.put(f"org/{name}", "main", weights(name))
    with pytest.raises(NoCheckpoints, match="neither name says where in training it stands"):
        find_checkpoints("org/*B")


def test_the_size_of_a_model_behind_its_steps_is_no_count_of_tokens(hub):
    for step in (1000, 2000, 3000):
        hub.put("org/name", f"step{step}-7b", weights(str(step)))
    series = find_checkpoints("org/name", revisions="step*")
    assert [(c.step, c.tokens) for c in series.checkpoints] == [(1000, None), (2000, None), (3000, None)]
    assert "the number after the step is not read" in series.remarks[-1]


def test_counts_without_a_word_are_read_as_tokens_and_that_is_said(hub):
    for name in REVISIONS["Poro"]:
        hub.put("org/name", name, weights(name))
    series = find_checkpoints("org/name", revisions="*")
    assert [c.tokens for c in series.checkpoints] == [10**11, 2 * 10**11, 10**12]
    assert "it is read as tokens" in series.remarks[-1]


@pytest.mark.parametrize("names", [("step-10", "checkpoint_10"), ("step1k", "step1000"), ("100B", "0.1T")])
def test_two_names_of_one_place_are_refused_unless_their_weights_are_the_same(hub, names):
    for name in names:
        hub.put("org/name", name, weights(name))
    with pytest.raises(NoCheckpoints, match="their weights differ"):
        find_checkpoints("org/name", revisions="*")
    for name in names:
        hub.put("org/name", name, weights("the same"))
    series = find_checkpoints("org/name", revisions="*")
    assert sorted(str(c.alias_of) for c in series.checkpoints) == sorted(["None", min(names)])


def test_seeds_are_trainings_of_their_own_and_refused_as_one(hub):
    for seed in (1, 2):
        hub.put(f"org/pythia-14m-seed{seed}", "step10", weights(str(seed)))
        hub.put(f"org/pythia-14m-seed{seed}", "main", weights(f"main {seed}"))
    with pytest.raises(NoCheckpoints, match=r"seed1/step10 and pythia-14m-seed2/step10 are both step 10"):
        find_checkpoints("org/pythia-14m-seed*", revisions="step*")
    with pytest.raises(NoCheckpoints, match="neither name says where in training it stands"):
        find_checkpoints("org/pythia-14m-seed*")
