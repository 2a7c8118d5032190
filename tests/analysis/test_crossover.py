"""Break-even lengths of linear and softmax attention, by what is counted."""

import pytest

from workbench.analysis.crossover import MINIMAX_TEXT_01, LayerShape, crossover, crossover_table
from workbench.heads import WorkbenchError


@pytest.mark.parametrize(("chunk", "tokens"), [(64, 384), (128, 512), (256, 768)])
def test_mixing_alone_breaks_even_at_twice_chunk_plus_width(chunk, tokens):
    assert crossover(MINIMAX_TEXT_01, chunk=chunk).tokens == tokens


def test_skipping_the_upper_half_of_the_chunk_moves_it_down():
    assert crossover(MINIMAX_TEXT_01, chunk=256, skips_upper_half=True).tokens == 512


def test_projections_move_it_to_seventeen_thousand():
    found = crossover(MINIMAX_TEXT_01, ("mixing", "projections"))
    assert found.linear_fixed - crossover(MINIMAX_TEXT_01).linear_fixed == pytest.approx(503e6, rel=1e-3)
    assert found.softmax_fixed == pytest.approx(226e6, rel=3e-3)
    assert found.tokens == pytest.approx(17.7e3, rel=0.01)


def test_decoding_breaks_even_where_the_state_weighs_as_much_as_the_cache():
    assert crossover(MINIMAX_TEXT_01, ("decode memory",)).tokens == 2048
    assert crossover(LayerShape(6144, 64, 64, 128), ("decode memory",)).tokens == 256


def test_bytes_and_flop_are_not_added():
    with pytest.raises(WorkbenchError, match="ask for it alone"):
        crossover(MINIMAX_TEXT_01, ("mixing", "decode memory"))


@pytest.mark.parametrize("terms", [(), ("softmax",), ("projections",)])
def test_terms_without_a_break_even_are_refused(terms):
    with pytest.raises(WorkbenchError, match="terms"):
        crossover(MINIMAX_TEXT_01, terms)


def test_the_table_of_costs_crosses_at_the_break_even():
    table = crossover_table(MINIMAX_TEXT_01, (512, 768, 1024, 2048, 4096))
    mixing = table[table.terms == "mixing"].set_index("tokens")
    assert mixing.softmax[768] == mixing.linear[768]
    assert mixing.softmax[512] < mixing.linear[512]
    assert set(table.terms) == {"mixing", "mixing + projections", "decode memory"}
    assert set(table[table.terms == "decode memory"].unit) == {"bytes"}
