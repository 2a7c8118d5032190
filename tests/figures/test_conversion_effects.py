"""The figures of a conversion study show its tables: means and deviations over seeds, one point per head."""

import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.heads import WorkbenchError


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


def test_costs_of_windows_and_linear_attention_are_points_with_their_head():
    table = pd.DataFrame(
        {
            "layer": [0, 0, 1],
            "kv_head": [0, 1, 0],
            "window_nats": [0.0, 0.5, 2.0],
            "linear_nats": [1.5, 0.1, 1.0],
            "seed": [0, 0, 0],
        }
    )
    line, *layers = figures.window_against_linear(table).data
    assert (line.x, line.y) == ((0.0, 2.0), (0.0, 2.0))
    assert [trace.name for trace in layers] == ["layer 0", "layer 1"]
    np.testing.assert_allclose(layers[0].x, [0, 0.5])
    np.testing.assert_allclose(layers[0].y, [1.5, 0.1])
    assert layers[0].text == ("seed 0 L0KV0", "seed 0 L0KV1")
    assert figures.window_against_linear(table.drop(columns="seed"), theme="dark").data[2].text == ("L1KV0",)
    with pytest.raises(WorkbenchError, match="the table has no linear_nats; expected"):
        figures.window_against_linear(table.drop(columns="linear_nats"))
