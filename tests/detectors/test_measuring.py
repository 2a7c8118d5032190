"""Probes of tasks as a model is measured on them, and as the store keeps the numbers."""

import pandas as pd
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.series import write_series
from workbench import WorkbenchError, open_model, probes, scan, score
from workbench.detectors.measuring import measure
from workbench.detectors.registry import find_detectors
from workbench.hooks.model import DEFAULT_FAR
from workbench.kernels import Far
from workbench.probes.draft import Draft, assemble


def numbers(model, probe):
    measured = measure(model, probe, find_detectors(["retrieval", "retrieval_top1"]), far=DEFAULT_FAR)
    return {(m.metric, m.distance, m.position): m for m in measured.metrics}, measured.rows


@pytest.fixture(scope="module")
def model():
    return open_model(tiny("llama"))


def test_a_class_without_a_column_stands_in_the_metrics_name(model):
    probe = probes.variable_tracking(model, hops=[1, 3], n_chains=2, length=90, n_sequences=8, form="tokens")
    metrics, _ = numbers(model, probe)
    assert {name for name, *_ in metrics} == {
        f"{metric}{of}" for metric in ("recall", "loss_nats") for of in ("", "_hops_1", "_hops_3")
    }
    assert all(distance is None and position is None for _, distance, position in metrics)
    with torch.no_grad():
        logits = model.model(probe.tokens).logits[:, -2].log_softmax(-1)
    loss = -logits.gather(1, probe.tokens[:, -1:])[:, 0]
    for hops in (1, 3):
        of_class = metrics[f"loss_nats_hops_{hops}", None, None]
        assert of_class.value == pytest.approx(float(loss[probe.classes == hops].mean()), rel=1e-4)
        assert of_class.n == 8


def test_distances_keep_their_column(model):
    metrics, _ = numbers(model, probes.mqar(model, n_pairs=4, length=40))
    assert {name for name, *_ in metrics} == {"recall", "loss_nats"}
    assert {distance for _, distance, _ in metrics} > {None, 4, 8}


def test_retrieval_is_the_attention_on_all_places_that_hold_the_answer(model):
    probe = probes.majority(model, length=80, gap=8, n_candidates=3, n_sequences=3)
    _, rows = numbers(model, probe)
    for row in rows["retrieval"]:
        expected = []
        for i in range(3):
            pattern = model.pattern(probe.tokens[i], row.layer, row.head)
            cells = probe.target_cells[probe.target_cells[:, 0] == i]
            assert len(cells) > 1
            expected.append(float(pattern[cells[:, 1], cells[:, 2]].sum()))
        assert row.score == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_shorter_sequences_are_measured_as_if_alone(model):
    drafts = []
    for n in (20, 14):
        draft = Draft(bos=1)
        tokens = random_tokens(1, n)[0].numpy()
        draft.add(tokens)
        draft.answer(tokens[3:5], [4], label=n)
        drafts.append(draft)
    both, _ = numbers(model, assemble("both", drafts, class_name="length"))
    for n, draft in zip((20, 14), drafts, strict=True):
        alone, _ = numbers(model, assemble("alone", [draft], class_name="length"))
        name = (f"loss_nats_length_{n}", None, None)
        assert both[name].value == pytest.approx(alone[name].value, rel=1e-4)


def test_a_scan_stores_hops_and_depths_under_their_names(tmp_path):
    written = ["variable_tracking:hops=1+2,n_chains=2,length=64", "passkey:length=64,depth=0+50"]
    run = scan(write_series(tmp_path / "series"), tmp_path / "run", ["retrieval"], written)
    assert run.metrics(metric="recall_hops_2").value.between(0, 1).all()
    assert run.metrics(metric="loss_nats_depth_50").probe.unique().tolist() == ["passkey"]
    assert set(run.scores().probe) == {"variable_tracking", "passkey"}


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_a_seed_that_the_bootstrap_cannot_take_is_refused_before_anything_runs(model, seed):
    with pytest.raises(WorkbenchError, match="expected a whole number from 0"):
        score(model, "sink", seed=seed)


@pytest.mark.parametrize("sizes", [(0, 0), (4, -1), (True, 0)])
def test_a_far_window_that_is_no_number_of_tokens_is_refused(sizes):
    with pytest.raises(WorkbenchError, match="a window of at least 1 token and a sink of at least 0"):
        Far(*sizes)


def test_a_far_window_may_be_a_number_of_tokens(model):
    given = [score(model, "far_mass", probes="repeats:n=8,n_sequences=2", far=far) for far in (4, Far(4))]
    pd.testing.assert_frame_equal(*given)
    for bad in (True, 0):
        with pytest.raises(WorkbenchError, match=r"expected wb\.Far|a window of at least 1 token"):
            score(model, "far_mass", probes="repeats:n=8,n_sequences=2", far=bad)
