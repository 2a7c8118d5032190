"""Run a model over tokens for the sake of its attention: in one pass, or piece by piece through its own cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from workbench.heads import WorkbenchError
from workbench.hooks.recording.cells import Sequences, sequences
from workbench.hooks.recording.needs import Answers
from workbench.probes.known_answers import Probe

Rows = Literal["all"] | int | Tensor
# Told which queries come next.
Announce = Callable[[slice], None]


def batch_of(model: PreTrainedModel, tokens: Tensor | Probe, attention_mask: Tensor | None = None) -> Sequences:
    """Tokens or a probe on the model's device, checked against what the model takes.

    Raises:
        WorkbenchError: for tokens outside the vocabulary or longer than the model takes, or a mask that does not fit.
    """
    if isinstance(tokens, Probe):
        batch = sequences(tokens.tokens.to(model.device), tokens.attention_mask)
        answers, targets = tokens.answer_rows, tokens.target_cells
        batch = replace(
            batch,
            answers=None if answers is None else answers.to(model.device),
            targets=None if targets is None else targets.to(model.device),
            needles=None if tokens.needles is None else tokens.needles.to(model.device),
            is_paired=tokens.is_paired,
            documents=None if tokens.documents is None else tokens.documents.to(model.device),
        )
    else:
        ids = tokens if tokens.ndim == 2 else tokens[None]
        mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else attention_mask[None]
        batch = sequences(ids.to(model.device), mask)
    _check(model.config.get_text_config(), batch.tokens)
    return batch


def answers_of(
    model: PreTrainedModel, batch: Sequences, *, announce: Announce | None = None, prefill: int | None = None
) -> Answers | None:
    """Run the batch and score the answer rows, for which alone logits are made; None where it has no answers.

    `announce` is called before each piece of at most `prefill` queries, or once.
    """
    announce = announce or (lambda _: None)
    if batch.answers is None or len(batch.answers) == 0:
        last = torch.tensor([batch.tokens.shape[1] - 1], device=batch.tokens.device)
        logits_of(model, batch, last, announce=announce, prefill=prefill)
        return None
    sequence, row = batch.answers.unbind(-1)
    kept = torch.unique(row)
    logits = logits_of(model, batch, kept, announce=announce, prefill=prefill)
    answer = batch.tokens[sequence, row + 1]
    place = torch.searchsorted(kept, row.contiguous())
    loss = torch.empty(len(row))
    is_right = torch.empty(len(row), dtype=torch.bool)
    for b in range(len(batch.tokens)):  # one sequence at a time: float32 logits of a batch may not fit
        mine = sequence == b
        scores = logits[b, place[mine]].float()
        loss[mine.cpu()] = cross_entropy(scores, answer[mine], reduction="none").cpu()
        is_right[mine.cpu()] = (scores.argmax(-1) == answer[mine]).cpu()
    return Answers(at=batch.answers.cpu(), loss_nats=loss, is_right=is_right)


def logits_of(
    model: PreTrainedModel,
    batch: Sequences,
    kept: Int[Tensor, " kept"],
    *,
    announce: Announce,
    prefill: int | None = None,
) -> Float[Tensor, "b kept vocab"]:
    """One forward pass, and the logits of the rows `kept` (sorted)."""
    n_tokens = batch.tokens.shape[1]
    if prefill is None or prefill >= n_tokens:
        announce(slice(0, n_tokens))
        return _forward(model, batch, kept, slice(0, n_tokens), use_cache=False).logits
    # Without a config every layer of the cache keeps every key, so that a sliding layer's mask is its own, too.
    cache = DynamicCache()
    pieces: list[Tensor] = []
    for start in range(0, n_tokens, prefill):
        queries = slice(start, min(n_tokens, start + prefill))
        announce(queries)
        mine = kept[(kept >= queries.start) & (kept < queries.stop)]
        logits = _forward(model, batch, mine, queries, use_cache=True, past_key_values=cache).logits
        if cache.get_seq_length() != queries.stop:
            raise WorkbenchError(
                f"{type(model).__name__} kept {cache.get_seq_length()} of {queries.stop} tokens in its cache; leave "
                "prefill= out"
            )
        pieces.append(logits[:, len(logits[0]) - len(mine) :])
    return torch.cat(pieces, 1)


def picked_rows(rows: Rows, batch: Sequences) -> Int[Tensor, " r"] | None:
    """The query rows to record; None for all.

    Raises:
        WorkbenchError: for a number below 1, or indices that are not rows.
    """
    n_tokens, device = batch.tokens.shape[1], batch.tokens.device
    if isinstance(rows, Tensor):
        picked = torch.unique(rows.to(device))
        if len(picked) == 0 or int(picked[0]) < 0 or int(picked[-1]) >= n_tokens:
            raise WorkbenchError(f"rows= must hold indices from 0 to {n_tokens - 1}, at least one")
        return picked
    if rows == "all":
        return None
    if isinstance(rows, str) or rows < 1:
        raise WorkbenchError(f"rows is {rows!r}; expected 'all', a positive number of rows, or a tensor of indices")
    if rows >= n_tokens:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(n_tokens, generator=generator)[:rows].sort().values.to(device)


def _forward(model: PreTrainedModel, batch: Sequences, kept: Int[Tensor, " kept"], queries: slice, **given: Any) -> Any:
    given["input_ids"] = batch.tokens[:, queries]
    if batch.is_packed:
        # Positions that start anew tell transformers where documents begin, but only where no mask says otherwise:
        # padding is a document of its own, which nobody looks at.
        given["position_ids"] = batch.positions()
    elif not bool(batch.valid.all()):
        given["attention_mask"] = batch.valid[:, : queries.stop].long()
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        # Zero rows would mean all of them; the last is made for nothing.
        place = kept - queries.start if len(kept) else torch.tensor([queries.stop - queries.start - 1])
        return model(**given, logits_to_keep=place.to(batch.tokens.device))
    out = model(**given)
    out.logits = out.logits[:, kept - queries.start] if len(kept) else out.logits[:, -1:]
    return out


def _check(config: Any, tokens: Int[Tensor, "b t"]) -> None:
    if tokens.numel() == 0:
        raise WorkbenchError(f"tokens have shape {tuple(tokens.shape)}; expected at least one token")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= int(config.vocab_size):
        raise WorkbenchError(
            f"token ids run from {low} to {high}; this model's vocabulary is 0 … {int(config.vocab_size) - 1}"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens.shape[1] > longest:
        raise WorkbenchError(
            f"{tokens.shape[1]} tokens exceed the {longest} positions of this model; pass shorter sequences"
        )
