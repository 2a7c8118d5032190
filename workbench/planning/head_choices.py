"""A window or linear attention for every head: the cheaper that is safe for it, and what they lose together.

1. Fit linear attention to the heads that see their whole past. A fit that is flagged is never chosen.
2. Score all heads by gates towards a window, and those with a usable fit by gates towards linear attention. A cost
   counts with its margin, the part of the gap that the gates leave unexplained.
3. Of the conversions that cost no more than 0.01 nats take the one that holds fewer bytes; where neither is so cheap,
   the one that costs less.
4. Costs of heads do not add up. So the loss with all linear heads at once is measured, and the worst of them get a
   window instead until it is within what is allowed: half of a loss tolerance, else what the costs of these heads sum
   to.

Which heads stay full is then chosen by the ranking of the plan, towards each head's own conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from math import ceil, log2, nan
from typing import Any, Literal, get_args

import numpy as np

from workbench.heads import KVHead, WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.planning.linear_fit import ERROR_ABOVE_1, LADDER_END, LinearFit, fit_linear_attention, n_candidates
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED, AdaptiveNodes
from workbench.planning.rankings.window_gates import WindowGates, integrate
from workbench.probes import Probe, part
from workbench.store.cache_sizes import bytes_held
from workbench.store.conversions import Conversion, LinearAttention
from workbench.store.plan_file import Budget, HeadCosts, LossTolerance

ConversionName = Literal["window", "linear"]
# What a plan may give a head beside the whole context; a fit of the user's own is linear attention in these forms.
Choices = Sequence[ConversionName | LinearFit]
# Nats per answer that a conversion of one head may cost to be safe.
SAFE_NATS = 0.01
# Gates that leave more of their gap unexplained are remarked on.
_UNEXPLAINED = 0.05
# Linear attention is fitted to so many tokens of the probe.
_FIT_TOKENS = 2048
# What a candidate of the fit costs, in forward passes of the model: measured on SmolLM2-135M.
_PER_CANDIDATE = 0.27


@dataclass(frozen=True, slots=True)
class HeadChoices:
    """The conversion of every head that is not kept, with the evidence for it.

    `costs`: of either conversion. `evidence`: completeness errors towards either, and nats lost with all linear heads
    at once, as measured (`linear_lost_nats`) and as the gates sum to (`linear_gates_nats`). `remarks`: what is in
    doubt.
    """

    conversions: dict[KVHead, Conversion]
    costs: tuple[HeadCosts, ...]
    evidence: dict[str, float]
    remarks: tuple[str, ...]

    @property
    def linear(self) -> dict[KVHead, LinearAttention]:
        return {head: form for head, form in self.conversions.items() if isinstance(form, LinearAttention)}


def check_choices(choices: Sequence[Any]) -> None:
    """Raises:
    WorkbenchError: for choices that are none, or without a window, which every head may have.
    """
    names = ["linear" if isinstance(choice, LinearFit) else choice for choice in choices]
    unknown = [name for name in names if name not in get_args(ConversionName)]
    if unknown or isinstance(choices, str) or "window" not in names or len(set(names)) < len(names):
        listed = repr(choices) if isinstance(choices, str) else repr(tuple(names))
        raise WorkbenchError(f"choices are {listed}; expected ('window',) or ('window', 'linear')")


def named(choices: Choices) -> list[str]:
    """The choices in words that tell them from others."""
    return [f"linear {sorted(c.forms.items())}" if isinstance(c, LinearFit) else c for c in choices]


def has_linear(choices: Choices) -> bool:
    """Whether heads may get linear attention."""
    return any(choice != "window" for choice in choices)


def fitted_part(probe: Probe) -> Probe:
    """The first sequences of a probe, which linear attention is fitted to."""
    return part(probe, 0, max(1, _FIT_TOKENS // probe.tokens.shape[1]))


def fitted_tokens(probe: Probe) -> int:
    """What the fit costs beside one forward pass over its tokens, in tokens of a forward pass."""
    return round((1 + _PER_CANDIDATE * n_candidates()) * fitted_part(probe).tokens.numel())


def most_measured(n_heads: int) -> int:
    """How many times at most the loss of all linear heads is measured."""
    return 2 + ceil(log2(max(2, n_heads)))


def choose(
    game: Game,
    choices: Choices,
    keep: Budget,
    *,
    nodes: AdaptiveNodes | None,
    context: int,
) -> HeadChoices:
    """The conversion of each head of a game towards a window, on the game's probe.

    Args:
        nodes: of the gates' path; None: as many as it needs.
        context: tokens that caches are counted for.

    Raises:
        WorkbenchError: if no layer sees its whole past.
    """
    nodes = AS_NEEDED if nodes is None else nodes
    fit = _fit(game, choices)
    sizes = _Sizes(game, context)
    forms = {h: form for h, form in fit.usable.items() if sizes.of(h, form) < sizes.of(h, "full")}
    to_window = integrate(game, nodes=nodes)
    costs = {head: Costs(float(w)) for head, w in zip(game.heads, _with_margin(to_window), strict=True)}
    window, conversions = game.limits, game.conversions()
    evidence = {"window_completeness_error": to_window.completeness_error}
    remarks = [*_fit_remarks(fit, forms), *_remarks("a window", to_window)]
    linear_nats: dict[KVHead, float] = {}
    if forms:
        linear_game = game.towards(forms)
        to_linear = integrate(linear_game, nodes=nodes)
        linear_nats = dict(zip(linear_game.heads, to_linear.scores.tolist(), strict=True))
        evidence["linear_completeness_error"] = to_linear.completeness_error
        remarks += _remarks("linear attention", to_linear)
        safe = min(SAFE_NATS, keep.nats) if isinstance(keep, LossTolerance) else SAFE_NATS
        for head, nats in zip(linear_game.heads, _with_margin(to_linear), strict=True):
            own = Costs(costs[head].window, float(nats))
            costs[head] = own
            if own.prefers_linear(safe, is_smaller=sizes.of(head, forms[head]) < sizes.of(head, window)):
                conversions[head] = forms[head]
        lowered = _lowered(linear_game, conversions, costs, keep, safe)
        conversions |= dict.fromkeys(lowered.heads, window)
        evidence |= lowered.evidence
        remarks += lowered.remarks
    return HeadChoices(
        conversions,
        tuple(
            HeadCosts(
                *head,
                window_nats=float(nats),
                linear_nats=linear_nats.get(head, nan),
                linear_error=fit.error.get(head, nan),
                linear_flags=fit.flags.get(head, ""),
                form=fit.forms.get(head),
            )
            for head, nats in zip(game.heads, to_window.scores, strict=True)
        ),
        evidence,
        tuple(remarks),
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """Nats per answer that each conversion of a head may cost, with what the gates leave unexplained."""

    window: float
    linear: float = nan

    def prefers_linear(self, safe: float, *, is_smaller: bool) -> bool:
        """Whether linear attention is the cheaper safe conversion, or the less costly where none is safe."""
        if self.linear <= safe and self.window <= safe:
            return is_smaller
        return self.linear <= safe or (self.window > safe and self.linear < self.window)


@dataclass(frozen=True, slots=True)
class _Sizes:
    game: Game
    context: int

    def of(self, head: KVHead, choice: Conversion | Literal["full"]) -> int:
        """Bytes that a head of a layer that sees its whole past holds."""
        info = next(i for i in self.game.m.layers if i.index == head.layer and i.mixer == "softmax")
        return bytes_held(choice, info.d_head, self.context)


@dataclass(frozen=True, slots=True)
class _Lowered:
    """Heads that get a window in place of linear attention, since too much is lost together."""

    heads: tuple[KVHead, ...]
    evidence: dict[str, float]
    remarks: tuple[str, ...]


def _lowered(
    game: Game, conversions: dict[KVHead, Conversion], costs: dict[KVHead, Costs], keep: Budget, safe: float
) -> _Lowered:
    """Lower the worst linear heads until the rest of them, at once, lose no more than is allowed; by bisection."""
    linear = [head for head, form in conversions.items() if isinstance(form, LinearAttention)]
    worst_first = sorted(linear, key=lambda head: -costs[head].linear)

    def lost(n: int) -> float:
        return game.outcome(worst_first[n:]).nats - game.outcome().nats

    def allowed(n: int) -> float:
        if isinstance(keep, LossTolerance):
            return float(keep.nats) / 2
        return float(sum(max(safe, costs[head].linear) for head in worst_first[n:]))

    n_lowered, at_first = 0, lost(0)
    if at_first > allowed(0):
        too_few, n_lowered = 0, len(linear)
        while n_lowered - too_few > 1:
            middle = (too_few + n_lowered) // 2
            too_few, n_lowered = (too_few, middle) if lost(middle) <= allowed(middle) else (middle, n_lowered)
    evidence = {
        "linear_lost_nats": lost(n_lowered),
        "linear_gates_nats": float(sum(costs[head].linear for head in worst_first[n_lowered:])),
        "linear_lowered": float(n_lowered),
    }
    remarks = (
        (
            f"{n_lowered} of {len(linear)} heads get a window and not the linear attention that was chosen for each of "
            f"them: together these lost {at_first:.3g} nats, and {allowed(0):.3g} were allowed",
        )
        if n_lowered
        else ()
    )
    return _Lowered(tuple(worst_first[:n_lowered]), evidence, remarks)


def _fit(game: Game, choices: Choices) -> LinearFit:
    """The user's own fit, or one to the probe, which is a finished piece once it is there."""
    own = next((choice for choice in choices if isinstance(choice, LinearFit)), None)
    if own is None:

        def rows() -> list[list[Any]]:
            fit = fit_linear_attention(game.m, fitted_part(game.probe), progress=False)
            return [[*h, *astuple(form), fit.error[h], fit.flags[h]] for h, form in fit.forms.items()]

        by_head = {KVHead(*row[:2]): row[2:] for row in game.pieces.get("linear fit", rows)}
        own = LinearFit(
            {head: LinearAttention(*row[:3]) for head, row in by_head.items()},
            {head: row[3] for head, row in by_head.items()},
            {head: row[4] for head, row in by_head.items()},
        )
    forms = {head: form for head, form in own.forms.items() if head in game.heads}
    if not forms:
        raise WorkbenchError(
            "no layer of the model sees its whole past, so that no head can have linear attention; pass "
            "choices=('window',)"
        )
    return LinearFit(forms, {h: own.error[h] for h in forms}, {h: own.flags[h] for h in forms})


def _with_margin(gates: WindowGates) -> np.ndarray:
    """Each head's cost, and what the gates leave unexplained of it."""
    return gates.scores + gates.margin


def _fit_remarks(fit: LinearFit, forms: dict[KVHead, LinearAttention]) -> list[str]:
    flagged = [flags for flags in fit.flags.values() if flags]
    remarks: list[str] = []
    if flagged:
        n_worse = sum(ERROR_ABOVE_1 in flags for flags in flagged)
        n_end = sum(LADDER_END in flags for flags in flagged)
        remarks.append(
            f"{len(flagged)} of {len(fit.flags)} heads get no linear attention whatever it costs: its fit is worse "
            f"than their mean output for {n_worse}, and ends with the ladder for {n_end}"
        )
    n_large = len(fit.usable) - len(forms)
    if n_large:
        remarks.append(f"{n_large} heads get no linear attention: its state is larger than their whole cache")
    return remarks


def unexplained(towards: str, evidence: Mapping[str, float]) -> list[str]:
    """A sentence where gates leave more than 5 % of their gap unexplained; none for other rankings' evidence."""
    error = evidence.get("completeness_error", nan)
    if not error > _UNEXPLAINED:
        return []
    gap = evidence["windowed"] - evidence["full"]
    return [
        f"gates towards {towards} leave {error:.0%} of {gap:.3g} nats unexplained, by which each head's cost is in "
        "doubt; more nodes (effort='thorough') may explain it"
    ]


def _remarks(towards: str, gates: WindowGates) -> list[str]:
    names = ("completeness_error", "windowed", "full")
    return unexplained(towards, {name: getattr(gates, name) for name in names})
