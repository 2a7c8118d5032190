"""The loss of every token of one text, given those before it, in as few passes as the memory of logits allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.hooks import HookedModel
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.probes.known_answers import make_probe

# Logits of one pass, in float32; and the passes that one text may take.
_MOST_BYTES, _MOST_PASSES = 512 << 20, 8


def loss_passes(model: HookedModel, n_tokens: int) -> int:
    """The number of forward passes that the losses of a text take; 0 where they would take too many."""
    passes = math.ceil((n_tokens - 1) / _rows_of(model))
    return passes if passes <= _MOST_PASSES else 0


def longest_text(model: HookedModel) -> int:
    """The most tokens of a text whose losses are measured."""
    return _MOST_PASSES * _rows_of(model) + 1


def token_losses(
    model: HookedModel, tokens: Int[Tensor, " t"], *, on_pass: Callable[[int, int], None] = lambda _, __: None
) -> Float[Tensor, " t"]:
    """The loss in nats of each token given those before it, on the CPU; NaN for the first, which has none before it.

    The text is run once where its logits fit into 512 MiB, else once for each so many rows. `on_pass` is called before
    each pass with its number, from 1, and how many there are.
    """
    losses = torch.full((len(tokens),), math.nan)
    for i, rows in enumerate(pieces := list(_pieces(model, len(tokens))), start=1):
        on_pass(i, len(pieces))
        answers = torch.stack([torch.zeros_like(rows), rows], -1)
        batch = batch_of(model.model, make_probe("text", tokens[None].cpu(), answer_rows=answers))
        with torch.no_grad():
            scored = answers_of(model.model, batch)
        assert scored is not None
        losses[scored.at[:, 1] + 1] = scored.loss_nats
    return losses


def _pieces(model: HookedModel, n_tokens: int) -> Iterator[Int[Tensor, " n"]]:
    yield from torch.arange(n_tokens - 1).split(_rows_of(model)) if n_tokens > 1 else ()


def _rows_of(model: HookedModel) -> int:
    """How many rows of logits a pass may have."""
    vocabulary = int(model.model.config.get_text_config().vocab_size)
    return max(1, _MOST_BYTES // (4 * vocabulary))
