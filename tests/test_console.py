"""Progress where a person waits: a bar on a terminal or in a notebook, nothing elsewhere."""

import pytest

from workbench import console
from workbench.scanning.progress import Progress, default_progress


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_bar_is_drawn_only_where_a_person_waits(is_watched, monkeypatch, capsys):
    monkeypatch.setattr(console, "is_watched", lambda: is_watched)
    with console.watched_bar("step") as show:
        show(0, 8, "full")
        show(8, 8, "sliding")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("8/8" in err and "sliding" in err) == is_watched
    assert bool(err) == is_watched


def test_the_bar_of_a_scan_names_checkpoint_probe_and_failures(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_watched", lambda: True)
    with default_progress() as show:
        show(Progress(done=2, failed=0, planned=6, checkpoint="step1", probe="repeats", eta_s=None))
        show(Progress(done=6, failed=1, planned=6, checkpoint="step2", probe="repeats", eta_s=0.0))
    err = capsys.readouterr().err
    assert "6/6" in err
    assert "step2 repeats, 1 failed" in err


def test_captured_output_is_not_watched_and_a_terminal_is(monkeypatch):
    assert not console.is_watched()
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    assert console.is_watched()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (1e-4, "0.0001"),
        (3.14159e-4, "0.000314"),
        (0.0015, "0.0015"),
        (0.0123, "0.012"),
        (-2.5e-9, "-2.5e-09"),
        (0.0, "0.000"),
        (0.5, "0.500"),
        (999.0, "999.000"),
        (12345.678, "1.235e+04"),
        (float("nan"), "–"),
    ],
)
def test_a_small_number_is_not_shown_as_zero(value, cell):
    assert console.shown(value) == cell


def test_decimals_and_signs_are_kept_where_they_say_enough():
    assert [console.fixed(x, 2) for x in (0.004, 0.12345, -3.0)] == ["0.004", "0.12", "-3.00"]
    assert [console.fixed(x, 4, sign="+") for x in (0.25, 1.5e-5, -0.25)] == ["+0.2500", "+1.5e-05", "-0.2500"]
