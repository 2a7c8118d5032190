"""A directory of checkpoints becomes one order, with steps and tokens counted from the beginning of training."""

from __future__ import annotations

import json
import math
import os
import re
import sys

import pytest

from tests.checkpoints.folders import CONFIG, checkpoint, trainer_state
from tests.children import run_child
from workbench.checkpoints import find_checkpoints
from workbench.cli.main import main
from workbench.heads import NoCheckpoints, WorkbenchError

B = 10**9


def folder(root, names):
    """Checkpoints of these names, each with weights of its own; modification times in reverse."""
    for i, name in enumerate(names):
        checkpoint(root / name, seed=i)
        os.utime(root / name, (10**9 - i * 10**6, 10**9 - i * 10**6))
    return root


def names(series):
    return [c.name for c in series.checkpoints]


def by_name(series):
    return {c.name: c for c in series.checkpoints}


def test_order_is_by_step_not_by_text_or_time(tmp_path):
    folder(tmp_path, ["step512", "step1000", "step2", "step143000", "step64", "step0"])
    series = find_checkpoints(tmp_path)
    assert names(series) == ["step0", "step2", "step64", "step512", "step1000", "step143000"]
    assert [c.step_total for c in series.checkpoints] == [0, 2, 64, 512, 1000, 143000]
    assert series.stages == ()


@pytest.mark.parametrize("years", [1970, 2099])
def test_clock_skew_changes_nothing(tmp_path, years):
    folder(tmp_path, ["step2", "step10"])
    before = find_checkpoints(tmp_path).records()
    for path in tmp_path.rglob("*"):
        os.utime(path, ((years - 1970) * 31_556_952,) * 2)
    assert find_checkpoints(str(tmp_path)).records() == before


def test_unknown_tokens_stay_unknown(tmp_path):
    folder(tmp_path, ["step2", "step10"])
    for c in find_checkpoints(tmp_path).checkpoints:
        assert (c.tokens, c.tokens_lo, c.tokens_hi, c.tokens_source, c.lr) == (None, None, None, "unknown", None)


def test_labels_of_a_series_give_the_tokens_that_one_label_hides(tmp_path):
    true = 2_097_152
    steps = (1000, 2000, 10000, 100000)
    folder(tmp_path, [f"step{s}-tokens{math.ceil(s * true / B)}B" for s in steps])
    for c in find_checkpoints(tmp_path).checkpoints:
        assert c.tokens_source == "labels_fit"
        assert c.tokens == c.step * true
        assert c.tokens_lo <= c.tokens <= c.tokens_hi
        assert c.tokens_hi - c.tokens_lo < 0.02 * c.tokens


def test_a_coarse_label_alone_stays_an_interval(tmp_path):
    folder(tmp_path, ["step1000-tokens3B"])
    (c,) = find_checkpoints(tmp_path).checkpoints
    assert (c.tokens, c.tokens_lo, c.tokens_hi, c.tokens_source) == (None, 2 * B, 4 * B, "label")


def test_a_fine_label_alone_is_a_count(tmp_path):
    folder(tmp_path, ["step5-tokens10490880"])
    (c,) = find_checkpoints(tmp_path).checkpoints
    assert c.tokens == c.tokens_lo == c.tokens_hi == 10490880


def test_a_label_is_taken_at_its_word_where_nothing_else_places_the_checkpoint(tmp_path):
    folder(tmp_path, ["tokens-100B", "tokens-20B", "tokens-0B"])
    series = find_checkpoints(tmp_path)
    assert [(c.name, c.tokens, c.tokens_source) for c in series.checkpoints] == [
        ("tokens-0B", 0, "label"),
        ("tokens-20B", 20 * B, "label"),
        ("tokens-100B", 100 * B, "label"),
    ]


def test_an_index_orders_and_is_no_step(tmp_path):
    folder(tmp_path, ["ckpt_100", "ckpt_20", "main"])
    series = find_checkpoints(tmp_path)
    assert [(c.name, c.index, c.step, c.step_total) for c in series.checkpoints] == [
        ("ckpt_20", 20, None, None),
        ("ckpt_100", 100, None, None),
        ("main", None, None, None),
    ]


def test_the_trainer_says_tokens_and_the_learning_rate_just_before(tmp_path):
    folder(tmp_path, ["checkpoint-500", "checkpoint-1000"])
    trainer_state(tmp_path / "checkpoint-500", 500, 8_000, {100: 1e-3, 490: 5e-4, 510: 4e-4})
    trainer_state(tmp_path / "checkpoint-1000", 1000, 0)
    early, late = find_checkpoints(tmp_path).checkpoints
    assert (early.tokens, early.tokens_source) == (8_000, "trainer_state")
    assert (early.lr, early.lr_source) == (5e-4, "trainer_state")
    assert (late.tokens, late.tokens_source, late.lr_source) == (None, "unknown", "unknown")


def test_no_tokens_at_step_zero_is_a_count(tmp_path):
    trainer_state(checkpoint(tmp_path / "checkpoint-0"), 0, 0)
    (c,) = find_checkpoints(tmp_path).checkpoints
    assert (c.tokens, c.tokens_source) == (0, "trainer_state")


def test_the_trainer_places_a_checkpoint_whose_name_does_not(tmp_path):
    folder(tmp_path, ["checkpoint-500", "best", "checkpoint-1500"])
    trainer_state(tmp_path / "best", 900)
    assert names(find_checkpoints(tmp_path)) == ["checkpoint-500", "best", "checkpoint-1500"]


@pytest.mark.parametrize(
    ("written", "remark"),
    [("{", "not JSON"), ('{"global_step": "x"}', "global_step"), ('{"global_step": 7}', "step 7")],
)
def test_a_trainer_state_that_is_not_this_checkpoints_is_not_used_and_said(tmp_path, written, remark):
    folder(tmp_path, ["checkpoint-500"])
    (tmp_path / "checkpoint-500" / "trainer_state.json").write_text(written)
    series = find_checkpoints(tmp_path)
    assert series.checkpoints[0].step == 500
    assert any("trainer_state.json" in r and remark in r for r in series.remarks)


# Stages


OLMO = [
    "stage1-step1000",
    "stage1-step9000",
    "stage2-ingredient1-step0",
    "stage2-ingredient1-step500",
    "stage2-ingredient2-step500",
    "stage3-step100",
]


def test_steps_that_restart_per_stage_are_added_up(tmp_path):
    series = find_checkpoints(folder(tmp_path, reversed(OLMO)))
    assert [(c.name, c.step_total) for c in series.checkpoints] == list(
        zip(OLMO, [1000, 9000, 9000, 9500, 9500, 9600], strict=True)
    )
    assert series.stages == ("stage1", "stage2", "stage3")


def test_steps_that_go_on_over_stages_are_kept(tmp_path):
    folder(tmp_path, ["stage2-step-4200000", "stage1-step-3440000", "stage1-step-40000", "stage3-step-4720000"])
    series = find_checkpoints(tmp_path)
    assert [c.step_total for c in series.checkpoints] == [40000, 3440000, 4200000, 4720000]


def test_annealing_restarts_after_pretraining(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["anneal_iter_0023841", "pretrain_iter_0373000"]))
    assert [(c.stage, c.step_total) for c in series.checkpoints] == [("pretrain", 373000), ("anneal", 396841)]


def test_token_labels_of_a_later_stage_count_from_its_start(tmp_path):
    first = [f"stage1-step{s}-tokens{math.ceil(s * 4_194_304 / B)}B" for s in (1000, 10000, 100000, 900000)]
    second = [f"stage2-ingredient1-step{s}-tokens{math.ceil(s * 4_194_304 / B)}B" for s in (1000, 5000, 11931)]
    *_, end = find_checkpoints(folder(tmp_path, first + second)).checkpoints
    assert end.step_total == 900000 + 11931
    assert end.tokens_lo <= (900000 + 11931) * 4_194_304 <= end.tokens_hi
    assert end.tokens == pytest.approx((900000 + 11931) * 4_194_304, rel=0.005)


def test_token_labels_that_go_on_over_stages_are_not_added_up(tmp_path):
    folder(tmp_path, ["stage1-step1000-tokens1000B", "stage2-step100-tokens1100B"])
    late = find_checkpoints(tmp_path).checkpoints[-1]
    assert (late.step_total, late.tokens) == (1100, 1100 * B)


def test_a_later_stage_alone_has_no_total_tokens(tmp_path):
    folder(tmp_path, ["stage2-ingredient3-step11931-tokens500B"])
    (c,) = find_checkpoints(tmp_path).checkpoints
    assert (c.tokens, c.tokens_lo, c.tokens_source) == (None, None, "unknown")


def test_names_that_lost_their_stage_belong_to_the_first(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["stage1-step1000", "step2000", "stage2-step10", "main"]))
    assert [(c.name, c.stage, c.step_total) for c in series.checkpoints] == [
        ("stage1-step1000", "stage1", 1000),
        ("step2000", "stage1", 2000),
        ("stage2-step10", "stage2", 2010),
        ("main", None, None),
    ]


def test_siblings_of_one_step_are_told_apart_by_branch(tmp_path):
    folder(tmp_path, ["stage2-step47684", "stage2-step47684-mix-round5-from-2T-ckpt"])
    assert [c.branch for c in find_checkpoints(tmp_path).checkpoints] == [None, "mix-round5-from-2T-ckpt"]


# Words before the step


@pytest.mark.parametrize("word", ["extension_", "long-context-", "anneal_", "sft-", "dpo_"])
def test_a_known_word_before_the_step_is_a_later_stage(tmp_path, word):
    late = f"{word}step0000250"
    series = find_checkpoints(folder(tmp_path, ["step0005000", "step0010000", late, "step0753851"]))
    assert names(series) == ["step0005000", "step0010000", "step0753851", late]
    assert series.stages == (word.strip("-_"),)
    assert [c.step_total for c in series.checkpoints] == [5000, 10_000, 753_851, 754_101]


def test_stages_after_pretraining_have_their_usual_order(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["rlvr_step3", "dpo_step10", "step5000", "sft_step10", "anneal_step7"]))
    assert names(series) == ["step5000", "anneal_step7", "sft_step10", "dpo_step10", "rlvr_step3"]
    assert [c.step_total for c in series.checkpoints] == [5000, 5007, 5017, 5027, 5030]


UNKNOWN = [
    ["step5000", "foo_step250"],
    ["stage1-step5000", "foo-step250"],
    ["pretrain_step5000", "foo_step250", "step100"],
    ["foo_step1", "bar_step2"],
    ["seed1-step1000", "seed2-step2000"],
    ["lr=1e-3-step1000", "lr=1e-4-step2000"],
    ["lr=0.01-step1000", "lr=0.001-step2000"],
    ["seed_1-step1000", "seed_2-step2000"],
    ["tokens-20B", "foo-tokens-10B"],
    ["chck_10M", "foo_chck_1M"],
    ["epoch_3", "foo_epoch_1"],
    ["stage1-step10", "stage1-foo-step5"],
    ["stage1-phase1-step10", "stage1-phase2-step5"],
    ["long-context-4k-to-32k-step-5", "long-context-32k-to-64k-step-7"],
    ["stage1-step10", "phase1-step5"],
    ["step10", "extension_step5", "long-context-step-7"],
]


@pytest.mark.parametrize("unknown", UNKNOWN, ids=" ".join)
def test_a_word_of_unknown_order_is_asked_for(tmp_path, unknown):
    with pytest.raises(
        NoCheckpoints, match=r"order of the stages .* is not known.*stage_order = \[.*series\.toml"
    ) as e:
        find_checkpoints(folder(tmp_path, unknown))
    assert e.value.exit_code == 3


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ('["", "foo"]', [("step20", 20), ("step5000", 5000), ("foo_step250", 5250)]),
        ('["foo", ""]', [("foo_step250", 250), ("step20", 270), ("step5000", 5250)]),
    ],
)
def test_the_order_of_names_without_a_stage_can_be_given(tmp_path, order, expected):
    folder(tmp_path, ["step20", "step5000", "foo_step250"])
    (tmp_path / "series.toml").write_text(f"stage_order = {order}\n")
    assert [(c.name, c.step_total) for c in find_checkpoints(tmp_path).checkpoints] == expected


def test_the_message_of_an_unknown_order_can_be_pasted(tmp_path):
    folder(tmp_path, ["step5000", "foo_step250", "anneal_step5"])
    with pytest.raises(NoCheckpoints) as e:
        find_checkpoints(tmp_path)
    line = re.search(r"stage_order = \[[^]]*\]", str(e.value))[0]
    (tmp_path / "series.toml").write_text(line)
    assert names(find_checkpoints(tmp_path)) == ["step5000", "anneal_step5", "foo_step250"]


def test_an_order_without_the_names_without_a_stage_is_refused(tmp_path):
    folder(tmp_path, ["step5000", "foo_step250"])
    (tmp_path / "series.toml").write_text('stage_order = ["foo"]')
    with pytest.raises(WorkbenchError, match=r'lacks "".*step5000.*stage_order = \["", "foo"\]'):
        find_checkpoints(tmp_path)


def test_a_stage_or_a_branch_of_the_user_settles_the_word(tmp_path):
    folder(tmp_path, ["step5000", "foo_step250"])
    (tmp_path / "series.toml").write_text('[checkpoints.foo_step250]\nstage = "foo"\n')
    assert [(c.stage, c.step_total) for c in find_checkpoints(tmp_path).checkpoints] == [(None, 5000), ("foo", 5250)]
    (tmp_path / "series.toml").write_text('[checkpoints.foo_step250]\nbranch = "foo"\n')
    assert [(c.branch, c.step_total) for c in find_checkpoints(tmp_path).checkpoints] == [("foo", 250), (None, 5000)]


@pytest.mark.parametrize(
    "same",
    [
        ["foo_step9", "foo_step10"],
        ["pythia-160m-seed1-step9", "pythia-160m-seed1-step10"],
        ["0507_1235_checkpoint_step_9_epoch_1", "0507_1236_checkpoint_step_10_epoch_2"],
        ["epoch=0-step=9", "epoch=1-step=10"],
        ["val_loss=0.23-step=9", "val_loss=0.21-step=10"],
        ["checkpoint-9", "tmp-checkpoint-10"],
        ["global_step9", "step10"],
        ["best_step9", "model_step10"],
        ["2024-05-01T12-00-step9", "2024-05-02T13-30-step10"],
    ],
    ids=" ".join,
)
def test_words_that_all_share_or_that_name_the_file_are_no_stage(tmp_path, same):
    series = find_checkpoints(folder(tmp_path, same))
    assert names(series) == same
    assert series.stages == ()
    assert [c.step_total for c in series.checkpoints] == [9, 10]


def test_a_stage_after_the_name_of_the_model_is_one(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["olmo-1b-anneal-step5", "olmo-1b-step10"]))
    assert [(c.stage, c.step_total) for c in series.checkpoints] == [(None, 10), ("anneal", 15)]


def test_phases_are_stages(tmp_path):
    series = find_checkpoints(
        folder(tmp_path, ["Crystal_phase2_checkpoint_000500", "Crystal_phase1_checkpoint_055500"])
    )
    assert [(c.stage, c.step_total) for c in series.checkpoints] == [("phase1", 55_500), ("phase2", 56_000)]


# Numbers


SUITES = {
    "Pythia": (["step0", "step1", "step512", "step1000", "step143000"], [0, 1, 512, 1000, 143_000]),
    "stanford-crfm": (["checkpoint-100", "checkpoint-1000", "checkpoint-400000"], [100, 1000, 400_000]),
    "OLMo": (["step1000-tokens4B", "step20000-tokens84B"], [1000, 20_000]),
    "OLMo 2": (["stage1-step1000-tokens5B", "stage2-ingredient3-step500-tokens3B"], [1000, 1500]),
    "SmolLM3": (["stage1-step-40000", "stage1-step-3440000", "long-context-step-4000"], [40_000, 3_440_000, 3_444_000]),
    "FineWeb": (["step-001000-2BT", "step-010000-21BT"], [1000, 10_000]),
    "TinyLlama": (
        [f"TinyLlama-1.1B-intermediate-step-{at}" for at in ("50K-105b", "240k-503b", "955k-token-2T", "1431k-3T")],
        [50_000, 240_000, 955_000, 1_431_000],
    ),
    "TinyLlama 1.1": (["step-5000", "step-300000"], [5000, 300_000]),
    "BLOOM": (["global_step1000", "global_step10000"], [1000, 10_000]),
    "decimals": (["step0.5k", "step1k", "step1.5k", "step10k", "step1M"], [500, 1000, 1500, 10_000, 1_000_000]),
    "separators": (["step900", "step1,000", "step2_000", "step10,000"], [900, 1000, 2000, 10_000]),
}


@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_on_the_hub_are_ordered_with_their_steps(tmp_path, suite):
    ordered, steps = SUITES[suite]
    found = find_checkpoints(folder(tmp_path, reversed(ordered))).checkpoints
    assert [(c.name, c.step_total) for c in found] == list(zip(ordered, steps, strict=True))


@pytest.mark.parametrize(
    ("ordered", "tokens"),
    [
        (["chck_1M", "chck_2M", "chck_10M", "chck_100M"], [10**6, 2 * 10**6, 10**7, 10**8]),
        (["train_00020B", "train_00220B", "train_01000B"], [20 * B, 220 * B, 1000 * B]),
        (["words-500k", "words-1.5M"], [500_000, 1_500_000]),
    ],
)
def test_counts_of_words_or_tokens_are_positions_and_the_unit_is_said(tmp_path, ordered, tokens):
    series = find_checkpoints(folder(tmp_path, [*reversed(ordered), "main"]))
    assert [(c.name, c.tokens) for c in series.checkpoints] == [*zip(ordered, tokens, strict=True), ("main", None)]
    (remark,) = series.remarks
    assert all(name in remark for name in ordered)
    assert "read as tokens" in remark


def test_epochs_are_an_index(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["epoch_10", "epoch_9", "final"]))
    assert [(c.name, c.index, c.step) for c in series.checkpoints] == [
        ("epoch_9", 9, None),
        ("epoch_10", 10, None),
        ("final", None, None),
    ]


@pytest.mark.parametrize("mixed", [["epoch_1", "ckpt_2"], ["epoch_1", "step5"], ["chck_1M", "step5"]], ids=" ".join)
def test_positions_of_different_kinds_are_not_ordered(tmp_path, mixed):
    with pytest.raises(NoCheckpoints, match="cannot be put in one order"):
        find_checkpoints(folder(tmp_path, mixed))


def test_an_epoch_with_the_weights_of_a_step_is_its_alias(tmp_path):
    folder(tmp_path, ["step10", "step20"])
    checkpoint(tmp_path / "epoch_2", seed=1)
    assert by_name(find_checkpoints(tmp_path))["epoch_2"].alias_of == "step20"


def test_folders_of_an_epoch_without_weights_are_no_checkpoints(tmp_path):
    folder(tmp_path, ["step10"])
    (tmp_path / "epoch_1").mkdir()
    (tmp_path / "train_7B").mkdir()
    (tmp_path / "epoch_2.pt").write_bytes(b"")
    series = find_checkpoints(tmp_path)
    assert names(series) == ["step10"]
    assert set(series.ignored) == {"epoch_1", "train_7B", "epoch_2.pt"}


def test_outputs_with_a_word_of_their_own_are_no_stage(tmp_path):
    folder(tmp_path, ["step_10"])
    (tmp_path / "foo_step_10").mkdir()
    series = find_checkpoints(tmp_path)
    assert names(series) == ["step_10"]
    assert "step_10 is the checkpoint" in series.ignored["foo_step_10"]


@pytest.mark.parametrize("odd", ["step1.5", "timestep5", "step1e5", "run7"])
def test_a_name_that_is_not_understood_stands_last_and_is_named(tmp_path, odd):
    series = find_checkpoints(folder(tmp_path, ["step10", "step20", odd]))
    assert names(series) == ["step10", "step20", odd]
    assert [odd in remark and "stands last" in remark for remark in series.remarks] == [True]
    (tmp_path / "series.toml").write_text(f'[checkpoints."{odd}"]\nstep = 15\n')
    settled = find_checkpoints(tmp_path)
    assert (names(settled), settled.remarks) == (["step10", odd, "step20"], ())


def test_two_names_that_are_not_understood_are_refused_with_the_parts(tmp_path):
    with pytest.raises(NoCheckpoints, match=r"'step1\.5'.*'step1\.7'"):
        find_checkpoints(folder(tmp_path, ["step1.5", "step1.7"]))


@pytest.mark.parametrize("twice", [["step1k", "step1000"], ["step1,000", "step1_000"], ["step0.5k", "step500"]])
def test_one_step_in_two_spellings_is_refused(tmp_path, twice):
    with pytest.raises(NoCheckpoints, match="weights differ"):
        find_checkpoints(folder(tmp_path, twice))


def test_equal_tokens_leave_the_order_to_the_steps(tmp_path):
    series = find_checkpoints(folder(tmp_path, ["step10-tokens1000", "step9-tokens1000"]))
    assert names(series) == ["step9-tokens1000", "step10-tokens1000"]


def test_the_command_tells_what_is_in_doubt(tmp_path, monkeypatch, capsys):
    folder(tmp_path, ["chck_2M", "chck_10M"])
    for flags in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["workbench", "series", str(tmp_path), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said = capsys.readouterr()
        if flags:
            answer = json.loads(said.out)
            assert [c["name"] for c in answer["checkpoints"]] == ["chck_2M", "chck_10M"]
            assert "read as tokens" in answer["remarks"][0]
        else:
            assert "read as tokens" in said.err


# Duplicates


def test_one_step_twice_with_different_weights_is_refused_with_both_names(tmp_path):
    folder(tmp_path, ["step1000", "checkpoint-1000"])
    with pytest.raises(NoCheckpoints, match="checkpoint-1000 and step1000 are both step 1000") as refused:
        find_checkpoints(tmp_path)
    assert refused.value.exit_code == 3


def test_one_step_twice_with_equal_weights_is_an_alias(tmp_path):
    checkpoint(tmp_path / "step1000")
    checkpoint(tmp_path / "checkpoint-1000")
    assert {c.name: c.alias_of for c in find_checkpoints(tmp_path).checkpoints} == {
        "checkpoint-1000": None,
        "step1000": "checkpoint-1000",
    }


def test_the_name_that_says_the_step_is_the_checkpoint_and_the_one_that_does_not_is_its_alias(tmp_path):
    for name in ("again", "step3"):
        trainer_state(checkpoint(tmp_path / name), 3)
    assert {c.name: (c.step, c.alias_of) for c in find_checkpoints(tmp_path).checkpoints} == {
        "step3": (3, None),
        "again": (3, "step3"),
    }


def test_a_final_folder_is_the_last_or_an_alias_of_it(tmp_path):
    folder(tmp_path, ["step10", "step20", "main"])
    *_, last = find_checkpoints(tmp_path).checkpoints
    assert (last.name, last.step, last.alias_of) == ("main", None, None)
    checkpoint(tmp_path / "final", seed=1)
    found = by_name(find_checkpoints(tmp_path))
    assert found["final"].alias_of == "step20"
    assert found["main"].alias_of is None


def test_a_link_to_the_latest_is_an_alias(tmp_path):
    folder(tmp_path, ["step10", "step20"])
    (tmp_path / "latest").symlink_to("step20")
    assert by_name(find_checkpoints(tmp_path))["latest"].alias_of == "step20"


def test_two_folders_that_say_nothing_of_their_place_are_refused(tmp_path):
    folder(tmp_path, ["main", "final"])
    with pytest.raises(NoCheckpoints, match="final and main"):
        find_checkpoints(tmp_path)


def test_steps_beside_token_labels_cannot_be_ordered(tmp_path):
    folder(tmp_path, ["step10", "tokens-20B"])
    with pytest.raises(NoCheckpoints, match="step10 is at step 10, tokens-20B at token 20000000000"):
        find_checkpoints(tmp_path)


# What is a checkpoint


def test_nothing_there_says_what_was_looked_for(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(NoCheckpoints, match=r"Looked for .*step1000.*logs: no weights in it"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("made", [False, True])
def test_a_path_that_is_no_directory_is_refused(tmp_path, made):
    path = tmp_path / "model.safetensors"
    if made:
        path.write_text("")
    with pytest.raises(NoCheckpoints, match="is a file" if made else "no such directory"):
        find_checkpoints(path)


def test_other_folders_are_listed_with_the_reason_and_hidden_ones_are_not(tmp_path):
    folder(tmp_path, ["step10"])
    for name in ("tensorboard", ".cache", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "step20.safetensors").write_bytes(b"")
    ignored = find_checkpoints(tmp_path).ignored
    assert set(ignored) == {"tensorboard", "half", "step20.safetensors"}
    assert "no weights" in ignored["tensorboard"]
    assert "config.json" in ignored["half"]


def test_a_named_checkpoint_without_weights_stays_to_be_seen(tmp_path):
    folder(tmp_path, ["step10"])
    (tmp_path / "step20").mkdir()
    assert [(c.name, c.format) for c in find_checkpoints(tmp_path).checkpoints] == [
        ("step10", "safetensors"),
        ("step20", "none"),
    ]


def test_outputs_of_a_step_do_not_compete_with_its_checkpoint(tmp_path):
    folder(tmp_path, ["step_10"])
    (tmp_path / "eval_step_10").mkdir()
    series = find_checkpoints(tmp_path)
    assert names(series) == ["step_10"]
    assert "step_10 is the checkpoint" in series.ignored["eval_step_10"]


def test_a_checkpoint_is_a_series_of_one(tmp_path):
    path = checkpoint(tmp_path / "checkpoint-500")
    (path / "global_step500").mkdir()
    (path / "global_step500" / "mp_rank_00_model_states.pt").write_bytes(b"")
    (c,) = find_checkpoints(path).checkpoints
    assert (c.name, c.step, c.path, c.format) == ("checkpoint-500", 500, path, "safetensors")


def test_a_trainers_output_folder_ends_with_its_own_weights(tmp_path):
    run = checkpoint(tmp_path / "run", seed=7)
    folder(run, ["checkpoint-500", "checkpoint-1000"])
    assert names(find_checkpoints(run)) == ["checkpoint-500", "checkpoint-1000", "run"]


def test_a_trainer_that_kept_the_best_weights_makes_no_duplicate_of_the_last_step(tmp_path):
    run = checkpoint(tmp_path / "run", seed=0)
    folder(run, ["checkpoint-500", "checkpoint-1000"])
    trainer_state(run, 1000)
    assert by_name(find_checkpoints(run))["run"].alias_of == "checkpoint-500"


def test_checkpoints_that_lost_their_weights_stay_beside_the_runs_own(tmp_path):
    run = checkpoint(tmp_path / "run")
    (checkpoint(run / "checkpoint-500") / "model.safetensors").unlink()
    assert [(c.name, c.format) for c in find_checkpoints(run).checkpoints] == [
        ("checkpoint-500", "none"),
        ("run", "safetensors"),
    ]


@pytest.mark.parametrize("inner", ["checkpoint", "hf"])
def test_a_run_with_one_folder_of_checkpoints_is_looked_into(tmp_path, inner):
    folder(tmp_path / inner, ["step-500", "step-1000"])
    (tmp_path / "logs").mkdir()
    direct, through = find_checkpoints(tmp_path / inner), find_checkpoints(tmp_path)
    assert names(direct) == names(through) == ["step-500", "step-1000"]


def test_a_folder_of_several_runs_is_refused_with_their_names(tmp_path):
    folder(tmp_path / "a", ["step1"])
    folder(tmp_path / "b", ["step1"])
    with pytest.raises(NoCheckpoints, match="a, b"):
        find_checkpoints(tmp_path)


def test_revisions_in_a_hub_cache_carry_their_names(tmp_path):
    cache = tmp_path / "models--org--name"
    for i, (ref, commit) in enumerate({"step10": "e3ba12", "step2": "0f", "main": "77"}.items()):
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / ref).write_text(commit)
        checkpoint(cache / "snapshots" / commit, seed=i)
    series = find_checkpoints(cache)
    assert names(series) == ["step2", "step10", "main"]
    assert series.checkpoints[0].path == cache / "snapshots" / "0f"


FORMATS = {
    "bin": ["pytorch_model.bin"],
    "pt": ["model.pt"],
    "dcp": [".metadata", "__0_0.distcp"],
    "deepspeed": ["mp_rank_00_model_states.pt", "zero_to_fp32.py"],
    "megatron": ["mp_rank_00/model_optim_rng.pt"],
    "none": ["optimizer.pt", "training_args.bin", "rng_state_0.pth"],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_told_by_file_names(tmp_path, kind):
    for name in FORMATS[kind]:
        path = tmp_path / "step10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (c,) = find_checkpoints(tmp_path).checkpoints
    assert c.format == kind


def test_lightning_files_are_checkpoints(tmp_path):
    for name in ("epoch=0-step=100.ckpt", "epoch=0-step=3919.ckpt"):
        (tmp_path / name).write_bytes(name.encode())
    series = find_checkpoints(tmp_path)
    assert [(c.step, c.format) for c in series.checkpoints] == [(100, "pt"), (3919, "pt")]


# series.toml


def test_tokens_per_step_count_tokens_through_stages(tmp_path):
    folder(tmp_path, ["stage1-step1000", "stage2-step10"])
    (tmp_path / "series.toml").write_text("tokens_per_step = 2048\n")
    found = find_checkpoints(tmp_path).checkpoints
    assert [(c.tokens, c.tokens_source) for c in found] == [
        (1000 * 2048, "tokens_per_step"),
        (1010 * 2048, "tokens_per_step"),
    ]


def test_tokens_per_step_may_differ_between_stages(tmp_path):
    folder(tmp_path, ["stage1-step1000", "stage2-step1010"])
    (tmp_path / "series.toml").write_text("[tokens_per_step]\nstage1 = 10\nstage2 = 100\n")
    assert [c.tokens for c in find_checkpoints(tmp_path).checkpoints] == [10_000, 11_000]


def test_the_user_may_say_how_steps_count(tmp_path):
    folder(tmp_path, ["stage1-step1000", "stage2-step2000"])
    assert [c.step_total for c in find_checkpoints(tmp_path).checkpoints] == [1000, 2000]
    (tmp_path / "series.toml").write_text('steps = "per_stage"\n')
    assert [c.step_total for c in find_checkpoints(tmp_path).checkpoints] == [1000, 3000]


def test_rows_place_and_skip_checkpoints(tmp_path):
    folder(tmp_path, ["alpha", "beta", "step30", "broken"])
    (tmp_path / "series.toml").write_text(
        'stage_order = ["warm", "cold"]\n'
        '[checkpoints.alpha]\nstep = 5\nstage = "cold"\n'
        '[checkpoints.beta]\nstep = 7\ntokens = 99\nstage = "warm"\nbranch = "b"\n'
        '[checkpoints.step30]\nstage = "warm"\n'
        "[checkpoints.broken]\nskip = true\n"
    )
    series = find_checkpoints(tmp_path)
    assert names(series) == ["beta", "step30", "alpha"]
    assert series.stages == ("warm", "cold")
    beta = by_name(series)["beta"]
    assert (beta.step, beta.tokens, beta.tokens_source, beta.branch) == (7, 99, "user", "b")
    assert "skip" in series.ignored["broken"]


def test_a_row_resolves_a_duplicate(tmp_path):
    folder(tmp_path, ["step1000", "checkpoint-1000"])
    (tmp_path / "series.toml").write_text('[checkpoints."checkpoint-1000"]\nbranch = "rerun"\n')
    assert names(find_checkpoints(tmp_path)) == ["step1000", "checkpoint-1000"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tokens_per_stp = 5", "tokens_per_stp: unknown key"),
        ("[checkpoints.step10]\nstpe = 5", "checkpoints.step10.stpe: unknown key"),
        ("tokens_per_step = 0", "tokens_per_step"),
        ('steps = "both"', "steps"),
        ("[checkpoints.step10]\nskip = 'yes'", "checkpoints.step10.skip"),
        ("[checkpoints.step11]\nstep = 5", "no checkpoint step11"),
        ("steps = ", "not TOML"),
        ("[checkpoints.step10]\nskip = true", "skips every checkpoint"),
    ],
)
def test_a_mistake_in_series_toml_is_named(tmp_path, text, told):
    folder(tmp_path, ["step10"])
    (tmp_path / "series.toml").write_text(text)
    with pytest.raises(WorkbenchError, match=told):
        find_checkpoints(tmp_path)


def test_stages_of_unknown_order_need_an_order(tmp_path):
    folder(tmp_path, ["step10", "step20"])
    rows = '[checkpoints.step10]\nstage = "x"\n[checkpoints.step20]\nstage = "y"\n'
    (tmp_path / "series.toml").write_text(rows)
    with pytest.raises(WorkbenchError, match="stage_order"):
        find_checkpoints(tmp_path)
    (tmp_path / "series.toml").write_text('stage_order = ["y"]\n' + rows)
    with pytest.raises(WorkbenchError, match="lacks x"):
        find_checkpoints(tmp_path)


# Records and configs


def test_records_are_json(tmp_path):
    folder(tmp_path, ["step10", "step20"])
    records = find_checkpoints(tmp_path).records()
    assert json.loads(json.dumps(records)) == records
    assert [r["path"] for r in records] == [str(tmp_path / "step10"), str(tmp_path / "step20")]


def test_another_head_count_within_a_stage_is_reported_as_fatal(tmp_path):
    folder(tmp_path, ["step10", "step20"])
    checkpoint(tmp_path / "step30", seed=9, config={**CONFIG, "num_attention_heads": 8})
    (change,) = find_checkpoints(tmp_path).config_changes
    assert (change.checkpoint, change.setting, change.value, change.usual) == ("step30", "n_heads", "8", "4")
    assert change.is_fatal
    assert "step30" in str(change)
    assert "series.toml" in str(change)


@pytest.mark.parametrize(("setting", "value"), [("rope_theta", 1e6), ("vocab_size", 65)])
def test_another_rope_or_an_added_token_is_reported_and_not_fatal(tmp_path, setting, value):
    folder(tmp_path, ["step10", "step20"])
    checkpoint(tmp_path / "step30", seed=9, config={**CONFIG, setting: value})
    (change,) = find_checkpoints(tmp_path).config_changes
    assert (change.setting, change.is_fatal) == (setting, False)


def test_an_architecture_may_change_with_the_stage(tmp_path):
    folder(tmp_path, ["stage1-step10"])
    checkpoint(tmp_path / "stage2-step10", seed=9, config={**CONFIG, "sliding_window": 128})
    assert find_checkpoints(tmp_path).config_changes == ()


def test_a_series_is_read_without_torch(tmp_path):
    folder(tmp_path, ["step10"])
    code = (
        "import sys; from workbench.checkpoints import find_checkpoints, fingerprint, inspect_weights\n"
        "path = find_checkpoints(sys.argv[1]).checkpoints[0].path; inspect_weights(path); fingerprint(path)\n"
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    ran = run_child([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
