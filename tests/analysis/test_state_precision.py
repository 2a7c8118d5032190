"""What a state of few bits loses, against the shares of MiniMax-Text-01's slopes and the growth of errors."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from workbench.analysis.state_precision import (
    horizon_share,
    lightning_slopes,
    lost_decay_table,
    lost_decays,
    rounded_decays,
    slopes_of_config,
    state_error_growth,
    state_precision_table,
)
from workbench.heads import WorkbenchError

# 80 layers of which every eighth is softmax.
MINIMAX = torch.cat([lightning_slopes(layer, 80, 64) for layer in range(80) if layer % 8 != 7])


@pytest.mark.parametrize(("n_layers", "n_heads"), [(80, 64), (6, 3), (2, 1)])
def test_slopes_are_those_of_transformers(n_layers, n_heads):
    own = MiniMaxLightningAttention.get_slope_rate
    for layer in range(n_layers):
        module = SimpleNamespace(num_attention_heads=n_heads, num_hidden_layers=n_layers, layer_idx=layer)
        expected = own(module).flatten().double()
        assert torch.allclose(lightning_slopes(layer, n_layers, n_heads), expected, rtol=1e-5, atol=0)


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


@pytest.mark.slow
def test_errors_after_four_thousand_tokens_are_those_measured_for_minimax_text_01():
    slopes = lightning_slopes(70, 80, 64)[[0, 31, 47, 63]]
    (errors,) = state_error_growth(slopes, "bf16", (4096,))
    for found, measured in zip(errors.tolist(), (2.7e-3, 7.5e-3, 0.17, 0.60), strict=True):
        assert measured / 2 < found < 2 * measured
    (errors,) = state_error_growth(slopes, "fp32", (4096,))
    assert errors.max() < 3.5e-7 * 2


MINIMAX_CONFIG = {
    "model_type": "minimax_text_01",
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
}


def test_a_configuration_alone_tells_the_slopes_of_minimax_text_01(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MINIMAX_CONFIG))
    slopes = slopes_of_config(tmp_path)
    assert torch.equal(torch.cat(list(slopes.values())), MINIMAX)
    lost = lost_decay_table(slopes).set_index("precision")
    assert lost.loc["bf16", "never_forgets"] == pytest.approx(0.0906, abs=2e-4)
    assert lost.loc["fp32"].tolist() == [0, 0, 0]
    assert slopes_of_config(tmp_path / "config.json").keys() == slopes.keys()


def test_the_table_of_errors_has_every_head_of_four_spread_layers_of_a_large_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MINIMAX_CONFIG))
    table = state_precision_table(slopes_of_config(tmp_path), tokens=64, precisions=("fp32", "bf16"))
    assert sorted(table.layer.unique()) == [0, 26, 52, 78]
    assert sorted(table.tokens.unique()) == [1, 4, 16, 64]
    assert len(table) == 4 * 64 * 2 * 4
    worst = table[table.tokens == 64].groupby("precision").error.max()
    assert worst["fp32"] < 1e-6 < worst["bf16"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3_next"}, "is a qwen3_next model, whose decay"),
        ({**MINIMAX_CONFIG, "attn_type_list": [1] * 80}, "80 softmax layers; expected a lightning layer"),
    ],
)
def test_models_without_a_decay_known_in_advance_are_refused(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match=message):
        slopes_of_config(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match=r"has no config\.json"):
        slopes_of_config(tmp_path)
