"""Forward passes of a recording: answers, logits and head outputs, in one pass or in pieces through the model's cache.

Three ways to run do not fit every model and are checked here: packed documents, padding on the left, and pieces
through the cache.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from workbench.heads import Head, LayerInfo, WorkbenchError
from workbench.hooks.interventions.targets import ChosenHeads, HeadKey
from workbench.hooks.interventions.windows import Interventions
from workbench.hooks.recording.answer_losses import losses_of
from workbench.hooks.recording.cells import Sequences, counted_cells, sequences
from workbench.hooks.recording.needs import Answers
from workbench.hooks.taps.attention_call import AttentionCall, Handler
from workbench.hooks.taps.eager import handling, is_without_interface
from workbench.hooks.taps.finite_values import watching
from workbench.hooks.taps.indexer_masks import has_own_masks
from workbench.hooks.taps.key_selection import selects_blocks
from workbench.hooks.taps.layer_lists import blocks
from workbench.hooks.taps.linear.linear_reading import changing_linear, linear_layers
from workbench.hooks.taps.rotary_lengths import extends_positions, rotates_by_length, rotating_for, uncontrolled_type
from workbench.kernels import Far
from workbench.probes.known_answers import Probe
from workbench.probes.token_ids import check_positions
from workbench.probes.token_inputs import PositionsLike, TokensLike, positions, token_batch

Rows = Literal["all"] | int | PositionsLike
# Called with the queries that run next.
Announce = Callable[[slice], None]


def batch_of(
    model: PreTrainedModel, tokens: TokensLike | Probe, attention_mask: Any = None, *, tokenizer: Any = None
) -> Sequences:
    """Tokens or a probe on the model's device, checked against what the model takes.

    Raises:
        WorkbenchError: for what are no tokens (`probes.token_inputs`), an attention_mask beside a probe, tokens outside
            the vocabulary or longer than the model takes (its table of positions, if it has one; rotary positions go
            on, with a warning), a mask that does not fit, or padding on the left in a model that counts positions from
            the first column and takes no others.
    """
    if isinstance(tokens, Probe):
        if attention_mask is not None:
            raise WorkbenchError(f"probe {tokens.name!r} has a mask of its own; leave attention_mask= out")
        batch = sequences(tokens.tokens.to(model.device), tokens.attention_mask)
        answers, targets = tokens.answer_rows, tokens.target_cells
        if targets is not None:
            targets = counted_cells(targets, batch.tokens, source=f"target_cells of probe {tokens.name!r}")
        batch = replace(
            batch,
            answers=None if answers is None else answers.to(model.device),
            targets=targets,
            needles=None if tokens.needles is None else tokens.needles.to(model.device),
            is_paired=tokens.is_paired,
            documents=None if tokens.documents is None else tokens.documents.to(model.device),
        )
    else:
        ids, mask = token_batch(tokens, attention_mask, tokenizer=tokenizer)
        batch = sequences(ids.to(model.device), mask)
    _check(model, batch.tokens)
    _check_left_padding(model, batch)
    return batch


def answers_of(
    model: PreTrainedModel, batch: Sequences, *, announce: Announce | None = None, prefill: int | None = None
) -> Answers | None:
    """Run the batch and score its answer rows; None where it has no answers.

    Logits are computed only for the answer rows. `announce` is called before each piece of at most `prefill` queries,
    or once.
    """
    announce = announce or (lambda _: None)
    if batch.answers is None or len(batch.answers) == 0:
        last = torch.tensor([batch.tokens.shape[1] - 1], device=batch.tokens.device)
        logits_of(model, batch, last, announce=announce, prefill=prefill)
        return None
    sequence, row = batch.answers.unbind(-1)
    distinct_rows = torch.unique(row)
    logits = logits_of(model, batch, distinct_rows, announce=announce, prefill=prefill)
    answer = batch.tokens[sequence, row + 1]
    logit_row = torch.searchsorted(distinct_rows, row.contiguous())
    loss = torch.empty(len(row))
    is_right = torch.empty(len(row), dtype=torch.bool)
    for b in range(len(batch.tokens)):
        is_here = sequence == b
        of_sequence = losses_of(logits[b], logit_row[is_here], answer[is_here])
        loss[is_here.cpu()], is_right[is_here.cpu()] = (x.cpu() for x in of_sequence)
    return Answers(at=batch.answers.cpu(), loss_nats=loss, is_right=is_right)


def logits_of(
    model: PreTrainedModel,
    batch: Sequences,
    rows: Int[Tensor, " r"],
    *,
    announce: Announce,
    prefill: int | None = None,
) -> Float[Tensor, "b r vocab"]:
    """One forward pass, and the logits of `rows` (sorted)."""
    n_tokens = batch.tokens.shape[1]
    if prefill is None or prefill >= n_tokens:
        announce(slice(0, n_tokens))
        return _forward(model, batch, rows, slice(0, n_tokens), use_cache=False).logits
    cache = _whole_cache(model)
    pieces: list[Tensor] = []
    for start in range(0, n_tokens, prefill):
        queries = slice(start, min(n_tokens, start + prefill))
        announce(queries)
        piece_rows = rows[(rows >= queries.start) & (rows < queries.stop)]
        logits = _forward(model, batch, piece_rows, queries, use_cache=True, past_key_values=cache).logits
        if cache.get_seq_length() != queries.stop:
            raise WorkbenchError(
                f"{type(model).__name__} kept {cache.get_seq_length()} of {queries.stop} tokens in its cache; leave "
                "prefill= out"
            )
        pieces.append(logits[:, len(logits[0]) - len(piece_rows) :])
    return torch.cat(pieces, 1)


def outputs_of(
    model: PreTrainedModel, chosen: ChosenHeads, batch: Sequences, attend: Handler
) -> dict[HeadKey, Float[Tensor, "b t d_v"]]:
    """What these heads hand to the output projection on a batch; `attend` computes the softmax layers."""
    outputs: dict[HeadKey, Tensor] = {}
    thread = threading.get_ident()

    def keep(layer: int, out: Tensor, heads: tuple[Head, ...], *, is_linear: bool) -> None:
        outputs.update({(h, is_linear): out[:, :, h.head].clone() for h in heads if h.layer == layer})

    def attend_and_keep(call: AttentionCall) -> Tensor:
        out = attend(call)
        keep(call.layer, out, chosen.softmax, is_linear=False)
        return out

    def keep_linear(layer: int, out: Tensor, *_: Any) -> Tensor:
        if threading.get_ident() == thread:
            keep(layer, out, chosen.linear, is_linear=True)
        return out

    layers = {h.layer for h in chosen.linear}
    with torch.no_grad(), handling(model, attend_and_keep), changing_linear(model, layers, keep_linear):
        answers_of(model, batch)
    return outputs


def picked_rows(rows: Rows, batch: Sequences) -> Int[Tensor, " r"] | None:
    """The query rows to record; None for all.

    Raises:
        WorkbenchError: for a number below 1, or indices that are not rows.
    """
    n_tokens, device = batch.tokens.shape[1], batch.tokens.device
    if isinstance(rows, str):
        if rows != "all":
            raise WorkbenchError(f"rows is {rows!r}; expected 'all', a positive number of rows, or positions of rows")
        return None
    if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
        if rows < 1:
            raise WorkbenchError(f"rows is {rows!r}; expected 'all', a positive number of rows, or positions of rows")
        if rows >= n_tokens:
            return None
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(n_tokens, generator=generator)[: int(rows)].sort().values.to(device)
    return torch.unique(positions(rows, n_tokens, name="rows")).to(device)


def check_packed(model: PreTrainedModel, layers: Sequence[LayerInfo], far: Far) -> None:
    """Refuse packed documents where the model would mix them.

    Raises:
        WorkbenchError: if the model has other layers than softmax, or cannot be given document boundaries.
    """
    _check_all_softmax(model, layers, "packed documents", "pass them one to a sequence, padded")
    if is_without_interface(model) or selects_blocks(model) or has_own_masks(model):
        raise WorkbenchError(
            f"{type(model).__name__} cannot be told where packed documents begin; pass them one to a sequence, padded"
        )
    if far.sink:
        raise WorkbenchError(f"far.sink is {far.sink}; with packed documents expected 0")


def check_prefill(
    model: PreTrainedModel,
    layers: Sequence[LayerInfo],
    batch: Sequences,
    *,
    prefill: int,
    interventions: Interventions,
) -> None:
    """Refuse `prefill` where pieces through a cache would not give the numbers of one pass.

    Raises:
        WorkbenchError: naming the layer, packing or intervention that does not allow it.
    """
    if isinstance(prefill, bool) or not isinstance(prefill, Integral) or prefill < 1:
        raise WorkbenchError(f"prefill is {prefill!r}; expected at least 1 token, a whole number")
    # transformers continues Mamba and lightning layers wrongly from a cache.
    _check_all_softmax(model, layers, "pieces through a cache", "leave prefill= out")
    if batch.is_packed:
        raise WorkbenchError("packed documents cannot be run piece by piece; leave prefill= out")
    if (rope_type := uncontrolled_type(model)) is not None:
        raise WorkbenchError(
            f"rope type {rope_type!r} has frequencies that depend on the length, which {type(model).__name__} applies "
            "in a way of its own; pieces through a cache may be rotated with others than one pass: leave prefill= out"
        )
    if interventions.averages_over_batch:
        raise WorkbenchError("a head's mean over its own batch is not known piece by piece; pass reference=")


def most_tokens(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have; None where positions have no end, as with dynamic NTK."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if longest is None or extends_positions(model) else int(longest)


def has_convolutions(model: PreTrainedModel) -> bool:
    """True if a layer mixes neighbouring tokens before it attends, as short convolutions of keys and values do."""
    return any(isinstance(module, nn.Conv1d) for _, block in blocks(model) for module in block.modules())


def _forward(model: PreTrainedModel, batch: Sequences, rows: Int[Tensor, " r"], queries: slice, **options: Any) -> Any:
    with ExitStack() as stack:
        if rotates_by_length(model):
            stack.enter_context(rotating_for(batch.lengths()[:, queries]))
        watch = stack.enter_context(watching(model, batch.valid[:, queries]))
        out = _run(model, batch, rows, queries, **options)
        if len(rows):  # else the logits are of the last row, which may be padding
            watch.note("the logits", out.logits, batch.valid[:, rows])
    return out


def _run(model: PreTrainedModel, batch: Sequences, rows: Int[Tensor, " r"], queries: slice, **options: Any) -> Any:
    options["input_ids"] = batch.tokens[:, queries]
    if batch.is_packed:
        # transformers finds document boundaries where positions start anew, but only without an attention mask. So
        # padding is passed as a document of its own, whose rows are not used.
        options["position_ids"] = batch.positions()
    elif not bool(batch.valid.all()):
        options["attention_mask"] = batch.valid[:, : queries.stop].long()
        if batch.is_left_padded and _takes_positions(model):
            # Families with learned positions count them from the first column, not from the first valid token.
            options["position_ids"] = batch.positions()[:, queries]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        # No index would mean all rows, so that the last row stands in for none.
        indices = rows - queries.start if len(rows) else torch.tensor([queries.stop - queries.start - 1])
        return model(**options, logits_to_keep=indices.to(batch.tokens.device))
    out = model(**options)
    out.logits = out.logits[:, rows - queries.start] if len(rows) else out.logits[:, -1:]
    return out


def _whole_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache of which every layer keeps every key, so that a sliding layer gets its usual mask.

    Layers with an indexer keep its keys too; only a cache that knows the configuration has such layers.
    """
    own = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    cache = DynamicCache()
    if any(_keeps_more(layer) for layer in own):
        cache.layers.extend(layer if _keeps_more(layer) else DynamicLayer() for layer in own)
    return cache


def _keeps_more(layer: Any) -> bool:
    """True of a cache layer that keeps every key and value, and something beside them."""
    plain = isinstance(layer, DynamicLayer) and not isinstance(layer, DynamicSlidingWindowLayer)
    return plain and type(layer) is not DynamicLayer and not isinstance(layer, LinearAttentionCacheLayerMixin)


def _takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _check_left_padding(model: PreTrainedModel, batch: Sequences) -> None:
    """Refuse left padding where positions cannot be given and the model's numbers depend on them.

    Found by running a short text alone and behind padding. Relative positions, ALiBi and recurrences give the same.
    """
    if batch.is_left_padded and not batch.is_packed and selects_blocks(model):
        raise WorkbenchError(
            f"{type(model).__name__} was given padding on the left, but selects blocks of keys that begin with the "
            "first column, so that a text behind padding is cut into other blocks; expected padding on the right: move "
            "it there"
        )
    if batch.is_left_padded and any(layer.takes_in_padding for layer in linear_layers(model).values()):
        raise WorkbenchError(
            f"{type(model).__name__} was given padding on the left, but its recurrent layers take the padding in as if "
            "it were text; expected padding on the right: move it there, or pass sequences of one length"
        )
    # A recurrence has no positions; packed documents have their own check.
    if not batch.is_left_padded or batch.is_packed or _takes_positions(model) or linear_layers(model):
        return
    n_tokens = min(batch.tokens.shape[1], 12)
    n_padding = max(1, n_tokens // 3)
    n_text, vocabulary = n_tokens - n_padding, int(model.config.get_text_config().vocab_size)
    text = torch.arange(n_text, device=model.device)[None] % vocabulary
    padded = pad(text, (n_padding, 0))
    valid = pad(torch.ones_like(text), (n_padding, 0))
    # The plain handler keeps interventions that are in force out of the two passes.
    with torch.no_grad(), handling(model, lambda call: call.output()), watching(model, valid.bool()):
        alone = model(input_ids=text, use_cache=False).logits.float()
        behind = model(input_ids=padded, attention_mask=valid, use_cache=False).logits[:, n_padding:].float()
    # Tiny RoFormer, relative by sines and cosines: 4e-7 in float32, 1.2e-2 in bfloat16; TrOCR, learned: 1.3.
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if not bool((alone - behind).abs().max() <= tolerance * alone.abs().max()):
        raise WorkbenchError(
            f"{type(model).__name__} was given padding on the left, but counts positions from the first column and "
            "takes no position_ids; expected padding on the right: move it there"
        )


def _check(model: PreTrainedModel, tokens: Int[Tensor, "b t"]) -> None:
    config = model.config.get_text_config()
    if tokens.numel() == 0:
        raise WorkbenchError(f"tokens have shape {tuple(tokens.shape)}; expected at least one token")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= int(config.vocab_size):
        raise WorkbenchError(
            f"token ids run from {low} to {high}; this model's vocabulary is 0 … {int(config.vocab_size) - 1}"
        )
    if most_tokens(model) is not None:
        check_positions(config, tokens.shape[1], next_step="pass shorter sequences")


def _check_all_softmax(model: PreTrainedModel, layers: Sequence[LayerInfo], feature: str, instead: str) -> None:
    other = next((info for info in layers if info.mixer != "softmax"), None)
    if other is not None:
        raise WorkbenchError(
            f"{feature} need a model of softmax layers alone; layer {other.index} is {other.mixer} attention: {instead}"
        )
    if has_convolutions(model):
        raise WorkbenchError(
            f"{feature} need a model of softmax layers alone; {type(model).__name__} has short convolutions over "
            f"neighbouring tokens beside them: {instead}"
        )
