"""Where a model's tokenizer comes from: its folder, the Trainer's folder above, or one that the user names."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.loading.word_tokenizers import SIZES, word_tokenizer
from workbench import open_model, probes
from workbench.heads import WorkbenchError
from workbench.probes.token_ids import BareTokens


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, bos_token_id=0, eos_token_id=1, **SIZES)).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "run" / "checkpoint-100")
    return tmp_path / "run" / "checkpoint-100"


@pytest.fixture
def elsewhere(tmp_path):
    word_tokenizer().save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_a_checkpoint_without_a_tokenizer_has_that_of_the_trainers_folder(checkpoint):
    word_tokenizer().save_pretrained(checkpoint.parent)
    assert probes.text(open_model(checkpoint, "cpu"), "w1 w2").tokens.tolist() == [[0, 4, 5]]


def test_a_folder_that_is_no_checkpoint_of_a_run_takes_no_tokenizer_from_above(model, tmp_path):
    word_tokenizer().save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "some-model")
    m = open_model(tmp_path / "some-model", "cpu")
    assert m.tokenizer is None
    assert m.no_tokenizer == "there are no tokenizer files in the folder"


def test_a_tokenizer_can_be_named_by_folder_by_file_and_as_an_object(checkpoint, model, elsewhere, monkeypatch):
    bare = elsewhere.parent / "bare.json"
    shutil.copy(elsewhere / "tokenizer.json", bare)
    monkeypatch.chdir(elsewhere.parent)
    for tokenizer in (elsewhere, str(elsewhere), "elsewhere", elsewhere / "tokenizer.json", bare, word_tokenizer()):
        for source in (checkpoint, model):
            m = open_model(source, "cpu" if source is checkpoint else None, tokenizer=tokenizer)
            assert probes.text(m, "w1 w2", bos=None).tokens.tolist() == [[4, 5]]
    raw = word_tokenizer().backend_tokenizer
    assert probes.text(open_model(model, tokenizer=raw), "w1 w2", bos=None).tokens.tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none", "which is neither a folder nor a model in the hub's cache, cannot be read"),
        (lambda path: path, "there are no tokenizer files in it"),
        (lambda _: 3, "tokenizer is a int; expected the folder of one"),
        (lambda _: word_tokenizer(50), "words up to id 49, and the vocabulary of .* is 0 … 39"),
    ],
)
def test_what_is_no_tokenizer_of_the_model_is_refused(model, tmp_path, make, message):
    with pytest.raises(WorkbenchError, match=message):
        open_model(model, tokenizer=make(tmp_path))


def test_why_a_tokenizer_cannot_be_read_is_told_where_text_is_needed(checkpoint):
    (checkpoint / "tokenizer.json").write_text("{}")
    m = open_model(checkpoint, "cpu")
    reason = r"no tokenizer \(the tokenizer in .*checkpoint-100 cannot be read: .*\); name one with tokenizer="
    with pytest.raises(WorkbenchError, match=reason):
        probes.text(m, "w1 w2")
    with pytest.raises(WorkbenchError, match=r"form is 'text', and there is no tokenizer .*cannot be read"):
        probes.passkey(m, form="text")
    with pytest.warns(BareTokens, match=r"token ids drawn without words .*cannot be read"):
        probes.default(m)


def test_a_tokenizer_of_special_tokens_alone_counts_as_one_that_cannot_be_read(checkpoint):
    (checkpoint / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    named = '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    (checkpoint / "tokenizer_config.json").write_text(named)
    m = open_model(checkpoint, "cpu")
    assert m.tokenizer is None
    assert "cannot be read" in m.no_tokenizer
    with pytest.raises(WorkbenchError, match="cannot be read"):
        open_model(checkpoint, "cpu", tokenizer=checkpoint)
