"""Long calls draw one bar where a person watches, none elsewhere, and none with `progress=False`."""

import pytest

from tests.families import tiny
from workbench import console, fit_linear_attention, open_model, patch_effects, probes, score, window_gates
from workbench.planning import Game, need_global, rank


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("llama"))


PROBE = probes.copy_needle(97, [9], length=24, n_sequences=2)
LONG = probes.copy_needle(97, [30], length=48, n_sequences=2)
CALLS = {
    "score": (lambda m, **o: score(m, ["entropy"], probes=PROBE, **o), "token", 48),
    "patch_effects": (lambda m, **o: patch_effects(m, PROBE, PROBE, **o), "head", 8),
    "fit_linear_attention": (lambda m, **o: fit_linear_attention(m, PROBE, **o), "layer", 2),
    "window_gates": (lambda m, **o: window_gates(m, PROBE, 6, nodes=2, **o), "pass", 2),
    "need_global": (lambda m, **o: need_global(m, PROBE, LONG, 6, nodes=2, **o), "pass", 2),
    "rank": (lambda m, **o: rank(Game(m, PROBE, 6), "leave_one_windowed", **o), "pass", 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_long_call_draws_a_bar_where_it_is_watched_and_none_elsewhere(m, name, monkeypatch, capsys):
    call, unit, total = CALLS[name]
    call(m)
    monkeypatch.setattr(console, "is_watched", lambda: True)
    call(m, progress=False)
    assert capsys.readouterr().err == ""
    call(m)
    shown = capsys.readouterr().err
    assert f"{total}/{total}" in shown
    assert unit in shown
    assert len(m.model._forward_hooks) == 0
