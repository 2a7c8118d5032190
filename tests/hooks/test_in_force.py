"""Interventions are the model's: whoever opened it, in every thread, in whatever order blocks end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.linear_families import tiny
from workbench import HookedModel, KVHead, LinearAttention, WorkbenchError, open_model, probes, score

TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(0))
FIRST, SECOND = [KVHead(0, 0)], [KVHead(1, 0)]


def _llama(seed: int, config: LlamaConfig | None = None) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = config or LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def _dynamic() -> PreTrainedModel:
    config = _llama(0).config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config.max_position_embeddings = 16
    return _llama(0, config)


def _gptj() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTJForCausalLM(
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, initializer_range=0.3)
    ).eval()


@pytest.fixture
def m() -> HookedModel:
    return open_model(_llama(0))


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def _in_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_a_model_opened_again_inside_a_block_is_under_its_interventions(m: HookedModel) -> None:
    probe = probes.token_sequences(TOKENS)
    with m.restrict(FIRST, window=3):
        here, again = (score(each, "mean_distance", probes=probe).score for each in (m, m.model))
    plain = score(m, "mean_distance", probes=probe).score
    assert here.tolist() == again.tolist() != plain.tolist()


def test_blocks_of_two_openings_of_a_model_are_in_force_together(m: HookedModel) -> None:
    other = open_model(m.model)
    with m.restrict(FIRST, window=3), m.ablate(["L1H0"]):
        expected = _logits(m.model)
    with m.restrict(FIRST, window=3), other.ablate(["L1H0"]):
        assert torch.equal(_logits(m.model), expected)
        assert m.interventions is other.interventions


def test_each_model_of_two_nested_blocks_is_under_its_own_interventions(m: HookedModel) -> None:
    other = open_model(_llama(1))
    with m.restrict(FIRST, window=3):
        first = _logits(m.model)
    with other.restrict(SECOND, window=5):
        second = _logits(other.model)
    with m.restrict(FIRST, window=3), other.restrict(SECOND, window=5):
        assert torch.equal(_logits(m.model), first)
        assert torch.equal(_logits(other.model), second)


def test_a_model_that_shares_its_configuration_is_not_under_the_interventions(m: HookedModel) -> None:
    other = _llama(1, m.config)
    plain = _logits(other)
    with m.restrict(FIRST + SECOND, window=3):
        torch.testing.assert_close(_logits(other), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", [_llama(0), _gptj()], ids=["interface", "older"])
def test_blocks_that_end_in_another_order_leave_the_rest_in_force_and_then_nothing(model: PreTrainedModel) -> None:
    m, plain = open_model(model), _logits(model)
    own = model.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    forwards = {n for n, x in model.named_modules() if "forward" in vars(x)}
    with m.ablate(["L1H0"]):
        of_second = _logits(model)
    first, second = m.ablate(["L0H1"]), m.ablate(["L1H0"])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(_logits(model), of_second)
    second.__exit__(None, None, None)
    assert torch.equal(_logits(model), plain)
    assert not m.interventions.replacements
    assert model.config._attn_implementation == own  # pyright: ignore[reportPrivateUsage]
    assert {n for n, x in model.named_modules() if "forward" in vars(x)} == forwards


def test_models_of_one_configuration_may_end_their_blocks_in_any_order(m: HookedModel) -> None:
    own: str = m.config._attn_implementation
    other = open_model(_llama(1, m.config))
    with other.restrict(FIRST, window=3):
        expected = _logits(other.model)
    first, second = m.restrict(FIRST, window=3), other.restrict(FIRST, window=3)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(_logits(other.model), expected)
    second.__exit__(None, None, None)
    assert m.config._attn_implementation == own


def test_the_models_own_pass_in_another_thread_is_under_the_block(m: HookedModel) -> None:
    answers: list[Tensor] = []

    def generate() -> None:  # as a streamer's thread does
        model: Any = m.model
        answers.append(model.generate(TOKENS, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0))

    with m.restrict(FIRST + SECOND, window=2):
        thread = Thread(target=generate)
        thread.start()
        thread.join()
        generate()
    generate()
    in_thread, here, plain = answers
    assert torch.equal(in_thread, here)
    assert not torch.equal(here, plain)


def test_a_recording_or_a_block_of_another_thread_is_refused_inside_a_block(m: HookedModel) -> None:
    def ablated() -> Tensor:
        with m.ablate(["L1H0"]):
            return m.pattern(TOKENS[0], 1, 0)

    with m.restrict(FIRST, window=3):
        for run in (lambda: m.pattern(TOKENS[0], 1, 0), ablated, lambda: open_model(m.model)):
            with pytest.raises(WorkbenchError, match="in force in another thread"):
                _in_thread(run)
        assert list(m.interventions.windows) == FIRST
    assert torch.equal(ablated(), _in_thread(ablated))


def test_a_block_that_is_refused_changes_nothing(m: HookedModel) -> None:
    plain = _logits(m.model)
    with m.restrict(FIRST, window=3), pytest.raises(WorkbenchError), m.linearize({"L0KV0": LinearAttention()}):
        pass
    assert torch.equal(_logits(m.model), plain)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize(
    "make",
    [lambda: _llama(0), _dynamic, _gptj, lambda: tiny("qwen3_next")],
    ids=["llama", "dynamic", "older", "linear"],
)
def test_recordings_of_two_threads_are_those_of_one(make: Callable[[], PreTrainedModel]) -> None:
    m, texts = open_model(make()), [TOKENS, TOKENS[:, :17].flip(1)]

    def record(i: int) -> Tensor:
        return m.record(texts[i % 2], ["mean_distance"])["mean_distance"].total

    def disturb(i: int) -> None:  # refused where a recording begins or ends while it runs
        with suppress(WorkbenchError), torch.no_grad():
            m.model(input_ids=texts[i % 2], use_cache=False)

    expected = [record(0), record(1)]
    with ThreadPoolExecutor(3) as pool:
        disturbing = [pool.submit(disturb, i) for i in range(8)]
        totals = list(pool.map(record, range(16)))
    for i, total in enumerate(totals):
        torch.testing.assert_close(total, expected[i % 2], atol=1e-4, rtol=1e-4)
    assert all(each.exception() is None for each in disturbing)
