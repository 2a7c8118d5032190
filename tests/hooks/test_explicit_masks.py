"""Attention of rows under a mask that is written out, against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from workbench.hooks.taps.explicit_masks import Scores, rows_output


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_rows_are_those_of_the_definition_and_a_row_that_sees_nothing_is_zero(softcap, has_sinks, has_mask):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, t, 8, generator=generator) for h, t in ((6, 5), (2, 9), (2, 9)))
    sinks = torch.randn(6, generator=generator) if has_sinks else None
    visible = torch.rand(2, 5, 9, generator=generator) > 0.4 if has_mask else torch.ones(2, 5, 9, dtype=torch.bool)
    if has_mask:
        visible[1, 2] = False
    out = rows_output(q, k, v, visible if has_mask else None, Scores(0.3, softcap, sinks))
    for b in range(2):
        for h in range(6):
            scores = 0.3 * q[b, h].double() @ k[b, h // 3].double().T
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            weights = scores.exp() * visible[b]
            total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks[h].double().exp())
            expected = torch.where(total > 0, weights / total, 0) @ v[b, h // 3].double()
            torch.testing.assert_close(out[b, :, h].double(), expected, atol=1e-6, rtol=1e-5)
