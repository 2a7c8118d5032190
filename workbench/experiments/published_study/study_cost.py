"""What a study costs before it runs: what it does, what it leaves out, and time and disk from a measured step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from workbench.console import duration
from workbench.experiments.published_study.arm_answers import n_tokens
from workbench.experiments.published_study.judged_texts import judged_tasks, lengths_of_study
from workbench.experiments.published_study.published_settings import MAIN
from workbench.experiments.published_study.study_arms import (
    ablated_arms,
    arms_of_seed,
    long_arms,
    main_arms,
    wider_arms,
)
from workbench.experiments.published_study.study_work import (
    KINDS,
    StudyCall,
    arms_of,
    pattern_tokens,
    ranking_tokens,
    ready,
    training_tokens,
)
from workbench.hooks import HookedModel
from workbench.planning.plan_work import operations
from workbench.pretrain.training import one_thread
from workbench.probes.token_ids import context

# Bytes of a training's state per parameter: the weight and two moments, in float32.
_STATE_BYTES = 12
_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class StudyCost:
    """`parts`: of each kind of piece, how many are left at most and the tokens of their passes.

    `seconds`: CPU-seconds of each kind. `disk_bytes`: of the states of trainings that are not finished, at most.
    `lines`: what is done and what is left out, in sentences.
    """

    parts: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    disk_bytes: int
    lines: tuple[str, ...]

    @property
    def total_s(self) -> float:
        """CPU-seconds that are left, at most."""
        return sum(self.seconds.values())

    @property
    def tokens(self) -> int:
        """Tokens of forward passes that are left, at most."""
        return sum(tokens for _, tokens in self.parts.values())

    def sentence(self, workers: int) -> str:
        """Time and disk."""
        if not self.tokens:
            return "nothing is left to do"
        parts = ", ".join(f"{kind} {duration(self.seconds[kind])}" for kind, (n, _) in self.parts.items() if n)
        disk = f"; states of trainings take up to {self.disk_bytes / 1e9:.1f} GB on disk" if self.disk_bytes else ""
        each = f", {duration(self.total_s / workers)} in {workers} processes on idle cores" if workers > 1 else ""
        return f"about {duration(self.total_s)} of CPU time{each} ({parts}){disk}"


# Of each kind of piece: how many, the tokens of their passes, and those tokens weighed by what one costs.
Left = dict[str, tuple[int, int, float]]


def pieces_left(call: StudyCall, m: HookedModel) -> Left:
    """The pieces that are left, at most: arms that keep the same heads are judged once."""
    study = call.study
    counts: Left = dict.fromkeys(KINDS, (0, 0, 0.0))
    base = operations(m, lengths_of_study(study, m, study.windows[0])[0])

    def add(kind: str, tokens: int, length: int, n: int = 1) -> None:
        before = counts[kind]
        weight = operations(m, length) / base
        counts[kind] = (before[0] + n, before[1] + n * tokens, before[2] + n * tokens * weight)

    known = {piece.path: piece for piece in ready(call, m)}
    for piece in known.values():
        if not piece.path.exists():
            add(
                piece.kind,
                piece.tokens,
                piece.length or lengths_of_study(study, m, piece.window or study.windows[0])[0],
            )
    for window in study.windows:
        heads = call.heads(m, window)
        scores = {name: [0.0] * len(heads) for name in study.rankings}
        arms = [*arms_of_seed(study, heads, scores, seed=0), *ablated_arms(study, m.layers, heads)]
        arms += wider_arms(study, m.layers, heads)
        first, *others = lengths_of_study(study, m, window)
        for seed in range(study.seeds):
            path = call.files.rankings(window, seed)
            if window == study.windows[0] and call.files.heads(seed) not in known:
                add("heads", pattern_tokens(call, m), first)
            if path not in known:
                add("rankings", ranking_tokens(call, m, window), first)
            if not path.exists():
                add("arms", n_tokens(m, study, call.held_out, first), first, len(arms) - 2)
                n_long = len(long_arms(study, arms, len(heads))) - 2
                for length in others:
                    add("longer texts", n_tokens(m, study, call.held_out, length), length, n_long)
    window, before = study.windows[0], 0
    for steps in study.training.steps:
        n_known = sum(p.kind == "training" and p.steps == steps for p in known.values())
        n_all = sum(_n_trained(call, m, window, seed) for seed in range(study.seeds))
        tokens = training_tokens(call, m, steps - before)
        add("training", tokens, lengths_of_study(study, m, window)[0], n_all - n_known)
        before = steps
    return counts


def _n_trained(call: StudyCall, m: HookedModel, window: int, seed: int) -> int:
    """How many arms of a seed are trained, at most: a ranking that a model has not is known once it was tried."""
    if not call.files.rankings(window, seed).exists():
        return len(MAIN)
    return len(main_arms(call.study, arms_of(call, m, window, seed), len(call.heads(m, window))))


def in_all(left: Left) -> tuple[int, int]:
    """How many pieces are left, and the tokens of their passes."""
    return sum(n for n, _, _ in left.values()), sum(tokens for _, tokens, _ in left.values())


def study_cost(call: StudyCall, m: HookedModel) -> StudyCost:
    """The cost of what is left, from a forward pass that is run and timed."""
    left = pieces_left(call, m)
    base_length = lengths_of_study(call.study, m, call.study.windows[0])[0]
    forward_s = _forward_s(m, base_length) if in_all(left)[0] else 0.0
    n_states = len(MAIN) * call.study.seeds if call.study.training.steps and left["training"][0] else 0
    n_parameters = sum(p.numel() for p in m.model.parameters())
    return StudyCost(
        {kind: (n, tokens) for kind, (n, tokens, _) in left.items()},
        {kind: weighed * forward_s for kind, (_, _, weighed) in left.items()},
        n_states * n_parameters * _STATE_BYTES,
        tuple(_lines(call, m)),
    )


def _forward_s(m: HookedModel, length: int) -> float:
    """CPU-seconds per token of a forward pass at this length, the shorter of two where a second one costs little.

    It takes one thread, as a worker does: several wait for each other on a busy machine, which is CPU time, too.
    """
    tokens = torch.randint(0, m.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))

    def once() -> float:
        began = time.process_time()
        with torch.no_grad():
            m.model(input_ids=tokens, use_cache=False)
        return time.process_time() - began

    with one_thread():
        first = once()
        return min(first, once()) / length if first < 20 * _AGAIN_S else first / length


def _lines(call: StudyCall, m: HookedModel) -> list[str]:
    study = call.study
    lines: list[str] = []
    for window in study.windows:
        heads = call.heads(m, window)
        counts = ", ".join(str(n) for n in dict.fromkeys(study.n_kept(share, len(heads)) for share in study.budgets))
        lengths = lengths_of_study(study, m, window)
        lines.append(
            f"window {window}, sink {study.sink}: {len(heads)} key/value heads, of which the first {counts} by each of "
            f"{', '.join(study.rankings)} stay full; {study.seeds} seeds; texts of "
            f"{', '.join(f'{n:,}' for n in lengths)} tokens"
        )
    training = study.training
    if training.steps:
        lines.append(
            f"trained on for {', '.join(map(str, training.steps))} steps of "
            f"{training.n_sequences * training.length:,} tokens at a rate of {training.rate:g}, at window "
            f"{study.windows[0]}: {', '.join(MAIN)}"
        )
        if len(study.windows) > 1:
            lines.append(f"left out: training at window {', '.join(map(str, study.windows[1:]))}")
    else:
        lines.append("left out: continued pretraining (--train STEPS asks for it)")
    lines.append("left out: training of the other arms; training from scratch")
    if not study.linear:
        lines.append("left out: linear attention (--effort standard has it)")
    if not study.sparse:
        lines.append("left out: sparse attention (--effort standard has it)")
    if not study.text:
        lines.append("left out: loss on text, since the model has no tokenizer")
    longest = context(m)
    if longest is not None and max(lengths_of_study(study, m, max(study.windows))) < longest:
        lines.append(f"left out: longer texts, up to the model's context of {longest:,} tokens (--length N)")
    lines.append(f"tasks: {', '.join(task.name for task in judged_tasks(study, m))}{', text' if study.text else ''}")
    return lines
