"""How much of each head's attention lies in selected blocks of keys, by the number of blocks: what a sparse head keeps.

One pass of the dense model for each rule, whatever the number of heads and of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, SparseAttention, open_model
from workbench.hooks.interventions.block_selection import coverage
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.store.conversions import Rule


def block_coverage(
    m: HookedModel | nn.Module,
    tokens: Any,
    numbers: Sequence[int] = (1, 2, 4, 8, 16),
    *,
    block: int = 64,
    sink_blocks: int = 0,
    rules: Sequence[Rule] = ("oracle", "mean", "minmax"),
) -> pd.DataFrame:
    """The share of each head's attention that lies in the blocks it selects, by the number of blocks and the rule.

    Only rows with more blocks in their past than the largest number count, the same for every number; the others would
    have all. Of the model itself, under the interventions in force, in one pass.

    Args:
        tokens: token ids, [batch, tokens], without padding.
        numbers: of blocks, the row's own and the sinks among them.
        block, sink_blocks, rules: see `SparseAttention`.

    Returns:
        A row for each key/value head of full layers, rule and number: `layer, kv_head, rule, n_blocks, coverage`, the
        last the mean over rows and the query heads that share the keys, and `n_rows`.

    Raises:
        WorkbenchError: for numbers or rules that are none, a text too short, or a model without a full layer.
    """
    m = open_model(m)
    if not numbers or min(numbers) <= sink_blocks:
        raise WorkbenchError(
            f"numbers of blocks are {list(numbers)}; expected one or more, each above the {sink_blocks} sink blocks"
        )
    forms = [SparseAttention(block, max(numbers), sink_blocks, rule) for rule in rules]
    full = {info.index for info in m.layers if info.mixer == "softmax" and info.kind == "full"}
    rows: list[dict[str, Any]] = []

    def attend(call: AttentionCall) -> Tensor:
        if call.layer in full:
            for kv_head in range(call.k.shape[1]):
                head_call = _of_head(call, kv_head)
                for form in forms:
                    sums, n_rows = coverage(head_call, form, tuple(numbers))
                    shares = (sums / max(1, n_rows)).tolist()
                    rows.extend(
                        _row(KVHead(call.layer, kv_head), form, own, n_rows)
                        for own in zip(numbers, shares, strict=True)
                    )
        return intervened_output(call, m.interventions)

    with torch.no_grad(), handling(m.model, attend):
        m.model(torch.as_tensor(tokens, device=m.device), use_cache=False)
    if not rows:
        raise WorkbenchError(f"no layer of {m.name or 'the model'} sees its whole past; no head can be sparse")
    if not rows[0]["n_rows"]:
        raise WorkbenchError(
            f"no row of the text has more than {max(numbers)} blocks of {block} keys in its past; pass a text longer "
            f"than {max(numbers) * block} tokens, or smaller numbers"
        )
    return pd.DataFrame(rows)


def _row(head: KVHead, form: SparseAttention, own: tuple[int, float], n_rows: int) -> dict[str, Any]:
    n_blocks, share = own
    numbers = {"n_blocks": n_blocks, "coverage": share, "n_rows": n_rows}
    return {"layer": head.layer, "kv_head": head.kv_head, "rule": form.rule, **numbers}


def _of_head(call: AttentionCall, kv_head: int) -> AttentionCall:
    size = call.q.shape[1] // call.k.shape[1]
    queries = slice(kv_head * size, (kv_head + 1) * size)
    sinks = None if call.sinks is None else call.sinks[queries]
    k, v = call.k[:, [kv_head]], call.v[:, [kv_head]]
    return replace(call, q=call.q[:, queries], k=k, v=v, sinks=sinks)
