"""Generation under windows: the tokens of passes without a cache, from a cache that holds no more than is seen."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

import workbench as wb
from tests.families import random_tokens, tiny
from workbench.heads import WorkbenchError
from workbench.hooks import WholeCacheWarning, cache_bytes
from workbench.store.cache_sizes import kv_bytes

TOKENS = random_tokens(2, 26, seed=4)
KEEP = wb.KVHead(1, 0)
N_NEW = 8


@pytest.fixture(scope="module")
def llama():
    return wb.open_model(tiny("llama"))


def windowed(m):
    return [wb.KVHead(i.index, h) for i in m.layers for h in range(i.n_kv_heads) if (i.index, h) != tuple(KEEP)]


def generate(m, padding=0, tokens=TOKENS, **options):
    mask = torch.ones_like(tokens)
    mask[1:, :padding] = 0
    torch.manual_seed(7)
    default = dict(max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False, pad_token_id=2)
    return m.model.generate(
        tokens, attention_mask=mask, return_dict_in_generate=True, eos_token_id=None, **{**default, **options}
    )


def both_ways(m, padding=0, **options):
    """What is generated through a cache and without one, and the cache."""
    through = generate(m, padding, **options)
    options.pop("prefill_chunk_size", None)
    return through.sequences, generate(m, padding, use_cache=False, **options).sequences, through.past_key_values


WAYS = [
    dict(),
    dict(do_sample=True, temperature=2.0),
    dict(num_beams=3),
    dict(prefill_chunk_size=7),
]


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("options", WAYS, ids=["greedy", "sampled", "beams", "chunks"])
def test_tokens_are_those_without_a_cache_and_the_cache_is_as_small_as_the_plan_says(llama, options, padding):
    plain = generate(llama, padding, **options).sequences
    with llama.restrict(windowed(llama), window=5, sink=2):
        through, without, cache = both_ways(llama, padding, **options)
    assert torch.equal(through, without)
    assert not torch.equal(through, plain)
    n_sequences, context = 2 * options.get("num_beams", 1), TOKENS.shape[1] + N_NEW - 1
    in_16_bits = kv_bytes(llama.layers, [KEEP], window=5, sink=2, context=context)
    assert cache_bytes(cache) == n_sequences * 2 * in_16_bits


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "cwm"])
@pytest.mark.parametrize(("window", "sink", "padding"), [(4, 1, 0), (3, 2, 9), (20, 3, 9)])
def test_layers_own_windows_learned_sinks_and_softcaps_stay(family, window, sink, padding):
    m = wb.open_model(tiny(family))
    with m.restrict(windowed(m), window=window, sink=sink):
        through, without, cache = both_ways(m, padding)
    assert torch.equal(through, without)
    at_most = kv_bytes(m.layers, [KEEP], window=window, sink=sink, context=TOKENS.shape[1] + N_NEW - 1)
    # A model's own sliding layer holds its window less one.
    assert 0.8 * at_most <= cache_bytes(cache) / 4 <= at_most


def test_a_window_as_long_as_the_text_keeps_the_cache_whole(llama):
    with llama.restrict(windowed(llama), window=60):
        through, without, cache = both_ways(llama)
    assert torch.equal(through, without)
    assert cache.layers[0].keys.shape[2] == TOKENS.shape[1] + N_NEW - 1


def test_generation_goes_on_from_the_cache_that_it_returned(llama):
    with llama.restrict(windowed(llama), window=5, sink=2):
        first = generate(llama)
        on = generate(llama, tokens=first.sequences, past_key_values=first.past_key_values).sequences
        assert torch.equal(on, generate(llama, max_new_tokens=2 * N_NEW, use_cache=False).sequences)


def test_a_cache_of_the_users_own_is_cut_and_a_copy_of_it_goes_its_own_way(llama):
    with llama.restrict(windowed(llama), window=5, sink=2), torch.no_grad():
        prompt = llama.model(TOKENS[:, :20], past_key_values=DynamicCache(), use_cache=True).past_key_values
        ends = []
        for rest in (TOKENS[:, 20:], TOKENS[:, 20:].flip(1)):
            cache = copy.deepcopy(prompt)
            ends += [llama.model(rest[:, i : i + 1], past_key_values=cache).logits for i in range(6)][-1:]
            whole = torch.cat([TOKENS[:, :20], rest], 1)
            torch.testing.assert_close(ends[-1], llama.model(whole, use_cache=False).logits[:, -1:])
    assert not torch.equal(*ends)


def test_a_narrower_window_may_come_later_and_the_end_of_the_window_is_refused(llama):
    with llama.restrict(windowed(llama), window=5, sink=2):
        cache = generate(llama).past_key_values
        with torch.no_grad():
            with llama.restrict([KEEP], window=2), llama.ablate([wb.Head(0, 0)]):
                llama.model(TOKENS[:, :1], past_key_values=cache)
            with llama.ablate([wb.Head(0, 0)], how="uniform"), pytest.raises(WorkbenchError, match="uniform"):
                llama.model(TOKENS[:, :1], past_key_values=cache)
    with torch.no_grad(), pytest.raises(WorkbenchError, match=r"no longer in force.*begin with a new cache"):
        llama.model(TOKENS[:, :1], past_key_values=cache)


def test_rejected_tokens_are_taken_back_as_assisted_generation_does(llama):
    tokens = TOKENS[:1, :6].repeat(1, 5)
    with llama.restrict(windowed(llama), window=5, sink=2):
        assisted = generate(llama, tokens=tokens, prompt_lookup_num_tokens=4)
        assert torch.equal(assisted.sequences, generate(llama, tokens=tokens, use_cache=False).sequences)
        with pytest.raises(WorkbenchError, match="cannot be taken back"):
            assisted.past_key_values.crop(-20)
    assert cache_bytes(assisted.past_key_values) < 0.6 * cache_bytes(generate(llama, tokens=tokens).past_key_values)


def test_sequences_of_a_cut_cache_are_chosen_and_repeated(llama):
    with llama.restrict(windowed(llama), window=5, sink=2), torch.no_grad():
        cache = generate(llama, padding=9).past_key_values
        one = copy.deepcopy(cache)
        one.batch_select_indices(torch.tensor([0]))
        one.batch_repeat_interleave(2)
        mask = torch.ones(2, TOKENS.shape[1] + N_NEW, dtype=torch.long)
        alone = llama.model(TOKENS[:, :1], past_key_values=one, attention_mask=mask).logits
        together = llama.model(TOKENS[:, :1], past_key_values=cache, attention_mask=mask).logits
    torch.testing.assert_close(alone[0], together[0])


class OwnCache(DynamicCache):
    """A class of another's, of which nothing is known."""


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("llama", lambda: dict(past_key_values=OwnCache()), "a OwnCache cannot be cut"),
        ("gptj", dict, "this family's attention goes through no interface"),
    ],
)
def test_a_cache_that_cannot_be_cut_stays_whole_and_that_is_said(family, options, why):
    m = wb.open_model(tiny(family))
    with m.restrict([wb.KVHead(0, 0)], window=5):
        with pytest.warns(WholeCacheWarning, match=why):
            through = generate(m, **options()).sequences
        assert torch.equal(through, generate(m, use_cache=False).sequences)


def test_a_model_that_changes_keys_behind_its_cache_keeps_the_cache_whole(llama, monkeypatch):
    update = Cache.update
    monkeypatch.setattr(Cache, "update", lambda *args, **kwargs: tuple(x.clone() for x in update(*args, **kwargs)))
    with llama.restrict(windowed(llama), window=5), pytest.warns(WholeCacheWarning, match="changes keys"):
        through, without, cache = both_ways(llama)
    assert torch.equal(through, without)
    assert cache.layers[0].keys.shape[2] == TOKENS.shape[1] + N_NEW - 1


@pytest.mark.parametrize("options", [dict(), dict(num_beams=3), dict(prefill_chunk_size=7)], ids=str)
@pytest.mark.parametrize("padding", [0, 9])
def test_a_head_with_linear_attention_holds_a_state(llama, padding, options):
    heads = {wb.KVHead(0, 1): wb.LinearAttention("elu", 2.0, 0.9), wb.KVHead(1, 1): wb.LinearAttention("taylor", 0.5)}
    with llama.restrict([wb.KVHead(0, 0)], window=5, sink=1), llama.linearize(heads):
        through, without, cache = both_ways(llama, padding, **options)
    assert torch.equal(through, without)
    n_sequences, full = 2 * options.get("num_beams", 1), TOKENS.shape[1] + N_NEW - 1
    in_float32 = 2 * 16 * (5 + 1 + full) + sum(form.state_size(16) + 2 * 16 for form in heads.values())
    assert cache_bytes(cache) == n_sequences * 4 * in_float32


def test_tokens_of_a_state_are_taken_back_and_another_form_is_refused(llama):
    tokens, head = TOKENS[:1, :6].repeat(1, 5), wb.KVHead(0, 1)
    with llama.linearize({head: wb.LinearAttention("elu", 2.0, 0.9)}):
        assisted = generate(llama, tokens=tokens, prompt_lookup_num_tokens=4)
        assert torch.equal(assisted.sequences, generate(llama, tokens=tokens, use_cache=False).sequences)
    refused = pytest.raises(WorkbenchError, match=r"L0KV1 .*no longer in force")
    with llama.linearize({head: wb.LinearAttention()}), torch.no_grad(), refused:
        llama.model(tokens[:, :1], past_key_values=assisted.past_key_values)
