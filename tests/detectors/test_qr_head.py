"""Scores on pairs of a question and an empty one, and the rows that are read for them."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import CONFIGS, tiny
from tests.planted import TOKEN, VOCABULARY, PlantedModel, induction_head, uniform_head
from workbench import probes
from workbench.detectors import score
from workbench.heads import WorkbenchError
from workbench.hooks import RowReading, open_model
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 90), bos=1)


@pytest.mark.parametrize("family", CONFIGS)
def test_query_focused_scores_equal_the_authors_formula_over_whole_patterns(family):
    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=3)
    table = score(open_model(tiny(family)), ["qr_head", "qr_head_mean"], probes=probe)
    measured = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    expected = {name: Counter() for name in ("qr_head", "qr_head_mean")}
    for i in range(3):
        attention = []
        for b in (2 * i, 2 * i + 1):
            mask = None if probe.attention_mask is None else probe.attention_mask[b : b + 1].long()
            patterns, _, linear = eager_patterns(tiny(family, "eager"), probe.tokens[b : b + 1], mask)
            patterns = [p / p.abs().sum(-1, keepdim=True) if x in linear else p for x, p in enumerate(patterns)]
            in_sequence = probe.answer_rows[:, 0] == b
            rows, (start, stop) = probe.answer_rows[in_sequence][:, 1], probe.needles[in_sequence][0].tolist()
            attention.append([p[0][:, rows][:, :, start:stop].mean(1) for p in patterns])
        for layer in range(2):
            gained = attention[0][layer] - attention[1][layer]
            for head in range(4):
                tokens = gained[head]
                total = (tokens * (tokens > tokens.mean() - 2 * tokens.std())).sum().item()
                expected["qr_head"][layer, head] += total / 3
                expected["qr_head_mean"][layer, head] += total / len(tokens) / 3
    for name, by_head in expected.items():
        for (layer, head), value in by_head.items():
            assert measured[name, layer, head] == pytest.approx(value, abs=1e-5)
    assert table.n_seq.eq(3).all()


def test_pairs_stay_together_in_batches_and_differ_in_the_question_alone(monkeypatch):
    from workbench.detectors import measuring

    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=5)
    m = open_model(tiny("llama"))
    whole = score(m, ["qr_head"], probes=probe).score
    monkeypatch.setattr(measuring, "batch_tokens", lambda *_: 3 * probe.tokens.shape[1])
    assert score(m, ["qr_head"], probes=probe).score.tolist() == pytest.approx(whole.tolist(), abs=1e-6)
    for i in range(5):
        first = probe.answer_rows[probe.answer_rows[:, 0] == 2 * i][0, 1]
        a, b = probe.tokens[2 * i], probe.tokens[2 * i + 1]
        assert torch.equal(a[:first], b[:first])
        assert not torch.equal(a[first : first + 2], b[first : first + 2])


def test_a_head_that_finds_the_key_of_the_question_has_a_high_query_focused_score():
    words = Vocabulary(torch.arange(1, VOCABULARY), bos=0)
    probe = probes.gold_document(words, length=60, n_documents=3, n_sequences=4)
    finder = induction_head()
    q, k = torch.zeros_like(finder.q), torch.zeros_like(finder.k)
    q[TOKEN, TOKEN], k[TOKEN, TOKEN] = 8 * torch.eye(VOCABULARY), torch.eye(VOCABULARY)
    m = open_model(PlantedModel([[replace(finder, q=q, k=k), uniform_head()]]))
    names = ["qr_head", "qr_head_mean", "qr_head_ndcg"]
    measured = score(m, names, probes=probe).set_index(["detector", "head"]).score
    assert measured["qr_head_ndcg", 0] > 0.9  # first but where another document's key shares a token
    assert measured["qr_head_ndcg", 1] == pytest.approx(1 / math.log2(3))  # no difference: second of three on average
    assert measured["qr_head", 0] > 0.2  # half goes to the question's own tokens, some to keys that share a token
    assert measured["qr_head", 1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "minimax"])
def test_documents_are_ranked_as_by_hand(family):
    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=3)
    measured = score(open_model(tiny(family)), ["qr_head_ndcg"], probes=probe).set_index(["layer", "head"]).score
    expected = Counter()
    for i in range(3):
        in_sequence = probe.answer_rows[:, 0] == 2 * i
        gold = probe.needles[in_sequence][0].tolist()
        spans = [span for b, *span in probe.documents.tolist() if b == 2 * i]
        assert len(spans) == 4
        assert gold in spans
        columns = []
        for b in (2 * i, 2 * i + 1):
            mask = None if probe.attention_mask is None else probe.attention_mask[b : b + 1].long()
            patterns, _, linear = eager_patterns(tiny(family, "eager"), probe.tokens[b : b + 1], mask)
            patterns = [p / p.abs().sum(-1, keepdim=True) if x in linear else p for x, p in enumerate(patterns)]
            rows = probe.answer_rows[probe.answer_rows[:, 0] == b][:, 1]
            columns.append([p[0][:, rows].mean(1) for p in patterns])
        for layer in range(2):
            for head in range(4):
                gained = columns[0][layer][head] - columns[1][layer][head]
                by_document = {}
                for start, stop in spans:
                    tokens = gained[start:stop]
                    by_document[start] = float((tokens * (tokens > tokens.mean() - 2 * tokens.std())).sum())
                own = by_document.pop(gold[0])
                # Beyond a window all documents score 0: none is first, they share the mean rank.
                rank = 1 + sum((value > own) + (value == own) / 2 for value in by_document.values())
                expected[layer, head] += 1 / math.log2(1 + rank) / 3
    assert measured.to_dict() == pytest.approx(dict(expected))


def test_a_reading_of_rows_is_the_same_piece_by_piece_and_under_padding():
    m = open_model(tiny("mistral"))
    probe = probes.gold_document(WORDS, length=90, n_documents=4, n_sequences=2)
    needs = find_needs("qr_head")
    whole = m.record(probe, needs).readings["gold_columns"]
    pieces = m.record(probe, needs, prefill=11).readings["gold_columns"]
    assert torch.equal(whole.rows, pieces.rows)
    assert torch.allclose(whole.values, pieces.values, atol=1e-5, equal_nan=True)


def find_needs(name):
    from workbench.detectors import find_detectors

    return find_detectors([name])[0].needs


def test_packed_documents_have_no_readings_of_rows():
    m = open_model(tiny("llama"))
    reading = RowReading("mine", lambda batch: torch.zeros(0, 2, dtype=torch.long), lambda p, rows, batch: p.sum(0))
    with pytest.raises(WorkbenchError, match="'mine' reads rows of sequences; pass packed documents one by one"):
        m.record(torch.randint(3, 90, (1, 8)), {reading}, torch.tensor([[1, 1, 1, 2, 2, 2, 3, 3]]))


def test_documents_and_questions_in_text_differ_in_the_question_alone(speaking):
    probe = probes.gold_document(speaking, length=400, n_documents=3, n_sequences=2)
    for i in range(4):
        in_sequence = probe.answer_rows[:, 0] == i
        rows, (start, stop) = probe.answer_rows[in_sequence][:, 1], probe.needles[in_sequence][0].tolist()
        question = speaking.tokenizer.decode(probe.tokens[i, rows].tolist())
        document = speaking.tokenizer.decode(probe.tokens[i, start:stop].tolist())
        assert ("N/A" in question) == (i % 2 == 1)
        assert document.count("special magic number") == 1
        if i % 2 == 0:
            assert question.split(" for ")[1].split(" in the text")[0] in document
    table = score(speaking, ["qr_head", "qr_head_mean"], probes=probe)
    assert table.n_seq.eq(2).all()
    assert table.score.notna().all()
