"""Recipes: the steps that become checkpoints, the learning-rate curve, and what is refused."""

import dataclasses
import sys
from itertools import pairwise

import pytest

from tests.children import run_child
from workbench.heads import WorkbenchError
from workbench.pretrain import VARIANTS, Recipe, recipe


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_full_length_recipe_keeps_twenty_log_spaced_checkpoints_from_step_0_to_the_last(variant):
    steps = recipe(variant).checkpoint_steps
    assert len(steps) == 20
    assert (steps[0], steps[-1]) == (0, recipe(variant).steps)
    ratios = [later / earlier for earlier, later in pairwise(steps[3:])]
    assert max(ratios) < 1.3
    assert min(ratios) > 1.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_quick_is_shorter_with_fewer_checkpoints_and_otherwise_the_same(variant):
    short, long = recipe(variant, seed=2, quick=True), recipe(variant, seed=2)
    assert short.steps < 0.75 * long.steps
    assert len(short.checkpoint_steps) == 12
    assert dataclasses.replace(short, steps=long.steps, n_checkpoints=20) == long


@pytest.mark.parametrize("steps", range(1, 40))
def test_a_run_of_any_length_keeps_its_first_and_last_step(steps):
    kept = Recipe("full", steps=steps).checkpoint_steps
    assert (kept[0], kept[-1]) == (0, steps)
    assert sorted(set(kept)) == list(kept)


def test_the_learning_rate_warms_up_and_falls_to_its_final_share():
    chosen = recipe("full")
    scales = [chosen.lr_scale(step) for step in range(chosen.steps)]
    assert scales[0] == pytest.approx(1 / 20)
    assert scales.index(max(scales)) == 19
    assert scales[19:] == sorted(scales[19:], reverse=True)
    assert scales[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("variant", ["llama", "", "Full"])
def test_an_unknown_variant_is_refused_with_the_known_ones(variant):
    with pytest.raises(WorkbenchError, match="expected one of full, sliding, hybrid, linear"):
        recipe(variant)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"length": 1}, {"n_checkpoints": 3}, {"seed": -1}])
def test_numbers_below_their_least_are_refused_by_name(change):
    name, given = next(iter(change.items()))
    with pytest.raises(WorkbenchError, match=f"{name} is {given}; expected at least"):
        Recipe("full", **change)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_final_rate_that_is_no_share_of_the_peak_is_refused(share):
    with pytest.raises(WorkbenchError, match="expected a share of the peak rates, 0 to 1"):
        Recipe("full", final_lr=share)


def test_recipes_and_the_language_are_read_without_importing_torch():
    code = (
        "import sys; from workbench.pretrain import Language, recipe; recipe('full'), Language();"
        " assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    run_child([sys.executable, "-c", code], check=True)
