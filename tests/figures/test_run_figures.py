"""Figures as tables: what they show is what the run holds, on fixed scales, and they say so when pointed at."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.synthetic_run import DEMO, Shape, write_run
from workbench import figures
from workbench.emergence.head_trajectories import short_count
from workbench.figures.axis import TrainingAxis, cell_edges
from workbench.figures.style import Scale, colour_scale
from workbench.figures.trajectories import score_scale, trajectories
from workbench.heads import Head, KVHead, Metric, Row, WorkbenchError
from workbench.runs import open_run
from workbench.store import Origin, Store, canonical_digest

FEW = (0, 8, 64, 256, 1024, 3072)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: open_run(write_run(folder / name, replace(DEMO[name], steps=FEW)))
        for name in ("full", "hybrid", "linear")
    }


def heatmaps(figure):
    return [trace for trace in figure.data if isinstance(trace, go.Heatmap)]


def hover(figure):
    """Every text that any trace of the figure shows when pointed at."""
    return [text for trace in figure.data if trace.text is not None for text in np.ravel(trace.text)]


def test_heads_shows_every_score_of_the_checkpoint_in_its_cell(runs):
    (grid,) = heatmaps(figures.heads(runs["full"], detector="induction", step=1024))
    rows = runs["full"].scores(detector="induction", step=1024)
    for row in rows.to_dict("records"):
        assert grid.z[row["layer"]][row["head"]] == row["score"]
        assert f"{row['score']:.4f}" in grid.text[row["layer"]][row["head"]]
        assert f"{row['ci_lo']:.4f} to {row['ci_hi']:.4f} · n = 4,096" in grid.text[row["layer"]][row["head"]]
        assert grid.customdata[row["layer"]][row["head"]] == str(Head(row["layer"], row["head"]))


def test_heads_takes_a_step_a_checkpoint_or_the_last_one(runs):
    def scores(step):
        return heatmaps(figures.heads(runs["full"], detector="sink", step=step))[0].z

    assert np.array_equal(scores("last"), scores(3072))
    assert np.array_equal(scores("step64"), scores(64))
    assert not np.array_equal(scores(64), scores(3072))
    with pytest.raises(WorkbenchError, match="0, 8, 64, 256, 1024, 3072"):
        scores(65)


def test_layer_kinds_are_letters_beside_their_rows(runs):
    axis = figures.heads(runs["hybrid"], detector="induction").layout.yaxis
    assert [text[:1] for text in axis.ticktext] == ["0", "1", "2"]
    assert [kind for text in axis.ticktext for kind in "FWL" if f"<b>{kind}</b>" in text] == ["W", "W", "F"]


def test_heads_without_a_score_are_left_empty_and_say_so(runs):
    figure = figures.heads(runs["hybrid"], detector="learned_sink")
    (grid,) = heatmaps(figure)
    assert np.isnan(grid.z[2]).all()
    assert "no score" in grid.text[2][0]
    assert not np.isnan(grid.z[:2]).any()
    assert figures.heads(runs["full"], detector="learned_sink").layout.yaxis.range == (2.5, -0.5)


def test_several_runs_are_panels_on_one_colour_scale(runs):
    figure = figures.heads([runs["full"], runs["linear"]], detector="induction")
    assert [grid.name for grid in heatmaps(figure)] == ["full", "linear"]
    assert {grid.coloraxis for grid in heatmaps(figure)} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)


@pytest.mark.parametrize(
    ("detector", "run", "low", "high", "unit"),
    [
        ("induction", "full", 0, 1, ""),
        ("induction", "linear", -1, 1, ""),
        ("entropy", "full", 0, None, "nats"),
        ("mean_distance", "full", 0, None, "tokens"),
    ],
)
def test_colours_have_a_fixed_range_and_units_their_own(runs, detector, run, low, high, unit):
    for step in (0, "last"):
        axis = figures.heads(runs[run], detector=detector, step=step).layout.coloraxis
        highest = runs[run].scores(detector=detector)["score"].max()
        assert (axis.cmin, axis.cmax) == (low, high if high is not None else highest)
        assert axis.colorbar.title.text == unit


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_positive_score_has_the_same_colour_with_and_without_negative_ones(theme):
    one_sided = colour_scale(Scale(0, 1, ""), theme)
    two_sided = colour_scale(Scale(-1, 1, ""), theme)
    assert [colour for at, colour in two_sided if at >= 0.5] == [colour for _, colour in one_sided]
    assert [at for at, _ in two_sided] == sorted(at for at, _ in two_sided)
    assert two_sided[0][0] == 0
    assert two_sided[-1][0] == 1


def test_strips_lists_heads_by_onset_and_marks_it(runs):
    figure = figures.strips(runs["full"], detector="induction")
    (strip,) = heatmaps(figure)
    onsets = runs["full"].emergence("induction").set_index(["layer", "head"])
    heads = [Head.parse(row[0]) for row in strip.customdata]
    assert len(heads) == 12
    order = [onsets.loc[tuple(head), "onset_step"] for head in heads]
    known = [step for step in order if isinstance(step, int | np.integer)]
    assert known == sorted(known)
    assert order[: len(known)] == known
    marks = next(trace for trace in figure.data if isinstance(trace, go.Scatter))
    assert list(marks.x) == [step * 8192 for step in known]
    assert "</b> onset<br>" in marks.text[0]
    scores = runs["full"].scores(detector="induction", head=heads[0])["score"]
    assert list(strip.z[0]) == list(scores)


def test_strips_keeps_only_the_strongest(runs):
    (strip,) = heatmaps(figures.strips(runs["full"], detector="induction", top=3))
    peaks = runs["full"].emergence("induction").sort_values("peak", ascending=False)
    assert sorted(row[0] for row in strip.customdata) == sorted(
        str(Head(row.layer, row.head)) for row in peaks.head(3).itertuples()
    )


def test_emergence_draws_the_strongest_heads_and_their_mean(runs):
    figure = figures.emergence(runs["full"], detector="induction", top=2)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    bold = next(trace for trace in lines if trace.name == "full")
    thin = [trace for trace in lines if trace is not bold]
    assert np.allclose(bold.y, np.mean([trace.y for trace in thin], axis=0))
    best = runs["full"].emergence("induction").nlargest(2, "peak")
    assert [max(trace.y) for trace in thin] == list(best["peak"])
    rings = next(trace for trace in figure.data if trace.mode == "markers")
    assert len(rings.x) == best["onset_step"].notna().sum()


def test_what_does_not_rise_has_no_onset(runs):
    figure = figures.emergence(runs["full"], detector="entropy")
    assert not any("onset" in text for text in hover(figure))
    assert not any("onset" in text for text in hover(figures.strips(runs["full"], detector="entropy")))


def test_runs_differ_by_colour_and_dash(runs):
    figure = figures.emergence(list(runs.values()), detector="induction")
    bold = [trace for trace in figure.data if trace.showlegend]
    assert [trace.name for trace in bold] == list(runs)
    assert len({trace.line.color for trace in bold}) == 3
    assert len({trace.line.dash for trace in bold}) == 3


def test_metrics_of_one_run_shows_every_distance_and_of_several_the_farthest(runs):
    alone = figures.metrics(runs["full"], metric="copy_accuracy")
    assert [trace.name for trace in alone.data] == [f"distance {d}" for d in (8, 16, 32, 64, 128, 256)] + ["full"]
    wanted = runs["full"].metrics(metric="copy_accuracy", distance=256)["value"]
    assert list(alone.data[5].y) == list(wanted)
    several = figures.metrics(list(runs.values()), metric="copy_accuracy")
    assert [trace.name for trace in several.data if trace.showlegend] == list(runs)
    assert sum("at distance 256" in trace.text[0] for trace in several.data) == 3
    assert alone.layout.yaxis.range == pytest.approx((-0.03, 1.03))
    assert figures.metrics(runs["full"], metric="loss_nats").layout.yaxis.range is None


def test_history_draws_every_detector_of_a_head_in_the_panel_of_its_unit(runs):
    figure = figures.history(runs["hybrid"], Head(0, 1))
    panels = {trace.name: trace.yaxis for trace in figure.data}
    assert set(panels) == set(runs["hybrid"].detectors)
    assert len({panels["induction"], panels["entropy"], panels["mean_distance"]}) == 3
    entropy = next(trace for trace in figure.data if trace.name == "entropy")
    assert list(entropy.y) == list(runs["hybrid"].scores(detector="entropy", head=Head(0, 1))["score"])
    assert "nats" in entropy.text[0]


def test_history_leaves_out_detectors_without_a_score_and_refuses_unknown_heads(runs):
    figure = figures.history(runs["hybrid"], Head(2, 0))
    assert "learned_sink" not in {trace.name for trace in figure.data}
    with pytest.raises(WorkbenchError, match="L0H9 has no scores in full; layer 0 has heads 0, 1, 2, 3"):
        figures.history(runs["full"], Head(0, 9))


def test_place_sets_a_head_among_its_layer_and_the_model(runs):
    figure = figures.place(runs["full"], Head(1, 2), step=1024)
    others, layer, chosen = figure.data
    assert set(chosen.y) == set(runs["full"].detectors) - {"entropy", "mean_distance", "learned_sink"}
    assert len(layer.x) == 3 * len(chosen.x)
    assert len(others.x) == 8 * len(chosen.x)
    score = runs["full"].scores(detector="sink", head=Head(1, 2), step=1024)["score"].iloc[0]
    assert chosen.x[list(chosen.y).index("sink")] == score
    with pytest.raises(WorkbenchError, match="L7H0 has no scores at step 1024"):
        figures.place(runs["full"], Head(7, 0), step=1024)


def test_step_zero_stands_left_of_a_break_and_positions_are_tokens(runs):
    figure = figures.emergence(runs["full"], detector="induction")
    axis, line = figure.layout.xaxis, figure.data[0]
    assert axis.type == "log"
    assert axis.ticktext[0] == "0"
    assert 0 < line.x[0] == axis.tickvals[0] < line.x[1] == 8 * 8192
    assert [note.text for note in figure.layout.annotations] == ["//"]
    assert axis.title.text == "training tokens (log)"


def test_the_axis_falls_back_to_steps_where_a_run_does_not_know_its_tokens(runs, tmp_path):
    unknown = open_run(write_run(tmp_path / "run", Shape(steps=FEW, tokens_per_step=None, detectors=("induction",))))
    figure = figures.emergence([runs["full"], unknown], detector="induction")
    assert figure.layout.xaxis.title.text == "training step (log)"
    assert figure.data[0].x[-1] == 3072


def test_steps_can_be_asked_for(runs):
    assert figures.strips(runs["full"], detector="sink", x="step").layout.xaxis.title.text == "training step (log)"


def test_cells_meet_half_way_between_checkpoints():
    edges = cell_edges(np.array([1.0, 100.0, 10_000.0]))
    assert edges == pytest.approx([0.1, 10, 1000, 100_000])
    assert len(cell_edges(np.array([5.0]))) == 2


@pytest.mark.parametrize(("first", "last"), [(1.0, 1.0), (1.0, 3.0), (8.0, 3072.0), (2e6, 3e11)])
def test_ticks_are_few_and_inside_the_axis(first, last):
    values, labels = TrainingAxis("tokens", first, last, zero=None).ticks()
    assert len(values) == len(labels) <= 6
    assert all(first * 0.99 <= value <= last * 1.01 for value in values)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (950, "950"), (8192, "8.19K"), (25_165_824, "25.2M"), (1.5e12, "1.5T")]
)
def test_counts_are_short(count, text):
    assert short_count(count) == text


def test_a_score_out_of_range_gets_a_scale_of_its_own():
    assert score_scale("other", [np.array([0.2, 3.0])]) == Scale(0.0, 3.0, "")
    assert score_scale("window_gates", [np.array([-0.5, 2.0])]) == Scale(-2.0, 2.0, "nats")
    assert score_scale("sink", [np.array([math.nan])]) == Scale(0.0, 1.0, "")


def row(**changes):
    one = Row(0, 0, 0, "full", None, "sink", 1, "text", 0.5, 0.5, 0.5, 0.0, 8, 64, math.nan, math.nan)
    return replace(one, **changes)


def committed(path, rows, *, step=1, branch=None, name=None):
    store = Store.create(path, job={}, versions={})
    name = name or f"step{step}"
    origin = Origin("run", name, canonical_digest(name), "c" * 32, None, branch, step, step, None)
    unit = canonical_digest([name, rows[0].detector, rows[0].probe])
    store.commit_scores(origin, unit, rows, probe_digest=rows[0].probe, seq_len=64)
    return store


def test_two_probes_must_be_told_apart(tmp_path):
    committed(tmp_path / "run", [row()])
    committed(tmp_path / "run", [row(probe="repeats")])
    run = open_run(tmp_path / "run")
    with pytest.raises(WorkbenchError, match="sink was scored on repeats, text: pass one of them as probe="):
        figures.heads(run, detector="sink")
    assert heatmaps(figures.heads(run, detector="sink", probe="text"))
    assert {trace.name for trace in figures.history(run, Head(0, 0)).data} == {"sink on repeats", "sink on text"}


def test_scores_of_kv_heads_are_drawn_as_such(tmp_path):
    committed(tmp_path / "run", [row(head=None, kv_head=kv, detector="window_gates", score=0.1 * kv) for kv in (0, 1)])
    run = open_run(tmp_path / "run")
    (grid,) = heatmaps(figures.heads(run, detector="window_gates"))
    assert list(grid.customdata[0]) == ["L0KV0", "L0KV1"]
    assert figures.history(run, KVHead(0, 1)).data[0].y == (0.1,)


def test_a_layer_that_mixes_twice_has_a_row_and_a_line_for_each_of_its_mixers(tmp_path):
    for step, full, linear in ((1, 0.0, 0.1), (2, 0.8, 0.2)):
        pair = [row(head=0, score=full), row(head=0, kind="linear", score=linear)]
        committed(tmp_path / "run", [*pair, row(layer=1, head=0, score=0.5)], step=step)
    run = open_run(tmp_path / "run")
    (grid,) = heatmaps(figures.heads(run, detector="sink"))
    assert [list(line) for line in grid.z] == [[0.8], [0.2], [0.5]]
    ticks = figures.heads(run, detector="sink").layout.yaxis.ticktext
    assert [tick.split()[0] for tick in ticks] == ["0", "0", "1"]
    assert "F" in ticks[0]
    assert "L" in ticks[1]
    lines = {trace.name: list(trace.y) for trace in figures.history(run, Head(0, 0)).data}
    assert lines == {"sink (full)": [0.0, 0.8], "sink (linear)": [0.1, 0.2]}
    strip = figures.strips(run, detector="sink")
    assert sorted(list(line) for line in heatmaps(strip)[0].z) == [[0.0, 0.8], [0.1, 0.2], [0.5, 0.5]]
    onsets = next(trace for trace in strip.data if isinstance(trace, go.Scatter))
    assert len(set(onsets.y)) == len(onsets.x) > 0


def test_a_head_that_gets_a_window_in_a_branch_stays_one_head(tmp_path):
    committed(tmp_path / "run", [row(score=0.8)], step=1)
    committed(tmp_path / "run", [row(score=0.3, kind="sliding", window=64)], step=2, branch="sliding")
    run = open_run(tmp_path / "run")
    assert trajectories(run, "sink", None).score.tolist() == [[0.8, 0.3]]
    assert [list(trace.y) for trace in figures.history(run, Head(0, 0)).data] == [[0.8, 0.3]]


def test_a_score_without_an_interval_shows_none(tmp_path):
    committed(tmp_path / "run", [row()])
    (text,) = heatmaps(figures.heads(open_run(tmp_path / "run"), detector="sink"))[0].text[0]
    assert "CI" not in text
    assert "sink 0.5000 · n = 64" in text


def test_branches_are_lines_of_their_own(tmp_path):
    for step, branch in ((1, None), (2, None), (3, "sliding"), (4, "sliding")):
        committed(tmp_path / "run", [row(score=0.1 * step)], step=step, branch=branch)
    figure = figures.emergence(open_run(tmp_path / "run"), detector="sink", top=1)
    thin = [trace for trace in figure.data if trace.mode == "lines" and trace.line.width < 2]
    assert [list(trace.x) for trace in thin] == [[1, 2], [3, 4]]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 1


def test_a_checkpoint_that_is_missing_is_a_gap(tmp_path):
    for step in (1, 2, 3):
        committed(tmp_path / "run", [row(head=0)] + ([row(head=1)] if step != 2 else []), step=step)
    found = trajectories(open_run(tmp_path / "run"), "sink", None)
    assert np.isnan(found.score[1]).tolist() == [False, True, False]
    assert found.n[1].tolist() == [64, 0, 64]


def test_no_run_and_no_scores_are_refused(runs, tmp_path):
    with pytest.raises(WorkbenchError, match="no run to draw"):
        figures.emergence([], detector="induction")
    with pytest.raises(WorkbenchError, match="induction"):
        figures.emergence(runs["full"], detector="inductoin")


def test_metrics_on_two_probes_must_be_told_apart(tmp_path):
    store = committed(tmp_path / "run", [row()])
    origin = Origin("run", "step1", "a" * 32, "c" * 32, None, None, 1, 1, None)
    for probe in ("text", "code"):
        one = Metric(probe, "loss_nats", None, None, 2.0, 2.0, 2.0, 8, math.nan, math.nan)
        store.commit_metrics(origin, canonical_digest(probe), [one], probe_digest=probe, seq_len=64)
    with pytest.raises(WorkbenchError, match=r"measured on (text, code|code, text)"):
        figures.metrics(open_run(tmp_path / "run"), metric="loss_nats")
    assert figures.metrics(open_run(tmp_path / "run"), metric="loss_nats", probe="code").data[0].y == (2.0,)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_can_be_drawn_on_either_ground(runs, theme):
    several = list(runs.values())
    drawn = [
        figures.emergence(several, detector="induction", theme=theme),
        figures.heads(several, detector="induction", theme=theme),
        figures.strips(several, detector="induction", theme=theme),
        figures.metrics(several, metric="loss_nats", theme=theme),
        figures.history(several[0], Head(0, 0), theme=theme),
        figures.place(several[0], Head(0, 0), theme=theme),
    ]
    for figure in drawn:
        assert len(figure.to_json()) > 100
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_history_on_one_probe_has_one_line_per_detector_with_that_probes_numbers(runs):
    figure = figures.history(runs["full"], Head(0, 0), probe="repeats")
    scores = runs["full"].scores(layer=0, head=0, probe="repeats", detector="induction").sort_values("step")
    line = next(trace for trace in figure.data if trace.name == "induction")
    assert list(line.y) == pytest.approx(scores.score.tolist())
    detectors = [trace.name.partition(" on ")[0] for trace in figure.data]
    assert len(set(detectors)) == len(detectors)


def test_a_place_on_one_probe_marks_the_head_once_per_detector(runs):
    figure = figures.place(runs["full"], Head(0, 1), probe="repeats")
    chosen = next(trace for trace in figure.data if trace.name == "L0H1")
    assert len(chosen.y) == len(set(chosen.y)) > 1
