"""Heads in every notation that says which head is meant; what may mean two things is refused."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

import workbench as wb
from tests.families import tiny
from workbench.heads import Head, KVHead, LayerInfo, WorkbenchError
from workbench.hooks.head_inputs import by_kv_head, kv_heads, query_head, query_heads
from workbench.store.conversions import check_window

SIZES = {"kind": "full", "mixer": "softmax", "window": None, "has_sinks": False, "d_head": 8}
GROUPED = tuple(LayerInfo(index=i, n_heads=4, n_kv_heads=2, **SIZES) for i in (0, 1))
SINGLE = tuple(LayerInfo(index=i, n_heads=4, n_kv_heads=4, **SIZES) for i in (0, 1))
OfTable = namedtuple("OfTable", ["layer", "kv_head"])
TOKENS = torch.arange(3, 20)


@pytest.mark.parametrize(
    "heads",
    [
        Head(1, 3),
        [Head(1, 3)],
        "L1H3",
        [" l1h3 "],
        (1, 3),
        [(1, 3)],
        [[1, 3]],
        ((1, 3),),
        {(1, 3)},
        np.array([1, 3]),
        np.array([[1, 3]]),
        torch.tensor([[1, 3]]),
        (np.int64(1), torch.tensor(3)),
        Head(np.int64(1), np.int64(3)),
        iter([Head(1, 3), "L1H3"]),
    ],
)
def test_a_query_head_is_read_in_every_notation(heads):
    assert query_heads(GROUPED, heads) == [Head(1, 3)]


@pytest.mark.parametrize("heads", [KVHead(1, 0), "L1KV0", ["L1kv0"], [OfTable(1, 0)], [Head(1, 0), Head(1, 1)]])
def test_a_key_value_head_is_read_in_every_notation(heads):
    assert kv_heads(GROUPED, heads) == [KVHead(1, 0)]


@pytest.mark.parametrize("heads", [Head(1, 3), (1, 3), "L1H3", KVHead(1, 3), [np.array([1, 3])]])
def test_where_each_head_has_its_own_keys_both_kinds_are_one(heads):
    assert kv_heads(SINGLE, heads) == [KVHead(1, 3)]
    assert query_heads(SINGLE, heads) == [Head(1, 3)]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((1, 0), r'\(1, 0\) may be the key/value head L1KV0 or the query head L1H0, .*; pass "L1KV0"$'),
        ([(1, 1)], 'pass "L1KV1" or "L1KV0"'),
        (Head(1, 3), 'L1H3 shares its keys and values with L1H2, .*pass "L1KV1"'),
        ([Head(1, 3), Head(0, 2)], "L1H3 shares its keys and values with L1H2"),
        (KVHead(1, 2), "layer 1 has no key/value head 2; the model has layers 0 … 1 with 4 heads"),
        ("L7KV0", "layer 7 has no key/value head 0"),
    ],
)
def test_what_may_be_another_key_value_head_is_refused(heads, message):
    with pytest.raises(WorkbenchError, match=message):
        kv_heads(GROUPED, heads)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (KVHead(1, 0), "L1KV0 is a key/value head of the query heads L1H0, L1H1; expected query heads"),
        (Head(0, 9), "layer 0 has no head 9"),
        (Head(0, -1), "layer 0 has no head -1"),
        ((-1, 0), "layer -1 has no head 0"),
        ("H3", "'H3' is no head"),
        (["L1", "H3"], "'L1' is no head"),
        ([3], "3 is no head"),
        (3, "3 is no head"),
        (None, "None is no head"),
        ([(1, 2, 3)], r"\(1, 2, 3\) is no head"),
        ((1.0, 2.0), "1.0 is no head"),
        ([(True, False)], r"\(True, False\) is no head"),
        ({"L1H3": 1}, "is no head"),
        (Head(0.5, 1), "is no head"),
    ],
)
def test_what_is_no_head_of_the_model_is_refused(heads, message):
    with pytest.raises(WorkbenchError, match=message):
        query_heads(GROUPED, heads)


def test_a_mapping_by_head_names_each_head_once():
    assert by_kv_head(GROUPED, {"L1KV0": 5, KVHead(0, 1): 6}) == {KVHead(1, 0): 5, KVHead(0, 1): 6}
    with pytest.raises(WorkbenchError, match="2 keys name 1 key/value heads"):
        by_kv_head(GROUPED, {"L1KV0": 5, KVHead(1, 0): 6})
    with pytest.raises(WorkbenchError, match="expected a mapping"):
        by_kv_head(GROUPED, [KVHead(1, 0)])


def test_one_head_is_two_numbers_or_a_head():
    for layer, head in ((1, 3), (np.int64(1), torch.tensor(3)), ("L1H3", None), (Head(1, 3), None), ((1, 3), None)):
        assert query_head(GROUPED, layer, head) == Head(1, 3)
    for layer, head, message in (
        (1, None, "layer 1 was given without a head"),
        (Head(1, 3), 2, "expected two whole numbers"),
        (True, 1, "expected two whole numbers"),
        (1.0, 3, "expected two whole numbers"),
        ([Head(1, 3), Head(0, 0)], None, "2 heads were given, expected one"),
        (1, 4, "there is no head L1H4"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            query_head(GROUPED, layer, head)


# In the functions that take them


@pytest.fixture(scope="module")
def m():
    return wb.open_model(tiny("llama"))


def test_a_pattern_takes_a_head_and_positions_in_any_notation(m):
    whole = m.pattern(TOKENS, 1, 3)
    assert torch.equal(m.pattern(TOKENS.tolist(), "L1H3"), whole)
    for queries in ([3, 16, 0], torch.tensor([3, -1, 0]), np.array([3, 16, -17])):
        # Fewer rows may be added up in another order.
        torch.testing.assert_close(
            m.pattern(TOKENS, wb.Head(1, 3), queries=queries), whole[[3, 16, 0]], rtol=1e-5, atol=0
        )
    assert torch.allclose(m.pattern(TOKENS, 1, 3, queries=-1, keys=slice(None, None, -1)), whole[-1:].flip(1))
    every_fifth = m.pattern(TOKENS, 1, 3, queries=torch.arange(17) % 5 == 0)
    torch.testing.assert_close(every_fifth, whole[::5], rtol=1e-5, atol=0)


@pytest.mark.parametrize("tokens", [torch.stack([TOKENS, TOKENS]), [TOKENS.tolist()] * 2, [[3, 4], [5, 6, 7]]])
def test_a_pattern_of_several_sequences_is_refused(m, tokens):
    with pytest.raises(WorkbenchError, match="a pattern is of one sequence, and 2 were given"):
        m.pattern(tokens, 1, 3)


def test_rows_are_counted_or_named(m):
    def rows(rows):
        return m.record(TOKENS, "sink_mass", rows=rows).sums["sink_mass"]

    chosen = rows(torch.tensor([3, 16]))
    for same in ([16, 3], [3, -1], np.array([3, 16]), torch.isin(torch.arange(17), torch.tensor([3, 16]))):
        assert torch.equal(rows(same).total, chosen.total)
    assert int(rows(np.int64(5)).rows.max()) == 5
    for bad in (0, True, "some", [17], None):
        with pytest.raises(WorkbenchError, match="rows"):
            rows(bad)


def test_ablation_and_patching_take_heads_in_any_notation(m):
    with m.ablate([wb.Head(0, 1)]):
        ablated = m.pattern(TOKENS, 1, 3)
    for heads in ("L0H1", (0, 1), [(0, 1)], np.array([[0, 1]])):
        with m.ablate(heads):
            assert torch.equal(m.pattern(TOKENS, 1, 3), ablated)
    with m.patch("L0H1", TOKENS.flip(0).tolist()):
        patched = m.pattern(TOKENS, 1, 3)
    with m.patch([wb.Head(0, 1)], {"input_ids": TOKENS.flip(0)[None]}):
        assert torch.equal(m.pattern(TOKENS, 1, 3), patched)
    outputs = m.head_outputs("L0H1", TOKENS.flip(0).numpy())
    with m.patch((0, 1), outputs):
        assert torch.equal(m.pattern(TOKENS, 1, 3), patched)


def test_windows_and_linear_attention_take_key_value_heads_in_any_notation(m):
    with m.restrict([wb.KVHead(1, 0)], 4):
        windowed = m.pattern(TOKENS, 1, 0)
    for heads in ("L1KV0", wb.KVHead(1, 0), [wb.Head(1, h) for h in range(4) if m.layers[1].kv_head(h) == 0]):
        with m.restrict(heads, 4):
            assert torch.equal(m.pattern(TOKENS, 1, 0), windowed)
    form = wb.LinearAttention()
    with m.linearize({wb.KVHead(1, 0): form}):
        linear = m.pattern(TOKENS, 1, 0)
    with m.linearize({"L1KV0": form}):
        assert torch.equal(m.pattern(TOKENS, 1, 0), linear)
    with pytest.raises(WorkbenchError, match="the form of L1KV0 is a str"), m.linearize({"L1KV0": "elu"}):
        pass


def test_scores_on_ids_are_those_on_the_tensor_however_they_are_held(m):
    expected = wb.score(m, ["sink"], TOKENS).score.tolist()
    for tokens in (TOKENS.tolist(), TOKENS.numpy(), {"input_ids": [TOKENS.tolist()]}, TOKENS.int()[None]):
        assert wb.score(m, "sink", tokens).score.tolist() == expected
    alone = [wb.score(m, "sink", row).score.to_numpy() for row in ([3, 4, 5, 6], [7, 8])]
    both = wb.score(m, "sink", [[3, 4, 5, 6], [7, 8]]).score.to_numpy()
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_a_probe_where_tokens_are_expected_is_scored_with_its_answers(m):
    probe = wb.probes.repeats(m, n=8, n_sequences=2)
    by_keyword = wb.score(m, ["induction"], probes=probe)
    assert wb.score(m, ["induction"], probe).equals(by_keyword)
    with pytest.raises(WorkbenchError, match="attention_mask was given without tokens"):
        wb.score(m, probes=probe, attention_mask=torch.ones(2, 16))


def test_answers_and_effects_take_the_name_of_a_probe_and_refuse_tokens(m):
    written = "repeats:n=8,n_sequences=2"
    probe = wb.probes.build(m, written)
    assert torch.equal(m.answers(written).loss_nats, m.answers(probe).loss_nats)
    source = wb.probes.corrupted(m, probe)
    assert wb.patch_effects(m.model, written, source, "L0H1") == wb.patch_effects(m, probe, source, [wb.Head(0, 1)])
    gates = wb.window_gates(m, probe, 4, nodes=1)
    assert np.array_equal(wb.window_gates(m.model, written, 4, nodes=1).scores, gates.scores)
    for refused in (lambda: m.answers(TOKENS), lambda: wb.window_gates(m, TOKENS, 4)):
        with pytest.raises(WorkbenchError, match="a Tensor is no probe"):
            refused()
    forms = wb.fit_linear_attention(m, probe, heads="L1KV0").forms
    assert list(forms) == [wb.KVHead(1, 0)]


@pytest.mark.parametrize("window", [4.5, 4.0, "4", True, None, 0])
def test_a_window_of_another_kind_is_refused(window):
    with pytest.raises(WorkbenchError, match=r"expected a window of at least 1 token .* whole numbers"):
        check_window(window, 0)


def test_whole_numbers_of_numpy_are_numbers():
    assert check_window(np.int64(4), np.int32(1)) == check_window(4, 1)


def test_detectors_of_another_kind_and_none_at_all_are_refused(m):
    with pytest.raises(WorkbenchError, match="no detector was named"):
        wb.score(m, [])
    with pytest.raises(WorkbenchError, match="detectors are a int"):
        wb.score(m, 3)
