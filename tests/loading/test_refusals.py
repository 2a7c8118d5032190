"""What cannot be recorded is refused in words: what it is, what was expected, what to do; in a scan too."""

import json
import shutil

import pytest
import torch
import transformers as tf

from tests import causal_types
from tests.families import random_tokens, tiny
from workbench import WorkbenchError, open_model, open_run
from workbench.cli.main import main
from workbench.heads import BadCheckpoint

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_STATE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 2, "bos_token_id": 1}

ENCODER = r"is an encoder \(model type 'bert'.*tokens see later ones.*Leave this model out"
ENCODER_DECODER = r"is an encoder-decoder \(model type '{}'\).*expected a decoder-only.*Leave this model out"
UNRECORDED = r"no attention call reached the recorder from layer 0 \({}\), layer 1 .*Expected.*Leave this model out"

MODELS = {
    "BertModel": (lambda: tf.BertModel(tf.BertConfig(**SMALL)), ENCODER),
    "BertForMaskedLM": (lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL)), ENCODER),
    "T5": (lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)), ENCODER_DECODER.format("t5")),
    "BART": (
        lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(
                vocab_size=97,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
            )
        ),
        ENCODER_DECODER.format("bart"),
    ),
    "XLNet": (
        lambda: tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48)),
        "XLNetLayer of layer 0 makes attention probabilities that are not multiplied",
    ),
    "ViT": (
        lambda: tf.ViTModel(
            tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
        ),
        r"\(model type 'vit'\) has no vocabulary of tokens; expected a decoder-only",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_memory_is_refused_by_name(name):
    build, told = MODELS[name]
    model = build()
    with pytest.raises(WorkbenchError, match=f"{type(model).__name__}.*{told}" if name != "XLNet" else told):
        open_model(model)


@pytest.mark.parametrize("name", MODELS)
def test_its_directory_is_refused_too(name, tmp_path):
    build, told = MODELS[name]
    build().save_pretrained(tmp_path / "step1")
    with pytest.raises(WorkbenchError, match=told):
        open_model(tmp_path / "step1")


def test_a_state_space_model_without_attention_is_recorded_as_linear_layers():
    config = tf.Mamba2Config(**_STATE, num_heads=4, head_dim=16, state_size=8, n_groups=1)
    m = open_model(tf.Mamba2ForCausalLM(config).eval())
    assert [(info.kind, info.mixer) for info in m.layers] == [("linear", "ssm")] * 2
    assert m.record(random_tokens(1, 12), {"entropy"})["entropy"].total.isfinite().all()


def test_a_decoder_of_an_encoder_family_is_opened():
    m = open_model(tf.BertLMHeadModel(tf.BertConfig(**SMALL, is_decoder=True)).eval())
    assert [info.kind for info in m.layers] == ["full", "full"]


def test_what_is_no_language_model_is_refused():
    with pytest.raises(WorkbenchError, match="cannot record a Sequential; expected a transformers PreTrainedModel"):
        open_model(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    with pytest.raises(WorkbenchError, match=r"LlamaModel gives no logits; expected .* with its head"):
        open_model(tiny("llama").model)
    text = {**SMALL, "max_position_embeddings": 32}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    clip = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision))
    with pytest.raises(WorkbenchError, match=r"CLIPModel does not run on token ids alone: .* Expected a causal"):
        open_model(clip)


# Directories whose config.json says something else than a llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "step0"
    tiny("llama").save_pretrained(path)
    return path


CODE = {
    "AutoConfig": "configuration_my.MyConfig",
    "AutoModelForCausalLM": "modeling_my.MyModel",
    "AutoTokenizer": ["a.B", None],
}
EDITS = {
    "an unknown family": ({"model_type": "super_llm"}, r"'super_llm' is unknown to transformers 5\.\S+; upgrade"),
    "a family's own code": (
        {"model_type": "mine", "auto_map": CODE},
        r"'mine' needs code of its own \(configuration_my.py, modeling_my.py\), which is never run.*pass it to",
    ),
    "a list for a family": ({"model_type": ["llama"]}, "names no model_type; expected one that transformers knows"),
    "no family": ({"model_type": None}, "names no model_type; expected one that transformers knows"),
    "an encoder": ({"model_type": "bert"}, ENCODER),
    "an encoder-decoder": ({"model_type": "t5"}, ENCODER_DECODER.format("t5")),
    "a family without a language model": (
        {"model_type": "clip"},
        "'clip' has no causal language model in transformers",
    ),
}


def edited(llama, to, edit):
    shutil.copytree(llama, to)
    config = json.loads((to / "config.json").read_text()) | edit
    (to / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return to


@pytest.mark.parametrize("what", EDITS)
def test_a_directory_is_refused_with_the_reason_and_the_next_step(llama, tmp_path, what):
    edit, told = EDITS[what]
    with pytest.raises(BadCheckpoint, match=r"config\.json: .*" + told):
        open_model(edited(llama, tmp_path / "step1", edit))


@pytest.mark.parametrize("what", EDITS)
def test_a_scan_of_such_a_directory_stores_the_reason(llama, tmp_path, what, monkeypatch, capsys):
    edit, _ = EDITS[what]
    edited(llama, tmp_path / "series" / "step1", edit)
    out = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["workbench", "scan", str(tmp_path / "series"), "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (failure,) = open_run(out).failures().to_dict("records")
    assert "config.json: " in failure["message"]
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_scan_scores_the_checkpoints_of_an_older_family(tmp_path, monkeypatch, capsys):
    tiny("gptj").save_pretrained(tmp_path / "series" / "step1")
    causal_types.tiny("hrm_text").save_pretrained(tmp_path / "other" / "step1")
    for name, code in (("series", 0), ("other", 1)):
        argv = ["workbench", "scan", str(tmp_path / name), "--out", str(tmp_path / "run" / name), "--json"]
        monkeypatch.setattr("sys.argv", [*argv, "--detector", "induction"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert len(open_run(tmp_path / "run" / "series").scores(detector="induction")) > 0
    (failure,) = open_run(tmp_path / "run" / "other").failures().to_dict("records")
    assert "runs its layers several times a pass" in failure["message"]
    assert "Traceback" not in "".join(capsys.readouterr())
