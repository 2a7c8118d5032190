"""Segments of sequences for the linear kernels, which run side by side, and the scan that joins their states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError


@dataclass(frozen=True, slots=True)
class Segments:
    """`table`: (batch row, first token, one past the last) of each segment, in order of sequences.

    `levels`: for n = 0, 1, ... the n-th segments of all sequences that have one, as (segments, their sequences).
    `snapshots[s, i]`: the segment after which sequence s has seen the tokens of the i-th snapshot.
    """

    table: Int[Tensor, "n three"]
    levels: tuple[tuple[Tensor, Tensor], ...]
    snapshots: Int[Tensor, "sequences snapshots"]

    @property
    def n_sequences(self) -> int:
        return len(self.snapshots)


def sequence_bounds(n_batch: int, n_tokens: int, cu_seqlens: Sequence[int] | None) -> list[tuple[int, int, int]]:
    """Batch row, first token and one past the last of each sequence.

    Raises:
        WorkbenchError: if packed bounds come with more than one batch row, or do not cover the tokens.
    """
    if cu_seqlens is None:
        return [(b, 0, n_tokens) for b in range(n_batch)]
    bounds = list(cu_seqlens)
    if n_batch != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n_tokens or bounds != sorted(bounds):
        raise WorkbenchError(
            f"cu_seqlens {bounds} do not cut a batch of {n_batch} × {n_tokens} tokens; expected batch 1 and bounds "
            f"[0, ..., {n_tokens}] that never fall"
        )
    return [(0, first, last) for first, last in pairwise(bounds)]


def check_snapshots(snapshots: Sequence[int], bounds: list[tuple[int, int, int]]) -> None:
    """Refuse snapshots that do not rise, or are not inside every sequence.

    Raises:
        WorkbenchError: for descending or repeated token counts, or one below 1 or beyond the shortest sequence.
    """
    if len(snapshots) == 0:
        return
    shortest = min((last - first for _, first, last in bounds), default=0)
    if list(snapshots) != sorted(set(snapshots)) or any(not 0 < n <= shortest for n in snapshots):
        raise WorkbenchError(
            f"snapshots {list(snapshots)} were given; expected rising token counts from 1 to {shortest}, the length of "
            "the shortest sequence: sort them and leave the others out"
        )


def cut_segments(
    bounds: list[tuple[int, int, int]], segment: int, snapshots: Sequence[int], device: torch.device
) -> Segments:
    """Segments of at most `segment` tokens; every snapshot ends a segment.

    Raises:
        WorkbenchError: for snapshots that do not rise, or are not inside every sequence.
    """
    check_snapshots(snapshots, bounds)
    rows: list[tuple[int, int, int]] = []
    levels: dict[int, list[tuple[int, int]]] = {}
    taken: list[list[int]] = []
    for sequence, (b, first, last) in enumerate(bounds):
        edges = sorted({*range(first, last, segment), *(first + n for n in snapshots if first + n < last), last})
        segment_at: dict[int, int] = {}
        for level, (t0, t1) in enumerate(pairwise(edges)):
            levels.setdefault(level, []).append((len(rows), sequence))
            segment_at[t1 - first] = len(rows)
            rows.append((b, t0, t1))
        taken.append([segment_at[n] for n in snapshots])
    return Segments(
        table=torch.tensor(rows, dtype=torch.int32, device=device).reshape(-1, 3),
        levels=tuple(
            (torch.tensor([x for x, _ in pairs], device=device), torch.tensor([s for _, s in pairs], device=device))
            for pairs in levels.values()
        ),
        snapshots=torch.tensor(taken, dtype=torch.long, device=device).reshape(len(bounds), len(snapshots)),
    )


def segment_decay(log_decay: Float[Tensor, "b n_heads t"], segments: Segments) -> Float[Tensor, "n n_heads"]:
    """The factor by which each segment shrinks the state that enters it."""
    b, t0, t1 = segments.table.long().unbind(-1)
    if log_decay.shape[-1] == 1:
        total = log_decay[0, :, 0].double() * rearrange(t1 - t0, "n -> n 1")
        return total.exp().float()
    sums = torch.nn.functional.pad(log_decay.double().cumsum(-1), (1, 0))
    return (sums[b, :, t1] - sums[b, :, t0]).exp().float()


def join_segments(
    states: Float[Tensor, "n n_heads d d_v"],
    decay: Float[Tensor, "n n_heads"],
    initial: Float[Tensor, "sequences n_heads d d_v"],
    segments: Segments,
    *,
    is_reversed: bool = False,
) -> tuple[Float[Tensor, "n n_heads d d_v"], Float[Tensor, "sequences n_heads d d_v"]]:
    """The state that enters each segment, and the state that leaves each sequence, from what each segment adds."""
    entering = torch.empty_like(states)
    state = initial.float().clone()
    for picked, sequences in reversed(segments.levels) if is_reversed else segments.levels:
        entering[picked] = state[sequences]
        state[sequences] = state[sequences] * decay[picked][..., None, None] + states[picked]
    return entering, state
