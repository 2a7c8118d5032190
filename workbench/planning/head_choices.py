"""A window, linear or sparse attention for every head: the cheapest that is safe, and what they lose together.

1. Fit linear attention to the heads that see their whole past. A fit that is flagged is never chosen.
2. Score all heads by gates towards a window, those with a usable fit by gates towards linear attention, and those that
   see their whole past by gates towards sparse attention. A cost counts with its margin, the part of the gap that the
   gates leave unexplained.
3. Of the conversions that cost no more than 0.01 nats take the one that holds the fewest bytes, which is never the
   sparse one, since it holds the whole cache; where none is so cheap, the one that costs least.
4. Costs of heads do not add up. So the loss with all linear heads at once is measured, and the worst of them get the
   next best instead until it is within what is allowed: half of a loss tolerance, else what the costs of these heads
   sum to. The loss with all sparse heads at once is measured, too.

Which heads stay full is then chosen by the ranking of the plan, towards each head's own conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from math import ceil, isnan, log2, nan
from typing import Any, Literal, get_args

from workbench.heads import KVHead, WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.planning.linear_fit import ERROR_ABOVE_1, LADDER_END, LinearFit, fit_linear_attention, n_candidates
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED, AdaptiveNodes
from workbench.planning.rankings.window_gates import WindowGates, integrate
from workbench.planning.sparse_choice import default_form, sparse_forms, sparse_remarks
from workbench.probes import Probe, part
from workbench.store.cache_sizes import bytes_held
from workbench.store.conversions import Conversion, Conversions, LinearAttention, SparseAttention, Window
from workbench.store.plan_file import Budget, HeadCosts, LossTolerance

ConversionName = Literal["window", "linear", "sparse"]
# What a plan may give a head beside the whole context; a fit of the user's own is linear attention in these forms.
Choices = Sequence[ConversionName | LinearFit | SparseAttention]
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

    `costs`: of each conversion. `evidence`: completeness errors towards each, and nats lost with all linear heads at
    once, as measured (`linear_lost_nats`) and as the gates sum to (`linear_gates_nats`); the same of sparse heads.
    `remarks`: what is in doubt.
    """

    conversions: dict[KVHead, Conversion]
    costs: tuple[HeadCosts, ...]
    evidence: dict[str, float]
    remarks: tuple[str, ...]

    @property
    def linear(self) -> dict[KVHead, LinearAttention]:
        return {head: form for head, form in self.conversions.items() if isinstance(form, LinearAttention)}

    @property
    def sparse(self) -> dict[KVHead, SparseAttention]:
        return {head: form for head, form in self.conversions.items() if isinstance(form, SparseAttention)}

    @property
    def beside_windows(self) -> dict[KVHead, LinearAttention | SparseAttention]:
        """The heads that get something else than a window."""
        return {**self.linear, **self.sparse}


def check_choices(choices: Sequence[Any]) -> None:
    """Raises:
    WorkbenchError: for choices that are none, or without a window, which every head may have.
    """
    names = [_name(choice) for choice in choices]
    unknown = [name for name in names if name not in get_args(ConversionName)]
    if unknown or isinstance(choices, str) or "window" not in names or len(set(names)) < len(names):
        listed = repr(choices) if isinstance(choices, str) else repr(tuple(names))
        raise WorkbenchError(
            f"choices are {listed}; expected ('window',) or ('window', 'linear'), either with 'sparse' or not"
        )


def _name(choice: Any) -> Any:
    if isinstance(choice, LinearFit):
        return "linear"
    return "sparse" if isinstance(choice, SparseAttention) else choice


def with_forms(choices: Choices, window: Window) -> Choices:
    """The choices with a form of sparse attention in the place of its name."""
    return tuple(default_form(window) if choice == "sparse" else choice for choice in choices)


def named(choices: Choices) -> list[str]:
    """The choices in words that tell them from others."""
    words = {"linear": lambda c: f"linear {sorted(c.forms.items())}", "sparse": lambda c: f"sparse {c}"}
    return [c if isinstance(c, str) else words[_name(c)](c) for c in choices]


def has_linear(choices: Choices) -> bool:
    """Whether heads may get linear attention."""
    return any(_name(choice) == "linear" for choice in choices)


def sparse_form(choices: Choices) -> SparseAttention | None:
    """The sparse attention that heads may get; None where that is no choice."""
    return next((choice for choice in choices if isinstance(choice, SparseAttention)), None)


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
        choices: with the form of sparse attention, see `with_forms`.
        nodes: of the gates' path; None: as many as it needs.
        context: tokens that caches are counted for.

    Raises:
        WorkbenchError: if no layer sees its whole past, and there is more than a window to choose.
    """
    nodes = AS_NEEDED if nodes is None else nodes
    safe = min(SAFE_NATS, keep.nats) if isinstance(keep, LossTolerance) else SAFE_NATS
    fit = _fit(game, choices) if has_linear(choices) else LinearFit({}, {}, {})
    sizes = _Sizes(game, context)
    forms = {h: form for h, form in fit.usable.items() if sizes.of(h, form) < sizes.of(h, "full")}
    sparse = sparse_form(choices)
    selecting = {} if sparse is None else sparse_forms(game, sparse)
    to_window = _towards(game, "window", "a window", nodes)
    to_linear, to_sparse = (
        _towards(game.towards(to), name, f"{name} attention", nodes) if to else _Towards()
        for name, to in (("linear", forms), ("sparse", selecting))
    )
    costs = {h: Costs(to_window.most[h], to_linear.most.get(h, nan), to_sparse.most.get(h, nan)) for h in game.heads}
    conversions = game.conversions()
    for head, own in costs.items():
        if own.prefers_sparse(safe):
            conversions[head] = selecting[head]
        elif head in forms and own.prefers_linear(
            safe, is_smaller=sizes.of(head, forms[head]) < sizes.of(head, game.limits)
        ):
            conversions[head] = forms[head]
    evidence = to_window.evidence | to_linear.evidence | to_sparse.evidence
    remarks = [*_fit_remarks(fit, forms), *to_window.remarks, *to_linear.remarks, *to_sparse.remarks]
    if forms:
        instead = "a window or sparse attention" if selecting else "a window"
        lowered = _lowered(game.towards(forms), conversions, costs, keep, safe, instead=instead)
        for head in lowered.heads:
            is_sparse = replace(costs[head], linear=nan).prefers_sparse(safe)
            conversions[head] = selecting[head] if is_sparse else game.limits
        evidence |= lowered.evidence
        remarks += lowered.remarks
    if sparse is not None and selecting:
        evidence |= _sparse_evidence(game.towards(selecting), conversions, costs)
        remarks += sparse_remarks(sparse, game.probe) if sparse in conversions.values() else ()
    return HeadChoices(
        conversions,
        tuple(
            HeadCosts(
                *head,
                window_nats=nats,
                linear_nats=to_linear.nats.get(head, nan),
                linear_error=fit.error.get(head, nan),
                linear_flags=fit.flags.get(head, ""),
                form=fit.forms.get(head),
                sparse_nats=to_sparse.nats.get(head, nan),
                sparse_form=selecting.get(head),
            )
            for head, nats in to_window.nats.items()
        ),
        evidence,
        tuple(remarks),
    )


@dataclass(frozen=True, slots=True)
class Costs:
    """Nats per answer that each conversion of a head may cost, with what the gates leave unexplained."""

    window: float
    linear: float = nan
    sparse: float = nan

    def prefers_linear(self, safe: float, *, is_smaller: bool) -> bool:
        """Whether linear attention is the cheaper safe conversion, or the less costly where none is safe.

        Sparse attention is left out of account.
        """
        if self.linear <= safe and self.window <= safe:
            return is_smaller
        return self.linear <= safe or (self.window > safe and self.linear < self.window)

    def prefers_sparse(self, safe: float) -> bool:
        """Whether sparse attention costs least where no other conversion is safe; safe ones hold fewer bytes."""
        others = self.window if isnan(self.linear) else min(self.window, self.linear)
        return others > safe and self.sparse < others


@dataclass(frozen=True, slots=True)
class _Towards:
    """Gates towards a conversion: each head's cost in nats, the most that it may be, and what is to say of them."""

    nats: dict[KVHead, float] = field(default_factory=dict)
    most: dict[KVHead, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def _towards(game: Game, name: str, words: str, nodes: AdaptiveNodes) -> _Towards:
    gates = integrate(game, nodes=nodes)
    nats, most = (dict(zip(gates.heads, x.tolist(), strict=True)) for x in (gates.scores, gates.scores + gates.margin))
    evidence = {f"{name}_completeness_error": gates.completeness_error}
    return _Towards(nats, most, evidence, tuple(_remarks(words, gates)))


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
    """Heads that get no linear attention after all, since too much is lost together."""

    heads: tuple[KVHead, ...]
    evidence: dict[str, float]
    remarks: tuple[str, ...]


def _lowered(
    game: Game,
    conversions: Conversions,
    costs: Mapping[KVHead, Costs],
    keep: Budget,
    safe: float,
    *,
    instead: str,
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
            f"{n_lowered} of {len(linear)} heads get {instead} and not the linear attention that was chosen for each "
            f"of them: together these lost {at_first:.3g} nats, and {allowed(0):.3g} were allowed",
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


def _sparse_evidence(game: Game, conversions: Conversions, costs: Mapping[KVHead, Costs]) -> dict[str, float]:
    """What all sparse heads at once lose, and what their gates sum to."""
    sparse = [head for head, form in conversions.items() if isinstance(form, SparseAttention)]
    return {
        "sparse_lost_nats": game.outcome(sparse).nats - game.outcome().nats,
        "sparse_gates_nats": float(sum(costs[head].sparse for head in sparse)),
    }


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
