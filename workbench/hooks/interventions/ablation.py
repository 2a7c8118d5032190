"""Replace a head's output before the output projection: by zero, by a mean, or by the output of another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.heads import WorkbenchError

HOWS = ("zero", "mean", "uniform")


@dataclass(frozen=True, slots=True)
class Ablation:
    """A head's output replaced in a way of `HOWS`. `mean`: the vector to put there; None for the batch's own mean.

    `uniform` changes the weights and not the output: they become equal on every key the head may see.
    """

    how: str
    mean: Float[Tensor, " d_v"] | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """A head's outputs of another run, by position; a single sequence is used for every sequence of a batch."""

    outputs: Float[Tensor, "b t d_v"]


Replacement = Ablation | Patch


def replaced(
    out: Float[Tensor, "b q n_heads d_v"],
    replacements: Mapping[int, Replacement],
    valid: Bool[Tensor, "b q"] | None,
    *,
    start: int = 0,
) -> Float[Tensor, "b q n_heads d_v"]:
    """Head outputs with some replaced.

    `valid`: False on padding, which means leave out; `start`: the position of the first query.

    Raises:
        WorkbenchError: if a patch comes from a batch of another shape.
    """
    out = out.clone()
    for head, replacement in replacements.items():
        if isinstance(replacement, Patch):
            out[:, :, head] = _patched(out[:, :, head], replacement, start)
        elif replacement.how == "zero":
            out[:, :, head] = 0
        elif replacement.how == "mean":
            mean = mean_output(out[:, :, head], valid) if replacement.mean is None else replacement.mean
            out[:, :, head] = mean.to(out.dtype)
    return out


def mean_output(out: Float[Tensor, "b q d_v"], valid: Bool[Tensor, "b q"] | None) -> Float[Tensor, " d_v"]:
    """A head's mean output over valid positions."""
    if valid is None:
        return reduce(out.float(), "b q d -> d", "mean")
    return (out.float() * valid[..., None]).sum((0, 1)) / valid.sum()


def check_how(how: str) -> None:
    """Refuse an unknown way of ablation.

    Raises:
        WorkbenchError: if `how` is none of `HOWS`.
    """
    if how not in HOWS:
        raise WorkbenchError(f"how is {how!r}; expected 'zero', 'mean' or 'uniform'")


def _patched(out: Float[Tensor, "b q d_v"], patch: Patch, start: int) -> Float[Tensor, "b2 q d_v"]:
    (n_sequences, n_tokens, _), stop = patch.outputs.shape, start + out.shape[1]
    if stop > n_tokens or n_sequences not in (1, len(out)):
        raise WorkbenchError(
            f"the patch was taken from {n_sequences} × {n_tokens} tokens and now {len(out)} × {stop} tokens run; "
            "expected as many tokens, in one sequence or as many"
        )
    return patch.outputs[:, start:stop].to(out.dtype)
