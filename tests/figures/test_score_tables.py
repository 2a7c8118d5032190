"""Figures straight from a table of scores, and one head's pattern straight from a model."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.families import random_tokens, tiny
from workbench import KVHead, WorkbenchError, figures, open_model, score


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("mistral"))


@pytest.fixture(scope="module")
def table(m):
    return score(m, ["sink", "entropy"], random_tokens(2, 24))


def test_heads_of_a_table_of_one_detector_are_drawn_without_naming_it(table):
    sink = table[table.detector == "sink"]
    (grid,) = figures.heads(sink).data
    for row in sink.to_dict("records"):
        assert grid.z[row["layer"]][row["head"]] == row["score"]
    assert "L0H0" in grid.text[0][0]


def test_heads_of_a_table_of_several_detectors_ask_which(table):
    with pytest.raises(WorkbenchError, match="sink, entropy; pass one of them as detector="):
        figures.heads(table)
    named = figures.heads(table, "entropy").data[0].z
    assert np.array_equal(named, figures.heads(table[table.detector == "entropy"], detector="entropy").data[0].z)


def test_several_tables_have_a_panel_each(table):
    assert len(figures.heads([table, table], "sink").data) == 2


def test_a_table_that_holds_no_scores_is_refused(table):
    with pytest.raises(WorkbenchError, match="no rows"):
        figures.heads(table[:0])
    with pytest.raises(WorkbenchError, match="no layer, head, kind, detector, probe, score"):
        figures.heads(pd.DataFrame({"a": [1]}))


def test_a_figure_of_a_pattern_has_the_models_own_numbers_and_its_tokens(m):
    tokens = random_tokens(1, 13)[0]
    (grid,) = figures.pattern(m, tokens, 1, 2).data
    assert np.array_equal(grid.z, m.pattern(tokens, 1, 2).numpy())
    assert list(grid.customdata[7][3]) == [f"7 {int(tokens[7])}", f"3 {int(tokens[3])}"]
    (cropped,) = figures.pattern(m, tokens, "L1H2", queries=[-1, 4], keys=slice(2, 6)).data
    assert np.array_equal(cropped.z, m.pattern(tokens, 1, 2, [-1, 4], slice(2, 6)).numpy())
    assert cropped.customdata[0][0][0].startswith("12 ")


def test_a_figure_of_a_pattern_shows_the_interventions_in_force(m):
    tokens = random_tokens(1, 13)[0]
    with m.restrict([KVHead(0, 0)], window=2):
        (grid,) = figures.pattern(m, tokens, 0, 0).data
    assert not np.tril(grid.z, -2).any()


def test_a_figure_of_a_linear_head_has_a_signed_scale():
    figure = figures.pattern(open_model(tiny("minimax")), random_tokens(1, 20)[0], 0, 0)
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax


def test_a_figure_of_what_is_no_model_or_too_large_is_refused(m):
    with pytest.raises(WorkbenchError, match=r"a Mistral.* expected an opened model"):
        figures.pattern(tiny("mistral"), torch.arange(5), 0, 0)
    with pytest.raises(WorkbenchError, match="1,100 queries by 1,100 keys"):
        figures.pattern(m, random_tokens(1, 1100)[0], 0, 0)


def test_the_path_of_a_run_is_refused_with_the_call_that_opens_it():
    with pytest.raises(WorkbenchError, match=r"runs/one is a path; pass the run, workbench\.open_run\('runs/one'\)"):
        figures.heads("runs/one")
