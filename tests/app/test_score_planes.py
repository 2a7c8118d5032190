"""The integers sent once are the scores, at the right checkpoint of every run."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.app.score_planes import planes
from workbench.app.state.slider_stops import stop_of
from workbench.emergence.head_trajectories import short_count
from workbench.heads import Head
from workbench.runs import open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    every = write_run(folder / "linear", replace(DEMO["linear"], steps=(0, 8, 64, 1024)))
    some = write_run(folder / "hybrid", replace(DEMO["hybrid"], steps=(8, 512)))
    return [open_run(every), open_run(some)]


def unpacked(run, name):
    levels = np.frombuffer(base64.b64decode(run[name]), dtype="<u2").astype(float)
    levels[levels == 65535] = np.nan
    values = run["low"] + levels / 65534 * (run["high"] - run["low"])
    return values.reshape(len(run["checkpoints"]), len(run["heads"])).T


@pytest.mark.parametrize("detector", ["induction", "entropy", "learned_sink"])
def test_scores_and_intervals_come_back_within_a_hundred_thousandth(runs, detector):
    probe = {"induction": "repeats"}.get(detector, "text")
    sent = planes(runs, detector, probe)["runs"]["hybrid"]
    table = (
        runs[1]
        .scores(detector=detector)
        .pivot_table(index=["layer", "head"], columns="step", values="score", dropna=False)
    )
    span = sent["high"] - sent["low"]
    assert unpacked(sent, "score") == pytest.approx(table.to_numpy(), abs=1e-5 * span, nan_ok=True)
    assert len(unpacked(sent, "ci_hi")) == 12


def test_every_stop_shows_the_last_checkpoint_so_far(runs):
    sent = planes(runs, "induction", "repeats")
    assert [stop["label"] for stop in sent["stops"]] == [
        *("0 tokens", "65.5K tokens", "524K tokens", "4.19M tokens", "8.39M tokens")
    ]
    assert sent["runs"]["linear"]["columns"] == [0, 1, 2, 2, 3]
    assert sent["runs"]["hybrid"]["columns"] == [-1, 0, 0, 1, 1]


def test_step_zero_is_at_the_place_where_the_figures_draw_it(runs):
    from workbench import figures

    sent = planes(runs, "induction", "repeats")
    drawn = figures.emergence(runs, detector="induction")
    assert sent["stops"][0]["x"] == drawn.layout.xaxis.tickvals[0] > 0


def test_a_step_finds_its_stop_and_no_step_the_last(runs):
    sent = planes(runs, "induction", "repeats")
    assert stop_of(sent, {"step": "0"}) == 0
    assert stop_of(sent, {"step": "64"}) == 2
    assert stop_of(sent, {"step": "65"}) == 4
    assert stop_of(sent, {}) == stop_of(sent, {"step": "99999"}) == stop_of(sent, {"at": "typo"}) == 4
    assert stop_of({"runs": {}, "stops": []}, {"step": "64"}) == -1


def test_heads_are_only_counted_where_a_threshold_means_something(runs):
    assert planes(runs, "induction", "repeats")["threshold"] == 0.4
    assert planes(runs, "entropy", "text")["threshold"] is None
    assert planes(runs, "entropy", "text")["unit"] == "nats"


def test_a_run_says_its_layers_and_first_onset(runs):
    sent = planes(runs, "induction", "repeats")["runs"]
    assert sent["hybrid"]["layers"] == "1 F · 2 W"
    assert sent["linear"]["layers"] == "1 F · 2 L"
    earliest = runs[0].onsets("induction").sort_values("onset_tokens").iloc[0]
    ends = (short_count(float(earliest[name])) for name in ("previous_tokens", "onset_tokens"))
    assert sent["linear"]["first_onset"] == f"{' – '.join(ends)} tokens"


def test_the_strongest_head_has_an_onset_of_its_own_beside_the_first_of_any(runs):
    sent = planes(runs, "induction", "repeats")["runs"]["linear"]
    best = runs[0].scores(detector="induction", step="last").sort_values("score").iloc[-1]
    head = Head(int(best["layer"]), int(best["head"]))
    row = runs[0].onsets("induction", head=head).iloc[0]
    ends = (short_count(float(row[name])) for name in ("previous_tokens", "onset_tokens"))
    assert sent["strongest"] == {"head": str(head), "onset": f"{' – '.join(ends)} tokens"}
    assert planes(runs, "entropy", "text")["onset_meaning"].startswith("onset: the first checkpoint from which")


def test_of_very_many_scores_eight_bits_come_back_within_a_five_hundredth_and_no_intervals(runs, monkeypatch):
    monkeypatch.setattr("workbench.app.score_planes.MANY", 10)
    sent = planes(runs, "learned_sink", "text")["runs"]["hybrid"]
    table = runs[1].scores(detector="learned_sink")
    wide = table.pivot_table(index=["layer", "head"], columns="step", values="score", dropna=False)
    levels = np.frombuffer(base64.b64decode(sent["score"]), dtype="u1").astype(float)
    levels[levels == 255] = np.nan
    values = (sent["low"] + levels / 254 * (sent["high"] - sent["low"])).reshape(2, 12).T
    assert values == pytest.approx(wide.to_numpy(), abs=0.002 * (sent["high"] - sent["low"]), nan_ok=True)
    assert sent["ci_lo"] == sent["ci_hi"] == ""


def test_each_stop_shows_the_furthest_checkpoint_up_to_it_whatever_the_order_of_the_series(runs):
    whole = runs[0].trajectories("induction", "repeats")
    by_tokens = tuple(
        checkpoint._replace(step=step, step_total=step)
        for checkpoint, step in zip(whole.checkpoints, (0, 8, 1024, 64), strict=True)
    )

    class Branches:
        """A run whose branches are ordered by tokens, and shown by steps."""

        name = "branches"
        scores, onsets = runs[0].scores, runs[0].onsets
        metrics, emergence, layer_scores = runs[0].metrics, runs[0].emergence, runs[0].layer_scores

        def trajectories(self, _detector, _probe):
            return replace(whole, checkpoints=by_tokens)

    sent = planes([Branches()], "induction", "repeats", x="step")
    assert [stop["label"] for stop in sent["stops"]] == ["step 0", "step 8", "step 64", "step 1,024"]
    assert sent["runs"]["branches"]["columns"] == [0, 1, 3, 2]


def test_a_model_without_a_step_is_shown_at_every_stop_of_the_others(runs, tmp_path):
    alone = open_run(write_run(tmp_path / "alone", replace(DEMO["full"], steps=(None,))))
    sent = planes([alone, *runs], "induction", "repeats")
    assert sent["stops"][-1]["label"] == "main"
    assert sent["runs"]["alone"]["columns"] == [0] * len(sent["stops"])
    assert sent["runs"]["linear"]["columns"][-1] == 3
    assert (sent["runs"]["alone"]["steps"], sent["runs"]["alone"]["first_onset"]) == ([None], "")
    assert sent["runs"]["alone"]["strongest"] == {}
    assert stop_of(sent, {"step": "64"}) == len(sent["stops"]) - 1  # the first run has no such step
