"""Gemma 3's sliding layers see 512 tokens: the last of them counts and the one before it does not, to the token."""

import pytest
import torch

from tests.real.models import opened

pytestmark = pytest.mark.real


def test_the_window_ends_at_its_512th_token_as_in_eager_attention():
    pair = opened("gemma3-270m")
    sliding = next(layer for layer in pair.m.layers if layer.kind == "sliding")
    full = next(layer for layer in pair.m.layers if layer.kind == "full")
    assert sliding.window == 512
    tokens = torch.randint(10, 200_000, (1, 530), generator=torch.Generator().manual_seed(0))
    tokens[0, 0] = pair.m.tokenizer.bos_token_id
    attentions = pair.attentions(tokens)
    for head in range(sliding.n_heads):
        ours = pair.m.pattern(tokens[0], sliding.index, head, queries=slice(511, 530))
        for row, query in enumerate(range(511, 530)):
            edge = query - 511
            assert ours[row, edge] > 0
            assert ours[row, :edge].sum() == 0
            assert ours[row].sum() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(ours, attentions[sliding.index][0, head, 511:530], rtol=0, atol=1e-4)
    assert (pair.m.pattern(tokens[0], full.index, 0, queries=slice(529, 530))[0] > 0).all()
