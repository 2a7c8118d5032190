"""Which token begins a sequence: the tokenizer's, else the configuration's, and never one outside the vocabulary."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from tests.loading.word_tokenizers import word_tokenizer
from workbench import probes


def source(bos, tokenizer):
    return SimpleNamespace(tokenizer=tokenizer, config=LlamaConfig(vocab_size=40, bos_token_id=bos, eos_token_id=1))


def begins(bos, tokenizer):
    model = source(bos, tokenizer)
    first = probes.repeats(model, n=10, n_sequences=4).tokens[:, 0].tolist()
    return first[0] if len(set(first)) == 1 else None


@pytest.mark.parametrize("bos", [0, None])
def test_where_configuration_and_tokenizer_agree_nothing_is_said(bos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert begins(bos, word_tokenizer()) == 0


@pytest.mark.parametrize(
    ("bos", "tokenizer_bos", "begin", "said"),
    [
        (1, "<s>", 0, "configuration is 1, the tokenizer's is 0 .*begin with 0"),
        (999, "<s>", 0, "configuration is 999, the tokenizer's is 0 .*begin with 0"),
        (999, None, None, "configuration is 999, the tokenizer has none .*begin with none"),
        (5, None, 5, "configuration is 5, the tokenizer has none .*begin with 5"),
    ],
)
def test_where_they_do_not_the_tokenizers_is_taken_if_it_has_one_and_it_is_said(bos, tokenizer_bos, begin, said):
    with pytest.warns(UserWarning, match=said):
        assert begins(bos, word_tokenizer(bos=tokenizer_bos)) == begin


@pytest.mark.parametrize(("bos", "begin"), [(0, 0), (999, None), (None, None)])
def test_without_a_tokenizer_it_is_the_configurations_if_there_is_such_a_token(bos, begin):
    assert begins(bos, None) == begin
