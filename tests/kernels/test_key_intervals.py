"""Masks as two integers per row: which keys each kind of attention sees, and what is refused."""

import pytest
import torch

from workbench.heads import WorkbenchError
from workbench.kernels.key_intervals import documents_of, intervals
from workbench.kernels.softmax.blockwise import blockwise_profile
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Request


def dense(n_queries, n_keys, **options):
    return intervals(n_queries, n_keys, **options).visible(n_keys)[0]


def test_a_prefix_is_seen_by_every_row():
    assert torch.equal(dense(3, 8), torch.ones(3, 8).tril(5).bool())


def test_a_window_keeps_the_last_keys_own_position_included():
    assert dense(6, 6, window=2).sum(-1).tolist() == [1, 2, 2, 2, 2, 2]


def test_packed_documents_do_not_see_one_another():
    seen = dense(7, 7, cu_seqlens=torch.tensor([0, 3, 3, 7]))
    block = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).tril().bool()
    assert torch.equal(seen, block)
    assert torch.equal(dense(7, 7, documents=torch.tensor([[5, 5, 5, 2, 2, 2, 2]])), block)


def test_ends_never_fall_from_row_to_row():
    documents = (torch.rand(3, 40) < 0.2).cumsum(-1)
    seen = intervals(25, 40, documents=documents, window=6)
    assert (seen.low.diff(dim=-1) >= 0).all()
    assert (seen.high.diff(dim=-1) >= 0).all()


def test_a_document_that_comes_back_is_refused():
    with pytest.raises(WorkbenchError, match="keys are not consecutive"):
        intervals(3, 3, documents=torch.tensor([[1, 2, 1]]))


def test_more_queries_than_keys_are_refused():
    with pytest.raises(WorkbenchError, match="5 queries over 4 keys"):
        intervals(5, 4)


def test_bounds_that_do_not_cover_are_refused():
    with pytest.raises(WorkbenchError, match=r"cu_seqlens \[0, 2\] do not cut 3 tokens"):
        documents_of(torch.tensor([0, 2]), 3)


def test_a_key_that_is_no_number_is_seen_by_its_own_rows_alone():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 300, 32), torch.randn(1, 2, 300, 32)
    k[:, :, 290] = torch.nan
    layer = SoftmaxLayer(q, k, intervals(300, 300, device="cpu"), scale=0.2)
    lse = blockwise_profile(layer, None, Request(entropy=True)).lse
    assert lse[..., :290].isfinite().all()
    assert lse[..., 290:].isnan().all()
