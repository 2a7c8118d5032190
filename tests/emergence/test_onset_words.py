"""An onset is written in one form: the two checkpoints that the rise lies between, or the first one as a bound."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.emergence.onset_words import COLUMNS, first_onset_words, in_order_of_onset, onset_words


def row(step, tokens, before_step, before_tokens, at_first):
    return dict(zip(COLUMNS, (step, tokens, before_step, before_tokens, at_first), strict=True))


@pytest.mark.parametrize(
    ("onset", "unit", "words"),
    [
        (row(128, 1_048_576, 64, 524_288, False), "tokens", "524K – 1.05M tokens"),
        (row(128, 1_048_576, 64, 524_288, False), "step", "steps 64 – 128"),
        (row(128, None, 64, None, False), "tokens", "steps 64 – 128"),
        (row(0, 0, None, None, True), "tokens", "≤ 0 tokens"),
        (row(512, None, None, None, True), "step", "≤ step 512"),
        (row(None, None, None, None, False), "tokens", "–"),
    ],
)
def test_an_onset_is_an_interval_of_checkpoints_or_a_bound(onset, unit, words):
    assert onset_words(onset, unit=unit) == words


def test_the_first_onset_of_heads_is_the_earliest():
    rows = [row(128, 10, 64, 5, False), row(64, 5, 0, 0, False), row(None, None, None, None, False)]
    onsets = pd.DataFrame(rows).astype(dict.fromkeys(COLUMNS[:-1], "Int64"))
    assert [each["onset_step"] for each in in_order_of_onset(onsets)] == [64, 128]
    assert first_onset_words(onsets) == "0 – 5 tokens"
    assert first_onset_words(onsets.iloc[2:]) == ""
