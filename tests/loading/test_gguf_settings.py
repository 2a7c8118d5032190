"""A setting of a GGUF file that transformers does not pass on is refused by name: the model would be another."""

import pytest

from tests.gguf_files import write_llama
from workbench.heads import BadCheckpoint
from workbench.loading.pretrained import load_config


def config(path, architecture="llama", **settings):
    named = {f"{architecture}.{name.replace('__', '.')}": value for name, value in settings.items()}
    return load_config(write_llama(path / "model.gguf", architecture=architecture, settings=named))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}, r"rope\.scaling\.factor is 8\.0 .*'default'"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, r"rope\.scaling\.type is 'yarn'"),
        ({"rope__scale_linear": 4.0}, r"llama\.rope\.scale_linear is 4\.0"),
        ({"attention__sliding_window": 128}, r"llama\.attention\.sliding_window is 128 in the file, and None for"),
        ({"attention__key_length": 128}, r"llama\.attention\.key_length is 128 in the file, and 64"),
        ({"final_logit_softcapping": 30.0}, r"llama\.final_logit_softcapping is 30\.0"),
        ({"logit_scale": 0.0625}, r"llama\.logit_scale is 0\.0625 in the file, and unknown"),
        ({"attention__scale": 0.5}, r"llama\.attention\.scale is 0\.5"),
        ({"attention__causal": False}, r"llama\.attention\.causal is False"),
        ({"some_new_setting": 3}, r"llama\.some_new_setting is 3 in the file, and unknown for transformers"),
    ],
)
def test_a_setting_that_is_not_passed_on_is_refused_with_both_values(tmp_path, settings, message):
    with pytest.raises(BadCheckpoint, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope__scaling__type": "none"},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 1.0},
        {"attention__sliding_window": 0},
        {"attention__key_length": 64, "attention__value_length": 64},
        {"logit_scale": 1.0},
        {"attention__scale": 0.125},
        {"attention__causal": True},
        {"rope__freq_base": 500000.0},
        {"tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_a_setting_that_agrees_or_has_no_effect_is_accepted(tmp_path, settings):
    assert config(tmp_path, **settings).num_hidden_layers == 2


def test_a_rotary_base_of_starcoder2_that_transformers_leaves_out_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"starcoder2\.rope\.freq_base is 999999\.0 in the file, and 10000"):
        config(
            tmp_path, "starcoder2", rope__freq_base=999999.0, attention__layer_norm_rms_epsilon=None,
            attention__layer_norm_epsilon=1e-5,
        )  # fmt: skip


def test_a_window_of_phi3_that_transformers_leaves_out_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"phi3\.attention\.sliding_window is 2047 in the file, and None"):
        config(tmp_path, "phi3", attention__sliding_window=2047)


def test_gemma_of_a_size_whose_queries_are_scaled_in_code_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="queries of this size are scaled by a factor that the file does not name"):
        config(tmp_path, "gemma3", block_count=62, attention__key_length=256)
    with pytest.raises(BadCheckpoint, match="queries are scaled for 256 dimensions, and heads have 64"):
        config(tmp_path, "gemma3", attention__key_length=64)
