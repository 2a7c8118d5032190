"""What is read of selected keys equals brute force over the model's own q, k and indices, or what was built."""

import copy

import pytest
import torch

from tests.families import random_tokens, tiny
from tests.selecting_families import SELECTED
from workbench import KVHead, open_model, probes
from workbench.heads import LayerInfo
from workbench.hooks.interventions.windows import Interventions
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.selected_keys import SELECTION_NEEDS, PickedRows, Selections
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.attention_interface import _lazy_mask
from workbench.hooks.taps.eager import handling
from workbench.kernels import Far, Request

FAR = Far(6, 2)
PROBE = probes.copy_needle(97, [9, 12], length=24, n_sequences=2)


@pytest.fixture(scope="module", params=["glm_moe_dsa", "hy_v4"])
def m(request):
    return open_model(tiny(request.param))


def calls_of(m, tokens, mask=None):
    """The attention calls of a pass, by layer."""
    calls = []

    def keep(call):
        calls.append(call)
        return call.output()

    with torch.no_grad(), handling(m.model, keep):
        m.model(input_ids=tokens, attention_mask=mask, use_cache=False)
    return calls


def brute(calls, probe, mask=None):
    """(need, layer) → values of every counted row, sequence by sequence, one row and key at a time."""
    values = {}
    for call in calls:
        b, h, t, _ = call.q.shape
        scores = call.q.double() @ call.k.double().mT * call.scale
        for s in range(b):
            first = 0 if mask is None else int(mask[s].int().argmax())
            for i in range(first, t):
                keys = {j for j in call.mask.selected[s, 0, i].tolist() if first <= j <= i}
                if i - first < SELECTED:
                    continue
                row = scores[s, :, i, first : i + 1].softmax(-1)
                covered = [row[:, j - first] for j in sorted(keys)]
                before = set() if call.layer == 0 else set(calls[call.layer - 1].mask.selected[s, 0, i].tolist())
                targets = [] if probe is None else [k for q, r, k in probe.target_cells.tolist() if (q, r) == (s, i)]
                here = {"selection_coverage": sum(covered), "selection_distance": sum(i - j for j in keys) / len(keys)}
                if i - first >= FAR.window:
                    far = [j for j in keys if j >= first + FAR.sink and j <= i - FAR.window]
                    here["selection_far"] = len(far) / len(keys)
                if call.layer:
                    here["selection_overlap"] = len(keys & before) / len(keys)
                if i - first > SELECTED:
                    previous = {j for j in call.mask.selected[s, 0, i - 1].tolist() if first <= j < i}
                    here["selection_persistence"] = len(keys - {i} & previous) / len(keys - {i})
                if targets:
                    here["answer_selected"] = sum(k in keys for k in targets) / len(targets)
                for need, value in here.items():
                    value = torch.as_tensor(value, dtype=torch.float64).expand(h)
                    values.setdefault((need, call.layer, s), []).append(value)
    return values


def assert_is(recording, expected, n_sequences):
    for need in SELECTION_NEEDS:
        for layer in range(len(recording.layers)):
            for s in range(n_sequences):
                rows = expected.get((need, layer, s), [])
                assert recording[need].rows[s, layer].eq(len(rows)).all(), (need, layer, s)
                if rows:
                    error = recording[need].total[s, layer].double() - torch.stack(rows).sum(0)
                    assert error.abs().max() <= 1e-5 * len(rows), (need, layer, s)


def test_selections_equal_brute_force_over_the_models_own_queries_keys_and_indices(m):
    expected = brute(calls_of(m, PROBE.tokens), PROBE)
    assert_is(m.record(PROBE, SELECTION_NEEDS, far=FAR), expected, 4)
    assert_is(m.record(PROBE, SELECTION_NEEDS, far=FAR, prefill=7), expected, 4)


def test_selections_of_padded_texts_are_those_of_the_texts_alone(m):
    tokens, mask = random_tokens(2, 29), (torch.arange(29) >= torch.tensor([0, 11])[:, None]).long()
    expected = brute(calls_of(m, tokens, mask), None, mask)
    recording = m.record(tokens, set(SELECTION_NEEDS), mask, far=FAR)
    assert recording["selection_coverage"].rows[:, 0, 0].tolist() == [29 - SELECTED, 18 - SELECTED]
    assert_is(recording, expected, 2)


def test_sampled_rows_are_some_of_all_rows_and_their_error_is_told(m):
    tokens = random_tokens(2, 37)
    rows = [3, 8, 15, 16, 30]
    values = brute(calls_of(m, tokens), None)
    expected = {
        key: [v for i, v in zip(range(SELECTED, 37), by_row, strict=False) if i in rows]
        for key, by_row in values.items()
    }
    recording = m.record(tokens, {"selection_coverage", "selection_overlap"}, rows=rows)
    for need in ("selection_coverage", "selection_overlap"):
        measured = recording[need]
        assert measured.rows[0, 1].eq(4).all()
        assert torch.allclose(measured.total[0, 1].double(), torch.stack(expected[need, 1, 0]).sum(0), atol=1e-5)
        sample = torch.stack(expected[need, 1, 0])
        error = (sample.var(0) / 4 * (1 - 4 / (37 - SELECTED))).sqrt()
        assert torch.allclose(measured.row_error[0, 1].double(), error, atol=1e-5)


def test_persistence_is_exactly_the_share_of_keys_that_stay_selected_from_row_to_row():
    m, n = open_model(tiny("deepseek_v32")), 24
    m.model = selecting(tiny("deepseek_v32"), {0: [0, 1, 2, 3, 4], 1: [0, 2, 4, 6, 8]})
    for options in ({}, {"prefill": 7}, {"rows": range(SELECTED + 1, n)}, {"rows": [14, 21], "prefill": 7}):
        persistence = m.record(random_tokens(1, n), {"selection_persistence"}, **options)["selection_persistence"]
        n_rows = len(options.get("rows", range(SELECTED + 1, n)))
        assert persistence.rows[0].eq(n_rows).all()
        # Of a window's keys but the row itself all stay; of every second key none does.
        assert persistence.total[0].tolist() == [[n_rows] * 4, [0] * 4]
    fixed = torch.tensor([3, 0, 2, 1, 4])
    for layer in m.model.model.layers:
        layer.self_attn.indexer.forward = lambda hidden, *_, **__: fixed.int().expand(*hidden.shape[:2], -1)
    persistence = m.record(random_tokens(2, n), {"selection_persistence"})["selection_persistence"]
    assert (persistence.total == persistence.rows).all()
    assert persistence.rows.eq(n - SELECTED - 1).all()


def test_coverage_under_a_window_is_of_what_the_window_leaves():
    m, tokens = open_model(tiny("glm_moe_dsa")), random_tokens(1, 37)
    plain = m.record(tokens, {"selection_coverage"})["selection_coverage"]
    with m.restrict([KVHead(0, 1)], 4):
        windowed = m.record(tokens, {"selection_coverage"})["selection_coverage"]
        pattern = m.pattern(tokens, 0, 1)
    (call, *_), expected = calls_of(m, tokens), []
    for i in range(SELECTED, 37):
        row = (call.q[0, 1, i] @ call.k[0, 1, i - 3 : i + 1].mT * call.scale).softmax(-1)
        keys = set(call.mask.selected[0, 0, i].tolist())
        if pattern[i].any():
            expected.append(float(sum(row[j] for j in range(4) if i - 3 + j in keys)))
    assert int(windowed.rows[0, 0, 1]) == len(expected)
    assert float(windowed.total[0, 0, 1]) == pytest.approx(sum(expected), rel=1e-5)
    assert torch.equal(windowed.total[0, 0, [0, 2, 3]], plain.total[0, 0, [0, 2, 3]])


def selecting(model, by_layer):
    """A copy of a model whose indexers select the keys at these distances from every row."""
    model = copy.deepcopy(model)
    for layer, back in by_layer.items():

        def select(hidden, _, __, mask, *___, back=back, **____):
            n_keys = mask.shape[-1]  # those of earlier pieces among them
            row = torch.arange(n_keys - hidden.shape[1], n_keys)[:, None]
            indices = row - torch.tensor(back)
            return torch.where(indices >= 0, indices, n_keys - 1).int().expand(len(hidden), -1, -1)

        model.model.layers[layer].self_attn.indexer.forward = select
    return model


def test_reach_overlap_and_answers_are_exactly_those_of_indexers_built_by_hand():
    m = open_model(tiny("deepseek_v32"))
    built = selecting(tiny("deepseek_v32"), {0: [0, 1, 2, 3, 4], 1: [0, 1, 9, 6, 7]})
    m.model = built  # behind the check of the model as it opens, which no indexer built by hand passes
    recording = m.record(PROBE, SELECTION_NEEDS, far=Far(6))
    mean = {need: recording[need].total / recording[need].rows for need in SELECTION_NEEDS}
    late = recording["selection_far"].rows[:, 0, 0]
    assert late.eq(24 - 6).all()
    assert mean["selection_distance"][:, 0].eq(2).all()
    assert mean["selection_far"][:, 0].eq(0).all()
    rows = torch.arange(24)
    back = torch.tensor([0, 1, 9, 6, 7])
    seen = (rows[SELECTED:, None] >= back).float()
    expected = ((back <= 4) * seen).sum(-1) / seen.sum(-1)
    assert torch.allclose(mean["selection_overlap"][:, 1], expected.mean(), atol=1e-6)
    distance = PROBE.target_cells[:, 1] - PROBE.target_cells[:, 2]
    for s in range(4):
        here = distance[PROBE.target_cells[:, 0] == s]
        assert mean["answer_selected"][s, 0].eq(torch.isin(here, torch.arange(5)).float().mean()).all()
        assert mean["answer_selected"][s, 1].eq(torch.isin(here, back).float().mean()).all()


@pytest.mark.parametrize(("has_answer", "coverage"), [(True, 1.0), (False, 0.0)])
def test_coverage_is_exactly_one_where_the_attended_key_is_selected_and_zero_where_it_is_not(has_answer, coverage):
    n, back = 40, 7
    keys = 100 * torch.eye(n)[None, None]
    queries = 100 * torch.eye(n).roll(back, 0)[None, None]  # row i attends to key i − 7 alone
    row = torch.arange(n)[None, :, None]
    indices = row - torch.tensor([0, 2, back if has_answer else 5])
    mask = _lazy_mask(q_length=n, kv_length=n).selecting(indices[:, None])
    call = AttentionCall(0, queries, keys, keys, mask, 1.0, None, None)
    layers = (LayerInfo(0, "sparse", "softmax", None, False, 1, 1, n, n_selected=3),)
    selections = Selections(sequences(torch.zeros(1, n, dtype=torch.long), None), {"selection_coverage"}, layers, FAR)
    rows = PickedRows(slice(0, n), torch.arange(back, n), torch.ones(n - back, dtype=torch.bool))
    lse = call.statistics(Request(rows=rows.picked))[1].lse
    values, counted = selections.read(0, call, Interventions(), rows, lse)["selection_coverage"]
    assert counted.all()
    assert values.eq(coverage).all()


def test_layers_that_select_nothing_have_no_rows():
    recording = open_model(tiny("dots3_note")).record(random_tokens(1, 37), SELECTION_NEEDS)
    assert recording["selection_coverage"].rows[0, 0].gt(0).all()
    assert all(recording[need].rows[0, 1].eq(0).all() for need in SELECTION_NEEDS)
    assert recording["selection_overlap"].rows.eq(0).all()
    llama = open_model(tiny("llama")).record(random_tokens(1, 37), SELECTION_NEEDS)
    assert all(llama[need].rows.eq(0).all() and llama[need].total.isnan().all() for need in SELECTION_NEEDS)
