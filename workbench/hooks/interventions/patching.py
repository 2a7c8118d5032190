"""Activation patching from a corrupted input, head by head, to find the heads that carry an answer.

A linear head may carry an answer that its pattern does not show; patching its output shows it.

Reference:
    Meng et al. 2022, Locating and Editing Factual Associations in GPT, section 2.1 (causal tracing); Wang et al. 2022,
    Interpretability in the Wild, section 3 (path patching, logit differences). Here one head's output is patched at all
    positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from torch import nn

from workbench.console import watched_bar
from workbench.heads import Head, LayerInfo, Mixer, WorkbenchError
from workbench.hooks.head_inputs import HeadsLike, query_heads
from workbench.hooks.interventions.first_order import FirstOrder, first_order
from workbench.hooks.interventions.patched_answers import (
    AnswerCounts,
    AnswerSums,
    check_shapes,
    foils_of,
    scored_answers,
)
from workbench.hooks.interventions.targets import ChosenHeads
from workbench.hooks.model import HookedModel
from workbench.hooks.opening import open_model
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.forward_pass import batch_of
from workbench.probes.known_answers import Probe, corrupted, split
from workbench.probes.token_inputs import ProbeLike, TokensLike, read_probe

# Of a pass forward and backward, which keeps activations.
_BATCH_TOKENS = 2048
METHODS = ("exact", "first_order")


@dataclass(frozen=True, slots=True)
class PatchEffect:
    """The change of the mean loss on a probe's answers when one head's output comes from another input, in nats.

    Positive: the model needs the head's own output. `mixer` tells two mixers of a layer apart. `ci_lo`, `ci_hi`: the
    95 % interval over sequences, NaN below five; so for the others. `accuracy_change`: of the share of answers that are
    right; NaN to first order. `logit_difference_change`: of the answer's logit less that of the token which the source
    has in the answer's place, negative where the head carries the answer; NaN where the source has the answers, too.
    `method`: as of `patch_effects`.
    """

    layer: int
    head: int
    mixer: Mixer
    effect_nats: float
    ci_lo: float = math.nan
    ci_hi: float = math.nan
    accuracy_change: float = math.nan
    accuracy_lo: float = math.nan
    accuracy_hi: float = math.nan
    logit_difference_change: float = math.nan
    logit_difference_lo: float = math.nan
    logit_difference_hi: float = math.nan
    method: str = "exact"


class PatchEffects(list[PatchEffect]):
    """The effects of heads, in the order of the model's; `table` has them as pandas."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per head: head_name, and the fields of `PatchEffect`."""
        names = [str(Head(effect.layer, effect.head)) for effect in self]
        rows = pd.DataFrame([asdict(effect) for effect in self], columns=[field.name for field in fields(PatchEffect)])
        rows.insert(0, "head_name", pd.Series(names, dtype=object))
        return rows

    def __repr__(self) -> str:
        if not self:
            return "PatchEffects(no heads)"
        most = max(self, key=lambda effect: abs(effect.effect_nats))
        largest = f"{Head(most.layer, most.head)} {most.effect_nats:+.3g} nats"
        return f"PatchEffects({len(self)} heads, {most.method}; the largest {largest}; .table)"


def patch_effects(
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    source: TokensLike | Probe | None = None,
    heads: HeadsLike | None = None,
    *,
    method: str = "exact",
    progress: bool = True,
) -> PatchEffects:
    """The loss on the probe's answers with one head patched from `source`, less the loss without, for each head.

    Args:
        source: tokens of the same shape; by default the probe's own without its answers (`probes.corrupted`).
        heads: by default all, softmax and linear.
        method: `exact` takes one forward pass per head, and one over the source per layer. `first_order` takes one
            forward pass over the source, and one forward and two backward over the probe, for all heads together: the
            change by gradients, which finds the heads that matter and is not their exact effect
            (`workbench.hooks.interventions.first_order`).
        progress: a bar on a terminal and in a notebook, in heads or, to first order, in sequences.

    Returns:
        A list of `PatchEffect`, whose `table` is the same as pandas.

    Raises:
        WorkbenchError: for heads the model does not have, a probe without answers, a source of another shape, an
            unknown method, or packed documents to first order.
    """
    if method not in METHODS:
        raise WorkbenchError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    m = open_model(m)
    probe = read_probe(m, probe)
    if probe.answer_rows is None or len(probe.answer_rows) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no answers; expected one with answer_rows")
    source = corrupted(m, probe) if source is None else source
    chosen = None if heads is None else set(query_heads(m.layers, heads))
    by_layer = [
        (
            info,
            [head for head in (Head(info.index, h) for h in range(info.n_heads)) if chosen is None or head in chosen],
        )
        for info in m.layers
    ]
    patching = _Patching(m, probe, source, by_layer)
    with watched_bar("head" if method == "exact" else "sequence", shown=progress) as show:
        return PatchEffects(patching.exact(show) if method == "exact" else patching.first_order(show))


@dataclass(frozen=True, slots=True)
class _Patching:
    m: HookedModel
    probe: Probe
    source: TokensLike | Probe
    by_layer: list[tuple[LayerInfo, list[Head]]]

    def exact(self, show: Callable[[int, int, str], None]) -> Iterator[PatchEffect]:
        """One pass per head."""
        batch = batch_of(self.m.model, self.probe)
        assert batch.answers is not None
        foils = foils_of(batch, batch_of(self.m.model, self.source, tokenizer=self.m.tokenizer))
        sequence = batch.answers[:, 0].cpu().numpy()
        done, n_heads = 0, sum(len(heads) for _, heads in self.by_layer)
        show(0, n_heads, "unpatched")
        before = scored_answers(self.m, batch, foils)
        for info, heads in self.by_layer:
            outputs = self.m.head_outputs(heads, self.source, mixer=info.mixer) if heads else {}
            for head in heads:
                with self.m.patch([head], outputs, mixer=info.mixer):
                    after = scored_answers(self.m, batch, foils)
                nats, right, difference = (
                    AnswerSums.of(getattr(after, name) - getattr(before, name), sequence)
                    for name in ("nats", "is_right", "difference")
                )
                # The means as `Answers` has them, so that both agree to the last digit.
                effect, accuracy = (
                    float(getattr(after, name).mean()) - float(getattr(before, name).mean())
                    for name in ("nats", "is_right")
                )
                ends = (*nats.interval(), accuracy, *right.interval(), difference.mean(), *difference.interval())
                yield PatchEffect(info.index, head.head, info.mixer, effect, *ends)
                done += 1
                show(done, n_heads, f"layer {info.index}")

    def first_order(self, show: Callable[[int, int, str], None]) -> Iterator[PatchEffect]:
        """One pass forward and backward for all heads, some sequences at a time."""
        source = batch_of(self.m.model, self.source, tokenizer=self.m.tokenizer)
        of_mixer = {
            is_linear: tuple(
                head for info, heads in self.by_layer if (info.kind == "linear") is is_linear for head in heads
            )
            for is_linear in (False, True)
        }
        chosen = ChosenHeads(of_mixer[False], of_mixer[True])
        n_tokens, n_sequences = self.probe.tokens.shape[1], len(self.probe.tokens)
        check_shapes(source, n_sequences, n_tokens)
        pieces: list[tuple[AnswerCounts, FirstOrder]] = []
        n_together, done = max(1, _BATCH_TOKENS // n_tokens), 0
        show(0, n_sequences, "first order")
        for part in split(self.probe, n_together):
            batch = batch_of(self.m.model, part)
            if batch.is_packed or source.is_packed:
                raise WorkbenchError(
                    "packed documents cannot be patched to first order; pass one to a sequence, padded"
                )
            rows = slice(None) if len(source.tokens) == 1 else slice(done, done + len(part.tokens))
            done += len(part.tokens)
            if batch.answers is not None and len(batch.answers):
                own = sequences(source.tokens[rows], source.valid[rows])
                foils = foils_of(batch, own)
                pieces.append((AnswerCounts.of(batch, foils), first_order(self.m, batch, own, foils, chosen)))
            show(done, n_sequences, "first order")
        n_answers, n_foils = (
            np.concatenate([getattr(counts, name) for counts, _ in pieces]) for name in ("answers", "foils")
        )
        for info, heads in self.by_layer:
            for head in heads:
                key = head, info.kind == "linear"
                nats = AnswerSums(np.concatenate([piece.nats[key] for _, piece in pieces]), n_answers)
                difference = AnswerSums(np.concatenate([piece.difference[key] for _, piece in pieces]), n_foils)
                low, high = difference.interval()
                yield PatchEffect(
                    info.index,
                    head.head,
                    info.mixer,
                    nats.mean(),
                    *nats.interval(),
                    logit_difference_change=difference.mean(),
                    logit_difference_lo=low,
                    logit_difference_hi=high,
                    method="first_order",
                )
