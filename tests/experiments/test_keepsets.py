"""What is kept full: the sets are those that their names say."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.experiments.small import STUDY
from workbench.experiments import Continued
from workbench.experiments.keepsets import keep_sets, least, ordered
from workbench.heads import KVHead, WorkbenchError

HEADS = [KVHead(layer, head) for layer in range(2) for head in range(4)]
SCORES = dict(zip(HEADS, [0.1, 0.2, 0.9, 0.0, 0.7, 0.8, 0.05, 0.3], strict=True))
TOP = (KVHead(0, 2), KVHead(1, 1))
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
    ],
)
def test_a_study_that_does_not_fit_itself_is_refused(change, said):
    with pytest.raises(WorkbenchError, match=said):
        replace(STUDY, **change)


def test_continuing_is_at_a_share_of_the_peak_rates():
    first, then = STUDY.pretraining(0), STUDY.continuing(0, Continued(7, 0.5))
    assert (then.steps, then.lr_matrices, then.lr_rest) == (7, first.lr_matrices / 2, first.lr_rest / 2)
