"""A detector that a model cannot have, or whose code fails, does not take the scores of the others with it."""

import copy

import pytest
import torch

from tests.families import tiny
from workbench import probes, score
from workbench.detectors import UnscoredWarning, WeightDetector, find_detectors, measure, measure_weights
from workbench.detectors.registry import DETECTORS, Detector
from workbench.heads import WorkbenchError
from workbench.hooks import CellSum, FeatureSum, RowReading, open_model
from workbench.hooks.model import DEFAULT_FAR
from workbench.hooks.recording.cells import sink_token
from workbench.hooks.recording.unreadable_needs import UnreadableNeed
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 60), bos=1)


@pytest.fixture(scope="module")
def probe():
    return probes.repeats(WORDS, n=12, n_sequences=3)


@pytest.fixture(scope="module")
def unreadable():
    """No map takes the attention's output of layer 0 as far as can be told."""
    model = copy.deepcopy(tiny("llama"))
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *_: None)
    return open_model(model)


def test_the_others_are_scored_as_they_are_alone_and_a_warning_says_why_one_is_not(unreadable, probe):
    with pytest.warns(UnscoredWarning, match="contribution_sink has no score .* no W_O per head can be read"):
        table = score(unreadable, ["sink", "contribution_sink", "induction"], probes=probe)
    refused = table[table.detector == "contribution_sink"]
    assert refused.score.isna().all()
    assert refused.n.eq(0).all()
    assert refused["flags"].str.startswith("no_rows=no W_O per head can be read for layer 0").all()
    alone = score(unreadable, ["sink", "induction"], probes=probe)
    others = table[table.detector != "contribution_sink"]
    assert others.score.tolist() == alone.score.tolist()


def test_where_none_of_those_named_can_be_had_the_sentence_is_an_error(unreadable, probe):
    with pytest.raises(WorkbenchError, match="no W_O per head can be read for layer 0"):
        score(unreadable, ["contribution_sink", "contribution_induction"], probes=probe)


def _broken(*_):
    """Fail."""
    raise IndexError("row 99 of 12")


def _detector(need, function=_broken):
    return Detector("own", 1, frozenset({need}), function, "high", "share", False)


def _whole(batch):
    return sink_token(batch)[:, :2]


@pytest.mark.parametrize(
    "own",
    [
        _detector("entropy"),
        _detector(CellSum("own", _broken)),
        _detector(CellSum("own", lambda _: torch.tensor([[99, 0, 0]]))),
        _detector(FeatureSum("own", _broken, _broken)),
        _detector(RowReading("own", _broken, _broken)),
        _detector(RowReading("own", _whole, _broken)),
    ],
    ids=["function", "cells", "cells outside", "features", "rows", "reader"],
)
def test_an_error_in_a_detector_of_ones_own_is_its_alone(probe, own):
    m = open_model(tiny("llama"))
    others = find_detectors(["sink", "local_band", "effective_support"])
    measured = measure(m, probe, [*others, own], far=DEFAULT_FAR)
    assert list(measured.refused) == ["own"]
    assert "99" in str(measured.refused["own"])
    alone = measure(m, probe, others, far=DEFAULT_FAR)
    assert repr({name: rows for name, rows in measured.rows.items() if name != "own"}) == repr(alone.rows)
    assert repr(measured.metrics) == repr(alone.metrics)
    assert all(row.n == 0 and row.flags.startswith("no_rows=") for row in measured.rows["own"])


@pytest.fixture
def registered():
    DETECTORS.add("own", _detector(CellSum("own", _broken)), function=_broken)
    yield
    DETECTORS.remove("own")


@pytest.mark.usefixtures("registered")
def test_a_notebook_sees_the_error_of_its_own_code(probe):
    with pytest.raises(UnreadableNeed, match="IndexError in the need 'own': row 99 of 12") as raised:
        score(open_model(tiny("llama")), ["own", "sink"], probes=probe)
    assert isinstance(raised.value.__cause__, IndexError)


def test_scores_of_weights_that_cannot_be_had_leave_those_of_attention(probe):
    m = open_model(tiny("deepseek_v3"))
    with pytest.warns(UnscoredWarning, match="copying has no score on 'weights'"):
        table = score(m, ["sink", "copying"], probes=probe)
    assert table[table.detector == "sink"].score.notna().all()
    assert table[table.detector == "copying"].score.isna().all()
    with pytest.raises(WorkbenchError):
        score(m, ["copying"])


def test_an_error_in_scores_of_weights_of_ones_own_is_its_alone():
    m = open_model(tiny("llama"))
    others = [d for d in find_detectors(["copying"]) if isinstance(d, WeightDetector)]
    measured = measure_weights(m, [*others, WeightDetector("own", 1, _broken, "high", "share")])
    assert list(measured.refused) == ["own"]
    assert measured.rows["copying"] == measure_weights(m, others).rows["copying"]
