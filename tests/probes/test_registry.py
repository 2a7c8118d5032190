"""Probes of other packages: found by their names wherever a probe is named; a broken package is left out."""

import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import tiny
from tests.probes.models import bare_model
from tests.series import write_series
from workbench import WorkbenchError, open_model, probes, scan, score
from workbench.extensions import ExtensionWarning
from workbench.probes import probe
from workbench.probes.registry import PROBES

EXAMPLE = Path(__file__).parents[2] / "examples" / "extensions" / "own_probe.py"


@pytest.fixture
def reversal():
    runpy.run_path(str(EXAMPLE))
    yield
    PROBES.remove("reversal")


def test_the_second_list_is_the_first_one_backwards(reversal):
    made = probes.build(probes.Vocabulary(torch.arange(5, 60), bos=1), "reversal:n=7,n_sequences=3")
    assert (made.tokens[:, 0] == 1).all()
    assert torch.equal(made.tokens[:, 1:8].flip(1), made.tokens[:, 8:])
    assert made.classes[:6].tolist() == [2, 4, 6, 8, 10, 12]
    assert "reversal" in PROBES.all()


def test_a_model_is_scored_on_it_by_its_name(reversal):
    m = open_model(tiny("llama"))
    table = score(m, ["retrieval"], probes=["reversal:n=6,n_sequences=2"])
    made = probes.build(m, "reversal:n=6,n_sequences=2")
    patterns, _, _ = eager_patterns(tiny("llama", "eager"), made.tokens)
    sequence, row, key = made.target_cells.unbind(-1)
    for r in table.itertuples():
        assert r.score == pytest.approx(float(patterns[r.layer][sequence, r.head, row, key].mean()), abs=1e-5)
    of_one_name = score(m, ["retrieval"], probes="reversal:n=6,n_sequences=2")
    assert of_one_name.score.tolist() == table.score.tolist()


def test_a_scan_stores_it_under_its_name(reversal, tmp_path):
    run = scan(write_series(tmp_path / "series", steps=(0,)), tmp_path / "run", ["retrieval"], ["reversal:n=6"])
    assert run.scores().probe.unique().tolist() == ["reversal"]
    assert set(run.metrics().metric) == {"copy_accuracy", "loss_nats"}


def test_a_package_brings_its_probes_and_a_broken_one_is_warned_of_and_left_out(tmp_path, monkeypatch):
    module = '''
from workbench.probes import probe, repeats

@probe("twice")
def twice(source, *, n=3, name="twice"):
    """Two copies of random tokens."""
    return repeats(source, n=n, name=name)
'''
    (tmp_path / "good_probes_for_a_test.py").write_text(module)
    (tmp_path / "bad_probes_for_a_test.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    announced = [
        EntryPoint("bad", "bad_probes_for_a_test", PROBES.group),
        EntryPoint("good", "good_probes_for_a_test", PROBES.group),
    ]
    monkeypatch.setattr("workbench.extensions.entry_points", lambda group: announced if group == PROBES.group else [])
    monkeypatch.setattr(PROBES, "_is_loaded", False)
    try:
        with pytest.warns(
            ExtensionWarning, match=r"probes of bad_probes_for_a_test are left out: .*ModuleNotFoundError"
        ):
            made = probes.build(bare_model(), "twice:n=5")
        assert made.name == "twice"
        assert made.tokens.shape == (20, 11)
    finally:
        PROBES.remove("twice")
        sys.modules.pop("good_probes_for_a_test", None)


def test_a_name_that_is_held_and_a_function_without_a_docstring_are_refused():
    def mine(source):
        """Mine."""

    with pytest.raises(
        WorkbenchError, match=r"probe 'repeats' of .* is already registered by workbench.probes.copying"
    ):
        probe("repeats")(mine)
    mine.__doc__ = None
    with pytest.raises(WorkbenchError, match="probe 'mine' has no docstring"):
        probe("mine")(mine)
    assert "mine" not in PROBES.all()
