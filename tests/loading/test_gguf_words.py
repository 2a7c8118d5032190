"""The tokenizer of a GGUF file: its own beginning of text, its own way to split; an unknown way is refused."""

import pytest

from tests.gguf_files import words, write_llama
from workbench.loading.tokenizer_files import load_tokenizer, open_tokenizer, tokenizer_folder


def tokenizer(path, **options):
    return load_tokenizer(write_llama(path / "model.gguf", settings=words(**options)))


def test_text_begins_with_bos_where_the_file_says_so_and_not_elsewhere(tmp_path):
    plain, _ = tokenizer(tmp_path / "a", add_bos_token=False)
    begun, _ = tokenizer(tmp_path / "b", add_bos_token=True)
    assert plain("a b")["input_ids"] == begun("a b")["input_ids"][1:]
    assert begun("a b")["input_ids"][0] == begun.bos_token_id == 1
    assert plain.decode(plain("a b")["input_ids"]) == "a b"


def test_special_tokens_stay_whole(tmp_path):
    read, _ = tokenizer(tmp_path)
    assert read("<|im_end|>")["input_ids"] == [2]


def test_digits_are_single_where_the_file_says_smollm_and_joined_to_their_space_as_gpt2_does(tmp_path):
    single, _ = tokenizer(tmp_path / "a", pre="smollm")
    joined, _ = tokenizer(tmp_path / "b", pre="gpt-2")
    assert single.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert joined.tokenize("a  1") == ["a", "Ġ", "Ġ1"]


def test_an_unknown_way_to_split_is_refused_by_name_and_the_model_has_no_tokenizer(tmp_path):
    read, reason = tokenizer(tmp_path, pre="another")
    assert read is None
    assert "splits text as 'another', which transformers does not know; pass the tokenizer" in reason


def test_a_file_without_words_has_no_tokenizer(tmp_path):
    path = write_llama(tmp_path / "model.gguf")
    assert tokenizer_folder(path) is None
    assert load_tokenizer(path) == (None, "there are no tokenizer files in the folder")


@pytest.mark.parametrize("of", ["file", "folder"])
def test_the_tokenizer_of_a_gguf_model_can_be_named_for_another(tmp_path, of):
    path = write_llama(tmp_path / "model.gguf", settings=words())
    assert (
        open_tokenizer(path if of == "file" else tmp_path)("ab")["input_ids"]
        == load_tokenizer(path)[0]("ab")["input_ids"]
    )
