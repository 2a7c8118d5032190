"""What a state of few bits loses, against the shares of MiniMax-Text-01's slopes and the growth of errors."""

import pytest
import torch

from workbench.heads import WorkbenchError
from workbench.kernels.state_precision import (
    horizon_share,
    lightning_slopes,
    lost_decays,
    rounded_decays,
    state_error_growth,
)

# 80 layers of which every eighth is softmax.
MINIMAX = torch.cat([lightning_slopes(layer, 80, 64) for layer in range(80) if layer % 8 != 7])


def test_slopes_are_those_of_the_released_model():
    assert len(MINIMAX) == 70 * 64
    assert float(MINIMAX.min()) == pytest.approx(4.9e-5, rel=0.02)
    assert float(MINIMAX.max()) == pytest.approx(0.917, rel=1e-3)
    assert float(MINIMAX.median()) == pytest.approx(0.0226, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "surely", "at_most"),
    [("e4m3", 0.55, 0.67), ("bf16", 0.09, 0.18), ("fp16", 0.009, 0.020), ("fp32", 0.0, 0.0)],
)
def test_shares_of_lost_decays_are_those_of_minimax_text_01(precision, surely, at_most):
    found = lost_decays(MINIMAX, precision)
    assert found == (pytest.approx(surely, abs=0.006), pytest.approx(at_most, abs=0.006))


def test_a_ninth_of_the_heads_never_forgets_in_bfloat16():
    assert rounded_decays(MINIMAX, "bf16") == pytest.approx(0.0906, abs=2e-4)
    assert rounded_decays(MINIMAX, "fp32") == 0


@pytest.mark.parametrize(("window", "share"), [(128, 0.58), (512, 0.33), (4096, 0.051), (32768, 0.004)])
def test_horizons_of_the_decay_alone(window, share):
    assert horizon_share(MINIMAX, window) == pytest.approx(share, abs=0.01)


def test_errors_of_a_slow_head_grow_with_length_in_bfloat16_and_not_in_float32():
    slopes = lightning_slopes(70, 80, 64)[[0, 47]]
    narrow = state_error_growth(slopes, "bf16", (256, 2048))
    wide = state_error_growth(slopes, "fp32", (256, 2048))
    assert narrow[1, 1] > 3 * narrow[0, 1]
    assert narrow[1, 0] < 2e-2
    assert wide.max() < 1e-6


def test_rounding_once_per_chunk_forgives_bfloat16():
    slopes = lightning_slopes(70, 80, 64)[[0, 31, 47, 63]]
    errors = state_error_growth(slopes, "bf16", (1024, 16384), every=256)
    assert errors.max() < 4e-3
    assert errors[1].max() < 2 * errors[0].max()


def test_eight_bit_states_are_worse_than_sixteen():
    slopes = lightning_slopes(0, 80, 64)[[0, 31]]
    errors = [float(state_error_growth(slopes, p, (512,)).max()) for p in ("fp32", "fp16", "bf16", "e4m3", "e5m2")]
    assert errors == sorted(errors)


def test_lengths_that_no_rounding_meets_are_refused():
    with pytest.raises(WorkbenchError, match="rising multiples of every=256"):
        state_error_growth(torch.tensor([0.1]), "bf16", (100,), every=256)
