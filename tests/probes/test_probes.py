"""Probes: what their tokens, answer rows and target cells promise, for bare vocabularies and real tokenizers."""

import pydoc_data.topics
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes import make_probe

WORDS = probes.Vocabulary(torch.arange(5, 105), bos=1)


def word_model(words, *, n_positions=512):
    """A model as probes see one: a word-level tokenizer and a configuration."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {w: i + 3 for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(vocabulary) + 10, max_position_embeddings=n_positions, bos_token_id=1, eos_token_id=2
    )
    return SimpleNamespace(tokenizer=fast, config=config)


def answers_and_sources(probe):
    sequence, row, key = probe.target_cells.unbind(-1)
    return probe.tokens[sequence, row + 1], probe.tokens[sequence, key]


MAKERS = {
    "repeats": lambda seed: probes.repeats(WORDS, n=9, copies=3, n_sequences=4, seed=seed),
    "copy_needle": lambda seed: probes.copy_needle(WORDS, [8, 13, 31], n_sequences=4, seed=seed),
    "key_value": lambda seed: probes.key_value(WORDS, n_pairs=7, n_queries=3, gap=5, n_sequences=4, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_target_cell_holds_its_rows_answer_and_lies_in_the_past(name):
    probe = MAKERS[name](0)
    answer, source = answers_and_sources(probe)
    assert torch.equal(answer, source)
    assert (probe.target_cells[:, 2] <= probe.target_cells[:, 1]).all()
    assert torch.equal(torch.unique(probe.target_cells[:, :2], dim=0), torch.unique(probe.answer_rows, dim=0))


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_digest_and_another_seed_another(name):
    assert MAKERS[name](3).digest == MAKERS[name](3).digest
    assert MAKERS[name](3).digest != MAKERS[name](4).digest


@pytest.mark.parametrize("name", MAKERS)
def test_only_ordinary_tokens_follow_the_beginning_of_sequence(name):
    tokens = MAKERS[name](0).tokens
    assert (tokens[:, 0] == 1).all()
    assert torch.isin(tokens[:, 1:], WORDS.ids).all()


def test_a_repeat_has_no_token_twice_within_a_copy():
    tokens = probes.repeats(WORDS, n=60, n_sequences=5).tokens[:, 1:]
    for row in tokens:
        assert len(torch.unique(row[:60])) == 60
        assert torch.equal(row[:60], row[60:])


def test_repeat_answers_are_the_second_copy_but_its_first_token():
    probe = probes.repeats(WORDS, n=4, n_sequences=1)
    assert probe.answer_rows[:, 1].tolist() == [5, 6, 7]
    assert probe.target_cells[:, 2].tolist() == [2, 3, 4]
    assert probe.classes.tolist() == [4, 4, 4]


def test_a_needles_answers_are_copy_positions_three_to_six_at_their_distance():
    probe = probes.copy_needle(WORDS, 20, length=64, n_sequences=3)
    start = 64 - 8
    assert torch.equal(probe.tokens[:, start - 20 : start - 12], probe.tokens[:, start:])
    assert probe.answer_rows[:4, 1].tolist() == [start + i for i in (3, 4, 5, 6)]
    assert probe.target_cells[:4, 2].tolist() == [start + i - 19 for i in (3, 4, 5, 6)]
    assert probe.classes.unique().tolist() == [20]


def test_several_distances_share_the_sequences_evenly():
    probe = probes.copy_needle(WORDS, [8, 30], n_sequences=5)
    assert len(probe.tokens) == 10
    assert torch.bincount(probe.classes)[[8, 30]].tolist() == [20, 20]


def test_filler_of_ones_own_is_kept_around_needle_and_copy():
    filler = torch.full((2, 40), 7)
    tokens = probes.copy_needle(WORDS, 16, filler=filler, n_sequences=2).tokens
    assert (tokens[:, :16] == 7).all()
    assert (tokens[:, 24:32] == 7).all()


def test_a_key_is_answered_by_the_value_that_followed_it():
    probe = probes.key_value(WORDS, n_pairs=10, n_queries=4, n_sequences=8)
    sequence, row, key = probe.target_cells.unbind(-1)
    assert torch.equal(probe.tokens[sequence, row], probe.tokens[sequence, key - 1])
    assert torch.equal(probe.classes, row - key)
    keys = probe.tokens[:, 1:21:2]
    assert all(len(torch.unique(k)) == 10 for k in keys)


@settings(max_examples=40)
@given(n=st.integers(2, 30), copies=st.integers(2, 4), size=st.integers(30, 200), seed=st.integers(0, 99))
def test_repeats_work_for_any_bare_vocabulary(n, copies, size, seed):
    probe = probes.repeats(size, n=n, copies=copies, n_sequences=2, seed=seed)
    answer, source = answers_and_sources(probe)
    assert probe.tokens.shape == (2, n * copies)
    assert torch.equal(answer, source)


def test_special_and_unknown_ids_of_a_tokenizer_are_left_out():
    words = probes.vocabulary(word_model([f"w{i}" for i in range(50)]))
    assert words.bos == 1
    assert words.ids.tolist() == list(range(3, 53))


def test_natural_text_from_a_file_fills_windows_that_do_not_overlap(tmp_path):
    content = " ".join(pydoc_data.topics.topics.values())[:200_000]
    words = sorted(set(content.split()))
    path = tmp_path / "topics.txt"
    path.write_text(content, encoding="utf-8")
    model = word_model(words)
    probe = probes.text_file(model, path, length=64, n_sequences=20)
    ids = torch.tensor(model.tokenizer(content)["input_ids"])
    windows = {(1, *ids[i : i + 63].tolist()) for i in range(0, len(ids) - 62, 63)}
    assert probe.tokens.shape == (20, 64)
    assert all(tuple(row.tolist()) in windows for row in probe.tokens)
    assert probe.class_name == "position"
    assert len(probe.answer_rows) == 20 * 63


def test_text_is_read_by_the_models_own_tokenizer():
    model = word_model(["to", "be", "or", "not"])
    assert probes.text(model, "to be or not to be").tokens.tolist() == [[1, 3, 4, 5, 6, 3, 4]]
    assert probes.text(model, "to be or not to be", bos=None).tokens.tolist() == [[3, 4, 5, 6, 3, 4]]
    assert probes.text(model, "to be", bos=6).tokens.tolist() == [[6, 3, 4]]


@pytest.mark.parametrize("written", ["repeats:n=4", "key_value:n_pairs=2,n_queries=1,gap=2", "text:path={},length=9"])
def test_every_probe_begins_with_the_same_token_and_bos_overrules_it(written, tmp_path):
    (tmp_path / "words.txt").write_text("to be or not " * 60)
    model = word_model(["to", "be", "or", "not", *map(str, range(50))])
    written = f"{written.format(tmp_path / 'words.txt')},n_sequences=3"
    by_rule, other, none = (probes.build(model, written + bos) for bos in ("", ",bos=7", ",bos=none"))
    assert by_rule.tokens[:, 0].tolist() == [1, 1, 1]
    assert other.tokens[:, 0].tolist() == [7, 7, 7]
    assert not (none.tokens == 1).any()
    assert len({by_rule.digest, other.digest, none.digest}) == 3
    for bos in ("x", "-1", "999"):
        with pytest.raises(WorkbenchError, match=r"bos is .*; expected a token's id"):
            probes.build(model, f"{written},bos={bos}")


def test_a_text_keeps_what_its_tokenizer_puts_before_it_unless_bos_overrules_it():
    model = word_model(["to", "be"])
    backend = model.tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    assert probes.text(model, "to be").tokens.tolist() == [[2, 3, 4]]
    assert probes.text(model, "to be", bos=None).tokens.tolist() == [[3, 4]]
    assert probes.beginning(model) == 1
    assert probes.repeats(probes.with_beginning(5, None), n=2, n_sequences=1).tokens.shape == (1, 4)


def test_padding_predicts_nothing_and_is_not_predicted():
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    probe = probes.token_sequences(torch.arange(8).reshape(2, 4), mask)
    assert probe.answer_rows.tolist() == [[0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert probe.classes.tolist() == [0, 1, 0, 1, 2]


def test_a_part_of_a_probe_carries_its_own_answers():
    probe = MAKERS["copy_needle"](0)
    piece = probes.part(probe, 2, 5)
    inside = (probe.answer_rows[:, 0] >= 2) & (probe.answer_rows[:, 0] < 5)
    assert torch.equal(piece.tokens, probe.tokens[2:5])
    assert torch.equal(piece.answer_rows + torch.tensor([2, 0]), probe.answer_rows[inside])
    assert torch.equal(piece.classes, probe.classes[inside])
    assert piece.digest == probe.digest


def test_default_probes_fit_a_short_context_and_a_small_vocabulary():
    model = word_model([f"w{i}" for i in range(20)], n_positions=40)
    made = probes.default(model)
    assert [p.name for p in made] == ["repeats", "copy_needle"]
    assert all(p.tokens.shape[1] <= 40 for p in made)


def test_a_probe_is_built_from_how_it_is_written():
    built = probes.build(word_model([f"w{i}" for i in range(60)]), "copy_needle:distance=8+16,n_sequences=3,name=near")
    assert built.name == "near"
    assert built.classes.unique().tolist() == [8, 16]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("haystack", "unknown probe 'haystack'; expected one of repeats"),
        ("repeats:lenght=5", "lenght"),
        ("repeats:5", "not of the form key=value"),
        ("repeats:n=500", "needs 500 different tokens; the vocabulary has 60"),
        ("copy_needle:distance=4", "distance 4 does not fit"),
        ("key_value:n_pairs=2,n_queries=3", "n_queries is 3; expected at most n_pairs = 2"),
        ("text:path=missing.txt", "cannot read missing.txt"),
    ],
)
def test_a_probe_written_wrong_is_refused_with_what_was_expected(written, message):
    with pytest.raises(WorkbenchError, match=message):
        probes.build(word_model([f"w{i}" for i in range(60)]), written)


def test_a_target_that_does_not_hold_the_answer_is_refused():
    tokens = torch.tensor([[3, 4, 5, 3, 4]])
    rows = torch.tensor([[0, 3]])
    with pytest.raises(WorkbenchError, match="does not hold the answer"):
        probes.make_probe("x", tokens, answer_rows=rows, target_cells=torch.tensor([[0, 3, 2]]))
    with pytest.raises(WorkbenchError, match="future"):
        probes.make_probe("x", tokens, answer_rows=rows, target_cells=torch.tensor([[0, 3, 4]]))
    with pytest.raises(WorkbenchError, match="last token"):
        probes.make_probe("x", tokens, answer_rows=torch.tensor([[0, 4]]))


def test_an_answer_row_that_is_listed_twice_counts_once():
    tokens = torch.arange(12).reshape(2, 6)
    once = make_probe("own", tokens, answer_rows=torch.tensor([[0, 3], [1, 1]]), classes=torch.tensor([5, 6]))
    rows, classes = torch.tensor([[1, 1], [0, 3], [1, 1]]), torch.tensor([6, 5, 6])
    twice = make_probe("own", tokens, answer_rows=rows, classes=classes)
    assert torch.equal(twice.answer_rows, once.answer_rows)
    assert torch.equal(twice.classes, once.classes)
    assert twice.digest == once.digest
    assert make_probe("none", tokens, answer_rows=rows[:0], classes=classes[:0]).answer_rows.shape == (0, 2)


def test_an_answer_row_that_is_listed_twice_with_other_classes_is_refused():
    rows, classes = torch.tensor([[1, 1], [1, 1]]), torch.tensor([6, 5])
    with pytest.raises(WorkbenchError, match="an answer row twice, with other classes"):
        make_probe("own", torch.arange(12).reshape(2, 6), answer_rows=rows, classes=classes)
