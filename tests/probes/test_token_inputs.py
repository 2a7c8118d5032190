"""What users hand in as tokens, probes and positions: read where it means one thing, else refused in a sentence."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.token_inputs import encode, positions, read_probe, read_probes, token_batch

IDS = [5, 6, 7, 8]


class Encoding:
    """As the tokenizers library gives one."""

    ids, attention_mask = IDS, [0, 1, 1, 1]


def tokenizer(text, verbose=True):
    return {"input_ids": [ord(c) for c in text]}


class Model:
    """A model as probes see it."""

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer
        text = type("C", (), {"vocab_size": 200, "max_position_embeddings": None})
        self.config = type("C", (), {"get_text_config": lambda self: text})()


@pytest.mark.parametrize(
    "handed_in",
    [
        IDS,
        tuple(IDS),
        range(5, 9),
        [IDS],
        np.array(IDS),
        np.array([IDS], dtype=np.int16),
        np.array(IDS, dtype=np.uint64),
        np.array(IDS[::-1])[::-1],
        [np.int32(i) for i in IDS],
        torch.tensor(IDS),
        torch.tensor([IDS], dtype=torch.int32),
        [torch.tensor(i) for i in IDS],
        [torch.tensor(IDS)],
        torch.tensor(IDS, dtype=torch.uint8),
        pd.Series(IDS),
        {"input_ids": IDS},
        UserDict(input_ids=torch.tensor([IDS]), token_type_ids=[0, 0, 0, 0]),
    ],
)
def test_ids_of_one_sequence_are_read_whatever_holds_them(handed_in):
    batch = token_batch(handed_in)
    assert (batch.tokens.tolist(), batch.tokens.dtype, batch.attention_mask) == ([IDS], torch.long, None)


@pytest.mark.parametrize(
    "rows", [[[1, 2], [3, 4, 5]], [np.array([1, 2]), np.array([3, 4, 5])], {"input_ids": [[1, 2], [3, 4, 5]]}]
)
def test_sequences_of_different_lengths_are_padded_and_masked(rows):
    batch = token_batch(rows)
    assert batch.tokens.tolist() == [[1, 2, 1], [3, 4, 5]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    "mask", [[1, 1, 0, 0], np.array([1.0, 1.0, 0.0, 0.0]), torch.tensor([[True, True, False, False]])]
)
def test_a_mask_is_read_whatever_holds_it(mask):
    for batch in (token_batch(IDS, mask), token_batch({"input_ids": IDS, "attention_mask": mask})):
        assert batch.attention_mask is not None
        assert batch.attention_mask.tolist() in ([[1, 1, 0, 0]], [[True, True, False, False]])


def test_one_encoding_brings_its_mask():
    batch = token_batch(Encoding())
    assert batch.attention_mask is not None
    assert (batch.tokens.tolist(), batch.attention_mask.tolist()) == ([IDS], [[0, 1, 1, 1]])


def test_text_is_read_by_the_tokenizer():
    assert token_batch("ab", tokenizer=tokenizer).tokens.tolist() == [[97, 98]]
    several = token_batch(["ab", "c"], tokenizer=tokenizer)
    assert several.attention_mask is not None
    assert several.attention_mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("handed_in", "message"),
    [
        (torch.tensor(IDS).float(), "dtype float32; expected whole numbers"),
        ([1.0, 2.0], "dtype float64; expected whole numbers"),
        (np.array([True, False]), "dtype bool; expected whole numbers"),
        (torch.tensor([True]), "dtype bool; expected whole numbers"),
        (torch.tensor(5), r"shape \(\).*pass a list of the one token"),
        (5, r"shape \(\)"),
        (torch.tensor([IDS], device="meta"), "without numbers to read"),
        (torch.tensor([IDS]).to_sparse(), r"pass tokens.to_dense\(\)"),
        (torch.zeros(1, 1, 3, dtype=torch.long), r"shape \(1, 1, 3\)"),
        (torch.zeros(0, dtype=torch.long), r"shape \(0,\).*at least one token"),
        ([], "at least one token"),
        ([[]], "at least one token"),
        ([[1], []], "other things than token ids"),
        ([[1], "a"], "other things than token ids|dtype"),
        ([1, [2]], "other things than token ids"),
        ([1, None], "other things than token ids"),
        (None, "tokens are a NoneType"),
        ({1, 2}, "tokens are a set"),
        (b"ab", "tokens are a bytes"),
        ({"ids": IDS}, "a mapping of ids was given"),
        ({"input_ids": IDS, "position_ids": IDS}, "has position_ids, which would not be used"),
        ("repeats:n=10", "is the name of a probe, not a text"),
        ("repeats", "is the name of a probe, not a text"),
    ],
)
def test_what_are_no_tokens_is_refused(handed_in, message):
    with pytest.raises(WorkbenchError, match=message):
        token_batch(handed_in, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]), "masks that are added to scores"),
        ([1, 1, -1, 0], "below 0"),
        ([1, 0.5, 1, 1], "between whole ones"),
        (torch.ones(1, 1, 4, 4), r"a Tensor of shape \(1, 1, 4, 4\)"),
        ("1111", "attention_mask is a str"),
    ],
)
def test_masks_that_are_none_of_padding_are_refused(mask, message):
    with pytest.raises(WorkbenchError, match=message):
        token_batch(IDS, mask)


def test_two_masks_are_refused():
    with pytest.raises(WorkbenchError, match="two attention masks"):
        token_batch({"input_ids": IDS, "attention_mask": [1, 1, 1, 1]}, [1, 1, 1, 0])
    with pytest.raises(WorkbenchError, match="have one of their own"):
        token_batch([[1], [2, 3]], [[1, 0], [1, 1]])


def test_text_without_a_tokenizer_and_text_that_is_none_are_refused():
    with pytest.raises(WorkbenchError, match="without a tokenizer"):
        token_batch("a b")
    with pytest.raises(WorkbenchError, match="the text is a list"):
        encode(tokenizer, ["a"])

    def strict(text, verbose=True):
        return {"input_ids": list(text.encode())}

    with pytest.raises(WorkbenchError, match="decode it with errors='replace'"):
        encode(strict, "\ud800")
    assert encode(strict, "é") == [195, 169]

    def of_known_words(text, verbose=True):  # as the tokenizers library does without a token for unknown words
        raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")

    with pytest.raises(WorkbenchError, match=r"Missing .UNK.*a token for unknown ones"):
        encode(of_known_words, "a b")


# Probes


def test_a_probe_is_itself_or_made_from_its_name():
    probe = probes.repeats(50, n=4, n_sequences=2)
    assert read_probe(Model(), probe) is probe
    assert read_probe(Model(), "repeats:n=4,n_sequences=2").tokens.shape == probe.tokens.shape
    assert [p.name for p in read_probes(Model(), ("repeats:n=4", probe))] == ["repeats", "repeats"]
    assert read_probes(Model(), probe) == [probe]


@pytest.mark.parametrize("handed_in", [IDS, torch.tensor(IDS), np.array(IDS), {"input_ids": IDS}, None, 3])
def test_ids_are_no_probe_and_the_way_to_one_is_said(handed_in):
    with pytest.raises(WorkbenchError, match=r"is no probe; .*wb\.probes\.token_sequences\(tokens\)"):
        read_probes(Model(), handed_in)


def test_text_is_no_probe_and_an_unknown_name_is_listed():
    with pytest.raises(WorkbenchError, match=r"'The cat sat' is a text, .* wb\.probes\.text\(m, TEXT\)"):
        read_probe(Model(), "The cat sat")
    with pytest.raises(WorkbenchError, match="unknown probe 'repeat'"):
        read_probe(Model(), "repeat")
    with pytest.raises(WorkbenchError, match="no probe was given"):
        read_probes(Model(), [])


def test_sequences_of_ids_become_a_probe_whose_rows_predict_their_next_token():
    probe = probes.token_sequences({"input_ids": [[1, 2, 3], [4, 5, 6]], "attention_mask": [[0, 1, 1], [1, 1, 1]]})
    assert probe.answer_rows is not None
    assert probe.classes is not None
    assert probe.answer_rows.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert probe.classes.tolist() == [0, 0, 1]


def test_no_row_predicts_the_first_token_of_another_document():
    probe = probes.token_sequences([1, 2, 3, 4, 5], [1, 1, 3, 3, 0])
    assert probe.answer_rows is not None
    assert probe.classes is not None
    assert (probe.answer_rows.tolist(), probe.classes.tolist()) == ([[0, 0], [0, 2]], [0, 0])


# Positions


@pytest.mark.parametrize(
    ("handed_in", "picked"),
    [
        (slice(None), [0, 1, 2, 3, 4]),
        (slice(-2, None), [3, 4]),
        (slice(3, 99), [3, 4]),
        (slice(None, None, -2), [4, 2, 0]),
        (2, [2]),
        (-1, [4]),
        (np.int64(1), [1]),
        (torch.tensor(3), [3]),
        ([0, -1, 2], [0, 4, 2]),
        (torch.tensor([-5, 4]), [0, 4]),
        (np.array([1, 1], dtype=np.int8), [1, 1]),
        (range(1, 4, 2), [1, 3]),
        ([False, True, False, False, True], [1, 4]),
        (torch.arange(5) > 2, [3, 4]),
        (np.arange(5) < 1, [0]),
    ],
)
def test_positions_are_read_as_python_reads_indices(handed_in, picked):
    assert positions(handed_in, 5, name="queries").tolist() == picked


@pytest.mark.parametrize(
    "handed_in",
    [
        *(5, -6, [0, 5], torch.tensor([500]), slice(5, 9), slice(2, 2), slice(0.5, 2), [], [False] * 5, [True, False]),
        *(None, "all", 1.0, [1.0], True, np.ones((2, 2), dtype=int), {1, 2}, torch.tensor([[1]]), [None]),
    ],
)
def test_what_are_no_positions_is_refused_by_name(handed_in):
    with pytest.raises(WorkbenchError, match=r"queries.*expected positions from 0 to 4"):
        positions(handed_in, 5, name="queries")
