"""What is trained on: reproducible by seed, other text per stream, and of tasks only the answers."""

from dataclasses import replace

import pytest
import torch

from tests.experiments.small import STUDY
from workbench.experiments.conversion.study_data import batches, probes
from workbench.experiments.conversion.training_runs import weighted_loss
from workbench.pretrain.training import next_token_loss

WITH_TASKS = replace(STUDY, tasks=("hops", "counting"))


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
