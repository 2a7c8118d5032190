"""The user's own passes under interventions: what is generated and trained is of the changed model, or refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.heads import WorkbenchError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
HEADS = [wb.KVHead(0, 0), wb.KVHead(1, 1)]
TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(3))


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def opened():
    return wb.open_model(llama())


def generated(m, **options):
    mask = torch.ones_like(TOKENS)
    mask[1, :7] = 0
    return m.model.generate(
        input_ids=TOKENS * mask, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_what_is_generated_through_the_cache_is_what_passes_without_it_give(opened, options):
    plain = generated(opened, **options)
    with opened.restrict(HEADS, window=4, sink=1):
        through_cache = generated(opened, **options)
        assert torch.equal(through_cache, generated(opened, **options, use_cache=False))
    assert not torch.equal(through_cache, plain)


class QuantizedKeys(DynamicCache):
    """A cache by the name of those that round their keys."""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cache_implementation": "static"}, "static cache .*leave cache_implementation"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "no attention weights .* pattern"),
        ({"past_key_values": QuantizedKeys()}, "quantized cache .* use_cache=False"),
    ],
)
def test_a_way_to_generate_that_interventions_cannot_follow_is_refused(opened, options, sentence):
    with opened.restrict(HEADS, window=4), pytest.raises(WorkbenchError, match=sentence):
        generated(opened, **options)


def loss_and_gradient(backward, *, reentrant=None, model=None):
    """The gradient of a layer's weights, from a loss under a window whose backward pass runs in `backward`."""
    model = llama() if model is None else model
    m = wb.open_model(model)
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
    with m.restrict(HEADS, window=4, sink=1):
        model.train()
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        backward(m, loss)
    if loss.grad_fn is not None and model.get_input_embeddings().weight.grad is None:
        loss.backward()
    return model.get_input_embeddings().weight.grad


def inside(_, loss):
    loss.backward()


def inside_another_block(m, loss):
    with m.ablate([wb.Head(0, 0)]):
        loss.backward()


def after_a_recording(m, loss):
    m.record(TOKENS, ["entropy"])
    m.model.train()
    loss.backward()


def in_another_thread(_, loss):
    faults = []

    def run():
        try:
            loss.backward()
        except WorkbenchError as fault:
            faults.append(fault)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not faults


@pytest.fixture(scope="module")
def expected():
    return loss_and_gradient(inside)


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("backward", [inside, inside_another_block, after_a_recording, in_another_thread])
def test_gradients_are_of_the_pass_that_began_under_the_window(expected, backward, reentrant):
    torch.testing.assert_close(loss_and_gradient(backward, reentrant=reentrant), expected)


def test_without_checkpointing_a_backward_pass_may_come_after_the_block(expected):
    torch.testing.assert_close(loss_and_gradient(lambda *_: None), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_checkpointing_a_backward_pass_after_the_block_is_refused(reentrant):
    with pytest.raises(WorkbenchError, match=r"call backward\(\) inside the block"):
        loss_and_gradient(lambda *_: None, reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_whole_model_is_refused(opened, reentrant):
    def run(x):
        return opened.model(inputs_embeds=x, use_cache=False).logits

    embedded = opened.model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    with opened.restrict(HEADS, window=4), pytest.raises(WorkbenchError, match=r"inside torch\.utils\.checkpoint"):
        checkpoint(run, embedded, use_reentrant=reentrant)


def test_checkpointing_is_refused_in_families_that_are_read_around_their_layers():
    config = GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    model = GPTJForCausalLM(config).eval()
    m = wb.open_model(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with m.restrict([wb.KVHead(0, 0)], window=4):
        model(TOKENS, use_cache=False)  # an evaluation computes nothing again
        model.train()
        with pytest.raises(WorkbenchError, match=r"gradient_checkpointing_disable\(\)"):
            model(TOKENS, use_cache=False)


def test_a_bridge_that_is_made_under_an_intervention_is_free_of_it_afterwards():
    m = wb.open_model(llama())
    with m.restrict(HEADS, window=4):
        twin = m.bridge.original_model
    with torch.no_grad():
        expected = m.model(TOKENS, use_cache=False).logits
        torch.testing.assert_close(twin(TOKENS, output_attentions=True).logits, expected, atol=1e-4, rtol=1e-4)
