"""Far answers: what a window cannot see; probes joined; questions in turn."""

from types import SimpleNamespace

import pytest
import torch

from tests.probes.models import bare_model, bpe_model
from workbench import LayerInfo, probes
from workbench.heads import WorkbenchError
from workbench.probes.far_rows import widest_window

WINDOW, SINK = 36, 4
FULL = LayerInfo(0, "full", "softmax", None, False, 4, 2, 16)
SLIDING = LayerInfo(1, "sliding", "softmax", 600, False, 4, 2, 16)


def rows_that_see_their_answer(probe):
    """By hand, from every cell."""
    return {(b, row) for b, row, key in probe.target_cells.tolist() if row - key < WINDOW or key < SINK}


@pytest.fixture(scope="module")
def needles():
    return probes.build(bare_model(), "niah_multiquery:length=120,n_sequences=12")


def test_what_is_left_is_seen_nowhere_and_nothing_far_is_lost(needles):
    far = probes.only_far(needles, WINDOW, sink=SINK)
    assert not rows_that_see_their_answer(far)
    n_far = len(needles.answer_rows) - len(rows_that_see_their_answer(needles))
    assert 0 < n_far < len(needles.answer_rows)
    assert len(far.answer_rows) == n_far
    assert (far.name, far.metric, far.class_name) == (needles.name, "recall", "depth")
    assert far.digest != needles.digest


def test_as_many_sequences_are_kept_as_are_asked_for_or_it_says_how_many_there_are(needles):
    assert len(probes.only_far(needles, WINDOW, sink=SINK, n_sequences=3).tokens) == 3
    with pytest.raises(WorkbenchError, match="of 12 sequences have an answer outside of a window of 119 tokens"):
        probes.only_far(needles, 119)
    with pytest.raises(WorkbenchError, match="no target cells"):
        probes.only_far(probes.token_sequences(torch.ones(2, 5, dtype=torch.long)), 2)


def test_far_answers_are_written_as_probes_are(needles):
    written = f'far_answers:of="niah_multiquery:length=120,n_sequences=12",window={WINDOW},sink={SINK},n_sequences=3'
    assert (
        probes.build(bare_model(), written).digest == probes.only_far(needles, WINDOW, sink=SINK, n_sequences=3).digest
    )


def test_joined_probes_ask_what_each_asked():
    m = bare_model()
    parts = [probes.repeats(m, n=10, n_sequences=2), probes.copy_needle(m, 9, length=21, n_sequences=3)]
    both = probes.joined(parts)
    assert (both.name, len(both.tokens), both.metric, both.classes) == ("repeats+copy_needle", 5, "copy_accuracy", None)
    for start, alone in zip((0, 2), parts, strict=True):
        again = probes.part(both, start, start + len(alone.tokens))
        assert torch.equal(again.tokens, alone.tokens)
        assert torch.equal(again.answer_rows, alone.answer_rows)
        assert torch.equal(again.target_cells, alone.target_cells)


def test_padding_stays_padding_when_probes_are_joined():
    m = bpe_model()
    words = probes.common_words(m, length=400, n_common=3, n_sequences=2)
    assert words.attention_mask is not None
    needle = probes.niah(m, "niah_single_1", length=words.tokens.shape[1], n_sequences=1)
    both = probes.joined([needle, words], name="both")
    assert both.name == "both"
    assert both.attention_mask[0].all()
    assert torch.equal(both.attention_mask[1:], words.attention_mask)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "no probe was given"),
        (["repeats:n=5", "repeats:n=6"], "sequences of 11 and 13 tokens; expected one length"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts, reason):
    with pytest.raises(WorkbenchError, match=reason):
        probes.joined([probes.build(bare_model(), written) for written in parts])


def test_questions_in_turn_ask_for_chains_of_every_number_of_hops():
    m = bpe_model()
    probe = probes.variable_tracking(m, hops=[1, 2], n_chains=4, n_asked=4, length=600, n_sequences=2)
    text = m.tokenizer.decode(probe.tokens[0])
    body, *asked = text.split(" Question: What number is the value of VAR ")
    values = dict(assignment.split(" = ") for assignment in _assignments(body))
    for i, question in enumerate(asked):
        name, value = question[:5], question.split(" is ")[1].rstrip(".")
        n_hops = 1
        while (content := values[name]).startswith("VAR "):
            name, n_hops = content[4:], n_hops + 1
        assert content == value
        assert n_hops == (1, 2)[i % 2]
    assert len(asked) == 4
    assert probe.classes.unique().tolist() == [1, 2]
    with pytest.raises(WorkbenchError, match="n_asked is 5; expected at most n_chains = 4"):
        probes.variable_tracking(m, n_asked=5)


def test_questions_in_turn_are_asked_without_a_tokenizer():
    probe = probes.variable_tracking(bare_model(), hops=[1, 2], n_chains=4, n_asked=3, length=90, n_sequences=2)
    assert probe.classes.tolist() == [1, 2, 1] * 2


def _assignments(body):
    return [sentence.strip()[4:] for sentence in body.split(".") if sentence.strip().startswith("VAR ")]


def test_only_a_hybrid_has_a_widest_window():
    assert widest_window([FULL, SLIDING]) == 600
    assert widest_window([FULL, FULL]) == widest_window([SLIDING]) == widest_window([]) == 0


def test_needles_for_one_hybrid_model_stand_beyond_its_sliding_windows():
    m = bpe_model()
    hybrid = SimpleNamespace(tokenizer=m.tokenizer, config=m.config, layers=(FULL, SLIDING))
    assert "niah_single_2:length=1200,n_sequences=6" in probes.one_model(hybrid)
