"""Tasks that do not fit a model, a tokenizer or a vocabulary are refused, with the numbers and the next step."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, FalconConfig, GPT2Config

from tests.probes.models import bare_model, bpe_model
from tests.probes.tasks import FORMS, TASKS, TEXT_SOLVERS, make, written
from tests.probes.test_probes import word_model
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.token_ids import BeyondContext


def test_a_tokenizer_without_a_beginning_of_sequence_gets_none():
    model = bpe_model(bos=False)
    probe = probes.build(model, "niah_single_1:length=600")
    assert probe.tokens.shape == (20, 600)
    assert model.tokenizer.decode(probe.tokens[0, :3]).startswith("Some")
    assert not torch.isin(probe.tokens, torch.tensor(model.tokenizer.all_special_ids)).any()


@pytest.mark.parametrize("name", TEXT_SOLVERS)
def test_a_tokenizer_that_merges_across_boundaries_is_refused(name):
    with pytest.raises(WorkbenchError, match=r"merges .* across their boundary.*; pass form=tokens"):
        probes.build(bpe_model(splits=None), written(name))
    more = {"length": 300} if name == "common_words" else {}
    assert probes.build(bpe_model(splits=None), written(name, form="tokens", **more)).metric == "recall"


@pytest.mark.parametrize("name", ["passkey", "needle", "niah_multiquery"])
def test_a_tokenizer_that_merges_a_value_and_the_full_stop_after_it_is_refused(name):
    with pytest.raises(WorkbenchError, match=r"merges ' \d+' and '\.( Remember it:)?' across their boundary"):
        probes.build(bpe_model("words"), written(name))


@pytest.mark.parametrize("name", TASKS)
def test_a_probe_longer_than_the_context_names_both_numbers(name):
    with pytest.raises(WorkbenchError, match=r"600 tokens exceed the 512 positions of this model; pass length=512"):
        probes.build(bare_model(n_positions=512, config_class=GPT2Config), f"{name}:length=600")


def test_rotary_positions_go_on_beyond_the_context_with_a_warning():
    source = bare_model(n_positions=64)
    with pytest.warns(BeyondContext, match="181 tokens are longer than the 64 positions"):
        assert probes.repeats(source, n=90, n_sequences=1).tokens.shape[1] == 181
    probes.repeats(source, n=95, n_sequences=1)  # once is enough


@pytest.mark.parametrize("config", [BloomConfig(vocab_size=300), FalconConfig(vocab_size=300, alibi=True)])
def test_positions_that_are_distances_alone_have_no_end(config):
    config.max_position_embeddings = 64
    probe = probes.copy_needle(SimpleNamespace(tokenizer=None, config=config), 4000, n_sequences=1)
    assert probe.tokens.shape[1] == 6000


@pytest.mark.parametrize(
    ("written", "smaller"),
    [
        ("repeats:n=300", "600 tokens exceed the 512 positions of this model; pass a smaller n or fewer copies"),
        ("copy_needle:distance=600", "900 tokens exceed the 512 .*; pass a smaller distance or length"),
        ("key_value:gap=600", "640 tokens exceed the 512 .*; pass a smaller n_pairs, gap or n_queries"),
    ],
)
def test_a_short_probe_made_too_long_says_what_makes_it_so(written, smaller):
    model = bare_model(n_positions=512, config_class=GPT2Config)
    model.config.bos_token_id = None
    with pytest.raises(WorkbenchError, match=smaller):
        probes.build(model, written)


@pytest.mark.parametrize("name", ["repeats", "copy_needle", "key_value", "mqar", "abfill"])
def test_without_a_beginning_of_sequence_every_token_is_drawn(name):
    model = bpe_model(bos=False)
    probe = probes.build(model, name)
    assert not torch.isin(probe.tokens, torch.tensor(model.tokenizer.all_special_ids)).any()
    assert len(set(probe.tokens[:, 0].tolist())) > 1


@pytest.mark.parametrize("name", TASKS)
def test_a_vocabulary_too_small_says_how_many_tokens_it_has(name):
    with pytest.raises(WorkbenchError, match=r"vocabulary has \d+|the \d+ ordinary tokens"):
        probes.build(bare_model(4), name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEXT_SOLVERS)
def test_a_length_that_does_not_hold_the_task_is_refused(form, name):
    with pytest.raises(WorkbenchError, match=r"length 10 (is too short|does not hold|has no room)"):
        make(form, name, length=10)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("needle:depth=50+101", "expected percentages from 0 to 100"),
        ("variable_tracking:hops=0", "expected whole numbers of at least 1"),
        ("variable_tracking:n_chains=30,length=300", "length 300 is too short"),
        ("majority:k=5", "expected 1 to n_candidates = 4"),
        ("majority:length=80", "leaves 13 tokens to count in; pass length=107"),
        ("mqar:n_pairs=40", "length 128 is too short for 40 pairs; pass length=161"),
        ("mqar:power=0.0", "expected a positive number"),
        ("frequent_words:alpha=0.5", "expected more than 1"),
        ("frequent_words:length=30,form=tokens", "too short for ranks 1 to 5 to differ"),
        ("common_words:times_common=2,times_other=2", "expected more than times_other = 2"),
        ("multi_passkey:n_passkeys=21", "expected at most 20"),
        ("abfill:length=5", "take at least 6 tokens"),
        ("repeated_ngrams:n=1", "expected at least 2"),
        ("repeated_ngrams:at_most=1", "no 3-gram of at most 1 occurrences repeats"),
    ],
)
def test_a_task_written_wrong_is_refused(task, message):
    with pytest.raises(WorkbenchError, match=message):
        probes.build(bpe_model(), task)


def test_a_tokenizer_that_does_not_know_the_words_is_refused():
    with pytest.raises(WorkbenchError, match=r"the tokenizer does not know all of .*; pass form=tokens"):
        probes.build(word_model([f"w{i}" for i in range(60)]), "passkey:length=200")


def test_natural_text_without_a_tokenizer_is_refused():
    for source in (bare_model(), probes.Vocabulary(torch.arange(50), bos=None), 50):
        with pytest.raises(WorkbenchError, match=r"no tokenizer|HasVocabulary"):
            probes.build(source, "repeated_ngrams")


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(WorkbenchError, match="there is no tokenizer to write it with; pass form=tokens"):
        probes.build(bare_model(), "needle:form=text")
