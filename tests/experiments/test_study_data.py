"""Training data and probes: reproducible by seed, and answers that follow from what stands before the questions."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.experiments.small import STUDY
from workbench.experiments.conversion.study_data import batches, chains, counts, drills, probes
from workbench.experiments.conversion.training_runs import weighted_loss
from workbench.heads import WorkbenchError
from workbench.pretrain.synthetic_language import VOCABULARY, Language
from workbench.pretrain.training import next_token_loss

WITH_TASKS = replace(STUDY, tasks=("hops", "counting"))
NAMES = range(VOCABULARY, VOCABULARY + 12)
CLASSES = {5: range(VOCABULARY + 12, VOCABULARY + 18), 6: range(VOCABULARY + 18, VOCABULARY + 24)}
GAP = 16


@pytest.mark.parametrize("study", [STUDY, WITH_TASKS])
def test_batches_are_the_same_for_a_seed_and_others_for_other_seeds_and_streams(study):
    def all_of(seed, stream):
        return torch.stack([b.tokens for b in batches(study, study.pretraining(seed), stream=stream)])

    assert all_of(0, 0).shape == (study.steps, study.batch, study.length)
    assert torch.equal(all_of(0, 0), all_of(0, 0))
    assert not torch.equal(all_of(0, 0), all_of(0, 1))
    assert not torch.equal(all_of(0, 0), all_of(1, 0))


def test_of_task_sequences_only_the_answers_count_and_together_as_much_as_a_document():
    batch = next(batches(WITH_TASKS, WITH_TASKS.pretraining(0), stream=0))
    documents, tasks = batch.weight[:3], batch.weight[3:]
    assert documents.eq(1).all()
    assert tasks.gt(0).sum(1).tolist() == [1, 6, 2]  # one chain asked once, drilled twice at three numbers of hops
    torch.testing.assert_close(tasks.sum(1), torch.full((3,), float(STUDY.length)))


def test_tasks_have_as_many_sequences_as_are_asked_for_and_begin_after_the_documents():
    study = replace(WITH_TASKS, batch=12, n_task=2, hops=(1, 2), documents_first=1)
    alone, mixed, _ = batches(study, study.pretraining(0), stream=0)
    assert alone.tokens.shape == mixed.tokens.shape == (12, STUDY.length)
    assert alone.weight.eq(1).all()
    assert mixed.weight.eq(1).all(1).sum() == 6
    continued = next(batches(study, study.continuing(0, study.continued[0]), stream=1))
    assert continued.weight.eq(1).all(1).sum() == 6, "continued pretraining begins with tasks"
    assert set(probes(study).tasks[0].classes.tolist()) == {1, 2}
    assert torch.unique(mixed.tokens, dim=0).shape == mixed.tokens.shape


def test_no_probe_is_trained_on():
    trained = {
        tuple(row) for b in batches(WITH_TASKS, WITH_TASKS.pretraining(0), stream=0) for row in b.tokens.tolist()
    }
    asked = probes(WITH_TASKS)
    for probe in (asked.ranking, asked.needles, asked.documents, *asked.tasks):
        assert not trained & {tuple(row) for row in probe.tokens.tolist()}
    assert not {tuple(row) for row in asked.ranking.tokens.tolist()} & {
        tuple(row) for row in asked.needles.tokens.tolist()
    }


def test_without_tasks_the_loss_is_that_of_every_token():
    batch = next(batches(STUDY, STUDY.pretraining(0), stream=0))
    logits = torch.randn(*batch.tokens.shape, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighted_loss(logits, batch), next_token_loss(logits, batch.tokens))


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
