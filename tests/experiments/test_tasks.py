"""Answers of chains and counts follow from what stands before the questions, and from nothing near them."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from workbench.experiments.conversion.study_tasks import chains, counts, drills
from workbench.heads import WorkbenchError
from workbench.pretrain.language import VOCABULARY, Language

NAMES = range(VOCABULARY, VOCABULARY + 12)
CLASSES = {5: range(VOCABULARY + 12, VOCABULARY + 18), 6: range(VOCABULARY + 18, VOCABULARY + 24)}
GAP = 16


def rng(seed=0):
    return np.random.default_rng(seed)


def followed(tokens, row):
    """What the question that ends at `row` leads to, by following the assignments before the questions."""
    links = {a: b for a, b in pairwise(tokens) if a in NAMES and b in NAMES}
    name = tokens[row]
    for _ in range(tokens[row - 1]):
        name = links[name]
    return name


@pytest.mark.parametrize("hops", [(1, 2), (1, 2, 3)])
def test_a_chain_leads_to_its_answer_by_as_many_assignments_as_its_class_says(hops):
    probe = chains(hops, length=64, gap=GAP, n_sequences=40, rng=rng())
    n_asked = len(probe.answer_rows) // 40
    for (i, row), steps, (_, _, cell) in zip(
        probe.answer_rows.tolist(), probe.classes.tolist(), probe.target_cells.tolist(), strict=True
    ):
        tokens = probe.tokens[i].tolist()
        before = tokens[: 64 - 3 * n_asked]
        assert tokens[row - 1] == steps
        assert followed([*before, *tokens[row - 1 : row + 1]], len(before) + 1) == tokens[row + 1]
        assert tokens[cell] == tokens[row + 1]
        assert cell < 64 - 3 * n_asked - GAP
    assert set(probe.classes.tolist()) == set(hops)


def test_every_chain_is_asked_once_so_that_no_question_answers_another():
    probe = chains((1, 2), length=64, gap=GAP, n_sequences=20, rng=rng())
    for tokens in probe.tokens.tolist():
        near = [t for t in tokens[-12:] if t in NAMES]
        assert len(set(near)) == len(near) == 8


def test_what_is_assigned_was_assigned_before():
    probe = chains((1, 2), length=64, gap=GAP, n_sequences=20, rng=rng())
    for tokens in probe.tokens.tolist():
        pairs = [(a, b) for a, b in pairwise(tokens[:36]) if a in NAMES and b in NAMES]
        assert len(pairs) == 8
        for i, (_, assigned) in enumerate(pairs):
            assert assigned not in [name for name, _ in pairs[i:]]


def test_drills_ask_every_chain_twice_at_every_number_of_hops():
    probe = drills((1, 2), length=64, n_sequences=10, rng=rng())
    assert Counter(probe.classes.tolist()) == {1: 10 * 3 * 2, 2: 10 * 3 * 2}


def test_the_counted_answer_is_the_most_frequent_of_its_class_by_the_lead_that_its_class_says():
    probe = counts(length=64, gap=GAP, n_sequences=30, rng=rng())
    cells = probe.target_cells.tolist()
    for (i, row), lead in zip(probe.answer_rows.tolist(), probe.classes.tolist(), strict=True):
        tokens = probe.tokens[i].tolist()
        often = Counter(t for t in tokens[: 60 - GAP] if t in CLASSES[tokens[row]])
        (first, n_first), (_, n_second), _ = often.most_common(3)
        assert (tokens[row + 1], lead) == (first, n_first - n_second)
        assert [cell for s, r, cell in cells if (s, r) == (i, row)] == [
            at for at, t in enumerate(tokens[: 60 - GAP]) if t == first
        ]
    assert set(probe.classes.tolist()) == {2, 4}


def test_the_gap_is_filler():
    for probe in (
        chains((1, 2), length=64, gap=GAP, n_sequences=5, rng=rng()),
        counts(length=64, gap=GAP, n_sequences=5, rng=rng()),
    ):
        first = int(probe.answer_rows[:, 1].min()) - (probe.name == "hops")
        assert np.isin(probe.tokens[:, first - GAP : first].numpy(), Language().words).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(WorkbenchError, match="3 hops with a gap of 16 do not fit 24 tokens"):
        chains((3,), length=24, gap=GAP, n_sequences=1, rng=rng())
    with pytest.raises(WorkbenchError, match="5 hops"):
        chains((5,), length=256, gap=GAP, n_sequences=1, rng=rng())
    with pytest.raises(WorkbenchError, match="length 32 leaves 11 tokens to count in"):
        counts(length=32, gap=GAP, n_sequences=1, rng=rng())
