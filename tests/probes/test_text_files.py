"""Text files as probes: any name that a file may have, and the encodings that say what they are."""

from __future__ import annotations

import codecs
import copy
from types import SimpleNamespace

import pytest
import torch

from tests.probes.models import bpe_model
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.filler_text import read_text
from workbench.probes.natural_text import repeated_ngrams

TEXT = "the cat sat on the mat.\n" * 200
NAMES = [
    "a,b=c+d.txt",
    "2024.05",
    "12",
    "1+2",
    "with space.txt",
    "it's.txt",
    '"quoted".txt',
    "a:b.txt",
    " lead",
    "text,length=9",
]


@pytest.fixture(scope="module")
def model():
    return bpe_model()


def quoted(path):
    mark = "'" if '"' in str(path) else '"'
    return f"{mark}{path}{mark}"


@pytest.mark.parametrize("name", NAMES)
def test_a_path_in_quotes_may_be_any(model, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text(TEXT)
    (tmp_path / "plain.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    expected = probes.build(model, "text:path=plain.txt,length=24,n_sequences=3")
    for written in (
        f"text:path={quoted(name)},length=24,n_sequences=3",
        f"text:n_sequences=3,length=24, path = {quoted(name)} ",
    ):
        assert torch.equal(probes.build(model, written).tokens, expected.tokens)


@pytest.mark.parametrize("name", ["2024.05", "12", "1+2", "with space.txt", "it's.txt"])
def test_a_path_without_commas_needs_no_quotes(model, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert probes.build(model, f"text:path={name},length=24,n_sequences=3").tokens.shape == (3, 24)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("text:path=a,b=c+d.txt", r"no argument 'b'; expected some of path, length, .*in quotes, as path=\"a, b.txt\""),
        ("text:path=a,b.txt", r"'b.txt' is not of the form key=value; a value with commas is written in quotes"),
        ('text:path="a.txt,length=9', 'begins with ", and no " stands at its end'),
        ('text:path="a.txt"b,length=9', 'begins with ", and no " stands at its end'),
        ("text", "probe 'text': needs path; write text:path=…"),
        ("repeats:m=5", "no argument 'm'; expected some of n, copies"),
        ('repeats:n="5"', "n is '5'|probe 'repeats"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_form_that_can(model, written, message):
    with pytest.raises(WorkbenchError, match=message):
        probes.build(model, written)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_text_is_the_same_in_every_encoding_that_says_what_it_is(tmp_path, mark, encoding, newline):
    text = "今天 émile 😀\nthe cat\n"
    (tmp_path / "t").write_bytes(mark + text.replace("\n", newline).encode(encoding))
    assert read_text(tmp_path / "t") == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("café the cat".encode("latin-1"), "is not UTF-8 text.*iconv -f LATIN1"),
        (b"", "holds no text"),
        (codecs.BOM_UTF8 + b" \r\n", "holds no text"),
        (b"\x00" * 400, "NUL characters"),
        ("the cat".encode("utf-16-le"), "NUL characters.*UTF-16 without a byte-order mark"),
        (codecs.BOM_UTF16_LE + b"abc", "is not UTF-16-LE text"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(tmp_path, raw, message):
    (tmp_path / "t").write_bytes(raw)
    with pytest.raises(WorkbenchError, match=message):
        read_text(tmp_path / "t")


def test_a_folder_or_a_missing_file_is_no_text(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(WorkbenchError, match="pass the path of a text file"):
            read_text(path)


def test_pythons_documentation_is_read_anew_by_a_tokenizer_that_was_changed():
    words = bpe_model("words")
    tokenizer = copy.deepcopy(words.tokenizer)
    changed = SimpleNamespace(tokenizer=tokenizer, config=words.config)
    sizes = {"length": 64, "n_sequences": 4, "at_most": 200}
    before = repeated_ngrams(changed, **sizes)
    assert repeated_ngrams(words, **sizes).digest == before.digest == repeated_ngrams(changed, **sizes).digest
    tokenizer.add_tokens(["the"])
    after = repeated_ngrams(changed, **sizes)
    assert after.digest != before.digest
    assert (after.tokens == tokenizer.convert_tokens_to_ids("the")).any()
    assert repeated_ngrams(words, **sizes).digest == before.digest
