"""Rotary frequencies that follow the length of a text: of each text alone, in pieces, batches and after other texts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import workbench as wb
from workbench.heads import WorkbenchError
from workbench.hooks.recording.greedy_decoding import greedy
from workbench.hooks.taps.rotary_lengths import uncontrolled_type
from workbench.probes.token_ids import BeyondContext

POSITIONS, SWITCH = 40, 16
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": SWITCH,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
BY_LAYER_TYPE = {
    "full_attention": LONGROPE,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
FAMILIES = {
    "phi3": ("phi3", LONGROPE, {"original_max_position_embeddings": SWITCH}),
    "llama-dynamic": ("llama", DYNAMIC, {}),
    "gemma3": (
        "gemma3_text",
        BY_LAYER_TYPE,
        {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    ),
}
NEEDS = ["mean_distance", "entropy"]


def made(family: str, weights: dict[str, torch.Tensor] | None = None):
    model_type, rope, more = FAMILIES[family]
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    config = AutoConfig.for_model(model_type, **{**sizes, "rope_parameters": rope, **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    if weights is not None:
        model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def opened(family):
    return wb.open_model(made(family))


@pytest.fixture(scope="module")
def long_text(family):
    # Beyond the switch of longrope, and for dynamic NTK beyond the positions of training.
    n_tokens = POSITIONS + 8 if "dynamic" in family else SWITCH + 20
    return torch.randint(3, 97, (n_tokens,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def short_text():
    return torch.randint(3, 97, (12,), generator=torch.Generator().manual_seed(2))


def fresh_pattern(m: wb.HookedModel, family: str, text: torch.Tensor) -> torch.Tensor:
    """Layer 1, head 2 of a model that has seen no other text, by transformers' eager attention."""
    fresh = made(family, m.model.state_dict())
    fresh.set_attn_implementation("eager")
    with torch.no_grad():
        return fresh(text[None], output_attentions=True, use_cache=False).attentions[1][0, 2]


def test_a_pattern_after_longer_and_shorter_texts_is_that_of_a_fresh_model(opened, family, long_text, short_text):
    for text in (short_text, long_text, short_text, long_text[:-3], long_text):
        torch.testing.assert_close(
            opened.pattern(text, 1, 2), fresh_pattern(opened, family, text), atol=2e-5, rtol=1e-4
        )


def test_pieces_through_a_cache_give_the_numbers_of_one_pass_on_both_sides_of_the_switch(opened, long_text, short_text):
    for text, prefill in ((long_text, 14), (short_text, 5)):
        whole, pieces = opened.record(text, NEEDS), opened.record(text, NEEDS, prefill=prefill)
        for need in NEEDS:
            torch.testing.assert_close(pieces[need].total, whole[need].total, atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_short_text_in_a_batch_with_a_long_one_is_rotated_as_it_is_alone(opened, long_text, short_text, side):
    n_tokens, n_short = len(long_text), len(short_text)
    columns = slice(n_tokens - n_short, n_tokens) if side == "left" else slice(0, n_short)
    tokens, mask = torch.zeros(2, n_tokens, dtype=torch.long), torch.zeros(2, n_tokens, dtype=torch.long)
    tokens[0], mask[0] = long_text, 1
    tokens[1, columns], mask[1, columns] = short_text, 1
    for prefill in (None, 20):
        both = opened.record(tokens, NEEDS, mask, prefill=prefill)
        for b, text in enumerate((long_text, short_text)):
            alone = opened.record(text, NEEDS)
            for need in NEEDS:
                torch.testing.assert_close(both[need].total[b], alone[need].total[0], atol=2e-3, rtol=1e-5)


def test_packed_documents_are_rotated_as_each_is_alone(opened, long_text, short_text):
    documents = torch.cat([torch.ones(len(long_text)), torch.full((len(short_text),), 2)]).long()
    if opened.model.config.model_type != "llama":
        long_text = long_text[: POSITIONS - len(short_text)]
        documents = documents[-len(long_text) - len(short_text) :]
    packed = opened.record(torch.cat([long_text, short_text]), NEEDS, documents)
    for d, text in enumerate((long_text, short_text)):
        alone = opened.record(text, NEEDS)
        for need in NEEDS:
            torch.testing.assert_close(packed[need].total[d], alone[need].total[0], atol=2e-3, rtol=1e-5)


def test_greedy_decoding_across_the_switch_writes_what_passes_without_a_cache_write(opened, family, long_text):
    n_prompt = (POSITIONS if "dynamic" in family else SWITCH) - 4
    text = long_text[None, :n_prompt]
    reply = greedy(opened, text, 9)[0]
    for _ in range(9):
        with torch.no_grad():
            logits = made(family, opened.model.state_dict())(text, use_cache=False).logits
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
    assert reply.tolist() == text[0, n_prompt:].tolist()


def test_a_models_rotary_state_is_the_users_own_afterwards(opened, long_text):
    rotary = [m for m in opened.model.modules() if hasattr(m, "rope_type")]
    before = [({n: (b, b.clone()) for n, b in m.named_buffers()}, dict(vars(m))) for m in rotary]
    opened.record(long_text, NEEDS, prefill=20)
    for module, (buffers, attributes) in zip(rotary, before, strict=True):
        assert {n: id(b) for n, b in module.named_buffers()} == {n: id(b) for n, (b, _) in buffers.items()}
        assert all(torch.equal(b, values) for b, values in buffers.values())
        assert {k: x for k, x in vars(module).items() if k[0] != "_"} == {
            k: x for k, x in attributes.items() if k[0] != "_"
        }


def test_a_pass_of_the_users_over_the_switch_does_not_change_what_is_recorded_next(family, long_text, short_text):
    m = wb.open_model(made(family))
    expected = m.pattern(short_text, 1, 2)
    with torch.no_grad():
        m.model(long_text[None], use_cache=False)
    torch.testing.assert_close(m.pattern(short_text, 1, 2), expected, atol=0, rtol=0)


def test_a_pass_that_continues_keys_of_other_frequencies_is_refused_by_the_rope_type(opened, family, long_text):
    n_before = POSITIONS if "dynamic" in family else SWITCH
    cache = DynamicCache()
    with opened.restrict([wb.KVHead(1, 0)], window=8), torch.no_grad():
        opened.model(long_text[None, : n_before - 1], past_key_values=cache, use_cache=True)
        opened.model(long_text[None, n_before - 1 : n_before], past_key_values=cache, use_cache=True)
        with pytest.raises(WorkbenchError, match=r"rope type '(longrope|dynamic)' rotates .* use_cache=False"):
            opened.model(long_text[None, n_before : n_before + 1], past_key_values=cache, use_cache=True)


def test_more_tokens_than_the_positions_are_warned_of_where_frequencies_do_not_follow():
    model = made("phi3")
    tokens = torch.arange(POSITIONS + 1) % 97
    with pytest.warns(BeyondContext, match=r"longer than the 40 positions"):
        pattern = wb.open_model(model).pattern(tokens, 0, 0)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(tokens[None], output_attentions=True, use_cache=False).attentions[0][0, 0]
    torch.testing.assert_close(pattern, expected, atol=5e-6, rtol=0)


def test_a_rotary_module_of_ones_own_that_follows_the_length_has_no_pieces():
    m = wb.open_model(made("phi3"))
    for module in m.model.modules():
        if hasattr(module, "rope_type"):
            del module.original_inv_freq
            module.rope_type = "default"
    assert uncontrolled_type(m.model) == "longrope"
    with pytest.raises(WorkbenchError, match=r"rope type 'longrope' .* leave prefill= out"):
        m.record(torch.arange(3, 40), NEEDS, prefill=20)
