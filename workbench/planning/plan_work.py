"""What a plan is asked for, checked before any work, and the work it is: passes, tokens and, once measured, seconds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench.console import duration
from workbench.hooks import HookedModel
from workbench.planning.conversion_objective import Game
from workbench.planning.efforts import Extent
from workbench.planning.evaluation_tasks import CompleteEvaluation
from workbench.planning.head_choices import Choices, fitted_tokens, has_linear, most_measured, named, sparse_form
from workbench.planning.keep_curves import FEW
from workbench.planning.linear_fit import LinearFit
from workbench.planning.model_passes import BACKWARD
from workbench.planning.rankings.registry import METHODS, passes_of
from workbench.planning.rankings.window_gates import AdaptiveNodes, gate_pass, integrated
from workbench.planning.sparse_choice import sparse_forms
from workbench.planning.verdict_over_length import VerdictWork
from workbench.store.conversions import Conversions
from workbench.store.plan_file import Budget, Unit

VERDICT, SPARSE = "verdict", "choices: sparse"
# A random baseline is the mean over this many random orders.
RANDOM_ORDERS = 5
# A pass is measured again, since the first one also sets things up and the machine may have been busy, where that takes
# no more than this, or than this share of all the work.
_AGAIN_S = 0.5
_AGAIN_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class PieceCost:
    """A part of the work that is not done yet, at most.

    `forwards`, `backwards`: passes of one batch. `tokens`: of both; one of a backward pass counts twice, as it costs.
    `seconds`: NaN until measured. `share`: of the passes, those that are likely to be needed.
    """

    name: str
    forwards: int
    backwards: int
    tokens: int
    seconds: float = float("nan")
    share: float = 1.0

    @property
    def likely_seconds(self) -> float:
        return self.share * self.seconds


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs before it is made: its parts, and how many pieces an earlier run left.

    The ranking may need fewer passes than it is given.
    """

    parts: tuple[PieceCost, ...]
    n_kept: int = 0

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def likely_seconds(self) -> float:
        return sum(part.likely_seconds for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    def table(self) -> pd.DataFrame:
        """A row per part: `part, forwards, backwards, tokens, seconds, likely_seconds`."""
        columns = ("forwards", "backwards", "tokens", "seconds", "likely_seconds")
        return pd.DataFrame([{"part": p.name, **{name: getattr(p, name) for name in columns}} for p in self.parts])

    def __str__(self) -> str:
        parts = ", ".join(f"{part.name} {duration(part.likely_seconds)}" for part in self.parts if part.tokens)
        likely, most = duration(self.likely_seconds), duration(self.seconds)
        at_most = "" if likely == most else f", at most {most}"
        before = f"; {self.n_kept} pieces are there from before" if self.n_kept else ""
        return f"about {likely}{at_most} ({parts or 'nothing is left to do'}){before}"


@dataclass(frozen=True, slots=True)
class PlanWork:
    """A plan's settings and its games: the ranking's probe and the held-out probes, on one model.

    `verdict`: the questions by length that the plan is judged on in the end; a sentence on why there are none, or None
    where it is not judged.
    """

    m: HookedModel
    window: int
    sink: int
    keep: Budget
    method: str
    unit: Unit
    evaluation: CompleteEvaluation
    extent: Extent
    baselines: tuple[str, ...]
    game: Game
    held_out: tuple[Game, ...]
    verdict: VerdictWork | str | None
    choices: Choices = ("window",)

    def towards(self, conversions: Conversions) -> PlanWork:
        """The same work with each head converted to its own."""
        held_out = tuple(game.towards(conversions) for game in self.held_out)
        return replace(self, game=self.game.towards(conversions), held_out=held_out)

    @property
    def sparse_game(self) -> Game | None:
        """The game towards sparse attention; None where that is no choice.

        Raises:
            WorkbenchError: if no head can have it.
        """
        form = sparse_form(self.choices)
        return None if form is None else self.game.towards(sparse_forms(self.game, form))

    @property
    def n_groups(self) -> int:
        """How many heads, or layers, there are to keep."""
        return len({head.layer for head in self.game.heads}) if self.unit == "layer" else len(self.game.heads)

    @property
    def n_points(self) -> int:
        return self.extent.n_points(self.n_groups)

    def baseline_counts(self, counts: Sequence[int], n_kept: int) -> list[int]:
        """The numbers of groups of the plan's curve at which baselines are measured as well: its ends and the plan."""
        if self.n_groups <= FEW:
            return list(counts)
        chosen = {counts[0], counts[-1], n_kept}
        while len(chosen) < self.extent.baseline_points:
            rest = [count for count in counts if count not in chosen]
            chosen.add(max(rest, key=lambda n: min(abs(log((n + 1) / (k + 1))) for k in chosen)))
        return sorted(chosen)

    def nodes(self) -> AdaptiveNodes | None:
        """The nodes of the gates' path; None where the method has none, or was given others."""
        return self.paid_nodes() if METHODS[self.method] is integrated else None

    def paid_nodes(self) -> AdaptiveNodes:
        """The nodes that the effort pays for."""
        return AdaptiveNodes(self.extent.most_nodes, self.extent.completeness)

    def cost(self) -> PlanCost:
        """What is left to do, in passes and tokens."""
        n_measured = [game.n_measured for game in self.held_out]
        parts = [self._choices_cost()] if len(self.choices) > 1 else []
        parts += [] if self.sparse_game is None else [self._sparse_cost(self.sparse_game)]
        parts += [self._ranking_cost(self.method, "ranking"), self._curve_cost("curve", self.n_points, n_measured)]
        for baseline in self.baselines:
            parts += self._baseline_costs(baseline, n_measured)
        if isinstance(self.verdict, VerdictWork):
            is_left = VERDICT not in self.game.pieces
            parts.append(PieceCost(VERDICT, is_left * self.verdict.n_passes, 0, is_left * self.verdict.n_tokens))
        return PlanCost(tuple(parts), self.game.pieces.n_kept)

    def settings(self) -> dict[str, Any]:
        """What the numbers of the plan depend on."""
        evaluation = self.evaluation
        return {
            "model": model_digest(self.m),
            "window": self.window,
            "sink": self.sink,
            "keep": repr(self.keep),
            "method": self.method,
            "unit": self.unit,
            "effort": repr(self.extent),
            "baselines": list(self.baselines),
            "probe": evaluation.probe.digest,
            "held_out": [probe.digest for probe in evaluation.held_out],
            "objective": evaluation.objective,
            "context": evaluation.context,
            "seed": evaluation.seed,
            "verdict": self.verdict.digest if isinstance(self.verdict, VerdictWork) else self.verdict,
            "choices": named(self.choices),
        }

    def _choices_cost(self) -> PieceCost:
        """Gates towards a window and linear attention, a fit of that, and what its heads lose together."""
        n_batches, n_tokens = len(self.game.batches), _tokens(self.game)
        n_there = self.game.pieces.count("gates at ", self.game.label)
        is_linear = has_linear(self.choices)
        n_nodes = max(0, (1 + is_linear) * self.extent.most_nodes - n_there)
        n_measured = most_measured(len(self.game.heads)) if is_linear else 0
        is_fitted = "linear fit" in self.game.pieces or any(isinstance(c, LinearFit) for c in self.choices)
        n_fitted = 0 if is_fitted or not is_linear else fitted_tokens(self.game.probe)
        forwards = (n_nodes + n_measured) * n_batches + bool(n_fitted)
        tokens = n_tokens * (n_nodes * (1 + BACKWARD) + n_measured) + n_fitted
        return PieceCost("choices", forwards, n_nodes * n_batches, tokens)

    def _sparse_cost(self, game: Game) -> PieceCost:
        """Gates towards sparse attention, and what its heads lose together."""
        n_nodes = max(0, self.extent.most_nodes - game.pieces.count("gates at ", game.label))
        n_measured = max(0, 2 - game.n_measured)
        forwards = (n_nodes + n_measured) * len(game.batches)
        tokens = _tokens(game) * (n_nodes * (1 + BACKWARD) + n_measured)
        return PieceCost(SPARSE, forwards, n_nodes * len(game.batches), tokens)

    def _ranking_cost(self, method: str, name: str) -> PieceCost:
        n_batches, n_tokens = len(self.game.batches), _tokens(self.game)
        n_there = self.game.pieces.count("gates at ", self.game.label)
        nodes = self.nodes()
        if f"ranking by {method} is done" in self.game.pieces:
            return PieceCost(name, 0, 0, 0)
        if nodes is not None and method == self.method:
            n = max(0, nodes.most - n_there)
            share = max(0, nodes.likely - n_there) / n if n else 1.0
            return PieceCost(name, n * n_batches, n * n_batches, n * n_tokens * (1 + BACKWARD), share=share)
        forwards, backwards = passes_of(self.game, method)
        per_batch = n_tokens / n_batches
        return PieceCost(name, forwards, backwards, round(per_batch * (forwards + BACKWARD * backwards)))

    def _curve_cost(self, name: str, n_points: int, n_measured: list[int]) -> PieceCost:
        """Forward passes over every held-out probe for every point, but `n_measured`, which are used up."""
        forwards = tokens = 0
        for i, game in enumerate(self.held_out):
            n_left = max(0, n_points - n_measured[i])
            n_measured[i] = max(0, n_measured[i] - n_points)
            forwards += n_left * len(game.batches)
            tokens += n_left * _tokens(game)
        return PieceCost(name, forwards, 0, tokens)

    def _baseline_costs(self, baseline: str, n_measured: list[int]) -> list[PieceCost]:
        is_random = baseline in ("random", "random_in_layer")
        if baseline == "random_in_layer" and self.unit == "layer":
            return []
        ranking = [] if is_random else [self._ranking_cost(baseline, f"{baseline}: ranking")]
        # Both ends are those of the plan's curve.
        n_inside = (self.n_points if self.n_groups <= FEW else self.extent.baseline_points) - 2
        n_points = n_inside * (RANDOM_ORDERS if is_random else 1)
        return [*ranking, self._curve_cost(f"{baseline}: curve", n_points, n_measured)]


def measured(work: PlanWork) -> PlanCost:
    """The cost in seconds, from one batch of the ranking's probe run forward, and forward and backward.

    Each is run again where that costs little beside the work.
    """
    cost = work.cost()
    if not cost.tokens:
        return PlanCost(tuple(PieceCost(p.name, 0, 0, 0, 0.0) for p in cost.parts), cost.n_kept)
    batch = work.game.batches[0]
    n_tokens = len(batch.counted) * batch.n_tokens

    def forward() -> None:
        with torch.no_grad():
            batch.nats()

    forward_s = _seconds(forward, cost.tokens / n_tokens) / n_tokens

    def both_s(game: Game, parts: Sequence[PieceCost]) -> float:
        """Of a token of a pass forward and backward in a game."""
        if not any(part.backwards for part in parts):
            return 0.0
        n_passes = cost.tokens / n_tokens / (1 + BACKWARD)
        return _seconds(lambda: gate_pass(game, game.batches[0], 0.5), n_passes) / n_tokens

    of_sparse = [part for part in cost.parts if part.name == SPARSE]
    windowed_s = both_s(work.game, [part for part in cost.parts if part.name != SPARSE])
    sparse_s = 0.0 if work.sparse_game is None else both_s(work.sparse_game, of_sparse)

    def timed(part: PieceCost) -> PieceCost:
        if part.name == VERDICT and isinstance(work.verdict, VerdictWork):
            by_length = work.verdict.tokens_by_length().items()
            longer = [n * operations(work.m, length) / operations(work.m, batch.n_tokens) for length, n in by_length]
            seconds = forward_s * sum(longer) if part.tokens else 0.0
            return replace(part, seconds=seconds)
        alone = part.tokens if not part.backwards else 0
        per_token = sparse_s if part.name == SPARSE else windowed_s
        seconds = alone * forward_s + (part.tokens - alone) * per_token / (1 + BACKWARD)
        return replace(part, seconds=seconds if part.tokens else 0.0)

    return PlanCost(tuple(timed(part) for part in cost.parts), cost.n_kept)


def operations(m: HookedModel, length: int) -> float:
    """Multiplications of a token's forward pass in a text of so many tokens, about: weights, and softmax attention."""
    n_embedded = sum(table.weight.numel() for table in m.model.modules() if isinstance(table, nn.Embedding))
    weights = sum(p.numel() for p in m.model.parameters()) - n_embedded
    seen = {i.index: length if i.window is None else min(length, i.window) for i in m.layers if i.mixer == "softmax"}
    widths = {i.index: i.n_heads * i.d_head for i in m.layers if i.mixer == "softmax"}
    return weights + sum(2 * widths[index] * seen[index] / 2 for index in seen)


def model_digest(m: HookedModel) -> str:
    """A digest of a model's layers, its weights as they are in memory, and the interventions on it."""
    digest = hashlib.blake2b(f"{m.layers}\n{m.interventions}".encode(), digest_size=16)
    for name, tensor in [*m.model.named_parameters(), *m.model.named_buffers()]:
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()


def _tokens(game: Game) -> int:
    return sum(len(batch.counted) * batch.n_tokens for batch in game.batches)


def _seconds(run: Callable[[], Any], n_passes: float) -> float:
    """The time of one of about so many passes, the shorter of two where a second one costs little."""

    def once() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    first = once()
    return min(first, once()) if first < _AGAIN_S or n_passes * _AGAIN_SHARE >= 1 else first
