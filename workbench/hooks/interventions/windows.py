"""Windows on key/value heads, and all interventions in force: windows, linear and sparse attention, replaced outputs.

All act inside the attention function, where the model's own mask and learned sinks are. Composition: a key/value head
restricted twice sees what both windows allow; of two linear or two sparse forms, as of two replacements of a head's
output, the inner one holds; no head has two kinds of conversion; a uniform head is uniform over the keys that its
window leaves, and over its whole past where it has a linear or sparse form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import Head, KVHead, WorkbenchError
from workbench.hooks.interventions.ablation import Ablation, Replacement, replaced
from workbench.hooks.interventions.block_selection import block_mask, sparse_output
from workbench.hooks.interventions.linear_attention import linearised
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.explicit_masks import Scores, rows_output
from workbench.hooks.taps.scored_call import ScoredCall
from workbench.kernels import Hidden, Request, RowStatistics, TileMask, hidden_runs
from workbench.kernels.masks import visible_run
from workbench.store.conversions import (
    Conversion,
    Conversions,
    Features,
    Forms,
    LinearAttention,
    Selections,
    SparseAttention,
    Window,
    name_of,
)


@dataclass(frozen=True, slots=True)
class Interventions:
    """All interventions in force on a model.

    `windows`, `forms` and `selections`: of converted heads of softmax layers. `replacements`: of outputs of heads in
    softmax layers; `linear`: the same in linear layers, whose heads cannot be converted.
    """

    windows: Mapping[KVHead, tuple[Window, ...]] = field(default_factory=dict)
    forms: Forms = field(default_factory=dict)
    selections: Selections = field(default_factory=dict)
    replacements: Mapping[Head, Replacement] = field(default_factory=dict)
    linear: Mapping[Head, Replacement] = field(default_factory=dict)

    @property
    def averages_over_batch(self) -> bool:
        """True if a head's output is replaced by its mean over whatever batch runs."""
        replacements = (*self.replacements.values(), *self.linear.values())
        return any(isinstance(r, Ablation) and r.how == "mean" and r.mean is None for r in replacements)

    def converting(self, heads: Collection[KVHead], to: Window | Conversions) -> Interventions:
        """These and a conversion of some key/value heads: one window for all, or each to its own.

        Raises:
            WorkbenchError: for a head that would have two kinds of conversion, or that has none.
        """
        windows, forms, selections = dict(self.windows), dict(self.forms), dict(self.selections)
        for head in heads:
            conversion = to if isinstance(to, Window) else to.get(head)
            if conversion is None:
                raise WorkbenchError(f"no conversion was given for {head}; expected one for every head")
            self._refuse_second_kind(head, conversion)
            if isinstance(conversion, Window):
                windows[head] = (*windows.get(head, ()), conversion)
            elif isinstance(conversion, SparseAttention):
                selections[head] = conversion
            else:
                forms[head] = conversion
        return replace(self, windows=windows, forms=forms, selections=selections)

    def _refuse_second_kind(self, head: KVHead, to: Conversion) -> None:
        kinds = {
            "window": ("a window", self.windows),
            "linear": ("linear attention", self.forms),
            "sparse": ("sparse attention", self.selections),
        }
        names = [words for kind, (words, before) in kinds.items() if name_of(to) == kind or head in before]
        if len(names) > 1:
            raise WorkbenchError(f"{head} would have {' and '.join(names)} at once; end one block first")

    def replacing(self, replacements: Mapping[Head, Replacement], linear: Mapping[Head, Replacement]) -> Interventions:
        """These and some replacements; a new one of a head takes the place of its earlier one."""
        return replace(self, replacements={**self.replacements, **replacements}, linear={**self.linear, **linear})

    def in_linear(
        self, layer: int, out: Float[Tensor, "b t n_heads d_v"], valid: Bool[Tensor, "b t"] | None, start: int
    ) -> Float[Tensor, "b t n_heads d_v"]:
        """The outputs of a linear layer's heads under these replacements, from position `start` on."""
        return replaced(out, {h.head: r for h, r in self.linear.items() if h.layer == layer}, valid, start=start)


@dataclass(frozen=True, slots=True)
class RestrictedMask:
    """A mask with a window: it also hides keys from `sink` on that lie `window` or more tokens back.

    `first`: for every key the first one of its document, from which the sink counts. A row stands at key position
    row + `offset`.
    """

    base: TileMask
    window: Window
    first: Int[Tensor, "b k"]
    offset: int

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        lo, hi = self.base.key_range(rows)
        if self.window.sink == 0:
            lo = max(lo, int(rows[0]) + self.offset - self.window.window + 1)
        return lo, hi

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        k = torch.arange(*keys, device=rows.device)
        hidden = self._beyond(batch, rows, k)
        for first, cells in self.base.hidden(batch, rows, keys):
            columns = slice(first - keys[0], first - keys[0] + cells.shape[-1])
            if len(cells) > len(hidden):
                hidden = hidden.expand(len(cells), -1, -1).clone()
            hidden[..., columns] |= cells
        return hidden_runs(hidden, keys[0])

    def _beyond(self, batch: slice, rows: Int[Tensor, " q"], k: Int[Tensor, " k"]) -> Bool[Tensor, "b q k"]:
        is_back = (rows + self.offset)[:, None] - k >= self.window.window
        is_after_sink = k >= self.first[batch, k] + self.window.sink
        return is_back & rearrange(is_after_sink, "b k -> b 1 k")


@dataclass(frozen=True, slots=True)
class _GatheredMask:
    """A restricted mask over only the keys that a block of rows can see: the sinks, then a band."""

    visible: Bool[Tensor, "b q k"]

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        assert len(rows) <= self.visible.shape[1]
        return 0, self.visible.shape[-1]

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        return hidden_runs(~self.visible[batch, rows][..., slice(*keys)], keys[0])


def intervened_output(call: AttentionCall, interventions: Interventions) -> Float[Tensor, "b q n_heads d_v"]:
    """A layer's output under interventions; the cost of a head with a window grows with the window, not the context."""
    return _attend(call, interventions, None)[0]


def intervened_statistics(
    call: AttentionCall, interventions: Interventions, request: Request
) -> tuple[Float[Tensor, "b q n_heads d_v"], RowStatistics]:
    """A layer's output and the statistics of its rows under interventions.

    A head whose output is zeroed or averaged keeps its pattern; a uniform head's pattern is the uniform one. With
    `request.rows` the output is of those rows, before any replacement.
    """
    out, statistics = _attend(call, interventions, request)
    assert statistics is not None
    return out, statistics


def has_uniform_heads(call: AttentionCall, interventions: Interventions) -> bool:
    """Whether a head of this layer has equal weight on all keys that it may see."""
    return bool(_uniform(call, interventions))


def with_replacements(
    call: AttentionCall, interventions: Interventions, out: Float[Tensor, "b q n_heads d_v"]
) -> Float[Tensor, "b q n_heads d_v"]:
    """A layer's output with the heads replaced that interventions replace."""
    return _replaced(call, interventions, out)


def one_head(call: AttentionCall, interventions: Interventions, head: int) -> tuple[AttentionCall, TileMask]:
    """The call of one query head alone, and its mask under interventions."""
    own = _treatment(call, interventions, head, _uniform(call, interventions))
    forms = () if own.form is None else (own.form,)
    group = _Group((head,), own.windows, forms, own.selection, own.is_uniform, is_whole=False)
    head_call = _group_call(call, group)
    return head_call, _mask_of(call, head_call, group)


def crops_of_heads(
    call: AttentionCall, interventions: Interventions, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]
) -> Float[Tensor, "n_heads q k"]:
    """The probabilities of every query head on the first sequence under interventions, on chosen queries and keys."""
    crops = torch.empty(call.q.shape[1], len(queries), len(keys), device=call.q.device)
    for group in _groups(call, interventions, _uniform(call, interventions)):
        if group.forms or isinstance(call, ScoredCall):
            for head in group.heads:
                head_call, mask = one_head(call, interventions, head)
                crops[head] = head_call.crop(mask, queries, keys)
        else:
            group_call = _group_call(call, group)
            mask = _mask_of(call, group_call, group, queries.unique())
            crops[list(group.heads)] = group_call.crops(mask, queries, keys)
    return crops


def masks_of_heads(call: AttentionCall, interventions: Interventions) -> list[tuple[tuple[int, ...], TileMask]]:
    """The mask of each query head of a layer under interventions, once for all heads that share it."""
    if not (interventions.windows or interventions.selections) and call.mask.n_groups == 1:
        return [(tuple(range(call.q.shape[1])), call.mask.simplest())]
    heads_of: dict[tuple[Any, ...], tuple[int, ...]] = {}
    group_of: dict[tuple[Any, ...], _Group] = {}
    for group in _groups(call, interventions, []):
        kv_head = None if group.selection is None else group.heads[0]
        key = group.windows, _selection_of(call, group.heads[0]), kv_head
        heads_of[key] = (*heads_of.get(key, ()), *group.heads)
        group_of[key] = group
    return [
        (heads, _mask_of(call, replace(call, mask=call.mask.of_group(key[1])), group_of[key]))
        for key, heads in heads_of.items()
    ]


def _attend(
    call: AttentionCall, interventions: Interventions, request: Request | None
) -> tuple[Float[Tensor, "b q n_heads d_v"], RowStatistics | None]:
    groups = _groups(call, interventions, _uniform(call, interventions))
    if len(groups) == 1 and groups[0].is_whole:
        out, statistics = (call.output(), None) if request is None else call.statistics(request)
    else:
        out, statistics = _by_group(call, groups, request)
    if request is None or request.rows is None:
        out = _replaced(call, interventions, out)
    return out, statistics


@dataclass(frozen=True, slots=True)
class _Group:
    """Query heads of one layer that are computed together.

    `forms`: of each head, where they are linear. `selection`: of one key/value head, where it is sparse. `is_whole`:
    all heads of a layer that nothing converts.
    """

    heads: tuple[int, ...]
    windows: tuple[Window, ...]
    forms: tuple[LinearAttention, ...]
    selection: SparseAttention | None
    is_uniform: bool
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Treatment:
    """What is made of a query head; one that is uniform has no form and no selection."""

    windows: tuple[Window, ...]
    form: LinearAttention | None
    selection: SparseAttention | None
    is_uniform: bool


def _treatment(call: AttentionCall, interventions: Interventions, head: int, uniform: list[int]) -> _Treatment:
    kv_head = KVHead(call.layer, _kv_number(call, head))
    windows = interventions.windows.get(kv_head, ())
    if head in uniform:
        return _Treatment(windows, None, None, is_uniform=True)
    form, selection = interventions.forms.get(kv_head), interventions.selections.get(kv_head)
    return _Treatment(windows, form, selection, is_uniform=False)


def _kv_number(call: AttentionCall, head: int) -> int:
    return head // (call.q.shape[1] // call.k.shape[1])


def _groups(call: AttentionCall, interventions: Interventions, uniform: list[int]) -> list[_Group]:
    n_heads = call.q.shape[1]
    is_converting = interventions.windows or interventions.forms or interventions.selections
    if not (is_converting or uniform) and call.mask.n_groups == 1:
        return [_Group(tuple(range(n_heads)), (), (), None, is_uniform=False, is_whole=True)]
    members: dict[tuple[Any, ...], list[int]] = {}
    own = [_treatment(call, interventions, head, uniform) for head in range(n_heads)]
    for head, one in enumerate(own):
        features: Features | None = None if one.form is None else one.form.features
        kv_head = None if one.selection is None else _kv_number(call, head)
        key = one.windows, features, one.selection, kv_head, one.is_uniform, _selection_of(call, head)
        members.setdefault(key, []).append(head)
    groups: list[_Group] = []
    for heads in members.values():
        first = own[heads[0]]
        forms = tuple(form for head in heads for form in [own[head].form] if form is not None)
        is_whole = len(heads) == n_heads and first == _Treatment((), None, None, is_uniform=False)
        groups.append(_Group(tuple(heads), first.windows, forms, first.selection, first.is_uniform, is_whole=is_whole))
    return groups


def _selection_of(call: AttentionCall, head: int) -> int:
    """The group of heads that a query head selects keys with."""
    return head // (call.q.shape[1] // call.mask.n_groups)


def _by_group(
    call: AttentionCall, groups: list[_Group], request: Request | None
) -> tuple[Float[Tensor, "b q n_heads d_v"], RowStatistics | None]:
    n_b, n_heads, n_q, _ = call.q.shape
    n_rows = n_q if request is None or request.rows is None else len(request.rows)
    out = torch.empty(n_b, n_rows, n_heads, call.v.shape[-1], dtype=call.v.dtype, device=call.v.device)
    collected: list[tuple[tuple[int, ...], RowStatistics]] = []
    for group in groups:
        group_call = _group_call(call, group)
        if request is None and group.selection is not None:
            out[:, :, list(group.heads)] = _sparse_output(call, group)
        elif request is None and not group.windows and not group.is_uniform:
            out[:, :, list(group.heads)] = group_call.output()
        elif request is None:
            out[:, :, list(group.heads)] = _banded_output(group_call, group.windows)
        else:
            mask = _mask_of(call, group_call, group, request.rows)
            out[:, :, list(group.heads)], statistics = group_call.statistics(request, mask)
            collected.append((group.heads, statistics))
    return out, _merged(collected, n_heads) if collected else None


def _group_call(call: AttentionCall, group: _Group) -> AttentionCall:
    """The call of some heads, each with its own copy of its keys and values; uniform heads score every key alike.

    Heads with a linear form give a `LinearisedCall`.
    """
    size = call.q.shape[1] // call.k.shape[1]
    heads = torch.tensor(group.heads, device=call.q.device)
    kv_heads = torch.unique(heads // size)
    is_shared = len(kv_heads) * size == len(heads)
    kv = kv_heads if is_shared else heads // size
    q = call.q[:, heads]
    group_call = replace(
        call,
        q=torch.zeros_like(q) if group.is_uniform else q,
        k=call.k[:, kv],
        v=call.v[:, kv],
        sinks=None if call.sinks is None or group.is_uniform else call.sinks[heads],
        mask=call.mask.of_group(_selection_of(call, group.heads[0])),
    )
    return linearised(group_call, group.forms) if group.forms else group_call


def _sparse_output(call: AttentionCall, group: _Group) -> Float[Tensor, "b q heads d_v"]:
    assert group.selection is not None
    selecting = _selecting(call, group)
    out = sparse_output(_group_call(call, selecting), group.selection)
    return out[:, :, [selecting.heads.index(head) for head in group.heads]]


def _selecting(call: AttentionCall, group: _Group) -> _Group:
    """The group with all query heads of its key/value head, which select together, whatever else becomes of some."""
    size = call.q.shape[1] // call.k.shape[1]
    first = group.heads[0] // size * size
    return replace(group, heads=tuple(range(first, first + size)))


def _mask_of(
    call: AttentionCall, group_call: AttentionCall, group: _Group, rows: Int[Tensor, " q"] | None = None
) -> TileMask:
    """The mask of a group of a call's heads, whose call is `group_call`; it may be asked for these rows alone."""
    if group.selection is None:
        return _restricted(group_call, group.windows)
    return block_mask(_group_call(call, _selecting(call, group)), group.selection, rows=rows)


def _restricted(call: AttentionCall, windows: tuple[Window, ...]) -> TileMask:
    mask = call.mask.simplest()
    first = call.first_keys()
    for window in windows:
        mask = RestrictedMask(mask, window, first, call.mask.query_offset - call.mask.key_offset)
    return mask


def _banded_output(call: AttentionCall, windows: tuple[Window, ...]) -> Float[Tensor, "b q n_heads d_v"]:
    """Attention of blocks of rows on their sinks and band only."""
    mask = _restricted(call, windows)
    n_q, n_k = call.q.shape[2], call.k.shape[2]
    sink = max((w.sink for w in windows), default=0)
    is_packed = isinstance(mask, RestrictedMask) and bool((mask.first.diff(dim=-1) != 0).any())
    if not windows or (is_packed and sink):  # sinks of many documents do not form a band
        return call.output(mask)
    # Keys that every window allows lie within the narrowest band or among the most sinks.
    band = min(w.window for w in windows)
    start = int(mask.first.max()) if isinstance(mask, RestrictedMask) else 0  # padded sequences start later
    sinks_end = max(0, start + sink)
    offset = call.mask.query_offset - call.mask.key_offset
    is_plain = type(call) is AttentionCall and call.softcap is None and call.sinks is None
    n_rows = min(max(64, band), 256) if is_plain else max(128, band)
    blocks = []
    for r in range(0, n_q, n_rows):
        rows = torch.arange(r, min(n_q, r + n_rows), device=call.q.device)
        hi = min(n_k, int(rows[-1]) + offset + 1)
        lo = min(hi, max(sinks_end if sink else 0, r + offset - band + 1))
        runs = [(0, min(sinks_end, hi)), (lo, hi)] if sink else [(lo, hi)]
        keys = torch.cat([torch.arange(*run, device=call.q.device) for run in runs])
        visible = torch.cat([visible_run(mask, slice(0, len(call.q)), rows, run) for run in runs], -1)
        q, k, v = call.q[:, :, rows], call.k[:, :, keys], call.v[:, :, keys]
        if is_plain:
            blocks.append(rows_output(q, k, v, visible, Scores(call.scale)))
        else:
            # The mask holds what the positions say of documents, and they are not of these rows alone.
            blocks.append(replace(call, q=q, k=k, v=v, positions=None).output(_GatheredMask(visible)))
    return torch.cat(blocks, 1)


def _merged(by_group: list[tuple[tuple[int, ...], RowStatistics]], n_heads: int) -> RowStatistics:
    """The statistics of groups of heads as those of the layer."""
    order = torch.tensor([h for heads, _ in by_group for h in heads]).argsort()
    axis = {"cells": -1, "top_key": -1}
    merged: dict[str, Any] = {}
    for name in (f.name for f in fields(RowStatistics)):
        values = [getattr(statistics, name) for _, statistics in by_group]
        dim = axis.get(name, 1)
        merged[name] = (
            None if values[0] is None else torch.cat(values, dim).index_select(dim, order.to(values[0].device))
        )
    assert len(order) == n_heads
    return RowStatistics(**merged)


def _uniform(call: AttentionCall, interventions: Interventions) -> list[int]:
    replacements = _replacements(call, interventions)
    return [h for h, r in replacements.items() if isinstance(r, Ablation) and r.how == "uniform"]


def _replacements(call: AttentionCall, interventions: Interventions) -> dict[int, Replacement]:
    return {h.head: r for h, r in interventions.replacements.items() if h.layer == call.layer}


def _replaced(
    call: AttentionCall, interventions: Interventions, out: Float[Tensor, "b q n_heads d_v"]
) -> Float[Tensor, "b q n_heads d_v"]:
    replacements = _replacements(call, interventions)
    if not replacements:
        return out
    valid = None if call.mask.valid is None else call.mask.valid[:, -call.mask.n_queries :].to(out.device)
    return replaced(out, replacements, valid, start=call.mask.query_offset)
