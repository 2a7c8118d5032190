"""Needles, chains and counts: a solver in plain Python, given what stands before the answer, finds the answer."""

import re
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from tests.probes import solvers
from tests.probes.models import bare_model, bpe_model
from tests.probes.tasks import FORMS, TASKS, TEXT_SOLVERS, make, written
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.needles import DEPTHS, TEN_DEPTHS


@pytest.mark.parametrize("name", TEXT_SOLVERS)
def test_reading_the_text_gives_every_answer(name):
    probe, decode = make("text", name, length=1500, n_sequences=4), bpe_model().tokenizer.decode
    for i in range(len(probe.tokens)):
        context, answers = solvers.asked_and_answered(probe, i)
        assert [decode(answer).strip() for answer in answers] == TEXT_SOLVERS[name](decode(context))


@pytest.mark.parametrize("splits", ["metaspace", "triples"])
@pytest.mark.parametrize("name", ["niah_multiquery", "variable_tracking", "common_words", "multi_passkey"])
def test_tokenizers_that_cut_text_in_other_ways_read_the_same(name, splits):
    model = bpe_model(splits)
    probe, decode = probes.build(model, written(name, length=1800)), model.tokenizer.decode
    for i in range(len(probe.tokens)):
        context, answers = solvers.asked_and_answered(probe, i)
        assert [decode(answer).strip() for answer in answers] == TEXT_SOLVERS[name](decode(context))
        tokens = solvers.valid_tokens(probe, i)
        read = model.tokenizer.encode("Question:" + decode(tokens).split(" Question:")[-1])
        assert read == tokens[-len(read) :]


@pytest.mark.parametrize("name", TEXT_SOLVERS)
def test_the_tokens_of_a_text_probe_are_those_its_tokenizer_gives_the_text(name):
    probe, tokenizer = make("text", name), bpe_model().tokenizer
    for i in range(2):
        first, *tokens = solvers.valid_tokens(probe, i)
        assert first == tokenizer.bos_token_id
        question = next(j for j in range(len(tokens)) if tokenizer.decode(tokens[j : j + 9]).startswith(" Question:"))
        read = [tokenizer.encode(tokenizer.decode(half)) for half in (tokens[:question], tokens[question:])]
        assert read[1] == tokens[question:]
        # The haystack may end inside a word.
        assert read[0][:-10] == tokens[: len(read[0]) - 10]
        assert abs(len(read[0]) - question) < 5


@pytest.mark.parametrize(
    ("name", "n_key", "n_answer"),
    [
        ("passkey", 1, 5),
        ("needle", 2, 3),
        ("niah_single_1", 2, 3),
        ("niah_single_2", 2, 3),
        ("niah_single_3", 2, 8),
        ("niah_multikey_1", 2, 3),
        ("niah_multikey_2", 2, 3),
        ("niah_multikey_3", 8, 8),
    ],
)
def test_looking_up_the_key_gives_the_value_without_a_tokenizer(name, n_key, n_answer):
    probe = make("tokens", name, n_sequences=10)
    for i in range(len(probe.tokens)):
        context, [answer] = solvers.asked_and_answered(probe, i)
        assert solvers.keyed_tokens(context, n_key, n_answer) == answer


def test_every_query_gets_its_own_keys_value_and_every_value_of_a_key_comes_in_order():
    probe = make("tokens", "niah_multiquery")
    for i in range(len(probe.tokens)):
        tokens = solvers.valid_tokens(probe, i)
        *_, answers = solvers.asked_and_answered(probe, i)
        assert len(answers) == 4
        for j, answer in enumerate(answers):
            end = len(tokens) - 5 * (3 - j) - 3
            assert solvers.keyed_tokens(tokens[:end], 2, 3) == answer
    probe = make("tokens", "niah_multivalue")
    for i in range(len(probe.tokens)):
        context, [answer] = solvers.asked_and_answered(probe, i)
        places = solvers.after(context, context[-2:])[:-1]
        assert len(places) == 4
        assert [token for start in places for token in context[start : start + 3]] == answer


def test_other_needles_are_the_haystack_and_have_other_keys():
    decode = bpe_model().tokenizer.decode
    probe = make("text", "niah_multikey_2")
    for i in range(2):
        text = decode(solvers.asked_and_answered(probe, i)[0])
        keys = [part.split(" is:")[0] for part in text.split(" One of the special magic numbers for ")[1:]]
        assert len(keys) > 20
        assert len(set(keys)) == len(keys)


def test_each_passkey_follows_its_ordinal_without_a_tokenizer():
    probe = probes.multi_passkey(bare_model(), length=2048, n_passkeys=10, n_sequences=3)
    for i in range(3):
        tokens = solvers.valid_tokens(probe, i)
        for j in range(10):
            end = len(tokens) - 33 * (10 - j) + 1
            (start,) = solvers.after(tokens[: end - 1], [tokens[end - 1]])
            assert tokens[start : start + 32] == tokens[end : end + 32]
    assert len(probe.answer_rows) == 3 * 10 * 32
    assert probe.tokens[:, -32:].unique().numel() <= 26 * 3


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_a_value_is_as_many_assignments_away_as_its_class_says(hops):
    probe = probes.variable_tracking(bare_model(), hops=hops, n_sequences=40)
    for i in range(40):
        context, [[value]] = solvers.asked_and_answered(probe, i)
        solved, read = solvers.variable_tracking_tokens(context)
        assert solved == value
        assert len(read) == hops
        assert probe.target_cells[i].tolist() == [i, len(context) - 1, read[-1] + 1]
        assert all(abs(one - other) > 2 for one in read for other in read if one != other)
    assert probe.classes.unique().tolist() == [hops]
    decode = bpe_model().tokenizer.decode
    probe = probes.variable_tracking(bpe_model(), hops=hops, n_sequences=10)
    for i in range(10):
        context, [answer] = solvers.asked_and_answered(probe, i)
        assert solvers.variable_tracking_text(decode(context), hops) == [decode(answer).strip()]


def test_no_shortcut_leads_over_several_hops():
    probe = probes.variable_tracking(bare_model(), hops=[2, 3, 4], n_sequences=100)
    for i in range(300):
        context, [[value]] = solvers.asked_and_answered(probe, i)
        (after_name,) = solvers.after(context[:-2], context[-1:])
        assert context[after_name] != value  # one look-up is not enough
        (after_value,) = solvers.after(context, [value])  # and the value stands beside another name only
        assert context[after_value - 2] != context[-1]


def test_neither_place_nor_order_tells_which_of_the_values_is_asked():
    probe, decode = probes.variable_tracking(bpe_model(), hops=[2, 3, 4], n_sequences=100), bpe_model().tokenizer.decode
    is_first, is_last, is_value_before_name = [], [], []
    for i in range(300):
        context, answers = solvers.asked_and_answered(probe, i)
        text, value = decode(context), decode(answers[0]).strip()
        numbers = re.findall(r"= (\d{5})\.", text)
        name = re.search(r"VAR ([A-Z]{5}) is$", text)[1]
        assert len(set(numbers)) == 4
        is_first.append(numbers[0] == value)
        is_last.append(numbers[-1] == value)
        is_value_before_name.append(text.index(value) < text.index(f"VAR {name} ="))
    # 4 standard errors
    assert abs(np.mean(is_first) - 1 / 4) < 0.1
    assert abs(np.mean(is_last) - 1 / 4) < 0.1
    assert abs(np.mean(is_value_before_name) - 1 / 2) < 0.12


def test_lists_hold_common_words_thirty_times_and_others_three_from_4096_tokens_on():
    for length, counts in ((1024, (6, 1)), (4096, (30, 3))):
        probe = probes.common_words(bare_model(4000), length=length, n_sequences=3)
        for i in range(3):
            context, [answer] = solvers.asked_and_answered(probe, i)
            assert solvers.common_words_tokens(context[1:], 10) == answer
            times = Counter(context[1:-1])
            assert Counter(times.values())[counts[0]] == 10
            assert set(times.values()) == set(counts)
        assert probe.classes.unique().tolist() == list(range(1, 11))
    decode = bpe_model().tokenizer.decode
    probe = probes.common_words(bpe_model(), length=6000, n_sequences=1)
    context, answers = solvers.asked_and_answered(probe, 0)
    assert [decode(answer).strip() for answer in answers] == solvers.common_words_text(decode(context))


def test_frequencies_of_coded_words_are_those_of_the_zeta_law():
    probe = probes.frequent_words(bare_model(), length=2000, n_sequences=4)
    for i in range(4):
        context, [answer] = solvers.asked_and_answered(probe, i)
        assert solvers.frequent_words_tokens(context[1:]) == answer
        counts = sorted(Counter(context[1:-1]).values(), reverse=True)
        n_words = next(n for n in range(2000) if [int(n * 6 / np.pi**2 / k**2) for k in (1, 2, 3, 4)] == counts[:4])
        expected = [int(n_words * 6 / np.pi**2 / k**2) for k in range(1, len(counts) + 1)]
        assert counts == expected
    assert probe.classes.tolist() == [2, 3, 4] * 4


def test_the_target_cells_of_a_count_are_all_places_of_the_answer():
    for name in ("common_words", "frequent_words", "majority"):
        probe = make("tokens", name)
        for i in range(0, len(probe.tokens), 7):
            context, [answer] = solvers.asked_and_answered(probe, i)
            for j, token in enumerate(answer):
                of_answer = (probe.target_cells[:, 0] == i) & (probe.target_cells[:, 1] == len(context) - 1 + j)
                assert probe.target_cells[of_answer, 2].tolist() == [
                    start - 1 for start in solvers.after(context, [token])
                ]


def test_the_majority_of_the_class_asked_lies_beyond_the_gap():
    probe = probes.majority(bare_model(200), k=[1, 2], length=300, gap=100, n_sequences=50)
    ids = torch.tensor([i for i in range(200) if i not in (1, 2)]).tolist()  # Llama's beginning and end
    cues, classes = ids[:2], [ids[2:26], ids[26:50]]
    for i in range(100):
        context, [[answer]] = solvers.asked_and_answered(probe, i)
        of_class = Counter(t for t in context if t in classes[cues.index(context[-1])])
        ranked = of_class.most_common()
        rank = int(probe.classes[i])
        assert ranked[rank - 1][0] == answer
        assert len({n for _, n in ranked}) == len(ranked) == 4
        assert not set(context[-101:-1]) & {*classes[0], *classes[1]}
    assert torch.bincount(probe.classes).tolist() == [0, 50, 50]


def test_each_key_of_mqar_is_asked_once_and_followed_by_its_value():
    probe = probes.mqar(200, n_pairs=12, length=64, n_sequences=30)
    for tokens in probe.tokens.tolist():
        pairs = dict(zip(tokens[:24:2], tokens[1:24:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 12
        assert max(pairs) < 100 <= min(pairs.values())
        queried = [i for i in range(24, 64) if tokens[i] in pairs]
        assert sorted(tokens[i] for i in queried) == sorted(pairs)
        assert all(tokens[i + 1] == pairs[tokens[i]] for i in queried)
    assert torch.equal(probe.target_cells[:, :2], probe.answer_rows)
    distance = probe.target_cells[:, 1] - probe.target_cells[:, 2]
    assert ((probe.classes <= distance) & (distance < 2 * probe.classes)).all()


def test_the_gaps_of_mqar_follow_the_power_law():
    probe = probes.mqar(50, n_pairs=1, length=66, n_sequences=4000, power=0.3)
    slot = (probe.answer_rows[:, 1] - 2) // 2
    weight = np.arange(1, 33) ** (0.3 - 1.0)
    shares = np.bincount(slot.numpy(), minlength=32) / 4000
    expected = weight / weight.sum()
    assert (abs(shares - expected) < 4.5 * np.sqrt(expected / 4000)).all()


def test_abfill_ends_with_the_pair_that_it_holds_once_before():
    probe = probes.abfill(bare_model(), n_sequences=100)
    assert probe.tokens.shape == (100, 257)
    for i, tokens in enumerate(probe.tokens.tolist()):
        first = tokens.index(tokens[-2])
        assert tokens[first + 1] == tokens[-1]
        assert [tokens.count(t) for t in tokens[-2:]] == [2, 2]
        assert probe.target_cells[i].tolist() == [i, 255, first + 1]


def test_needles_lie_at_the_depths_asked_for():
    probe = probes.needle(bare_model(), length=1000, n_sequences=3)
    assert torch.bincount(probe.classes)[list(TEN_DEPTHS)].tolist() == [9] * 10
    n_hay = 1000 - 1 - 5 - 5  # beginning, needle, question and answer
    first = probe.target_cells[::3]
    assert (first[:, 2] == 1 + 2 + (n_hay * probe.classes[::3]) // 100).all()
    probe = probes.needle(bpe_model(), length=2000, n_sequences=3)
    share = 100 * probe.target_cells[:, 2] / 1900
    assert (abs(share - probe.classes) < 12).all()


def test_rulers_needles_spread_evenly_over_forty_depths():
    probe = probes.niah(60, "niah_single_2", length=80, n_sequences=400)
    counts = torch.bincount(probe.classes[::3], minlength=101)
    assert counts.nonzero().flatten().tolist() == list(DEPTHS)
    assert counts.max() < 25  # 10 each, 4.5 standard deviations


@pytest.mark.parametrize("name", TASKS)
def test_only_ordinary_tokens_are_drawn(name):
    words = probes.Vocabulary(torch.arange(7, 3007), bos=2)
    tokens = probes.build(words, written(name, n_sequences=3)).tokens
    assert (tokens[:, 0] == 2).all()
    assert torch.isin(tokens[:, 1:], words.ids).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_the_same_for_the_same_seed_only(form, name):
    one, again, other = (make(form, name, seed=seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest
    assert torch.equal(one.tokens, again.tokens)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEXT_SOLVERS)
def test_sequences_have_the_length_asked_for(form, name):
    n_tokens = make(form, name, length=1100).tokens.shape[1]
    if name in ("common_words", "frequent_words"):  # as many entries as fit
        assert 1000 <= n_tokens <= 1100
    else:
        assert n_tokens == 1100


@pytest.mark.parametrize("name", [*TEXT_SOLVERS, "majority", "mqar", "abfill"])
def test_131072_tokens_take_memory_in_proportion(name):
    arguments = {
        "passkey": {"depth": 50},
        "needle": {"depth": 50},
        "variable_tracking": {"hops": 4},
        "majority": {"k": 2},
    }
    task = written(name, **{"length": 131_072, "n_sequences": 1} | arguments.get(name, {}))
    tracemalloc.start()
    try:
        probe = probes.build(bare_model(60_000), task)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 129_000 <= probe.tokens.shape[1] <= 131_072
    assert peak < 131_072 * 500


@pytest.mark.parametrize(
    "name",
    [
        "niah_single_1",
        "niah_multikey_2",
        "variable_tracking",
        "frequent_words",
        pytest.param("common_words", marks=pytest.mark.slow),
    ],
)
def test_131072_tokens_of_text_hold_their_answer(name):
    arguments = {"hops": 3} if name == "variable_tracking" else {}
    probe = probes.build(bpe_model(), written(name, length=131_072, n_sequences=1, **arguments))
    decode = bpe_model().tokenizer.decode
    context, answers = solvers.asked_and_answered(probe, 0)
    assert len(context) > 130_500
    assert [decode(answer).strip() for answer in answers] == TEXT_SOLVERS[name](decode(context))


def test_a_needle_task_of_ones_own():
    task = probes.Niah(haystack="noise", values="uuids", n_keys=3, n_values=2, n_queries=2)
    probe = probes.niah(bpe_model(), task, length=900, n_sequences=5)
    decode = bpe_model().tokenizer.decode
    for i in range(5):
        context, answers = solvers.asked_and_answered(probe, i)
        assert [decode(answer).strip() for answer in answers] == solvers.niah_text(decode(context))
        assert len(answers) == 4
    with pytest.raises(WorkbenchError, match="no more queries than keys"):
        probes.Niah(n_keys=1, n_queries=2)
    with pytest.raises((WorkbenchError, TypeError), match="haystack"):  # TypeError where annotations are checked
        probes.Niah(haystack="essay")
    with pytest.raises(WorkbenchError, match="unknown needle task 'niah'"):
        probes.niah(64, "niah")


def test_repeated_ngrams_are_all_those_of_a_window_by_token_identity():
    model, n, at_most = bpe_model(), 3, 9
    probe = probes.repeated_ngrams(model, n=n, at_most=at_most, length=200, n_sequences=6)
    corpus = model.tokenizer(solvers_text())["input_ids"]
    counts = Counter(zip(*(corpus[k:] for k in range(n)), strict=False))
    for i, tokens in enumerate(probe.tokens.tolist()):
        grams = [tuple(tokens[j : j + n]) for j in range(len(tokens) - n + 1)]
        expected = {}
        for j, gram in enumerate(grams):
            before = [k for k in range(j) if grams[k] == gram]
            again = any(other == gram for other in grams[j + 1 :])
            if counts[gram] <= at_most and (before or again):
                expected[j + n - 2] = [k + n - 1 for k in before]
        rows = [row for sequence, row in probe.answer_rows.tolist() if sequence == i]
        cells = [cell[1:] for cell in probe.target_cells.tolist() if cell[0] == i]
        classes = probe.classes[probe.answer_rows[:, 0] == i].tolist()
        assert rows == sorted(expected)
        assert cells == [[row, key] for row in rows for key in expected[row]]
        for row, distance in zip(rows, classes, strict=True):
            nearest = row - expected[row][-1] if expected[row] else 0
            assert distance == (2 ** int(np.log2(max(1, nearest))) if expected[row] else 0)


def solvers_text():
    from workbench.probes.filler_text import read_text

    return read_text(None)
