"""What names a model at a hub, and what does not: a path that exists is never one."""

from __future__ import annotations

import pytest

from workbench.hub import HubReference, parse_reference
from workbench.hub.references import parse_references

COMMIT = "c0ffee" * 6 + "abcd"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("gpt2", "gpt2", None),
        ("org/name-1.5_b", "org/name-1.5_b", None),
        ("org/na--me", "org/na--me", None),
        ("org/name@step1000", "org/name", "step1000"),
        ("org/name@stage1-step140000-tokens294B", "org/name", "stage1-step140000-tokens294B"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("org/name@feat/日本#3@x+y%20z", "org/name", "feat/日本#3@x+y%20z"),
        (f"org/name@{COMMIT}", "org/name", COMMIT),
        ("hf://org/name", "org/name", None),
        ("hf:/org/name@v1.0", "org/name", "v1.0"),
        ("https://huggingface.co/org/name", "org/name", None),
        ("https:/huggingface.co/org/name/", "org/name", None),
        ("huggingface.co/org/name/tree/step1000", "org/name", "step1000"),
        ("https://hf.co/org/name/tree/refs%2Fpr%2F3", "org/name", "refs/pr/3"),
        (f"https://huggingface.co/org/name/commit/{COMMIT}", "org/name", COMMIT),
        ("org/TinyLlama-1.1B-intermediate-step-*", "org/TinyLlama-1.1B-intermediate-step-*", None),
        ("org/name-seed[0-3]@step1", "org/name-seed[0-3]", "step1"),
    ],
)
def test_an_id_an_address_and_a_glob_are_read(text, repo, revision):
    reference = parse_reference(text)
    assert (reference.repo, reference.revision) == (repo, revision)
    assert reference.is_glob == ("*" in text or "[" in text)
    assert parse_reference(str(reference), exists=False) == reference


@pytest.mark.parametrize(
    "text",
    [
        "/org/name",
        "./org/name",
        "../name",
        "~/name",
        "a/b/c",
        "org/name@",
        "org/name@step*",
        "org/name@a b",
        "org/na me",
        "",
        "-x/y",
        "org/\x00",
        "é/name",
    ],
)
def test_what_cannot_be_an_id_is_none(text):
    assert parse_reference(text) is None


def test_a_path_that_exists_is_no_reference(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_reference("org/name") is None
    assert parse_reference("org/name", exists=False) == HubReference("org/name")
    assert parse_reference("org/another") == HubReference("org/another")


def test_several_references_stand_with_commas_between(tmp_path, monkeypatch):
    assert parse_references("org/a, org/b@v1") == [HubReference("org/a"), HubReference("org/b", "v1")]
    assert parse_references("org/a,./b") is None
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_references("a,b") is None
