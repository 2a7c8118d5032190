"""Prefilling through the cache piece by piece changes no number, and is refused where transformers would be wrong."""

import pytest
import torch

from tests.families import SOFTMAX, random_tokens, tiny
from tests.linear_families import CONFIGS as LINEAR_CONFIGS
from tests.linear_families import tiny as tiny_linear
from tests.more_families import MORE_CONFIGS, WITH_CONVOLUTIONS
from tests.older_families import OLDER_CONFIGS
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks.recording.needs import NEEDS
from workbench.kernels import Far

THROUGH_A_CACHE = [f for f in (*SOFTMAX, *MORE_CONFIGS, *OLDER_CONFIGS) if f not in ("openai_gpt", *WITH_CONVOLUTIONS)]


@pytest.mark.parametrize(
    ("family", "prefill"),
    [
        *((family, 7) for family in THROUGH_A_CACHE),
        *((family, n) for family in ("llama", "cwm", "gpt_oss", "gemma2") for n in (1, 16, 48)),
    ],
)
def test_pieces_give_the_numbers_of_one_pass(family, prefill):
    m = open_model(tiny(family))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    whole = m.record(probe, NEEDS, far=Far(5))
    pieces = m.record(probe, NEEDS, far=Far(5), prefill=prefill)
    for need, expected in whole.sums.items():
        assert torch.equal(pieces[need].rows, expected.rows), need
        assert torch.allclose(pieces[need].total, expected.total, atol=2e-4, rtol=1e-5, equal_nan=True), need
    for need, expected in whole.per_row.items():
        if family == "mpt" and need == "lse_per_row":
            continue  # its bias counts from the last key of a pass, which adds a constant to all scores of a row
        error = (pieces.per_row[need] - expected).abs() / expected.abs().clamp_min(1)
        assert torch.equal(error.isnan(), expected.isnan())
        assert bool((error.nan_to_num(0) <= 4e-5).all()), need
    assert torch.allclose(pieces.answers.loss_nats, whole.answers.loss_nats, atol=1e-4)
    assert torch.equal(pieces.answers.is_right, whole.answers.is_right)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
def test_padding_and_sampled_rows_go_through_pieces(family):
    m = open_model(tiny(family))
    tokens = random_tokens(3, 41)
    mask = (torch.arange(41) >= torch.tensor([0, 7, 23])[:, None]).long()
    for rows in ("all", 9):
        whole = m.record(tokens, {"entropy", "sink_mass", "far_mass"}, mask, rows, far=Far(5))
        pieces = m.record(tokens, {"entropy", "sink_mass", "far_mass"}, mask, rows, far=Far(5), prefill=6)
        for need, expected in whole.sums.items():
            assert torch.equal(pieces[need].rows, expected.rows)
            assert torch.allclose(pieces[need].total, expected.total, atol=1e-4)
            if rows == 9:
                assert torch.allclose(pieces[need].row_error, expected.row_error, atol=1e-4, equal_nan=True)


def test_interventions_hold_in_every_piece():
    m = open_model(tiny("cwm"))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    source = random_tokens(2, 48, seed=3)
    with m.restrict([KVHead(0, 0)], 5, 2), m.ablate([Head(1, 0)]), m.patch([Head(1, 2)], source):
        whole = m.record(probe, {"entropy", "answer_mass"})
        pieces = m.record(probe, {"entropy", "answer_mass"}, prefill=11)
    for need, expected in whole.sums.items():
        assert torch.allclose(pieces[need].total, expected.total, atol=1e-4)
    assert torch.allclose(pieces.answers.loss_nats, whole.answers.loss_nats, atol=1e-4)


def test_a_score_is_the_same_piece_by_piece():
    m = open_model(tiny("gemma2"))
    whole, pieces = score(m, seed=3), score(m, seed=3, prefill=20)
    assert (whole.score - pieces.score).abs().max() < 1e-5
    assert whole.n.equals(pieces.n)


@pytest.mark.parametrize("family", list(LINEAR_CONFIGS))
def test_layers_that_transformers_continues_wrongly_are_refused(family):
    with pytest.raises(WorkbenchError, match="pieces through a cache need a model of softmax layers alone; layer 0"):
        open_model(tiny_linear(family)).record(random_tokens(1, 20), {"entropy"}, prefill=8)


@pytest.mark.parametrize("family", WITH_CONVOLUTIONS)
def test_short_convolutions_are_not_run_piece_by_piece(family):
    with pytest.raises(WorkbenchError, match="has short convolutions over neighbouring tokens beside them: leave"):
        open_model(tiny(family)).record(random_tokens(1, 20), {"entropy"}, prefill=8)


def test_a_family_without_a_cache_is_refused():
    with pytest.raises(WorkbenchError, match="kept 0 of 8 tokens in its cache; leave prefill= out"):
        open_model(tiny("openai_gpt")).record(random_tokens(1, 20), {"entropy"}, prefill=8)


def test_impossible_pieces_are_refused():
    m = open_model(tiny("llama"))
    with pytest.raises(WorkbenchError, match="prefill is 0; expected at least 1 token"):
        m.record(random_tokens(1, 20), {"entropy"}, prefill=0)
    with m.ablate([Head(0, 0)], "mean"), pytest.raises(WorkbenchError, match="not known piece by piece"):
        m.record(random_tokens(1, 20), {"entropy"}, prefill=8)
