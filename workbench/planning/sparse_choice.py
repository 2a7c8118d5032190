"""Sparse attention as a choice of a plan: its form, the heads that can have it, and whether a probe can tell its cost.

A sparse head keeps its whole cache and reads few keys of it. With the rule `oracle` its cost is the least that a
trained selector could reach; `mean` (MoBA) and `minmax` (Quest) are cheap rules, whose cost is that of a head as it
would run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2

from workbench.heads import KVHead, WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.probes import Probe
from workbench.store.conversions import SparseAttention, Window

# By default as many keys as a window has, in so many blocks or a few more, of no more than so many keys.
_BLOCKS, _MOST_IN_BLOCK = 8, 64
# A probe of which a row reads a larger share says little of what selecting loses.
_READ = 0.5


def default_form(window: Window, block: int | None = None) -> SparseAttention:
    """Sparse attention that reads no more keys than a windowed head: its sinks, the row's own block, and the best.

    Raises:
        WorkbenchError: for a block that is no whole number of at least 1.
    """
    n_seen = window.window + window.sink
    if block is None:
        block = min(_MOST_IN_BLOCK, 2 ** max(0, floor(log2(n_seen / _BLOCKS))))
    n_blocks = max(1, n_seen // SparseAttention(block, 1).block)
    return SparseAttention(block, n_blocks, min(-(-window.sink // block), n_blocks - 1))


def check_readable(form: SparseAttention, probes: Sequence[Probe], context: int) -> None:
    """Refuse what would read every key, so that nothing is selected.

    Raises:
        WorkbenchError: if the blocks hold the whole context that caches are counted for, or the whole of a probe.
    """
    if form.n_read >= context:
        raise WorkbenchError(
            f"{form.in_words} are the whole context of {context:,} tokens; pass fewer or smaller blocks, as "
            f"SparseAttention(block={max(1, form.block // 4)}, n_blocks={form.n_blocks})"
        )
    for probe in probes:
        n_tokens = probe.tokens.shape[1]
        if -(-n_tokens // form.block) <= form.n_blocks:
            raise WorkbenchError(
                f"{form.in_words} are all of the {n_tokens:,} tokens of probe {probe.name!r}, on which sparse heads "
                "would lose nothing; pass fewer or smaller blocks, or a longer probe"
            )


def sparse_forms(game: Game, form: SparseAttention) -> dict[KVHead, SparseAttention]:
    """The form for each head of a game that can have it.

    Raises:
        WorkbenchError: if no layer sees its whole past.
    """
    full = {info.index for info in game.m.layers if info.mixer == "softmax" and info.kind == "full"}
    forms = {head: form for head in game.heads if head.layer in full}
    if not forms:
        raise WorkbenchError(
            "no layer of the model sees its whole past, so that no head can have sparse attention; pass "
            "choices=('window',)"
        )
    return forms


def sparse_remarks(form: SparseAttention, probe: Probe) -> list[str]:
    """What to know of plans with sparse heads of this form, whose costs were measured on this probe."""
    n_tokens = probe.tokens.shape[1]
    remarks: list[str] = []
    if form.rule == "oracle":
        remarks.append(
            "sparse heads select by oracle, which reads every key: their costs are the least that a trained selector "
            "could reach, and its own reading is not counted"
        )
    if form.n_read > _READ * n_tokens:
        remarks.append(
            f"sparse heads read up to {form.n_read:,} of the {n_tokens:,} tokens that their costs were measured on: at "
            "longer contexts they may cost more"
        )
    return remarks
