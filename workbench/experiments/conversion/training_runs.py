"""A training run of a study: its model, new or from a checkpoint, and the updates, with some heads converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.experiments.conversion.head_conversion import HeadConversion
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_data import N_TASK_WORDS, Batch
from workbench.loading.pretrained import load_pretrained
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.synthetic_language import VOCABULARY, Language
from workbench.pretrain.training import optimisers
from workbench.pretrain.variants import initialised

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def untrained(study: Conversion, seed: int) -> PreTrainedModel:
    """A stock Llama of the study's shape before its first step. The global random state does not change."""
    config = LlamaConfig(
        vocab_size=VOCABULARY + (N_TASK_WORDS if study.tasks else 0),
        hidden_size=study.d_model,
        intermediate_size=2 * study.d_model,
        num_hidden_layers=study.n_layers,
        num_attention_heads=study.n_heads,
        num_key_value_heads=study.n_heads,
        head_dim=study.d_head,
        max_position_embeddings=study.length,
        rope_parameters={"rope_type": "default", "rope_theta": study.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=Language().bos,
        eos_token_id=Language().bos,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return initialised(model, seed)


def from_checkpoint(checkpoint: Path) -> PreTrainedModel:
    """A saved model, loaded strictly, in training mode."""
    return load_pretrained(checkpoint, device=torch.device("cpu"), dtype=None).model.train()


def train(
    model: PreTrainedModel,
    recipe: Recipe,
    batches: Iterable[Batch],
    *,
    conversion: HeadConversion | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train in place, with the heads of a conversion converted; returns the loss before each step, in nats.

    Gradients are clipped to norm 1; rates follow the recipe's schedule. `on_step` is called after each update with the
    number of updates. The model is in eval mode afterwards.
    """
    optimiser_list = optimisers(model, recipe)
    groups = [group for optimiser in optimiser_list for group in optimiser.param_groups]
    peaks = [group["lr"] for group in groups]
    losses: list[float] = []
    model.train()
    with nullcontext() if conversion is None else conversion.training(model, recipe.length):
        for step, batch in enumerate(batches):
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * recipe.lr_scale(step)
            loss = weighted_loss(model(input_ids=batch.tokens, use_cache=False).logits, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimiser_list:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if on_step is not None:
                on_step(step + 1)
    model.eval()
    return losses


def weighted_loss(logits: Float[Tensor, "b t vocab"], batch: Batch) -> Float[Tensor, ""]:
    """Mean cross entropy of every token but the first by its weight, in nats."""
    predicted = rearrange(logits[:, :-1], "b t vocab -> (b t) vocab")
    nats = F.cross_entropy(predicted, rearrange(batch.tokens[:, 1:], "b t -> (b t)"), reduction="none")
    weight = rearrange(batch.weight[:, 1:], "b t -> (b t)")
    return (nats * weight).sum() / weight.sum()
