"""The text of a token as it is shown: never a replacement character, never the letters that stand for bytes."""

from __future__ import annotations

import re

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench.files.token_text import joined, pieces_of

TEXT = "今天天气很好 😀👩‍👩‍👧 émile the cat\n"
PRE_TOKENIZERS = {
    "ByteLevel": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "Sequence": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\w+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(pre_tokenizer="ByteLevel", *, decoder=True, texts=("the cat sat on the mat " * 5,)):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer]
    if decoder:
        made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(list(texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def text_of(pieces):
    """The text again: of a character in pieces, the first one."""
    whole = "".join(re.sub(r"(U\+[0-9A-F]{4,}|.) (\d)/\d", _first_piece, piece, flags=re.DOTALL) for piece in pieces)
    assert "<0x" not in whole
    return whole


def _first_piece(match):
    glyph = match[1] if len(match[1]) == 1 else chr(int(match[1][2:], 16))
    return glyph if match[2] == "1" else ""


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
def test_pieces_of_a_byte_level_vocabulary_are_text_or_numbered_parts_of_characters(pre_tokenizer, decoder):
    tokenizer = byte_level(pre_tokenizer, decoder=decoder)
    ids = tokenizer(TEXT)["input_ids"]
    pieces = pieces_of(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert text_of(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert not set("ĠĊä»") & set("".join(pieces))
    assert pieces[:3] == ("今 1/3", "今 2/3", "今 3/3")
    assert "".join(pieces).endswith(" the cat\n")


def test_a_character_that_is_one_token_is_that_character():
    tokenizer = byte_level(texts=("今天 é " * 50,))
    assert pieces_of(tokenizer, tokenizer("今天é")["input_ids"]) == ("今天", "é")


def test_special_tokens_stay_as_they_are():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<Ġ>"]})
    ids = tokenizer.convert_tokens_to_ids(["<s>", "<Ġ>"])
    assert pieces_of(tokenizer, ids) == ("<s>", "<Ġ>")


def test_pieces_of_byte_fallback_are_parts_of_characters_and_words_have_their_space():
    vocabulary = {"<unk>": 0, "▁the": 1, "▁cat": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert pieces_of(tokenizer, [1, 2, 3 + 0xE4, 3 + 0xBB, 3 + 0x8A, 3 + 0x0A]) == (
        *(" the", " cat"),
        *("今 1/3", "今 2/3", "今 3/3", "\n"),
    )
    assert pieces_of(tokenizer, [3 + 0xE4, 1, 3 + 0xBB]) == ("<0xE4>", " the", "<0xBB>")


def test_bytes_are_joined_over_the_borders_of_pieces_and_only_where_they_make_a_character():
    assert joined([" a<0xE4>", "<0xBB>", "<0x8A>b", "<0xE4><0xBB>", "<0x8A><0xF0>", "<0x9F>x"]) == (
        *(" a今 1/3", "今 2/3", "今 3/3b"),
        *("今 1/2", "今 2/2<0xF0>", "<0x9F>x"),
    )
    assert joined(["<0xE2>", "<0x80><0x8D>", "c<0xC3><0xA9>", "<0xE4>"]) == ("U+200D 1/2", "U+200D 2/2", "cé", "<0xE4>")
    assert joined(joined(["<0xE4>", "<0xBB>", "<0x8A>"])) == ("今 1/3", "今 2/3", "今 3/3")


def test_letters_of_a_vocabulary_of_characters_are_not_taken_for_bytes():
    made = Tokenizer(models.WordLevel({"Ġ": 0, "ä": 1}, unk_token="ä"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert pieces_of(PreTrainedTokenizerFast(tokenizer_object=made), [0, 1]) == ("Ġ", "ä")


def test_without_a_tokenizer_there_are_no_pieces():
    assert pieces_of(None, [1, 2]) is None
