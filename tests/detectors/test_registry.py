"""Detectors of other packages: found by their names; a broken package is warned of and left out."""

import sys
from importlib.metadata import EntryPoint

import pytest

from tests.families import random_tokens, tiny
from workbench import WorkbenchError, open_model, score
from workbench.detectors import all_detectors, detector
from workbench.detectors.registry import DETECTORS
from workbench.extensions import ExtensionWarning


def test_a_package_brings_its_detectors_and_a_broken_one_is_warned_of_and_left_out(tmp_path, monkeypatch):
    module = '''
from workbench.detectors import detector

@detector("twice_the_sink", needs={"sink_mass"})
def twice_the_sink(recording):
    """Twice the attention on the first token."""
    sink = recording["sink_mass"]
    return type(sink)(2 * sink.total, sink.rows)
'''
    (tmp_path / "good_detectors_for_a_test.py").write_text(module)
    (tmp_path / "bad_detectors_for_a_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    announced = [
        EntryPoint("bad", "bad_detectors_for_a_test", DETECTORS.group),
        EntryPoint("good", "good_detectors_for_a_test", DETECTORS.group),
    ]
    monkeypatch.setattr(
        "workbench.extensions.entry_points", lambda group: announced if group == DETECTORS.group else []
    )
    before = list(all_detectors())
    monkeypatch.setattr(DETECTORS, "_is_loaded", False)
    try:
        with pytest.warns(
            ExtensionWarning, match=r"detectors of bad_detectors_for_a_test are left out: .*ZeroDivision"
        ):
            assert list(all_detectors()) == [*before, "twice_the_sink"]
        table = score(open_model(tiny("llama")), ["twice_the_sink", "sink"], random_tokens(2, 12))
        table = table.set_index(["detector", "layer", "head"]).score
        assert table["twice_the_sink"].tolist() == pytest.approx((2 * table["sink"]).tolist())
    finally:
        DETECTORS.remove("twice_the_sink")
        sys.modules.pop("good_detectors_for_a_test", None)


def test_a_name_that_is_held_and_a_function_without_a_docstring_are_refused():
    def mine(recording):
        """Mine."""

    with pytest.raises(WorkbenchError, match=r"detector 'sink' of .* is already registered by workbench.detectors"):
        detector("sink", needs={"sink_mass"})(mine)
    mine.__doc__ = None
    with pytest.raises(WorkbenchError, match="detector 'mine' has no docstring"):
        detector("mine", needs={"sink_mass"})(mine)
    assert "mine" not in all_detectors()
