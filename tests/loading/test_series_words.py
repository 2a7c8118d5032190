"""One tokenizer and one vocabulary for all checkpoints of a series, or a refusal that names the checkpoints."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from tests.loading.word_tokenizers import config_folder, word_tokenizer
from workbench import probes
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.loading.series_words import series_words

STEPS = (10, 20, 30, 40)


def series(root, tokenizers=(), **changes):
    """Checkpoints, those of some steps with a tokenizer or with another configuration; and the arguments of all."""
    for step in STEPS:
        config = changes.get(f"at{step}", {})
        config_folder(root / f"checkpoint-{step}", tokenizer=dict(tokenizers).get(step), **config)
    return [(f"checkpoint-{step}", root / f"checkpoint-{step}") for step in STEPS]


def drawn(words):
    return probes.repeats(words.words(), n=8, n_sequences=3).tokens


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What is drawn where every checkpoint has the tokenizer."""
    root = tmp_path_factory.mktemp("every")
    words = series_words(series(root, {step: word_tokenizer() for step in STEPS}), root, None)
    assert (words.no_tokenizer, words.remarks) == ("", ())
    return drawn(words)


@pytest.mark.parametrize("steps", [(40,), (10,), (20, 30)])
def test_a_tokenizer_that_some_have_is_that_of_all_and_it_is_told(tmp_path, expected, steps):
    words = series_words(series(tmp_path, {step: word_tokenizer() for step in steps}), tmp_path, None)
    assert torch.equal(drawn(words), expected)
    assert words.tokenizer == tmp_path / f"checkpoint-{steps[0]}"
    (remark,) = words.remarks
    assert f"the tokenizer of checkpoint-{steps[0]} is used for all" in remark


def test_the_tokenizer_of_the_trainers_folder_is_that_of_all(tmp_path, expected):
    word_tokenizer().save_pretrained(tmp_path)
    words = series_words(series(tmp_path), tmp_path, None)
    assert torch.equal(drawn(words), expected)
    assert "is used for all checkpoints: they have none" in words.remarks[0]
    alone = series_words(series(tmp_path)[:1], tmp_path / "checkpoint-10", None)
    assert alone.tokenizer == tmp_path


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_padding_token_that_is_added_later_changes_no_probe(tmp_path, with_tokenizer):
    def scan_of(root, n_padded):
        padded = word_tokenizer()
        padded.add_special_tokens({"pad_token": "<pad>"})
        late = STEPS[len(STEPS) - n_padded :]
        tokenizers = {step: padded if step in late else word_tokenizer() for step in STEPS} if with_tokenizer else {}
        config = {"vocab_size": 41, "pad_token_id": 40}
        return series_words(series(root, tokenizers, **{f"at{step}": config for step in late}), root, None)

    before, after = scan_of(tmp_path / "a", 0), scan_of(tmp_path / "b", 2)
    assert torch.equal(drawn(before), drawn(after))
    assert int(drawn(after).max()) < 40
    if with_tokenizer:
        assert "checkpoint-30, checkpoint-40: the tokenizer has other special tokens" in after.remarks[0]
        assert torch.equal(*(probes.text(words.words(), "w1 w2 w3").tokens for words in (before, after)))


def test_without_a_tokenizer_no_id_is_drawn_that_is_special_at_any_checkpoint(tmp_path):
    words = series_words(series(tmp_path, at40={"vocab_size": 44, "pad_token_id": 7}), tmp_path, None)
    ids = set(probes.vocabulary(words.words()).ids.tolist())
    assert ids == set(range(40)) - {0, 1, 7}


def test_a_beginning_that_differs_is_none_that_all_can_share(tmp_path):
    words = series_words(series(tmp_path, at40={"bos_token_id": 5}), tmp_path, None)
    known = probes.vocabulary(words.words())
    assert known.bos is None
    assert not {0, 5} & set(known.ids.tolist())


def test_tokenizers_of_other_words_are_refused_with_the_checkpoints_and_the_next_step(tmp_path):
    tokenizers = {10: word_tokenizer(), 20: word_tokenizer(), 30: word_tokenizer(prefix="v")}
    checkpoints = series(tmp_path, tokenizers)
    message = r"checkpoint-10, checkpoint-20 \(40 tokens\) and checkpoint-30 \(40 tokens\).*--tokenizer FOLDER"
    with pytest.raises(WorkbenchError, match=message):
        series_words(checkpoints, tmp_path, None)
    words = series_words(checkpoints, tmp_path, str(tmp_path / "checkpoint-30"))
    assert probes.text(words.words(), "v1 v2").tokens.tolist() == [[0, 4, 5]]


def test_a_tokenizer_that_cannot_be_read_is_told_of_and_another_is_used(tmp_path, expected):
    checkpoints = series(tmp_path, {10: word_tokenizer(), 30: word_tokenizer()})
    (tmp_path / "checkpoint-10" / "tokenizer.json").write_text("{}")
    words = series_words(checkpoints, tmp_path, None)
    assert torch.equal(drawn(words), expected)
    assert "checkpoint-10 cannot be read" in words.remarks[0]


def test_where_no_tokenizer_can_be_read_the_reason_is_kept_and_told_where_text_is_needed(tmp_path):
    checkpoints = series(tmp_path, dict.fromkeys(STEPS, word_tokenizer()))
    for _, path in checkpoints:
        (path / "tokenizer.json").write_text("{}")
    words = series_words(checkpoints, tmp_path, None)
    assert words.tokenizer is None
    assert "checkpoint-10 cannot be read" in words.no_tokenizer
    assert "(also checkpoint-20, checkpoint-30, checkpoint-40)" in words.no_tokenizer
    with pytest.raises(WorkbenchError, match=r"no tokenizer \(the tokenizer in .* cannot be read: .*; name one with"):
        probes.text(words.words(), "w1 w2")


def test_a_single_checkpoint_says_its_reason_once(tmp_path):
    ((_, path),) = series(tmp_path, {10: word_tokenizer()})[:1]
    (path / "tokenizer.json").write_text("{}")
    words = series_words([(path.name, path)], path, None)
    assert words.no_tokenizer.count("cannot be read") == 1


def test_a_tokenizer_with_more_words_than_the_model_is_not_used_or_refused_if_named(tmp_path):
    large = word_tokenizer(60)
    words = series_words(series(tmp_path / "a", {40: large}), tmp_path / "a", None)
    assert words.tokenizer is None
    assert "words up to id 59, and the vocabulary of the model is 0 … 39" in words.no_tokenizer
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(WorkbenchError, match="words up to id 59, and the vocabulary of these checkpoints is 0 … 39"):
        series_words(series(tmp_path / "b"), tmp_path / "b", str(tmp_path / "large"))


def test_a_checkpoint_whose_configuration_is_broken_changes_nothing(tmp_path, expected):
    checkpoints = series(tmp_path, dict.fromkeys(STEPS, word_tokenizer()))
    (tmp_path / "checkpoint-20" / "config.json").write_text("{")
    (tmp_path / "checkpoint-30" / "config.json").unlink()
    assert torch.equal(drawn(series_words(checkpoints, tmp_path, None)), expected)
    for name in ("10", "40"):
        (tmp_path / f"checkpoint-{name}" / "config.json").write_text(json.dumps({"model_type": "unknown"}))
    with pytest.raises(BadCheckpoint):
        series_words(checkpoints, tmp_path, None).words()


def test_a_worker_gets_the_same_words(tmp_path):
    words = series_words(series(tmp_path, at40={"vocab_size": 44}), tmp_path, None)
    assert torch.equal(drawn(pickle.loads(pickle.dumps(words))), drawn(words))


def test_the_tokenizer_of_a_series_is_read_once_and_anew_when_its_files_change(tmp_path):
    every = series(tmp_path)
    word_tokenizer(20).save_pretrained(tmp_path)
    words = series_words(every, tmp_path, None)
    first = words.words().tokenizer
    assert words.words().tokenizer is first
    word_tokenizer(30).save_pretrained(tmp_path)
    assert len(words.words().tokenizer) == len(first) + 10
