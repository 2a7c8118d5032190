"""The figures of a conversion study show its tables: means and deviations over seeds, one point per head."""

import numpy as np
import pandas as pd
import pytest

from tests.planning.plans import FULL, layers_of, plan_of
from workbench import KVHead, LinearAttention, figures
from workbench.heads import WorkbenchError
from workbench.store.plan_file import HeadCosts


def measured():
    rows = [
        {
            "seed": seed,
            "training": training,
            "method": method,
            "n_kept": n_kept,
            "draw": draw,
            "probe": "needle",
            "label": distance,
            "accuracy": (seed + draw + distance) / 100,
        }
        for seed in (0, 1)
        for training in ("no training", "60 steps")
        for method, n_kept, draw in (("all", 16, 0), ("induction", 3, 0), ("induction", 4, 0), ("random_non_top", 3, 0))
        for distance in (8, 16)
    ]
    more = [{**row, "draw": 2} for row in rows if row["method"] == "random_non_top"]
    for row in more:
        row["accuracy"] += 0.02
    return pd.DataFrame(rows + more)


def test_recall_by_distance_draws_each_keep_sets_mean_and_deviation_over_seeds():
    drawn = {t.name: t for t in figures.recall_by_distance(measured(), n_kept=3, window=8).data}
    assert list(drawn) == ["all, 16 full", "induction, 3 full", "random_non_top, 3 full"]
    line = drawn["induction, 3 full"]
    np.testing.assert_allclose(line.x, [8, 16])
    np.testing.assert_allclose(line.y, [0.085, 0.165])
    np.testing.assert_allclose(line.error_y.array, np.std([0.08, 0.09], ddof=1))
    # Draws of a seed are averaged before seeds are: 0.01 more, and no wider.
    np.testing.assert_allclose(drawn["random_non_top, 3 full"].y, [0.095, 0.175])
    np.testing.assert_allclose(drawn["random_non_top, 3 full"].error_y.array, np.std([0.08, 0.09], ddof=1))


def test_an_unknown_training_is_told_with_those_there_are():
    with pytest.raises(WorkbenchError, match="'7 steps'; there are 'no training', '60 steps'"):
        figures.recall_by_distance(measured(), training="7 steps", n_kept=3)


def test_heads_before_and_after_are_points_with_their_name():
    rows = [
        {
            "seed": 0,
            "training": training,
            "method": method,
            "draw": 0,
            "detector": "retrieval",
            "lifted": lifted,
            "layer": layer,
            "head": head,
            "score": (layer + 2 * head + shift) / 10,
        }
        for training, method, lifted, shift in (
            ("no training", "all", True, 0),
            ("60 steps", "none", True, 1),
            ("60 steps", "none", False, 5),
        )
        for layer in (0, 1)
        for head in (0, 1)
    ]
    figure = figures.heads_before_and_after(pd.DataFrame(rows), training="60 steps", method="none")
    points = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    np.testing.assert_allclose(points["layer 1"].x, [0.1, 0.3])
    np.testing.assert_allclose(points["layer 1"].y, [0.2, 0.4])
    assert points["layer 1"].text == ("seed 0 L1H0", "seed 0 L1H1")
    with pytest.raises(WorkbenchError, match="no retrieval scores of 'all' before and after '60 steps'"):
        figures.heads_before_and_after(pd.DataFrame(rows), training="60 steps", method="all")


def test_costs_of_windows_and_linear_attention_are_points_with_a_mark_for_each_choice():
    table = pd.DataFrame(
        {
            "layer": [0, 0, 1, 1, 2],
            "kv_head": [0, 1, 0, 1, 0],
            "window_nats": [0.0, 0.5, 2.0, 0.1, 0.3],
            "linear_nats": [1.5, 0.1, 1.0, 0.2, np.nan],
            "choice": ["window", "linear", "full", "window", "window"],
            "seed": [0, 0, 0, 0, 0],
        }
    )
    figure = figures.window_against_linear(table)
    line, *choices = figure.data
    assert (line.x, line.y) == ((0.0, 2.0), (0.0, 2.0))
    assert [trace.name for trace in choices] == ["full (1)", "window (2)", "linear (1)"]
    assert len({trace.marker.symbol for trace in choices}) == 3
    np.testing.assert_allclose(choices[1].x, [0, 0.1])
    np.testing.assert_allclose(choices[1].y, [1.5, 0.2])
    assert choices[1].text == ("seed 0 L0KV0", "seed 0 L1KV1")
    lines = [(shape.x0, shape.x1, shape.y0, shape.y1) for shape in figure.layout.shapes]
    assert lines == [(0.01, 0.01, 0, 1), (0, 1, 0.01, 0.01)]
    assert "1 heads without a usable linear form are not shown" in figure.layout.xaxis.title.text
    assert not figures.window_against_linear(table, tolerance=None).layout.shapes
    with pytest.raises(WorkbenchError, match="the table has no linear_nats; expected"):
        figures.window_against_linear(table.drop(columns="linear_nats"))
    with pytest.raises(WorkbenchError, match=r"none of 1 heads has the cost .*choices=\('window', 'linear'\)"):
        figures.window_against_linear(table.loc[4:])


def test_a_table_without_choices_has_one_mark_for_all_its_heads():
    table = pd.DataFrame({"layer": [0, 1], "kv_head": [1, 0], "window_nats": [0.5, 2.0], "linear_nats": [0.1, 1.0]})
    _, heads = figures.window_against_linear(table, theme="dark").data
    assert heads.name == "heads (2)"
    assert heads.text == ("L0KV1", "L1KV0")


def test_the_costs_of_a_plan_are_those_of_its_table():
    form = LinearAttention()
    costs = (HeadCosts(0, 0, 0.5, 0.004, 0.2, "", form), HeadCosts(0, 1, 0.1, 0.2, 0.3, "", form))
    plan = plan_of(layers_of(FULL), [(0, 1)], costs=costs, conversions={KVHead(0, 0): form})
    _, full, linear = figures.window_against_linear(plan).data
    assert (full.name, full.x[0], full.y[0]) == ("full (1)", 0.1, 0.2)
    assert (linear.name, linear.x[0], linear.y[0]) == ("linear (1)", 0.5, 0.004)


def arms_of_a_study():
    rows = [
        {"arm": arm, "n_kept": n, "length": length, "recovered": n / 8, "lost": 1 - n / 8}
        for arm in ("window_gates", "random")
        for n in (1, 2, 4)
        for length in (512, 1024)
    ]
    table = pd.DataFrame(rows).assign(part="needles", window=128, steps=0, to="window", left_out="")
    for name in ("recovered", "lost"):
        table[f"{name}_lo"], table[f"{name}_hi"] = table[name] - 0.1, float("nan")
    return table


def test_what_is_back_is_drawn_by_the_number_of_heads_with_its_interval():
    drawn = {t.name: t for t in figures.recovered_by_kept(arms_of_a_study(), "needles", window=128, length=512).data}
    assert sorted(drawn) == ["random", "window_gates"]
    assert list(drawn["window_gates"].x) == [1, 2, 4]
    assert list(drawn["window_gates"].y) == [1 / 8, 1 / 4, 1 / 2]
    assert drawn["window_gates"].error_y.arrayminus == pytest.approx([0.1] * 3)
    assert list(drawn["window_gates"].error_y.array) == [0, 0, 0]  # no upper end is known
    with pytest.raises(WorkbenchError, match="no ranking was measured"):
        figures.recovered_by_kept(arms_of_a_study(), "hops", window=128, length=512)


def test_what_is_lost_is_drawn_by_length_for_every_arm_at_several_lengths():
    drawn = figures.lost_by_length(arms_of_a_study(), "needles", window=128, arms=["random"]).data
    assert [t.name for t in drawn] == ["random, 1 full", "random, 2 full", "random, 4 full"]
    assert list(drawn[0].x) == [512, 1024]
    with pytest.raises(WorkbenchError, match="after 5 steps"):
        figures.lost_by_length(arms_of_a_study(), "needles", window=128, steps=5)
