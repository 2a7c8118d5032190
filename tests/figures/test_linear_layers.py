"""Figures of linear layers: what their lines show is what the tables hold."""

import pandas as pd
import pytest
import torch

from workbench import figures
from workbench.analysis.crossover import MINIMAX_TEXT_01, crossover_table
from workbench.analysis.state_precision import state_precision_table
from workbench.heads import WorkbenchError


@pytest.fixture(scope="module")
def precision():
    slopes = {1: torch.tensor([0.5, 0.01]), 3: torch.tensor([0.4, 0.001])}
    return state_precision_table(slopes, tokens=64, precisions=("fp32", "bf16"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_bold_line_is_the_worst_head_and_says_which(precision, theme):
    figure = figures.state_precision(precision, theme=theme)
    assert [note.text for note in figure.layout.annotations] == ["layer 1", "layer 3"]
    bold = [line for line in figure.data if line.line.width == 2.5]
    assert len(bold) == 4
    of_bf16 = precision[(precision.layer == 3) & (precision.precision == "bf16")]
    assert list(bold[3].y) == of_bf16.groupby("tokens").error.max().tolist()
    worst = of_bf16[of_bf16.tokens == 64].set_index("head").error.idxmax()
    assert f"worst: L3H{worst}" in bold[3].text[-1]


def test_each_precision_stands_in_the_legend_once(precision):
    named = [line.name for line in figures.state_precision(precision).data if line.showlegend]
    assert named == ["fp32", "bf16"]


def test_the_crossover_is_drawn_where_it_is():
    figure = figures.crossover(crossover_table(MINIMAX_TEXT_01))
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([768, 17_700, 2048], rel=0.01)
    assert figure.layout.annotations[0].text == "mixing: 768 tokens"
    assert len(figure.data) == 6


@pytest.mark.parametrize("draw", [figures.state_precision, figures.crossover])
def test_another_table_is_refused_with_the_columns_expected(draw):
    with pytest.raises(WorkbenchError, match=r"the columns \['a'\] was given; expected some rows of"):
        draw(pd.DataFrame({"a": [1]}))
