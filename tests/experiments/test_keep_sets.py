"""What is kept full: the sets are those that their names say."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.experiments.small import STUDY
from workbench.experiments import Continued, medium_study, quick_study
from workbench.experiments.conversion.keep_sets import (
    format_trainings,
    is_linear,
    is_trained,
    keep_sets,
    least,
    methods,
    ordered,
    trained_sets,
)
from workbench.heads import KVHead, WorkbenchError

HEADS = [KVHead(layer, head) for layer in range(2) for head in range(4)]
SCORES = dict(zip(HEADS, [0.1, 0.2, 0.9, 0.0, 0.7, 0.8, 0.05, 0.3], strict=True))
PATTERNS = ("induction", "retrieval")
TOP = (KVHead(0, 2), KVHead(1, 1))
BY_METHOD = {
    method: {KVHead(layer, head): float((7 * layer + head) % 5) for layer in range(4) for head in range(16)}
    for method in methods(medium_study())
    if method in ("leave_one_windowed", "restore_one", "far_mass", *PATTERNS)
    or (method.startswith(("window_gates", "linear_gates")) and not method.endswith("_linear"))
}
MANY = replace(STUDY, n_heads=4, n_kept=2, kept_counts=(2, 3), n_random=5)


def made(seed=0, top=TOP):
    return keep_sets(MANY, seed, {"window_gates": SCORES, "induction": SCORES}, top)


def test_a_ranking_keeps_its_first_heads_and_least_induction_the_last_of_the_same_layers():
    first = ordered(SCORES)[:3]
    assert first == [KVHead(0, 2), KVHead(1, 1), KVHead(1, 0)]
    assert least(SCORES, 3) == (KVHead(0, 3), KVHead(1, 2), KVHead(1, 3))
    kept = {(s.method, s.n_kept): s.heads for s in made()}
    assert kept["induction", 3] == tuple(first)
    assert Counter(h.layer for h in kept["least_induction", 3]) == Counter(h.layer for h in first)


def test_random_sets_are_of_the_wanted_size_their_own_per_draw_and_seed_and_without_the_top_if_they_say_so():
    for method in ("random", "random_non_top"):
        drawn = {seed: [s.heads for s in made(seed) if s.method == method] for seed in (0, 1)}
        assert all(len(set(heads)) == len(heads) in (2, 3) for heads in drawn[0])
        assert len(drawn[0]) == 10
        assert drawn[0] != drawn[1]
        assert len(set(drawn[0])) > 5
        assert any(set(TOP) & set(heads) for heads in drawn[0]) == (method == "random")


def test_a_study_of_main_sets_trains_those_and_their_controls_and_says_what_it_leaves_out():
    study = medium_study()
    sets = trained_sets(study, keep_sets(study, 0, BY_METHOD, ()))
    first = {s.method for s in sets if is_trained(study, s, n_th=0)}
    by_gates = {"window_gates", "window_gates_mixed"}
    linear = {"none_linear", "linear_gates", "linear_gates_mixed", "window_gates_linear", "induction_linear"}
    assert {m for m in first if is_linear(m)} == {*linear, "random_linear"}
    windowed = {m for m in first if not is_linear(m)}
    assert windowed == {"all", "none", "none_sink", *by_gates, "induction", "least_induction", "random_non_top"}
    assert all((s.to == "linear") == is_linear(s.method) for s in sets)
    assert not any(is_trained(study, s, n_th=None) for s in sets)
    lines = format_trainings(study)
    assert lines[0].startswith(
        "64 heads, 1400 steps of 32 × 64 tokens; converted without training to the first 4, 8, 12"
    )
    assert lines[1] == f"{study.continued[0]}: " + ", ".join(m for m in methods(study) if m in first)
    assert lines[-2] == "from scratch: nothing"
    assert lines[-1].startswith("left out of all training: leave_one_windowed, restore_one, far_mass")
    assert format_trainings(quick_study())[-1] == "left out of all training: layers_even_linear, layers_odd_linear"
    assert format_trainings(replace(quick_study(), linear=None))[-1] == "left out of all training: nothing"


def test_the_methods_that_are_told_are_those_of_the_keep_sets():
    names = {s.method for s in keep_sets(medium_study(), 0, BY_METHOD, ())}
    assert names == set(methods(medium_study()))


def test_linear_sets_keep_the_same_heads_as_their_windowed_twins_and_linear_gates_their_own():
    reversed_scores = {head: -score for head, score in SCORES.items()}
    found = keep_sets(MANY, 0, {"window_gates": SCORES, "induction": SCORES, "linear_gates": reversed_scores}, TOP)
    twins = {(s.method, s.n_kept, s.draw): s.heads for s in found if s.to == "window"}
    linear = [s for s in found if s.to == "linear"]
    names = {"none", "layers_even", "layers_odd", "window_gates", "induction", "random"}
    assert {s.method for s in linear} == {"linear_gates", *(f"{name}_linear" for name in names)}
    for one in linear:
        if one.method == "linear_gates":
            assert one.heads == tuple(ordered(reversed_scores)[: one.n_kept])
        else:
            assert one.heads == twins[one.method.removesuffix("_linear"), one.n_kept, one.draw]
    assert not any(is_linear(s.method) for s in keep_sets(replace(MANY, linear=None), 0, BY_METHOD, ()))


def test_layers_interleave():
    kept = {s.method: {h.layer for h in s.heads} for s in made()}
    assert (kept["layers_even"], kept["layers_odd"]) == ({0}, {1})
    assert kept["none"] == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 32}, "window is 32; expected 1 to 31"),
        ({"n_kept": 2, "kept_counts": (2,)}, "n_kept is 2; expected 1 to 1"),
        ({"kept_counts": (2, 3)}, "expected 1 among them"),
        ({"distances": (24,)}, "expected 8 to 23, one of them beyond the window of 4"),
        ({"window": 8, "distances": (8,)}, "one of them beyond the window of 8"),
        ({"continued": ()}, "at least one"),
        ({"n_layers": 1}, "at least 2"),
        ({"early": (0.5, 1.0)}, r"early is \(0.5, 1.0\); expected shares above 0 and below 1"),
    ],
)
def test_a_study_that_does_not_fit_itself_is_refused(change, said):
    with pytest.raises(WorkbenchError, match=said):
        replace(STUDY, **change)


def test_continuing_is_at_a_share_of_the_peak_rates():
    first, then = STUDY.pretraining(0), STUDY.continuing(0, Continued(7, 0.5))
    assert (then.steps, then.lr_matrices, then.lr_rest) == (7, first.lr_matrices / 2, first.lr_rest / 2)
