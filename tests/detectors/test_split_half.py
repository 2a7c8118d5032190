"""Split-half reliability is the stepped-up correlation of the halves."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.families import random_tokens, tiny
from workbench.detectors import reliability, score
from workbench.hooks import open_model


def test_reliability_is_the_stepped_up_correlation_of_the_halves():
    table = score(open_model(tiny("llama")), ["entropy", "induction"], random_tokens(6, 40))
    reliabilities = reliability(table).set_index("detector")
    for name in ("entropy", "induction"):
        scores = table[table.detector == name]
        r = np.corrcoef(scores.half_a, scores.half_b)[0, 1]
        assert reliabilities.reliability[name] == pytest.approx(2 * r / (1 + r))
        ranks = np.corrcoef(scores.half_a.rank(), scores.half_b.rank())[0, 1]
        assert reliabilities.rank_reliability[name] == pytest.approx(2 * ranks / (1 + ranks))
        assert reliabilities.n_heads[name] == 8


def test_halves_that_agree_are_reliable_and_too_few_heads_say_nothing():
    rows = pd.DataFrame({"detector": "d", "probe": "p", "half_a": [0.1, 0.5, 0.9], "half_b": [0.2, 0.6, 1.0]})
    assert reliability(rows).reliability[0] == pytest.approx(1)
    assert math.isnan(reliability(rows[:2]).reliability[0])
    assert math.isnan(reliability(rows.assign(half_a=0.5)).reliability[0])
