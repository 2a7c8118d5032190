"""HookedModel: a Hugging Face causal language model whose attention can be recorded, read and changed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import Head, KVHead, LayerInfo, Mixer, WorkbenchError
from workbench.hooks.bridge import BridgeOf
from workbench.hooks.head_inputs import HeadsLike, by_kv_head, layer_of, query_head
from workbench.hooks.head_inputs import kv_heads as read_kv_heads
from workbench.hooks.interventions.ablation import Ablation, Patch, Replacement, check_how, mean_output
from workbench.hooks.interventions.in_force import in_force_on
from workbench.hooks.interventions.targets import (
    ChosenHeads,
    HeadKey,
    check_form,
    check_kv_head,
    check_linearisable,
    check_selection,
    check_sparsifiable,
    choose_heads,
)
from workbench.hooks.interventions.windows import (
    Interventions,
    intervened_output,
    intervened_statistics,
    one_head,
)
from workbench.hooks.layer_summary import table_of_layers, words_of_model
from workbench.hooks.layers import layer_slots, survey
from workbench.hooks.quantised_weights import quantisation_of, with_quantisation
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.contributions import read_projections
from workbench.hooks.recording.forward_pass import (
    Rows,
    answers_of,
    batch_of,
    check_packed,
    check_prefill,
    outputs_of,
    picked_rows,
)
from workbench.hooks.recording.needs import Answers, Need, Recording
from workbench.hooks.recording.reduction import Reduction, RowRequest
from workbench.hooks.recording.row_readings import Readings, read_writing
from workbench.hooks.recording.seen_cells import sees_of
from workbench.hooks.recording.selected_keys import Selections
from workbench.hooks.recording.tensor_tables import TensorTable
from workbench.hooks.recording.whole_patterns import MOST_BYTES, check_memory, chosen_layers, read_patterns
from workbench.hooks.saved.planned_folders import save_planned
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.linear import LinearCall, Reach, decay_reach, linear_layers, measured_reach, reading_linear
from workbench.kernels import Far
from workbench.probes.known_answers import Probe
from workbench.probes.token_inputs import PositionsLike, ProbeLike, TokensLike, positions, read_probe
from workbench.store.conversions import check_window
from workbench.store.plan_file import Plan

DEFAULT_FAR = Far(window=256)


class HookedModel:
    """A model, its tokenizer if it has one, and its layers.

    The model itself is never changed: its attention goes through the recorder for the length of one call, or of a
    `with` block, and is put back even if that fails.
    """

    def __init__(self, model: PreTrainedModel, *, tokenizer: Any = None, name: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        # Why a folder's tokenizer could not be read; "" where there is one, or nothing to say.
        self.no_tokenizer = ""
        self.name = name or type(model).__name__
        self._layers = with_quantisation(survey(model), model.config)
        self._in_force = in_force_on(model)
        self._bridge = BridgeOf(model, tokenizer)

    def __repr__(self) -> str:
        return f"HookedModel({self.name}: {words_of_model(self.model, self._layers, self.quantisation)})"

    def summary(self) -> pd.DataFrame:
        """One row per token mixer: layer, kind, mixer, window, has_sinks, heads, width, quantisation, n_selected.

        `n_selected`: of a sparse layer, whose indexer selects keys for every row: how many.
        """
        return table_of_layers(self._layers)

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The token mixers of the model in order."""
        return self._layers

    @property
    def quantisation(self) -> str:
        """The quantisation that the weights were dequantised from, as Q4_K_M; "" for weights that were plain floats.

        Scores of such a model have the flag `quantised=Q4_K_M`.
        """
        return quantisation_of(self.model.config)

    @property
    def interventions(self) -> Interventions:
        """The interventions of `restrict`, `linearize`, `ablate` and `patch` that are in force now."""
        return self._in_force.interventions

    @property
    def bridge(self) -> nn.Module:
        """A TransformerLens TransformerBridge on a twin that shares the weights; it does not change what is recorded.

        Unmerged adapters are merged on the twin. It is one bridge until weights that it has copies of change.

        Raises:
            WorkbenchError: if TransformerLens does not know the architecture, or a map's output is not its weight's.
        """
        return self._bridge.get()

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
        tokens: TokensLike | Probe,
        needs: Need | Iterable[Need],
        attention_mask: Any = None,
        rows: Rows = "all",
        *,
        far: Far = DEFAULT_FAR,
        prefill: int | None = None,
    ) -> Recording:
        """One forward pass with the statistics that `needs` names, summed per sequence; memory is O(tokens).

        Args:
            tokens: token ids (a tensor, an array, lists, a tokenizer's output), text where the model has a tokenizer,
                or a probe; with a probe its answers are scored too. So everywhere below.
            attention_mask: 0 on padding, and 1 elsewhere or, where several documents are packed into a sequence, the
                document's number; documents then see and count only themselves.
            rows: all query rows; a number of them, drawn evenly at random (seed 0); or their positions, a slice or a
                mask. Answer rows are always recorded in full.
            far: the window and sink of `far_mass`, in tokens.
            prefill: run the model over pieces of this many tokens through its key/value cache: the same numbers with
                the activations of one piece in memory at a time, and the keys and values of all layers: it saves memory
                where the former are the larger part. For models that have only softmax layers.

        Raises:
            WorkbenchError: for tokens outside the vocabulary or longer than the model takes, an unknown need, a mask
                that does not fit, or packed documents or prefill in a model that has other layers than softmax.
        """
        batch = self._batch(tokens, attention_mask)
        needs = [needs] if not isinstance(needs, Iterable) or isinstance(needs, str) else list(needs)
        if batch.is_packed:
            check_packed(self.model, self._layers, far)
        if prefill is not None:
            check_prefill(self.model, self._layers, batch, prefill=prefill, interventions=self.interventions)
        reduction = Reduction(batch, needs, layers=self._layers, far=far, rows=picked_rows(rows, batch))
        slots = layer_slots(self._layers)
        readings = Readings(
            batch,
            needs,
            self._layers,
            writing=lambda: read_writing(self.bridge, self._layers),
            projections=lambda: read_projections(
                self.model, self._layers, self.interventions, lambda: answers_of(self.model, batch)
            ),
        )
        selections = Selections(batch, {need for need in needs if isinstance(need, str)}, self._layers, far)
        positions = batch.positions() if batch.is_packed else None
        row_request: RowRequest  # for the queries announced last

        def announce(queries: slice) -> None:
            nonlocal row_request
            row_request = reduction.request_rows(queries)
            readings.start(queries)
            selections.start()

        def attend(call: AttentionCall) -> Tensor:
            if positions is not None:
                call = call.of_documents(batch.document, positions)
            slot, request = slots[call.layer, False], row_request.request
            readings.read_softmax(slot, call, self.interventions)
            sees = sees_of(call, self.interventions)
            reduction.count_rows(slot, row_request, sees)
            if not needs or len(row_request.picked) == 0:
                selections.pass_by(slot, call)
                return intervened_output(call, self.interventions)
            out, statistics = intervened_statistics(call, self.interventions, request)
            selected = selections.read(slot, call, self.interventions, row_request.rows, statistics.lse)
            reduction.add(slot, statistics, row_request, sees, selected)
            return out if request.rows is None else intervened_output(call, self.interventions)

        def read(call: LinearCall) -> None:
            slot = slots[call.layer, True]
            readings.read_linear(slot, call)
            request = replace(row_request.request, value_norms=False)  # the rows of a linear layer have no value norms
            reduction.count_rows(slot, row_request, None)
            reduction.add(slot, call.statistics(request), row_request, None)

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(handling(self.model, attend))
            stack.enter_context(reading_linear(self.model, batch.valid, read))
            answers = answers_of(self.model, batch, announce=announce, prefill=prefill)
        return reduction.finish(answers, readings.finish())

    def _batch(self, tokens: TokensLike | Probe, attention_mask: Any = None) -> Sequences:
        return batch_of(self.model, tokens, attention_mask, tokenizer=self.tokenizer)

    def answers(self, probe: ProbeLike) -> Answers:
        """Loss and accuracy on a probe's answers, under the interventions in force, without recording attention.

        Raises:
            WorkbenchError: if the probe has no answers, or does not fit the model, or is none.
        """
        probe = read_probe(self, probe)
        batch = self._batch(probe)
        with torch.no_grad(), self.in_force():
            answers = answers_of(self.model, batch)
        if answers is None:
            raise WorkbenchError(f"probe {probe.name!r} has no answers; expected one with answer_rows")
        return answers

    def pattern(
        self,
        tokens: TokensLike | Probe,
        layer: int | Head | str | tuple[int, int] | KVHead,
        head: int | None = None,
        queries: PositionsLike = slice(None),
        keys: PositionsLike = slice(None),
        *,
        mixer: Mixer | None = None,
    ) -> Float[Tensor, "q k"]:
        """Exact attention probabilities of one head on one sequence, float32, on the chosen queries and keys.

        Linear layers give their implied pattern: signed, not normalised. Only the crop and a block of rows are in
        memory.

        Args:
            layer, head: two numbers, or the head alone: `Head(1, 3)`, `"L1H3"`.
            queries, keys: positions in the order in which they are wanted, also negative, a slice or a mask.
            mixer: which mixer of a layer that has two; the softmax one where not given.

        Raises:
            WorkbenchError: if the model has no such head, there are several sequences, or no such positions.
        """
        layer, head = query_head(self._layers, layer, head, mixer)
        info = layer_of(self._layers, layer, mixer)
        batch = self._batch(tokens)
        assert info is not None  # query_head refuses heads of layers that are not there
        picked = self._crop_of(batch, queries, keys)

        def attend(call: AttentionCall) -> Tensor:
            if call.layer != layer or info.kind == "linear":
                return intervened_output(call, self.interventions)
            head_call, mask = one_head(call, self.interventions, head)
            raise _CropReached(head_call.crop(mask, *picked))

        def read(call: LinearCall) -> None:
            if call.layer == layer and info.kind == "linear":
                raise _CropReached(call.crop(head, *picked))

        try:
            with (
                torch.no_grad(),
                handling(self.model, attend),
                reading_linear(self.model, batch.valid, read),
            ):
                answers_of(self.model, batch)
        except _CropReached as reached:
            return reached.args[0]
        raise AssertionError(f"layer {layer} did not attend")

    def token_ids(self, tokens: TokensLike | Probe) -> list[int]:
        """The token ids of one sequence, as the model reads it.

        Raises:
            WorkbenchError: for what are no tokens, or several sequences.
        """
        batch = self._batch(tokens)
        self._crop_of(batch, slice(None), slice(None))
        return batch.tokens[0].tolist()

    def patterns(
        self,
        tokens: TokensLike | Probe,
        layers: int | Iterable[Any] | slice | None = None,
        *,
        queries: PositionsLike = slice(None),
        keys: PositionsLike = slice(None),
        mixer: Mixer | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> dict[int, Float[Tensor, "n_heads q k"]]:
        """The attention probabilities of all heads of some layers on one sequence, float32, by layer, in one pass.

        The same numbers as those of `pattern`, head by head, under the interventions in force. Memory is that of the
        result, 4 bytes a number: heads × queries × keys of each layer.

        Args:
            layers: the model's own numbers of layers, also negative, or a slice of them; default all. The pass ends
                behind the last of them.
            queries, keys, mixer: as in `pattern`.
            most_bytes: the limit of the result; a larger one is refused before anything is computed.

        Raises:
            WorkbenchError: if the model has no such layers, there are several sequences, no such positions, or the
                patterns are larger than the limit; the message has their size.
        """
        infos = chosen_layers(self._layers, layers, mixer)
        batch = self._batch(tokens)
        picked = self._crop_of(batch, queries, keys)
        check_memory(infos, (len(picked[0]), len(picked[1])), most_bytes=most_bytes)
        return read_patterns(self.model, batch, infos, self.interventions, queries=picked[0], keys=picked[1])

    def _crop_of(self, batch: Sequences, queries: PositionsLike, keys: PositionsLike) -> list[Int[Tensor, " n"]]:
        """The positions of a crop of one sequence's pattern.

        Raises:
            WorkbenchError: if there are several sequences, or no such positions.
        """
        n_sequences, n_tokens = batch.tokens.shape
        if n_sequences != 1:
            raise WorkbenchError(
                f"a pattern is of one sequence, and {n_sequences} were given; pass one of them, as tokens[0]"
            )
        named = (("queries", queries), ("keys", keys))
        return [positions(x, n_tokens, name=name).to(self.device) for name, x in named]

    def reach(self, tokens: TokensLike | Probe | None = None) -> tuple[Reach, ...]:
        """How far back each head of the linear layers sees: half-life and 99 % reach in tokens, layer by layer.

        Where the decay follows from the weights, the reach is exact. Where it depends on the tokens, the reach is
        measured on `tokens`; without tokens, such layers are left out.
        """
        layers = linear_layers(self.model)
        reaches = {i: reach for i, layer in layers.items() if (reach := decay_reach(layer)) is not None}
        if tokens is not None and len(reaches) < len(layers):
            batch = self._batch(tokens)

            def read(call: LinearCall) -> None:
                if call.layer not in reaches:
                    reaches[call.layer] = measured_reach(call, layers[call.layer], batch.valid)

            with torch.no_grad(), self.in_force(), reading_linear(self.model, batch.valid, read):
                answers_of(self.model, batch)
        return tuple(reaches[i] for i in sorted(reaches))

    @contextmanager
    def in_force(self) -> Generator[None]:
        """Inside the block, the model's own forward runs under the interventions in force."""
        interventions = self.interventions  # those of the block: a backward pass may come in another one

        def attend(call: AttentionCall) -> Tensor:
            return intervened_output(call, interventions)

        with handling(self.model, attend):
            yield

    @contextmanager
    def restrict(self, kv_heads: HeadsLike, window: int, sink: int = 0) -> Generator[HookedModel]:
        """Inside the block, these key/value heads see only the first `sink` and the last `window` keys, in tokens.

        The own position is one of the `window`; a layer's own narrower mask stays, and so does the selection of an
        indexer: a head of a sparse layer sees the selected keys among these, and gives zero where there are none. Holds
        for `record`, `pattern`, `score` and the model's own forward and generate. Nested restrictions of one head leave
        the keys that all allow.

        Raises:
            WorkbenchError: for heads the model does not have, or in a linear layer.
        """
        heads = read_kv_heads(self._layers, kv_heads)
        for head in heads:
            check_kv_head(self._layers, head)
        to = check_window(window, sink)
        with self._in_force.block(self.model, lambda before: before.converting(heads, to)):
            yield self

    @contextmanager
    def linearize(self, forms: Mapping[Any, Any]) -> Generator[HookedModel]:
        """Inside the block, these key/value heads of softmax layers have linear attention.

        Their pattern is the normalised row of weights. Holds for `record`, `pattern`, `score`, the model's own forward
        and generate, and training. `workbench.fit_linear_attention` finds forms that are close to the heads' attention.

        Raises:
            WorkbenchError: for heads the model does not have, heads of a linear layer or of one with a window of its
                own, and restricted heads; inside the block, for packed documents and `prefill`.
        """
        forms = by_kv_head(self._layers, forms)
        for head, form in forms.items():
            check_linearisable(self._layers, head)
            check_form(head, form)
        with self._in_force.block(self.model, lambda before: before.converting(forms.keys(), forms)):
            yield self

    @contextmanager
    def sparsify(self, selections: Mapping[Any, Any]) -> Generator[HookedModel]:
        """Inside the block, these key/value heads attend to selected blocks of keys, each as its `SparseAttention`.

        Holds for `record`, `pattern`, `score`, the model's own forward and generate, and training, where gradients flow
        through the attention and not through the selection. A cache stays whole, and no time is saved: what a head
        loses by attending to so few keys is what is measured.

        Raises:
            WorkbenchError: for heads the model does not have, heads of a linear layer or of one that does not see its
                whole past, and heads that have a window or linear attention.
        """
        selections = by_kv_head(self._layers, selections)
        for head, selection in selections.items():
            check_sparsifiable(self._layers, head)
            check_selection(head, selection)
        with self._in_force.block(self.model, lambda before: before.converting(selections.keys(), selections)):
            yield self

    @contextmanager
    def apply(self, plan: Plan) -> Generator[HookedModel]:
        """Inside the block, the plan is in force: every head has its choice: a window, linear or sparse attention.

        For recording, evaluation, `generate`, and training: gradients flow through converted heads, whose cost grows
        with their window, or with the context and a state, and not with the square of the context.

        Raises:
            WorkbenchError: if the plan is for another model.
        """
        plan.check(self._layers)
        with (
            self.restrict(plan.windowed, plan.window, plan.sink),
            self.linearize(plan.linear),
            self.sparsify(plan.sparse),
        ):
            yield self

    def save_planned(self, plan: Plan, folder: str | os.PathLike[str]) -> Path:
        """Write the model under a plan to a new folder that transformers loads without the workbench.

        A plan of whole layers, without sinks, goes into `layer_types` where the model's family reads them, and a Llama
        becomes a `ministral`, whose forward pass is the same with windows: `AutoModelForCausalLM.from_pretrained` loads
        it as it is. Every other plan goes with a file of code, and the folder is loaded with `trust_remote_code=True`;
        it needs torch and transformers alone, computes the plan's attention with masks of tokens × tokens, and keeps a
        whole cache. The folder has the plan, the tokenizer and the licence files of the model's own folder. Before it
        is put in place it is loaded once, and its logits are compared with those of `apply` on a short text.

        Raises:
            WorkbenchError: if the folder exists, the plan is for another model, or the logits differ; nothing is left
                then.
        """
        return save_planned(self, plan, Path(folder))

    @contextmanager
    def ablate(
        self,
        heads: HeadsLike,
        how: str = "zero",
        *,
        reference: TokensLike | Probe | None = None,
        mixer: Mixer | None = None,
    ) -> Generator[HookedModel]:
        """Inside the block, the outputs of these query heads, before the output projection, are replaced.

        Args:
            how: `zero`; `mean`, the head's mean output over the valid positions of `reference`, or of each batch itself
                where `reference` is None; `uniform`, equal weight on every key that its mask allows and none on a
                learned sink, which is not defined for linear heads.
            mixer: which mixer of a layer that has two; the softmax one where not given.

        Raises:
            WorkbenchError: for heads the model does not have, or `uniform` in a linear layer.
        """
        chosen = choose_heads(self._layers, heads, mixer)
        check_how(how)
        if how == "uniform" and chosen.linear:
            raise WorkbenchError(
                f"{chosen.linear[0]} is a linear head, whose weights are signed and have no sum to keep; 'uniform' is "
                "for softmax heads: pass how='zero' or 'mean'"
            )
        means: dict[HeadKey, Tensor] = {}
        if how == "mean" and reference is not None:
            batch = self._batch(reference)
            outputs = outputs_of(self.model, chosen, batch, self._attend)
            means = {key: mean_output(out, batch.valid) for key, out in outputs.items()}
        with self._replacing(chosen, {key: Ablation(how, means.get(key)) for key in chosen.all}):
            yield self

    def head_outputs(
        self,
        heads: HeadsLike,
        tokens: TokensLike | Probe,
        *,
        mixer: Mixer | None = None,
    ) -> dict[Head, Float[Tensor, "b t d_v"]]:
        """The input of the output projection from these heads on some tokens, under the interventions in force.

        Args:
            mixer: which mixer of a layer that has two; the softmax one where not given.

        Raises:
            WorkbenchError: for heads the model does not have.
        """
        chosen = choose_heads(self._layers, heads, mixer)
        outputs = outputs_of(self.model, chosen, self._batch(tokens), self._attend)
        return TensorTable({head: out for (head, _), out in outputs.items()})

    @contextmanager
    def patch(
        self,
        heads: HeadsLike,
        source: TokensLike | Probe | Mapping[Head, Float[Tensor, "b t d_v"]],
        *,
        mixer: Mixer | None = None,
    ) -> Generator[HookedModel]:
        """Inside the block, these heads have at every position their outputs on `source`: activation patching.

        The outputs are those before the output projection, of softmax and linear heads alike. Batches inside the block
        need the length of `source` and as many sequences, or one source sequence for all.

        Args:
            source: tokens, which are run once under the interventions in force, or outputs from `head_outputs`.
            mixer: which mixer of a layer that has two; the softmax one where not given.

        Raises:
            WorkbenchError: for heads the model or the source does not have; inside the block, for a batch of another
                shape.
        """
        chosen = choose_heads(self._layers, heads, mixer)
        if isinstance(source, Mapping) and "input_ids" not in source:
            outputs_by_head: Mapping[Any, Tensor] = source
            missing = [str(head) for head, _ in chosen.all if head not in outputs_by_head]
            if missing:
                raise WorkbenchError(
                    f"the source has no outputs of {', '.join(missing)}; take them with head_outputs()"
                )
            outputs = {(head, is_linear): outputs_by_head[head] for head, is_linear in chosen.all}
        else:
            outputs = outputs_of(self.model, chosen, self._batch(source), self._attend)
        with self._replacing(chosen, {key: Patch(out) for key, out in outputs.items()}):
            yield self

    @contextmanager
    def _replacing(self, chosen: ChosenHeads, replacements: Mapping[HeadKey, Replacement]) -> Generator[None]:
        softmax = {head: replacements[head, False] for head in chosen.softmax}
        linear = {head: replacements[head, True] for head in chosen.linear}
        with self._in_force.block(self.model, lambda before: before.replacing(softmax, linear)):
            yield

    def _attend(self, call: AttentionCall) -> Tensor:
        return intervened_output(call, self.interventions)


class _CropReached(Exception):
    """Ends a forward pass at the layer whose crop it carries as its only argument."""
