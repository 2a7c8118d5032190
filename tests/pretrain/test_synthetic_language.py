"""The Copybook language: what its documents are made of."""

import numpy as np
import pytest

from workbench.pretrain import Language

LANGUAGE = Language()


def rng(seed=0):
    return np.random.default_rng(seed)


def share_foretold(tokens):
    """How often the two words before a token occurred earlier and were followed by that same token."""
    hits = total = 0
    for row in tokens.tolist():
        seen = {}
        for t in range(2, len(row)):
            pair = (row[t - 2], row[t - 1])
            if t >= 20:
                total += 1
                hits += row[t] in seen.get(pair, ())
            seen.setdefault(pair, set()).add(row[t])
    return hits / total


@pytest.mark.parametrize("make", [LANGUAGE.documents, LANGUAGE.backbone])
def test_sequences_begin_with_bos_and_go_on_in_words_only(make):
    tokens = make(200, 64, rng())
    assert tokens.shape == (200, 64)
    assert (tokens[:, 0] == LANGUAGE.bos).all()
    assert np.isin(tokens[:, 1:], LANGUAGE.words).all()
    assert set(tokens[:, 1:].ravel()) == set(range(8, 40)) == set(LANGUAGE.words)


def test_the_same_random_state_gives_the_same_documents_and_another_does_not():
    assert (LANGUAGE.documents(20, 64, rng(3)) == Language(0).documents(20, 64, rng(3))).all()
    assert (LANGUAGE.documents(20, 64, rng(3)) != LANGUAGE.documents(20, 64, rng(4))).any()


def test_a_seed_chooses_the_skip_bigrams_and_nothing_else():
    assert (Language(1).successors == Language(1).successors).all()
    assert (Language(1).successors != LANGUAGE.successors).any()
    assert (Language(1).words == LANGUAGE.words).all()


def test_a_backbone_word_follows_from_the_word_two_before_it_at_the_skip_rate():
    tokens = LANGUAGE.backbone(2000, 64, rng())
    called_for = LANGUAGE.successors[tokens[:, 1:-2] - LANGUAGE.words[0]]
    frequency = np.arange(1, 33) ** -0.7 / (np.arange(1, 33) ** -0.7).sum()
    by_chance = frequency[called_for - LANGUAGE.words[0]].mean()
    expected = LANGUAGE.skip_rate + (1 - LANGUAGE.skip_rate) * by_chance
    assert (tokens[:, 3:] == called_for).mean() == pytest.approx(expected, abs=0.01)


def test_without_skip_bigrams_words_are_drawn_by_a_power_law_of_their_rank():
    tokens = Language(skip_rate=0.0).backbone(2000, 64, rng())[:, 1:]
    seen = np.bincount(tokens.ravel(), minlength=40)[8:] / tokens.size
    rank = np.arange(1, 33) ** -0.7
    assert seen == pytest.approx(rank / rank.sum(), abs=0.003)


def test_documents_are_their_backbone_but_for_copies_at_the_copy_rate():
    backbone, documents = LANGUAGE.backbone(1000, 64, rng(5)), LANGUAGE.documents(1000, 64, rng(5))
    assert (documents[:, :6] == backbone[:, :6]).all(), "the first segment has nothing to copy"
    by_chance = (documents[:, 20:] == np.roll(backbone, 1, axis=0)[:, 20:]).mean()
    copied = (documents[:, 20:] != backbone[:, 20:]).mean() / (1 - by_chance)
    assert copied == pytest.approx(LANGUAGE.copy_rate, abs=0.05)
    never = Language(copy_rate=0.0)
    assert (never.documents(50, 64, rng(5)) == never.backbone(50, 64, rng(5))).all()


def test_copies_are_verbatim_so_that_earlier_text_foretells_a_document():
    assert share_foretold(LANGUAGE.documents(300, 64, rng())) > 0.5
    assert share_foretold(LANGUAGE.backbone(300, 64, rng())) < 0.2


def test_a_document_that_always_copies_says_no_word_that_its_first_segment_lacks():
    tokens = Language(copy_rate=1.0).documents(200, 64, rng())
    for row in tokens.tolist():
        assert set(row[14:]) <= set(row[1:14])


@pytest.mark.parametrize("length", [1, 2, 3, 7, 200])
def test_any_length_is_possible(length):
    assert LANGUAGE.documents(5, length, rng()).shape == (5, length)
    assert LANGUAGE.backbone(5, length, rng()).shape == (5, length)
