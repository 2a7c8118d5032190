"""A list of cells or rows of one's own gives the numbers of its sorted distinct entries, whatever its order."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import random_tokens, tiny
from workbench import WorkbenchError, open_model, probes
from workbench.hooks import CellSum, RowReading
from workbench.hooks.recording.cells import row_starts, rows_of

N_TOKENS = 19
TOKENS = random_tokens(2, N_TOKENS)
PADDED = (torch.arange(N_TOKENS) >= torch.tensor([0, 6])[:, None]).long()
PACKED = torch.tensor([[1] * 8 + [2] * 11, [0] * 4 + [3] * 10 + [4] * 5])
WAYS = {
    "whole": {},
    "padded": dict(attention_mask=PADDED),
    "packed": dict(attention_mask=PACKED),
    "sampled rows": dict(rows=7),
    "pieces": dict(prefill=5),
    "padded pieces": dict(attention_mask=PADDED, prefill=5),
}
CELL = st.tuples(st.integers(0, 1), st.integers(0, N_TOKENS - 1), st.integers(0, N_TOKENS - 1)).map(
    lambda cell: (cell[0], max(cell[1:]), min(cell[1:]))
)


@cache
def opened(family):
    return open_model(tiny(family))


def recorded(m, cells, **options):
    """What a CellSum of these cells gives: totals, rows, errors, and the number of cells."""
    table = torch.tensor(cells, dtype=torch.long).reshape(-1, 3)
    recording = m.record(TOKENS, {CellSum("mine", lambda _: table)}, **options)
    found = recording["mine"]
    return found.total, found.rows, found.row_error, recording.cells["mine"]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12)
@given(cells=st.lists(CELL, max_size=40), data=st.data())
def test_order_and_repeats_of_cells_change_nothing(way, cells, data):
    m = opened("llama")
    repeated = cells + data.draw(st.lists(st.sampled_from(cells), max_size=20) if cells else st.just([]))
    shuffled = data.draw(st.permutations(repeated))
    assert_equal(recorded(m, shuffled, **WAYS[way]), recorded(m, sorted(set(cells)), **WAYS[way]))


@settings(max_examples=8)
@given(cells=st.lists(CELL, min_size=1, max_size=40), data=st.data())
def test_order_and_repeats_change_nothing_in_linear_layers(cells, data):
    m = opened("minimax")
    shuffled = data.draw(st.permutations(cells + cells[::2]))
    assert_equal(recorded(m, shuffled), recorded(m, sorted(set(cells))))


def test_the_sum_of_unsorted_repeated_cells_is_that_of_the_pattern():
    m = opened("llama")
    cells = [(0, 9, 4), (0, 3, 1), (0, 9, 4), (0, 9, 2), (0, 3, 1), (0, 18, 0), (0, 9, 9)]
    total, rows, _, n_cells = recorded(m, cells)
    for layer in range(2):
        for head in range(4):
            pattern = m.pattern(TOKENS[0], layer, head)
            expected = sum(float(pattern[row, key]) for _, row, key in set(cells))
            assert abs(float(total[0, layer, head]) - expected) < 1e-5
    assert rows[0].eq(3).all()
    assert rows[1].eq(0).all()
    assert n_cells.tolist() == [5, 0]


def test_cells_on_padding_and_across_documents_do_not_count():
    m = opened("llama")
    inside, on_padding = [(1, 18, 7), (1, 8, 6)], [(1, 3, 2), (1, 9, 0)]
    padded = dict(attention_mask=PADDED)
    assert_equal(recorded(m, on_padding + inside, **padded), recorded(m, sorted(inside), **padded))
    within, across = [(0, 12, 9), (0, 7, 0)], [(0, 12, 7)]
    packed = dict(attention_mask=PACKED)
    assert_equal(recorded(m, across + within, **packed), recorded(m, sorted(within), **packed))


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([(0, 5, -1)], r"the CellSum 'mine' lists \(0, 5, -1\), outside of the 2 sequences of 19 tokens"),
        ([(2, 5, 1)], r"lists \(2, 5, 1\), outside of the 2 sequences .* leave the others out"),
        ([(-1, 5, 1)], r"lists \(-1, 5, 1\), outside"),
        ([(0, 19, 1)], r"lists \(0, 19, 1\), outside"),
    ],
)
def test_cells_outside_are_refused(cells, reason):
    m = opened("llama")
    with pytest.raises(WorkbenchError, match=reason):
        recorded(m, cells)


def test_attention_on_the_future_of_a_row_is_zero_and_the_row_counts():
    m = opened("llama")
    total, rows, *_ = recorded(m, [(0, 5, 4), (0, 4, 5)])
    seen, seen_rows, *_ = recorded(m, [(0, 5, 4)])
    torch.testing.assert_close(total, seen, equal_nan=True)
    assert (rows[0] == seen_rows[0] + 1).all()


@pytest.mark.parametrize("made", [torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 3), torch.zeros(3).long()])
def test_lists_of_another_shape_or_type_are_refused(made):
    m = opened("llama")
    with pytest.raises(
        WorkbenchError, match=r"expected whole numbers of shape \(n, 3\), the columns sequence, row, key"
    ):
        m.record(TOKENS, {CellSum("mine", lambda _: made)})


@settings(max_examples=12)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, N_TOKENS - 1)), max_size=12), data=st.data())
def test_order_and_repeats_of_rows_change_no_reading(rows, data):
    m = opened("llama")

    def reading(listed):
        table = torch.tensor(listed, dtype=torch.long).reshape(-1, 2)
        need = RowReading("mine", lambda _: table, lambda pattern, _, __: pattern.sum(0))
        found = m.record(TOKENS, {need}, PADDED).readings["mine"]
        return found.values, found.rows

    shuffled = data.draw(st.permutations(rows + rows[::2]))
    kept = sorted({(b, i) for b, i in rows if PADDED[b, i]})
    assert_equal(reading(shuffled), reading(kept))


def test_rows_of_a_reading_outside_the_sequences_are_refused():
    need = RowReading("mine", lambda _: torch.tensor([[0, 19]]), lambda pattern, _, __: pattern.sum(0))
    with pytest.raises(WorkbenchError, match=r"the RowReading 'mine' lists \(0, 19\), outside"):
        opened("llama").record(TOKENS, {need})


@pytest.mark.parametrize("how", ["made", "built"])
@settings(max_examples=8)
@given(data=st.data())
def test_order_and_repeats_of_target_cells_change_nothing(how, data):
    m = opened("llama")
    probe = probes.copy_needle(97, 8, length=N_TOKENS, n_sequences=2)
    shuffled = torch.tensor(
        data.draw(st.permutations([*probe.target_cells.tolist(), *probe.target_cells[::2].tolist()]))
    )
    other = replace(probe, target_cells=shuffled)
    if how == "made":
        fields = ("answer_rows", "classes", "class_name", "metric")
        given_fields = {field: getattr(probe, field) for field in fields}
        other = probes.make_probe(probe.name, probe.tokens, target_cells=shuffled, **given_fields)
        assert torch.equal(other.target_cells, probe.target_cells)
        assert (
            other.digest
            == probes.make_probe(probe.name, probe.tokens, target_cells=probe.target_cells, **given_fields).digest
        )
    found, expected = (m.record(p, {"answer_mass", "answer_top1"}) for p in (other, probe))
    for need in ("answer_mass", "answer_top1"):
        assert torch.equal(found[need].total, expected[need].total)
        assert torch.equal(found[need].rows, expected[need].rows)
    assert torch.equal(found.cells["answer_mass"], expected.cells["answer_mass"])


@pytest.mark.parametrize("cell", [(0, N_TOKENS - 1, 0), (-1, 5, 0), (2, 5, 0), (0, 5, -3)])
def test_target_cells_outside_the_tokens_are_refused(cell):
    with pytest.raises(WorkbenchError, match=r"probe 'mine' has the target cell .* inside of \(2, 19\) tokens"):
        probes.make_probe("mine", TOKENS, target_cells=torch.tensor([cell]))


def test_the_rows_of_sorted_cells_are_each_counted_once():
    cells = torch.randint(0, 5, (200, 3), generator=torch.Generator().manual_seed(0))
    cells = cells[(cells[:, 0] * 5 + cells[:, 1]).argsort(stable=True)]
    rows, inverse = torch.unique_consecutive(cells[:, :2], dim=0, return_inverse=True)
    assert torch.equal(rows_of(cells), rows)
    assert torch.equal(row_starts(cells).cumsum(0) - 1, inverse)
    assert rows_of(cells[:0]).shape == (0, 2)
