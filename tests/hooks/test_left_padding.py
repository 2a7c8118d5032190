"""A text behind padding gives the numbers of the text alone, in every family; where it cannot, it is refused."""

import inspect
from functools import cache

import pytest
import torch
import transformers
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from tests import linear_families
from tests.families import CONFIGS, HEADS, VOCABULARY, WIDTH, random_tokens, tiny
from tests.more_families import MORE_CONFIGS, WITH_CONVOLUTIONS
from tests.older_families import OLDER_CONFIGS
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.kernels import Far

NEEDS = ("entropy", "induction", "mean_distance", "sink_mass", "previous_token", "duplicate_token", "far_mass")
# Further families with learned absolute positions.
LEARNED = {
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
    ),
    "biogpt": lambda: transformers.BioGptConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=64
    ),
}
RECURRENT = [f for f in linear_families.CONFIGS if f not in ("minimax", "xlstm")]
FAMILIES = [f for f in (*CONFIGS, *MORE_CONFIGS, *OLDER_CONFIGS, *LEARNED, *RECURRENT) if f != "trocr"]
WITH_LEARNED_POSITIONS = ["gpt2", "gpt_neo", "xglm", "openai_gpt", *LEARNED]

LENGTH, PADDING = 23, (0, 7, 12)
TOKENS = random_tokens(3, LENGTH + max(PADDING))
MASK = (torch.arange(TOKENS.shape[1]) >= torch.tensor(PADDING)[:, None]).long()


@cache
def model_of(family):
    if family in RECURRENT:
        return linear_families.tiny(family)
    if family not in LEARNED:
        return tiny(family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LEARNED[family]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def alone(b):
    """Sequence b without its padding."""
    return TOKENS[b : b + 1, PADDING[b] :]


def assert_as_alone(m, **options):
    needs = {*NEEDS, "lse_per_row"}
    behind = m.record(probes.token_sequences(TOKENS, MASK.bool()), needs, far=Far(5), **options)
    for b, n_padding in enumerate(PADDING):
        found = m.record(probes.token_sequences(alone(b)), needs, far=Far(5))
        for need in NEEDS:
            assert torch.equal(behind[need].rows[b], found[need].rows[0]), (need, b)
            error = (behind[need].total[b] - found[need].total[0]).abs().nan_to_num(0)
            assert bool((error <= 1e-4 * found[need].total[0].abs().clamp_min(1).nan_to_num(1)).all()), (need, b)
        if type(m.model).__name__ not in ("MptForCausalLM", "BloomForCausalLM", "FalconForCausalLM"):
            # ALiBi counted from the last key or the first column adds a constant to all scores of a row.
            lse = behind.per_row["lse_per_row"][b, :, :, n_padding:]
            assert torch.allclose(lse, found.per_row["lse_per_row"][0], atol=1e-4, equal_nan=True)
        losses = behind.answers.loss_nats[behind.answers.at[:, 0] == b]
        assert torch.allclose(losses, found.answers.loss_nats, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_behind_padding_is_recorded_as_alone(family):
    assert_as_alone(open_model(model_of(family)))


def takes_a_cache(family):
    """Read from the class: models are built by the tests alone, not by every process that collects them."""
    config = {**CONFIGS, **MORE_CONFIGS, **OLDER_CONFIGS, **LEARNED}[family]()
    return "past_key_values" in inspect.signature(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].forward).parameters


PREFILLED = [f for f in FAMILIES if f not in (*WITH_CONVOLUTIONS, *RECURRENT, "minimax") and takes_a_cache(f)]


@pytest.mark.parametrize("family", PREFILLED)
def test_a_text_behind_padding_is_recorded_as_alone_piece_by_piece(family):
    assert_as_alone(open_model(model_of(family)), prefill=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_scores_behind_padding_are_those_of_the_text_alone(family):
    m = open_model(model_of(family))
    one, left = probes.token_sequences(alone(1)), probes.token_sequences(TOKENS[1:2], MASK[1:2].bool())
    assert torch.allclose(m.answers(left).loss_nats, m.answers(one).loss_nats, atol=1e-4)
    first, second = score(m, probes=one, far=Far(5)), score(m, probes=left, far=Far(5))
    assert first.n.equals(second.n)
    assert ((first.score - second.score).abs().fillna(0) <= 1e-4 * first.score.abs().clip(lower=1).fillna(1)).all()


@pytest.mark.parametrize("family", WITH_LEARNED_POSITIONS)
def test_interventions_behind_padding_are_those_of_the_text_alone(family):
    m = open_model(model_of(family))
    assert_heads(m, lambda _: m.restrict([KVHead(0, 0)], window=4, sink=2))
    assert_heads(m, lambda given: m.ablate([Head(0, 1)], "mean", reference=given))
    n_padding = PADDING[1]
    source = TOKENS.flip(1)[1:2]
    sources = {
        1: probes.token_sequences(source[:, n_padding:]),
        2: probes.token_sequences(source, MASK[1:2].bool()),
    }
    one, left = probes.token_sequences(alone(1)), probes.token_sequences(TOKENS[1:2], MASK[1:2].bool())
    with m.patch([Head(0, 1), Head(1, 2)], sources[1]):
        expected = m.answers(one).loss_nats
    with m.patch([Head(0, 1), Head(1, 2)], sources[2]):
        assert torch.allclose(m.answers(left).loss_nats, expected, atol=1e-4)


def assert_heads(m, intervene):
    """What a head hands on inside a block is the same alone and behind padding."""
    one, left = probes.token_sequences(alone(1)), probes.token_sequences(TOKENS[1:2], MASK[1:2].bool())
    with intervene(one):
        expected, loss = m.head_outputs([Head(1, 1)], one)[Head(1, 1)], m.answers(one).loss_nats
    with intervene(left):
        found = m.head_outputs([Head(1, 1)], left)[Head(1, 1)][:, PADDING[1] :]
        assert torch.allclose(m.answers(left).loss_nats, loss, atol=1e-4)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_padding_on_both_sides_gives_the_numbers_of_the_text_alone(family):
    m = open_model(model_of(family))
    tokens, mask = pad(alone(1), (4, 6)), pad(torch.ones_like(alone(1)), (4, 6))
    found, expected = m.record(tokens, NEEDS, mask, far=Far(5)), m.record(alone(1), NEEDS, far=Far(5))
    for need in NEEDS:
        assert torch.allclose(found[need].total, expected[need].total, atol=1e-3, rtol=1e-4), need


def test_a_family_that_cannot_be_given_positions_is_refused_behind_padding():
    m = open_model(tiny("trocr"))
    refusal = "TrOCRForCausalLM was given padding on the left, .* takes no position_ids; expected padding on the right"
    left = probes.token_sequences(TOKENS, MASK.bool())
    for call in (
        lambda: m.record(TOKENS, {"entropy"}, MASK),
        lambda: m.answers(left),
        lambda: score(m, probes=left),
        lambda: m.head_outputs([Head(0, 0)], left),
    ):
        with pytest.raises(WorkbenchError, match=refusal):
            call()
    with m.patch([Head(0, 0)], TOKENS), pytest.raises(WorkbenchError, match=refusal):
        m.answers(left)
    right = m.record(TOKENS, {"entropy"}, MASK.flip(1))
    found = m.record(TOKENS[1:2, : MASK[1].sum()], {"entropy"})
    assert torch.allclose(right["entropy"].total[1], found["entropy"].total[0], atol=1e-4)


def test_an_intervention_in_force_has_no_part_in_the_check():
    m = open_model(tiny("bloom"))
    with m.patch([Head(0, 0)], TOKENS):
        assert m.answers(probes.token_sequences(TOKENS, MASK.bool())).loss_nats.isfinite().all()
