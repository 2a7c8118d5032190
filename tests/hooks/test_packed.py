"""Packed documents score as they do alone, in every family; what cannot be packed is refused."""

import pytest
import torch

from tests.families import SOFTMAX, random_tokens, tiny
from tests.linear_families import CONFIGS as LINEAR_CONFIGS
from tests.linear_families import tiny as tiny_linear
from tests.more_families import MORE_CONFIGS, WITH_CONVOLUTIONS
from workbench import KVHead, WorkbenchError, open_model, score
from workbench.kernels import Far

NEEDS = ("entropy", "induction", "mean_distance", "sink_mass", "previous_token", "duplicate_token", "far_mass")
# Two rows of documents; the second row has padding on both sides.
DOCUMENTS = torch.tensor([[1] * 13 + [2] * 21 + [3] * 3, [0] * 4 + [7] * 17 + [8] * 10 + [0] * 6])
TOKENS = random_tokens(2, 37)


def documents():
    """Every document as (row, first, last + 1) in order."""
    return [(0, 0, 13), (0, 13, 34), (0, 34, 37), (1, 4, 21), (1, 21, 31)]


@pytest.mark.parametrize("family", [*SOFTMAX, *(f for f in MORE_CONFIGS if f not in WITH_CONVOLUTIONS)])
def test_packed_documents_score_as_they_do_alone(family):
    m = open_model(tiny(family))
    packed = m.record(TOKENS, {*NEEDS, "lse_per_row"}, DOCUMENTS, far=Far(5))
    for d, (row, start, stop) in enumerate(documents()):
        alone = m.record(TOKENS[row, start:stop], {*NEEDS, "lse_per_row"}, far=Far(5))
        for need in NEEDS:
            assert torch.equal(packed[need].rows[d], alone[need].rows[0]), (need, d)
            error = (packed[need].total[d] - alone[need].total[0]).abs()
            assert bool((error <= 1e-4 * packed[need].total[d].abs().clamp_min(1)).all()), (need, d)
        lse = packed.per_row["lse_per_row"][row, :, :, start:stop]
        assert torch.allclose(lse, alone.per_row["lse_per_row"][0], atol=1e-4)


def test_the_score_of_packed_documents_is_that_of_the_padded_batch():
    m = open_model(tiny("cwm"))
    longest = max(stop - start for _, start, stop in documents())
    padded = torch.zeros(5, longest, dtype=torch.long)
    mask = torch.zeros(5, longest, dtype=torch.long)
    for d, (row, start, stop) in enumerate(documents()):
        padded[d, : stop - start] = TOKENS[row, start:stop]
        mask[d, : stop - start] = 1
    packed = score(m, tokens=TOKENS, attention_mask=DOCUMENTS, far=Far(5))
    apart = score(m, tokens=padded, attention_mask=mask, far=Far(5))
    assert packed.n_seq.equals(apart.n_seq)
    assert packed.n.equals(apart.n)
    assert (packed.score - apart.score).abs().max() < 1e-4
    assert (packed.ci_hi - apart.ci_hi).abs().max() < 1e-4


def test_a_value_drain_of_packed_documents_is_not_known():
    table = score(open_model(tiny("llama")), ["value_drain"], TOKENS, DOCUMENTS)
    assert len(table) == 8
    assert table.score.isna().all()
    assert table.n.eq(0).all()


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "llama4"])
def test_a_restricted_heads_sinks_are_each_documents_own(family):
    m = open_model(tiny(family))
    with m.restrict([KVHead(1, 0)], window=4, sink=2):
        packed = m.record(TOKENS, NEEDS, DOCUMENTS, far=Far(5))
        for d, (row, start, stop) in enumerate(documents()):
            alone = m.record(TOKENS[row, start:stop], NEEDS, far=Far(5))
            for need in NEEDS:
                assert torch.allclose(packed[need].total[d], alone[need].total[0], atol=1e-4), (need, d)


def test_what_cannot_be_packed_is_refused():
    softmax, linear = open_model(tiny("llama")), open_model(tiny_linear(next(iter(LINEAR_CONFIGS))))
    with pytest.raises(WorkbenchError, match="packed documents need a model of softmax layers alone"):
        linear.record(TOKENS, {"entropy"}, DOCUMENTS)
    with pytest.raises(WorkbenchError, match="InklingForCausalLM has short convolutions over neighbouring tokens"):
        open_model(tiny("inkling")).record(TOKENS, {"entropy"}, DOCUMENTS)
    with pytest.raises(WorkbenchError, match="BloomForCausalLM cannot be told where packed documents begin"):
        open_model(tiny("bloom")).record(TOKENS, {"entropy"}, DOCUMENTS)
    with pytest.raises(WorkbenchError, match=r"far.sink is 3; with packed documents expected 0"):
        softmax.record(TOKENS, {"far_mass"}, DOCUMENTS, far=Far(5, 3))
    with pytest.raises(WorkbenchError, match="cannot be run piece by piece"):
        softmax.record(TOKENS, {"entropy"}, DOCUMENTS, prefill=8)
