"""A detector without a score for any head says why, in a warning and in the rows' flags, or has a right default."""

import pytest

from tests.families import random_tokens, tiny
from workbench import Far, open_model, probes, score
from workbench.detectors import UnscoredWarning

EVERY_SCORE = pytest.mark.filterwarnings("error::workbench.detectors.UnscoredWarning")


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("mistral"))


@EVERY_SCORE
def test_the_default_detectors_have_scores_on_a_short_text(m):
    table = score(m, tokens=random_tokens(2, 101))
    assert table.groupby("detector").score.count().gt(0).all()
    assert "learned_sink" not in set(table.detector)
    assert table.loc[table.detector == "far_mass", "flags"].eq("far_window=25;far_sink=0").all()


@EVERY_SCORE
def test_default_detectors_of_answers_are_left_out_where_the_text_does_not_show_them(m):
    text = probes.token_sequences(random_tokens(2, 30))
    assert not {"retrieval", "retrieval_top1"} & set(score(m, probes=text).detector)


def test_a_default_far_mass_on_a_longer_text_keeps_its_window(m):
    table = score(m, ["far_mass"], random_tokens(1, 300))
    assert table["flags"].eq("far_window=256;far_sink=0").all()


def test_a_default_far_mass_of_a_short_text_is_that_of_a_quarter_of_it(m):
    llama, tokens = open_model(tiny("llama")), random_tokens(2, 40)
    quarter = score(llama, ["far_mass"], tokens, far=Far(10))
    assert score(llama, ["far_mass"], tokens).score.tolist() == quarter.score.tolist()


@pytest.mark.parametrize(
    ("detector", "why"),
    [
        ("far_mass", "no row has 50 tokens before it, its longest text has 40 tokens"),
        ("far_mass_64", "no row has 64 tokens before it, its longest text has 40 tokens"),
        ("learned_sink", "no layer of the model has a learned sink logit"),
    ],
)
def test_a_named_detector_without_a_score_says_why(m, detector, why):
    with pytest.warns(UnscoredWarning, match=f"{detector} has no score on 'tokens' .all NaN.: {why}"):
        table = score(m, [detector], random_tokens(1, 40), far=Far(50))
    assert table.score.isna().all()
    assert table["flags"].str.endswith(f"no_rows={why}").all()


def test_a_window_that_the_text_does_not_fill_is_said():
    with pytest.warns(UnscoredWarning, match="no layer of the model has a sliding window"):
        score(open_model(tiny("llama")), ["window_saturation"], random_tokens(1, 40))
    with pytest.warns(UnscoredWarning, match="the smallest window has 8 tokens, its longest text has 5"):
        score(open_model(tiny("mistral")), ["window_saturation"], random_tokens(1, 5))


def test_named_detectors_of_answers_on_a_text_say_that_it_shows_none(m):
    with pytest.warns(UnscoredWarning, match="does not say where its answers can be read"):
        score(m, ["retrieval"], probes=probes.token_sequences(random_tokens(2, 30)))


def test_replies_that_do_not_count_are_said_with_their_number(m):
    probe = probes.copy_needle(97, [9], length=24, n_sequences=3)
    with pytest.warns(UnscoredWarning, match=r"0 of 3 decoded replies counted, the words of a reply must be"):
        table = score(m, ["retrieval_headkv"], probes=probe)
    assert table["flags"].eq("counted=0/3").all()


def test_one_warning_names_every_detector(m):
    with pytest.warns(UnscoredWarning) as caught:
        score(m, ["learned_sink", "far_mass_1024"], random_tokens(1, 40))
    assert len(caught) == 1
    assert "learned_sink" in str(caught[0].message)
    assert "far_mass_1024" in str(caught[0].message)
