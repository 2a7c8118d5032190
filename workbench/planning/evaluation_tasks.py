"""The probes that a plan is made and judged with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.answer_loss import Objective
from workbench.planning.efforts import EXTENTS
from workbench.probes import Probe, build, copy_needle
from workbench.store.conversions import check_window

_NEEDLE = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The probes and baselines that a plan is made and judged with.

    `probe`: the one heads are ranked on; `held_out`: others, never seen by the ranking, on which the curve is measured.
    `baselines`: further methods with a curve, None for those of the effort; `random` and `random_in_layer` (as many
    heads of each layer as the plan would keep; none for a layer-wise plan) are means over five orders. `context`: the
    tokens that cache sizes are counted for.
    """

    probe: Probe
    held_out: tuple[Probe, ...]
    context: int
    objective: Objective = "loss"
    baselines: tuple[str, ...] | None = None
    seed: int = 0


def default_evaluation(
    m: HookedModel, window: int, sink: int, *, seed: int = 0, n_sequences: int = EXTENTS["standard"].n_sequences
) -> Evaluation:
    """Needles copied from beyond the window, with other needles held out, at the model's longest context.

    `n_sequences`: of each distance.

    Raises:
        WorkbenchError: if the window is impossible, or the model's context does not hold sinks, window and a needle.
    """
    check_numbers(window, sink)
    longest = _longest(m)
    near = window + sink + _NEEDLE
    length = 4 * near if longest is None else min(longest, 4 * near)
    far = [d for d in (near, 2 * near, 3 * near) if d + _NEEDLE + 1 <= length]
    if not far:
        raise WorkbenchError(
            f"window {window} and sink {sink} leave nothing far in a context of {longest} tokens; pass a smaller window"
        )
    probes = [
        copy_needle(m, far, length=length, n_sequences=n_sequences, seed=seed + i, name=f"far_needle_{i}")
        for i in range(2)
    ]
    return Evaluation(probes[0], (probes[1],), context=longest or length, seed=seed)


def evaluation_on(  # noqa: PLR0913  (public keywords)
    m: HookedModel,
    window: int,
    sink: int,
    *,
    probe: str | None = None,
    held_out: Sequence[str] = (),
    seed: int = 0,
    n_sequences: int = EXTENTS["standard"].n_sequences,
) -> Evaluation:
    """The evaluation on probes written as in `probes.build`; those of `default_evaluation` where none is written.

    Held-out probes with equal names are named by their text.

    Raises:
        WorkbenchError: if a text describes no probe or one that does not fit the model, or the default probes are
            needed and do not fit.
    """
    ranked_on = None if probe is None else build(m, probe)
    judged_on = [build(m, text) for text in held_out]
    if len({p.name for p in judged_on}) < len(judged_on):
        judged_on = [replace(p, name=text) for p, text in zip(judged_on, held_out, strict=True)]
    if ranked_on is not None and judged_on:
        context = _longest(m) or max(p.tokens.shape[1] for p in judged_on)
        return Evaluation(ranked_on, tuple(judged_on), context=context, seed=seed)
    standard = default_evaluation(m, window, sink, seed=seed, n_sequences=n_sequences)
    return replace(standard, probe=ranked_on or standard.probe, held_out=tuple(judged_on) or standard.held_out)


def check_numbers(window: int, sink: int) -> None:
    """Raises:
    WorkbenchError: if window or sink are no whole numbers, or no window.
    """
    for name, value in (("window", window), ("sink", sink)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise WorkbenchError(f"{name} is {value!r}; expected a whole number of tokens")
    check_window(window, sink)


def check_evaluation(evaluation: Evaluation, n_seen: int) -> None:
    """Raises:
    WorkbenchError: if it names an unknown method, holds nothing out, or a probe has nothing beyond `n_seen` tokens.
    """
    if evaluation.context < 1:
        raise WorkbenchError(f"context is {evaluation.context}; expected at least 1 token")
    if not evaluation.held_out:
        raise WorkbenchError("no held-out probe was given; expected at least one that the ranking does not see")
    names = [p.name for p in evaluation.held_out]
    if len(set(names)) < len(names):
        raise WorkbenchError(f"held-out probes are named {', '.join(names)}; give each its own name=")
    for probe in (evaluation.probe, *evaluation.held_out):
        if probe.tokens.shape[1] <= n_seen:
            raise WorkbenchError(
                f"probe {probe.name!r} has {probe.tokens.shape[1]} tokens and a windowed head sees {n_seen}, so that "
                "nothing is far; pass a longer probe or a smaller window"
            )
    for probe in evaluation.held_out:
        if torch.equal(probe.tokens, evaluation.probe.tokens):
            raise WorkbenchError(
                f"held-out probe {probe.name!r} is the one that heads are ranked on; pass another, such as one of "
                "another seed="
            )


def _longest(m: HookedModel) -> int | None:
    """The model's longest context in tokens, where it has one."""
    return getattr(m.config.get_text_config(), "max_position_embeddings", None)
