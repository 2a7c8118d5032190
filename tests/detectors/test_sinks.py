"""Scores of sinks are means over the rows that see the token: under the mask in force, at any length."""

from functools import cache

import pytest
import torch

from tests.families import WINDOW, random_tokens, tiny
from workbench import Head, KVHead, open_model, score
from workbench.hooks import CellSum

SINKS = ["sink", "sink_total", "sink_streaming", "sink_gu"]
DOCUMENTS = torch.tensor([[1] * 19 + [2] * 21, [0] * 5 + [3] * 12 + [4] * 23])
# Mistral slides in all layers, Gemma 3 and GPT-OSS (which has learned sinks) in the first, Llama 4 has chunks there.
FAMILIES = ("llama", "mistral", "gemma3", "gpt_oss", "llama4", "gpt_neo", "minimax")


@cache
def opened(family):
    return open_model(tiny(family))


def visible(info, n_tokens):
    """Whether row i sees key j, from the kind of the layer alone."""
    i, j = torch.arange(n_tokens)[:, None], torch.arange(n_tokens)
    seen = j <= i
    if info.kind == "sliding":
        seen = seen & (i - j < info.window)
    if info.kind == "chunked":
        seen = seen & (i // info.window == j // info.window)
    return seen


def of_whole_patterns(m, sequences, rows=None):
    """The scores by (detector, layer, head), from whole patterns of documents of their own, all rows or some."""
    scores = {}
    for info in m.layers:
        for head in range(info.n_heads):
            each = {name: [] for name in SINKS}
            for tokens in sequences:
                a = m.pattern(tokens, info.index, head).double()
                if info.kind == "linear":
                    a = a / a.abs().sum(-1, keepdim=True)
                seen = visible(info, len(tokens))
                if rows is not None:
                    a, seen = a[rows], seen[rows]
                learned = (1 - a.sum(-1)) if info.has_sinks else torch.zeros(len(a))
                first = a[seen[:, 0], 0].mean()
                each["sink"].append(first)
                each["sink_total"].append((a[:, 0] + learned)[seen[:, 0]].mean())
                each["sink_streaming"].append(a[seen[:, :4].any(-1), :4].sum(-1).mean())
                each["sink_gu"].append((first > 0.3).double())
            for name, values in each.items():
                scores[name, info.index, head] = float(torch.stack(values).mean())
    return scores


def assert_scores(table, expected):
    measured = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    assert measured.keys() == expected.keys()
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=2e-5), key


@pytest.mark.parametrize("n_tokens", [WINDOW - 1, 40, 75])
@pytest.mark.parametrize("family", FAMILIES)
def test_sinks_are_means_over_the_rows_that_see_them_at_any_length(family, n_tokens):
    m, tokens = opened(family), random_tokens(2, n_tokens, seed=3)
    assert_scores(score(m, SINKS, tokens), of_whole_patterns(m, tokens))


def test_the_sink_of_a_sliding_head_does_not_fade_with_the_length_of_the_text():
    tokens = random_tokens(1, 120, seed=4)
    short, long = (score(opened("mistral"), ["sink"], tokens[:, :n]) for n in (WINDOW, 120))
    assert long.score.to_numpy() == pytest.approx(short.score.to_numpy(), abs=1e-6)
    assert long.n.eq(WINDOW).all()


@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
def test_sinks_of_packed_documents_and_left_padding_are_those_of_each_document(family):
    m, tokens = opened(family), random_tokens(2, 40, seed=5)
    each = [tokens[0, :19], tokens[0, 19:], tokens[1, 5:17], tokens[1, 17:]]
    assert_scores(score(m, SINKS, tokens, DOCUMENTS), of_whole_patterns(m, each))
    padding = (torch.arange(40) >= torch.tensor([0, 14])[:, None]).long()
    expected = of_whole_patterns(m, [tokens[0], tokens[1, 14:]])
    assert_scores(score(m, SINKS, tokens, padding), expected)
    assert_scores(score(m, SINKS, tokens, padding, prefill=9), expected)


@pytest.mark.parametrize("prefill", [None, 11])
def test_sampled_rows_that_do_not_see_the_first_token_are_no_rows_of_its_sink(prefill):
    m, tokens, rows = opened("mistral"), random_tokens(2, 40, seed=6), [0, 3, 6, 11, 25, 39]
    table = score(m, SINKS, tokens, rows=rows, prefill=prefill)
    assert_scores(table, of_whole_patterns(m, tokens, rows))
    assert table[table.detector == "sink"].n.eq(2 * 3).all()  # of each sequence rows 0, 3 and 6


def test_the_error_of_a_sink_whose_rows_were_all_sampled_is_zero():
    tokens, rows = random_tokens(1, 40, seed=7), [*range(WINDOW), 20, 30]
    sink = opened("mistral").record(tokens, ["sink_mass"], rows=rows)["sink_mass"]
    assert sink.rows.eq(WINDOW).all()
    assert sink.row_error.eq(0).all()
    some = opened("mistral").record(tokens, ["sink_mass"], rows=[1, 5, 20])["sink_mass"]
    a = torch.stack([opened("mistral").pattern(tokens[0], 0, h)[[1, 5], 0] for h in range(4)]).double()
    expected = (a.var(-1) / 2 * (1 - 2 / WINDOW)).sqrt()
    torch.testing.assert_close(some.row_error[0, 0].double(), expected, atol=1e-6, rtol=1e-4)


def test_a_restricted_head_counts_the_rows_that_its_window_and_its_sinks_leave():
    m, tokens = opened("llama"), random_tokens(1, 40, seed=8)
    with m.restrict([KVHead(0, 0)], window=6), m.restrict([KVHead(1, 1)], window=6, sink=2):
        table = score(m, ["sink"], tokens).set_index(["layer", "head"])
        for info in m.layers:
            for head in range(info.n_heads):
                n_seen = 6 if (info.index, info.kv_head(head)) == (0, 0) else 40
                expected = m.pattern(tokens[0], info.index, head)[:n_seen, 0].mean()
                assert table.n[info.index, head] == n_seen
                assert table.score[info.index, head] == pytest.approx(float(expected), abs=1e-5)


def test_a_uniform_head_of_a_sliding_layer_counts_its_own_rows():
    m, tokens = opened("mistral"), random_tokens(1, 40, seed=9)
    with m.ablate([Head(0, 1)], how="uniform"):
        table = score(m, ["sink"], tokens).set_index(["layer", "head"])
    assert table.score[0, 1] == pytest.approx(sum(1 / i for i in range(1, WINDOW + 1)) / WINDOW, abs=1e-6)


def test_a_value_drain_is_of_the_rows_that_see_the_first_token():
    m, tokens = opened("mistral"), random_tokens(1, 60, seed=10)
    short, long = (score(m, ["value_drain"], tokens[:, :n]).score.to_numpy() for n in (WINDOW, 60))
    torch.testing.assert_close(torch.tensor(long), torch.tensor(short), atol=1e-5, rtol=0)


def test_a_cell_sum_of_ones_own_may_count_the_rows_alone_that_see_a_cell():
    def third(batch):
        rows = torch.arange(2, 30)
        return torch.stack([torch.zeros_like(rows), rows, torch.full_like(rows, 2)], -1)

    recording = opened("mistral").record(
        random_tokens(1, 30), {CellSum("all_rows", third), CellSum("seeing_rows", third, seen_only=True)}
    )
    assert recording["all_rows"].rows.eq(28).all()
    assert recording["seeing_rows"].rows.eq(WINDOW).all()
    assert torch.equal(recording["all_rows"].total, recording["seeing_rows"].total)
