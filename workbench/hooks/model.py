"""HookedModel: a Hugging Face causal language model whose attention can be recorded and looked at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from workbench.heads import Head, KVHead, LayerInfo, Mixer, WorkbenchError
from workbench.hooks.attention import AttentionCall
from workbench.hooks.bridge import bridge_twin, is_bridge, unbridged
from workbench.hooks.cells import Sequences, sequences
from workbench.hooks.eager import handling
from workbench.hooks.interventions import (
    Ablation,
    Interventions,
    check_how,
    check_window,
    intervened_output,
    intervened_statistics,
    mean_output,
    one_head,
)
from workbench.hooks.layers import survey
from workbench.hooks.linear import LinearCall, reading_linear
from workbench.hooks.loading import load_pretrained
from workbench.hooks.recording import Answers, Need, Recording, Reduction
from workbench.kernels import Far
from workbench.probes.probe import Probe

DEFAULT_FAR = Far(window=256)
Rows = Literal["all"] | int | Tensor


class HookedModel:
    """A model, its tokenizer if it has one, and what its layers are.

    The model itself is never changed: attention is switched to the recorder for the length of one call and switched
    back, whatever happens in it.
    """

    def __init__(self, model: PreTrainedModel, *, tokenizer: Any = None, name: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or type(model).__name__
        self._layers = survey(model)
        self._interventions = Interventions()

    def __repr__(self) -> str:
        kinds = "".join(layer.kind[0].upper() for layer in self._layers)
        return f"HookedModel({self.name}: {len(self._layers)} layers {kinds}, {self._layers[0].n_heads} heads)"

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The token mixers of the model in order."""
        return self._layers

    @cached_property
    def bridge(self) -> nn.Module:
        """A TransformerLens TransformerBridge on a twin that shares the weights; `record` is the same before and after.

        Raises:
            WorkbenchError: if TransformerLens does not know the architecture.
        """
        return bridge_twin(self.model, self.tokenizer)

    @property
    def config(self) -> Any:
        """The model's Hugging Face configuration."""
        return self.model.config

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def record(
        self,
        tokens: Int[Tensor, "b t"] | Int[Tensor, " t"] | Probe,
        needs: set[Need] | frozenset[Need] | tuple[Need, ...] | list[Need],
        attention_mask: Tensor | None = None,
        rows: Rows = "all",
        *,
        far: Far = DEFAULT_FAR,
    ) -> Recording:
        """One forward pass with the statistics that `needs` names, summed per sequence; memory is O(tokens).

        Args:
            tokens: token ids, or a probe; with a probe its answers are scored too.
            rows: all query rows; a number of them, drawn evenly at random (seed 0); or their indices. Answer
                rows are always recorded in full.
            far: the window and sink of `far_mass`, in tokens.

        Raises:
            WorkbenchError: for tokens outside the vocabulary or longer than the model takes, an unknown need, or a
                mask that does not fit.
        """
        batch = self._batch(tokens, attention_mask)
        reduction = Reduction(batch, needs, layers=self._layers, far=far, rows=_rows(rows, batch))
        place = {(layer.index, layer.kind == "linear"): i for i, layer in enumerate(self._layers)}

        def attend(call: AttentionCall) -> Tensor:
            out, statistics = intervened_statistics(call, self._interventions, reduction.request)
            reduction.take(place[call.layer, False], statistics)
            return out if reduction.request.rows is None else intervened_output(call, self._interventions)

        def read(call: LinearCall) -> None:
            reduction.take(place[call.layer, True], call.statistics(reduction.request))

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(handling(self.model, attend))
            stack.enter_context(reading_linear(self.model, batch.valid, read))
            answers = self._answers(batch)
        return reduction.finish(answers)

    def pattern(
        self,
        tokens: Int[Tensor, " t"],
        layer: int,
        head: int,
        queries: slice | Int[Tensor, " q"] = slice(None),
        keys: slice | Int[Tensor, " k"] = slice(None),
        *,
        mixer: Mixer | None = None,
    ) -> Float[Tensor, "q k"]:
        """Exact attention probabilities of one head on one sequence, float32, on the queries and keys asked for.

        Linear layers give their implied pattern: signed, not normalised. Only the crop and a block of rows are ever
        built.

        Args:
            mixer: which mixer of a layer that has two; the softmax one where not given.

        Raises:
            WorkbenchError: if the model has no such head.
        """
        info = next((i for i in self._layers if i.index == layer and mixer in (None, i.mixer)), None)
        if info is None or not 0 <= head < info.n_heads:
            raise WorkbenchError(f"there is no head L{layer}H{head}; {self!r} has {_heads_of(self._layers)}")
        batch = self._batch(tokens, None)
        every = torch.arange(batch.tokens.shape[1], device=self.device)
        picked = [every[x] if isinstance(x, slice) else x.to(self.device) for x in (queries, keys)]

        def attend(call: AttentionCall) -> Tensor:
            if call.layer != layer or info.kind == "linear":
                return intervened_output(call, self._interventions)
            alone, mask = one_head(call, self._interventions, head)
            raise _FoundError(alone.crop(mask, *picked))

        def read(call: LinearCall) -> None:
            if call.layer == layer and info.kind == "linear":
                raise _FoundError(call.crop(head, *picked))

        try:
            with (
                torch.no_grad(),
                handling(self.model, attend),
                reading_linear(self.model, batch.valid, read),
            ):
                self._logits(batch, every[-1:])
        except _FoundError as found:
            return found.crop
        raise AssertionError(f"layer {layer} did not attend")

    @contextmanager
    def restrict(self, kv_heads: Iterable[KVHead], window: int, sink: int = 0) -> Generator[HookedModel]:
        """Inside the block, these key/value heads see only the first `sink` and the last `window` keys, in tokens.

        The own position is one of the `window`; a layer's own narrower mask stays. Holds for `record`, `pattern`,
        `score` and the model's own forward and generate. Nested restrictions of one head leave what all allow.

        Raises:
            WorkbenchError: for heads the model does not have, or in a linear layer.
        """
        heads = list(kv_heads)
        for head in heads:
            self._check_head(head.layer, head.kv_head, "key/value head", lambda info: info.n_kv_heads)
        with self._intervening(self._interventions.restricting(heads, check_window(window, sink))):
            yield self

    @contextmanager
    def ablate(
        self, heads: Iterable[Head], how: str = "zero", *, reference: Int[Tensor, "b t"] | Probe | None = None
    ) -> Generator[HookedModel]:
        """Inside the block, the outputs of these query heads, before the output projection, are replaced.

        Args:
            how: `zero`; `mean`, the head's mean output over the valid positions of `reference`, or of each batch itself
                where that is None; `uniform`, equal weight on every key its mask allows and none on a learned sink.

        Raises:
            WorkbenchError: for heads the model does not have, or in a linear layer.
        """
        chosen = list(heads)
        for head in chosen:
            self._check_head(head.layer, head.head, "head", lambda info: info.n_heads)
        check_how(how)
        means: dict[Head, Tensor] = {}
        if how == "mean" and reference is not None:
            means = self._mean_outputs(chosen, reference)
        with self._intervening(self._interventions.ablating({head: Ablation(how, means.get(head)) for head in chosen})):
            yield self

    @contextmanager
    def _intervening(self, interventions: Interventions) -> Generator[None]:
        before, self._interventions = self._interventions, interventions
        try:
            with handling(self.model, lambda call: intervened_output(call, self._interventions)):
                yield
        finally:
            self._interventions = before

    def _mean_outputs(self, heads: list[Head], reference: Int[Tensor, "b t"] | Probe) -> dict[Head, Tensor]:
        batch = self._batch(reference, None)
        means: dict[Head, Tensor] = {}

        def attend(call: AttentionCall) -> Tensor:
            out = intervened_output(call, self._interventions)
            for head in heads:
                if head.layer == call.layer:
                    means[head] = mean_output(out[:, :, head.head], batch.valid)
            return out

        with torch.no_grad(), handling(self.model, attend):
            self._logits(batch, torch.tensor([batch.tokens.shape[1] - 1], device=self.device))
        return means

    def _check_head(self, layer: int, number: int, what: str, count: Callable[[LayerInfo], int]) -> None:
        infos = [info for info in self._layers if info.index == layer]
        if not infos or not 0 <= number < max(count(info) for info in infos):
            raise WorkbenchError(f"layer {layer} has no {what} {number}; {self!r} has {_heads_of(self._layers)}")
        if all(info.mixer != "softmax" for info in infos):
            raise WorkbenchError(
                f"layer {layer} is {infos[0].mixer} attention; only softmax heads can be intervened on"
            )

    def _batch(self, tokens: Tensor | Probe, attention_mask: Tensor | None) -> Sequences:
        if isinstance(tokens, Probe):
            batch = sequences(tokens.tokens.to(self.device), tokens.attention_mask)
            answers, targets = tokens.answer_rows, tokens.target_cells
            batch = replace(
                batch,
                answers=None if answers is None else answers.to(self.device),
                targets=None if targets is None else targets.to(self.device),
            )
        else:
            ids = tokens if tokens.ndim == 2 else tokens[None]
            mask = attention_mask if attention_mask is None or attention_mask.ndim == 2 else attention_mask[None]
            batch = sequences(ids.to(self.device), mask)
        self._check(batch.tokens)
        return batch

    def _check(self, tokens: Int[Tensor, "b t"]) -> None:
        if tokens.numel() == 0:
            raise WorkbenchError(f"tokens have shape {tuple(tokens.shape)}; expected at least one token")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise WorkbenchError(
                f"token ids run from {low} to {high}; this model's vocabulary is 0 … {self.vocab_size - 1}"
            )
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and tokens.shape[1] > longest:
            raise WorkbenchError(
                f"{tokens.shape[1]} tokens exceed the {longest} positions of this model; pass shorter sequences"
            )

    def _answers(self, batch: Sequences) -> Answers | None:
        """Run the model; score the answer rows, for which alone logits are made."""
        if batch.answers is None or len(batch.answers) == 0:
            self._logits(batch, torch.tensor([batch.tokens.shape[1] - 1], device=self.device))
            return None
        sequence, row = batch.answers.unbind(-1)
        kept = torch.unique(row)
        logits = self._logits(batch, kept)
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

    def _logits(self, batch: Sequences, kept: Int[Tensor, " kept"]) -> Float[Tensor, "b kept vocab"]:
        given: dict[str, Any] = {"input_ids": batch.tokens, "use_cache": False}
        if not bool(batch.valid.all()):
            given["attention_mask"] = batch.valid.long()
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return self.model(**given, logits_to_keep=kept).logits
        return self.model(**given).logits[:, kept]


class _FoundError(Exception):
    """Ends a forward pass at the layer that was asked for."""

    def __init__(self, crop: Float[Tensor, "q k"]):
        super().__init__("the layer that was asked for has been read")
        self.crop = crop


def open_model(
    source: str | Path | nn.Module,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> HookedModel:
    """Open a model for recording: a Hugging Face directory (strictly checked, offline), or a model already in memory.

    In memory: a transformers model, or a TransformerBridge of TransformerLens, which is read through a copy of its
    model that shares its weights.

    Args:
        device: default CUDA where there is one, else the CPU. A model in memory stays where it is.
        dtype: default float32 on the CPU, the checkpoint's own on CUDA. A model in memory keeps its own.

    Raises:
        BadCheckpoint: if the directory is not a complete, finite, safe checkpoint.
        WorkbenchError: if a layer's attention cannot be recorded exactly, or a model in memory came with a device or
            dtype.
    """
    if isinstance(source, nn.Module):
        if device is not None or dtype is not None:
            raise WorkbenchError(
                "device and dtype are for checkpoints; a model in memory keeps its own: call .to() on it"
            )
        return _in_memory(source)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = load_pretrained(Path(source), device=target, dtype=dtype)
    return HookedModel(loaded.model, tokenizer=loaded.tokenizer, name=Path(source).name)


def _in_memory(model: Any) -> HookedModel:
    if is_bridge(model):
        return HookedModel(unbridged(model), tokenizer=model.tokenizer)
    if not isinstance(model, PreTrainedModel):
        raise WorkbenchError(
            f"cannot record a {type(model).__name__}; expected a transformers PreTrainedModel, a TransformerBridge, or "
            "the path of a checkpoint"
        )
    return HookedModel(model)


def _rows(rows: Rows, batch: Sequences) -> Int[Tensor, " r"] | None:
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


def _heads_of(layers: tuple[LayerInfo, ...]) -> str:
    return f"layers {layers[0].index} … {layers[-1].index} with {max(i.n_heads for i in layers)} heads"
