"""Every naming scheme in the wild is read; other text gives no field; labels bound the true tokens per step."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.checkpoints import CheckpointName, parse_name
from workbench.checkpoints.names import Label, fit_tokens_per_step

B = 10**9
STEPS = (150, 600, 1000, 2000, 10000, 100000, 700000)
WILD = {
    "step0": CheckpointName(step=0),
    "step143000": CheckpointName(step=143000),
    "step1000-tokens4B": CheckpointName(step=1000, tokens=4 * B, tokens_lo=3 * B, tokens_hi=5 * B),
    "step737000-unsharded": CheckpointName(step=737000),
    "step556000-tokens2460B": CheckpointName(step=556000, tokens=2460 * B, tokens_lo=2459 * B, tokens_hi=2461 * B),
    "stage1-step1000-tokens3B": CheckpointName(
        step=1000, stage="stage1", tokens=3 * B, tokens_lo=2 * B, tokens_hi=4 * B
    ),
    "stage2-ingredient3-step11931-tokens51B": CheckpointName(
        step=11931, stage="stage2", branch="ingredient3", tokens=51 * B, tokens_lo=50 * B, tokens_hi=52 * B
    ),
    "stage1-step1413814": CheckpointName(step=1413814, stage="stage1"),
    "stage2-step47684": CheckpointName(step=47684, stage="stage2"),
    "stage2-step47684-mix-round5-from-2T-ckpt": CheckpointName(
        step=47684, stage="stage2", branch="mix-round5-from-2T-ckpt"
    ),
    "stage3-step11921": CheckpointName(step=11921, stage="stage3"),
    "step-160000": CheckpointName(step=160000),
    "stage1-step-3440000": CheckpointName(step=3440000, stage="stage1"),
    "step-001000-2BT": CheckpointName(step=1000, tokens=2 * B, tokens_lo=B, tokens_hi=3 * B),
    "ckpt_100": CheckpointName(index=100),
    "pretrain_iter_0373000": CheckpointName(step=373000, stage="pretrain"),
    "anneal_iter_0023841": CheckpointName(step=23841, stage="anneal"),
    "checkpoint-10000step": CheckpointName(step=10000),
    "checkpoint-500": CheckpointName(step=500),
    "global_step626": CheckpointName(step=626),
    "iter_0001000": CheckpointName(step=1000),
    "step-500": CheckpointName(step=500),
    "checkpoint/step-500": CheckpointName(step=500),
    "step_1000": CheckpointName(step=1000),
    "hf/step-10000": CheckpointName(step=10000),
    "epoch=0-step=3919.ckpt": CheckpointName(step=3919),
    "ep0-ba1000-rank0.pt": CheckpointName(step=1000),
    "iter_ckpt_rank_10-17000": CheckpointName(step=17000),
    "0507_1235_checkpoint_step_1000_epoch_1": CheckpointName(step=1000),
    "tokens-20B": CheckpointName(tokens=20 * B, tokens_lo=19 * B, tokens_hi=21 * B),
    "main": CheckpointName(),
    "final": CheckpointName(),
    "release": CheckpointName(),
}


@pytest.mark.parametrize("name", WILD)
def test_names_in_the_wild_are_read(name):
    assert parse_name(name) == WILD[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run7/checkpoint-500/", CheckpointName(step=500)),
        ("step-100k", CheckpointName(step=100_000)),
        ("1000", CheckpointName(step=1000)),
        ("step1000-seed2", CheckpointName(step=1000, branch="seed2")),
        ("epoch=1-step=100-val_loss=0.23.ckpt", CheckpointName(step=100)),
        (
            "step1000-tokens2097152000",
            CheckpointName(step=1000, tokens=2097152000, tokens_lo=2097152000, tokens_hi=2097152000),
        ),
        (
            "step3-1.5Btokens",
            CheckpointName(step=3, tokens=1500 * 10**6, tokens_lo=1400 * 10**6, tokens_hi=1600 * 10**6),
        ),
        ("long_context-step-5", CheckpointName(step=5, stage="long-context")),
        ("timestep5", CheckpointName()),
        ("models-70b", CheckpointName()),
        ("e3a9bb0f1c2d4e5f60718293a4b5c6d7e8f9ba12", CheckpointName()),
    ],
)
def test_variants_of_those_schemes_are_read(name, expected):
    assert parse_name(name) == expected


T = 10**12


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step0.5k", 500),
        ("step1k", 1000),
        ("step1.5k", 1500),
        ("step-1.50K", 1500),
        ("step1,000", 1000),
        ("step1_000", 1000),
        ("step143,000", 143_000),
        ("step1,234,567", 1_234_567),
        ("step_1_234_567", 1_234_567),
        ("step=1000.0", 1000),
        ("step2M", 2_000_000),
        ("step0.25M", 250_000),
        ("step1B", 10**9),
        ("1.5k-steps", 1500),
        ("1.5ksteps", 1500),
        ("1,500steps", 1500),
        ("2Msteps", 2_000_000),
        ("1_000steps", 1000),
        ("iter_2.5k", 2500),
        ("checkpoint-1.5k", 1500),
        ("checkpoint-10,000", 10_000),
        ("ba1.5k", 1500),
        ("1.5k", 1500),
        ("epoch_1_500steps", 500),
        ("500_step-7b", 500),
        ("llama-7b-step-20k", 20_000),
        ("TinyLlama-1.1B-intermediate-step-50K-105b", 50_000),
        ("global_step300", 300),
        ("checkpoint_10-step500", 500),
    ],
)
def test_numbers_of_steps_are_read_with_decimals_separators_and_units(name, step):
    said = parse_name(name)
    assert (said.step, said.index, said.stage, said.branch, said.tokens) == (step, None, None, None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "TinyLlama-1.1B-intermediate-step-955k-token-2T",
            CheckpointName(step=955_000, tokens=2 * T, tokens_lo=T, tokens_hi=3 * T),
        ),
        (
            "step1.5M-tokens2.5T",
            CheckpointName(step=1_500_000, tokens=25 * T // 10, tokens_lo=24 * T // 10, tokens_hi=26 * T // 10),
        ),
        ("tokens1,000M", CheckpointName(tokens=B, tokens_lo=B - 10**6, tokens_hi=B + 10**6)),
        ("step5-tok20B", CheckpointName(step=5, tokens=20 * B, tokens_lo=19 * B, tokens_hi=21 * B)),
        ("iter_2BT=3", CheckpointName(step=3, tokens=2 * B, tokens_lo=B, tokens_hi=3 * B)),
        ("step_5Btokens_3", CheckpointName(step=3, tokens=5 * B, tokens_lo=4 * B, tokens_hi=6 * B)),
        ("chck_1M", CheckpointName(tokens=10**6, tokens_lo=0, tokens_hi=2 * 10**6)),
        ("chck_10M", CheckpointName(tokens=10**7, tokens_lo=9 * 10**6, tokens_hi=11 * 10**6)),
        ("chck_1.5B", CheckpointName(tokens=15 * B // 10, tokens_lo=14 * B // 10, tokens_hi=16 * B // 10)),
        ("words-10M", CheckpointName(tokens=10**7, tokens_lo=9 * 10**6, tokens_hi=11 * 10**6)),
        ("10M_words", CheckpointName(tokens=10**7, tokens_lo=9 * 10**6, tokens_hi=11 * 10**6)),
        ("train_00220B", CheckpointName(tokens=220 * B, tokens_lo=219 * B, tokens_hi=221 * B)),
        ("checkpoint-10B", CheckpointName(tokens=10 * B, tokens_lo=9 * B, tokens_hi=11 * B)),
        ("epoch_3", CheckpointName(index=3)),
        ("model-epoch=12", CheckpointName(index=12)),
        ("ep7", CheckpointName(index=7)),
        ("extension_step0000250", CheckpointName(step=250, stage="extension")),
        ("context-extension-step250", CheckpointName(step=250, stage="extension")),
        ("sft_checkpoint-100", CheckpointName(step=100, stage="sft")),
        ("rlvr-step5", CheckpointName(step=5, stage="rlvr")),
        ("CrystalCoder_phase1_checkpoint_055500", CheckpointName(step=55_500, stage="phase1")),
    ],
)
def test_units_words_and_stages_around_a_number_are_read(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("step1.5", "step1.5"),
        ("step1.000", "step1.000"),
        ("step12,34", "step12,34"),
        ("step1e5", "step1e5"),
        ("step-1.2345k", "step-1.2345k"),
        ("step1.5-tokens3B", "step1.5"),
        ("checkpoint-1.5", "checkpoint-1.5"),
        ("epoch_1.5", "epoch_1.5"),
        ("timestep5", "step5"),
        ("step100-step200", "step200"),
        ("step500_256", "500_256"),
        ("step1_0000", "_0000"),
        ("TinyLlama-1.1B-intermediate-step-50K-105b", "-105b"),
        ("chck_10M", "chck_10M"),
    ],
)
def test_a_part_that_is_not_surely_understood_is_named(name, part):
    assert [doubt.part for doubt in parse_name(name).doubts] == [part]


@pytest.mark.parametrize("name", ["step1.5", "step1.000", "step12,34", "step1e5", "step-1.2345k", "epoch_1.5"])
def test_a_number_that_is_not_understood_gives_no_step(name):
    assert not parse_name(name).gives_position


@pytest.mark.parametrize("name", WILD)
def test_no_name_in_the_wild_leaves_a_doubt(name):
    assert parse_name(name).doubts == ()


@given(st.integers(1, 10**6), st.sampled_from([("k", 3), ("M", 6)]))
def test_a_step_written_with_decimals_is_the_step_written_out(thousandths, unit):
    letter, zeros = unit
    assert parse_name(f"step{thousandths / 1000:.3f}{letter}").step == thousandths * 10 ** (zeros - 3)
    assert parse_name(f"step{thousandths:,}").step == thousandths


@given(st.text() | st.from_regex(r"(stage|step|ckpt_|tokens|iter|-|_|[0-9]{1,30}|[KMBT])+", fullmatch=True))
def test_any_text_is_read_without_an_error(name):
    said = parse_name(name)
    assert said.step is None or 0 <= said.step < 2**63
    if said.tokens is not None:
        assert 0 <= said.tokens_lo <= said.tokens <= said.tokens_hi < 2**63


@given(st.integers(0, 10**12), st.integers(1, 9), st.integers(0, 10**6))
def test_a_name_made_of_parts_gives_the_parts_back(step, stage, billions):
    said = parse_name(f"stage{stage}-step{step}-tokens{billions}B")
    assert (said.step, said.stage, said.tokens) == (step, f"stage{stage}", billions * B)
    assert said.tokens_hi - said.tokens_lo == (2 * B if billions else B)


def test_names_of_equal_meaning_are_told_apart_from_those_that_give_no_place():
    assert parse_name("ckpt_7").gives_position
    assert parse_name("tokens-20B").gives_position
    assert not parse_name("stage2").gives_position


def ceiled(tokens_per_step, steps=STEPS, rounding=math.ceil):
    units = [rounding(Fraction(step * tokens_per_step, B)) for step in steps]
    return [Label(step, max(0, unit - 1) * B, (unit + 1) * B) for step, unit in zip(steps, units, strict=True)]


@pytest.mark.parametrize("true", [4194304, 2097152, 2160 * 2048, 8388608, 2359296])
@pytest.mark.parametrize("rounding", [math.ceil, math.floor, round])
def test_the_true_tokens_per_step_lie_within_the_fit_to_a_thousandth(true, rounding):
    fit = fit_tokens_per_step(ceiled(true, rounding=rounding))
    assert fit.lo <= true <= fit.hi
    assert fit.hi - fit.lo < true / 500
    assert abs(fit.value - true) < true / 1000


@pytest.mark.parametrize("true", [4194304, 2097152, 8388608, 2359296])
def test_a_round_batch_is_found_exactly(true):
    assert fit_tokens_per_step(ceiled(true)).value == true


def test_a_batch_no_rounder_than_chance_stays_in_the_middle_of_what_the_labels_allow():
    fit = fit_tokens_per_step(ceiled(4_440_000))
    assert fit.value == (fit.lo + fit.hi) / 2


def test_one_coarse_label_gives_no_fit():
    assert fit_tokens_per_step([Label(1000, 2 * B, 4 * B)]) is None


def test_labels_that_contradict_each_other_give_no_fit():
    assert fit_tokens_per_step([Label(1000, 99 * B, 101 * B), Label(1000, 199 * B, 201 * B)]) is None


def test_step_zero_bounds_nothing():
    assert fit_tokens_per_step([Label(0, 0, B)]) is None


def test_an_exact_label_is_its_own_fit():
    assert fit_tokens_per_step([Label(1000, 2_000_001, 2_000_001)]).value == Fraction(2_000_001, 1000)


@given(
    st.integers(1024, 1 << 26), st.lists(st.integers(1, 10**6), min_size=1), st.sampled_from([math.ceil, math.floor])
)
def test_the_truth_is_never_excluded(true, steps, rounding):
    fit = fit_tokens_per_step(ceiled(true, steps=steps, rounding=rounding))
    assert fit is None or fit.lo <= true <= fit.hi
