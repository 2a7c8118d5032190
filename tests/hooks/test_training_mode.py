"""Training under interventions: the model stays in the mode it is in, and Trainer trains as a loop by hand does."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import workbench as wb
from workbench.heads import WorkbenchError
from workbench.hooks.taps.evaluation_mode import WithoutAttentionDropout

TOKENS = torch.randint(64, (4, 24), generator=torch.Generator().manual_seed(0))
HEADS = [wb.KVHead(0, 0), wb.KVHead(1, 1)]


def llama():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def gpt2(*, attention_dropout=0.0):
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = GPT2Config(**sizes, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=attention_dropout)
    return GPT2LMHeadModel(config).train()


def gptj(*, attention_dropout=0.0):
    torch.manual_seed(1)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    config = GPTJConfig(**sizes, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=attention_dropout)
    return GPTJForCausalLM(config).train()


def loss_of(model, *, seed=0):
    torch.manual_seed(seed)
    return model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss


@pytest.mark.parametrize("name", ["restrict", "ablate", "patch", "linearize"])
def test_a_block_leaves_the_mode_as_it_is_and_recordings_switch_it_and_back(name):
    model = gpt2()
    m = wb.open_model(model)
    model.transformer.h[1].eval()  # frozen by its owner
    modes = [module.training for module in model.modules()]
    blocks = {
        "restrict": lambda: m.restrict([wb.KVHead(0, 0)], window=8),
        "ablate": lambda: m.ablate([wb.Head(0, 0)]),
        "patch": lambda: m.patch([wb.Head(0, 0)], TOKENS),
        "linearize": lambda: m.linearize({}),
    }
    with blocks[name]():
        assert [module.training for module in model.modules()] == modes
        first, again = (m.record(TOKENS, {"entropy"})["entropy"].total for _ in range(2))
        assert torch.equal(first, again)  # without dropout
        assert [module.training for module in model.modules()] == modes
        model.eval()
    assert not model.training  # what its owner sets inside a block stays


@pytest.mark.parametrize("family", [gpt2, gptj])
def test_dropout_is_in_force_inside_a_block_as_outside(family):
    model = family()
    m = wb.open_model(model)
    plain = loss_of(model)
    with m.restrict([wb.KVHead(0, 0), wb.KVHead(1, 2)], window=24):  # hides nothing
        inside = loss_of(model)
    torch.testing.assert_close(inside, plain, atol=1e-5, rtol=1e-5)
    assert abs(float((loss_of(model.eval()) - plain).detach())) > 1e-3


@pytest.mark.parametrize("family", [gpt2, gptj])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropout_of_attention_probabilities_is_left_out_with_a_warning(family, implementation):
    if (family, implementation) == (gptj, "sdpa"):
        pytest.skip("GPT-J has no sdpa attention")
    model = family(attention_dropout=0.5)
    model.set_attn_implementation(implementation)
    m = wb.open_model(model)
    with m.restrict([wb.KVHead(0, 0)], window=8):
        with pytest.warns(WithoutAttentionDropout, match=r"layer [01] trains without its dropout .* \(0\.5\)"):
            inside = loss_of(model)
        loss_of(model.eval())  # an evaluation has no dropout to leave out
    without = family()
    with wb.open_model(without).restrict([wb.KVHead(0, 0)], window=8):
        torch.testing.assert_close(inside, loss_of(without), atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_is_in_force_inside_a_block():
    model, passes = llama(), []
    model.activation_checkpointing_enable()
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    m = wb.open_model(model)
    passes.clear()
    with m.restrict(HEADS, window=8):
        loss_of(model).backward()
    assert len(passes) == 2  # forward, and again for the backward pass


class _Texts(Dataset):
    def __len__(self):
        return len(TOKENS)

    def __getitem__(self, i):
        return {"input_ids": TOKENS[i], "labels": TOKENS[i]}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_trainer_trains_under_a_plan_as_a_loop_by_hand_does(tmp_path, accumulated):
    by_trainer, by_hand = llama(), llama()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4 // accumulated, optim="sgd", learning_rate=0.1,
        gradient_accumulation_steps=accumulated, lr_scheduler_type="constant", max_grad_norm=0, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, activation_checkpointing=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    with wb.open_model(by_trainer).restrict(HEADS, window=4, sink=1):
        Trainer(by_trainer, arguments, train_dataset=_Texts()).train()
    optimiser = torch.optim.SGD(by_hand.parameters(), 0.1)
    with wb.open_model(by_hand).restrict(HEADS, window=4, sink=1):
        for _ in range(2):
            optimiser.zero_grad()
            loss_of(by_hand).backward()
            optimiser.step()
    for (name, one), other in zip(by_trainer.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_arguments_of_the_loss_select_no_keys_and_others_may():
    model = llama()
    m = wb.open_model(model)
    n_items = torch.tensor(TOKENS.numel())
    shifted = torch.nn.functional.pad(TOKENS[:, 1:], (0, 1), value=-100)
    with m.restrict(HEADS, window=8):
        loss = model(input_ids=TOKENS, labels=TOKENS, shift_labels=shifted, num_items_in_batch=n_items).loss
        torch.testing.assert_close(loss, loss_of(model) * (TOKENS.shape[1] - 1) / TOKENS.shape[1])
        lengths = torch.tensor([0, 24])
        with pytest.raises(WorkbenchError, match=r"\['cu_seq_lens_k', 'cu_seq_lens_q'\], which may select keys"):
            model(input_ids=TOKENS[:1], cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
