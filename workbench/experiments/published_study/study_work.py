"""The pieces of work of a study, what each needs, and how each is done, in any process.

1. Both ends, the model itself and with every head windowed, on every task and length; tasks that the model cannot do,
   or for which it needs nothing far, are left out from there on.
2. The rankings of each seed, and scores of every head.
3. Every arm at the first length; some arms at longer texts.
4. Continued pretraining of the main arms, one number of steps after the other, all arms and seeds of the first before
   the second, so that a study that ends early compares like with like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from heapq import heappush
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.experiments.conversion.study_folder import read, write
from workbench.experiments.pieces_of_work import Job
from workbench.experiments.published_study.arm_answers import (
    abilities,
    answers_of_arm,
    counted_tasks,
    n_tokens,
)
from workbench.experiments.published_study.judged_texts import (
    judged_tasks,
    lengths_of_study,
    ranked_probe,
    ranked_tasks,
)
from workbench.experiments.published_study.published_settings import GATES, PublishedStudy
from workbench.experiments.published_study.study_arms import (
    StudyArm,
    ablated_arms,
    arms_of_seed,
    as_arm,
    end_arms,
    long_arms,
    main_arms,
    wider_arms,
)
from workbench.experiments.published_study.study_models import Source, opened, opened_anew
from workbench.experiments.published_study.study_pieces import StudyFiles, write_answers
from workbench.experiments.published_study.study_rankings import (
    N_REPEATED,
    N_REPEATS,
    PATTERNS,
    gate_rows,
    gates_of,
    pattern_rows,
    rankings_of_seed,
)
from workbench.experiments.published_study.study_training import begun, train_until
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, LinearAttention
from workbench.hooks.interventions.gates import converted_heads
from workbench.planning import fit_linear_attention
from workbench.planning.conversion_objective import Game
from workbench.planning.linear_fit import n_candidates
from workbench.planning.model_passes import BACKWARD
from workbench.planning.rankings.registry import ALIGNMENT_STEPS, rank
from workbench.pretrain.training import one_thread
from workbench.probes import Probe, part
from workbench.store.conversions import Forms, Window
from workbench.store.finished_pieces import pieces_beside
from workbench.store.length_verdict import Measure

Kind = Literal["ends", "linear", "heads", "rankings", "arms", "longer texts", "aligned", "training"]
KINDS: tuple[Kind, ...] = ("ends", "linear", "heads", "rankings", "arms", "longer texts", "aligned", "training")
# Texts of a ranking after an alignment, which takes a pass of them for every head, twice.
_ALIGNED_TEXTS = 2
# What a candidate of the fit of linear attention costs, in forward passes of the model: measured on SmolLM2-135M.
_PER_CANDIDATE = 0.27
_FIT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class StudyPiece:
    """A piece of work. `tokens`: of forward passes, those of backward passes counted as they cost; at most."""

    kind: Kind
    path: Path
    tokens: int
    window: int = 0
    seed: int = 0
    length: int = 0
    steps: int = 0
    arm: StudyArm | None = None

    def __str__(self) -> str:
        arm = "" if self.arm is None else f", {self.arm.name}, {self.arm.n_kept} full"
        steps = f", {self.steps} steps" if self.steps else ""
        length = f", {self.length:,} tokens" if self.length else ""
        window = f"window {self.window}, " if self.window else ""
        return f"{self.kind}: {window}seed {self.seed}{length}{arm}{steps}"


@dataclass(frozen=True, slots=True)
class StudyCall:
    """What every process needs to do a piece. `until`: the time at which training stops and is saved."""

    source: Source
    study: PublishedStudy
    out: Path
    until: float = float("inf")

    @property
    def files(self) -> StudyFiles:
        return StudyFiles(self.out)

    @property
    def held_out(self) -> Path | None:
        """The text to judge on; None for a model without a tokenizer."""
        return self.out / "text" / "held_out.txt" if self.study.text else None

    def heads(self, m: HookedModel, window: int) -> tuple[KVHead, ...]:
        """The heads that a window is for.

        Raises:
            WorkbenchError: if it is for none.
        """
        heads = converted_heads(m.layers, Window(window, self.study.sink))
        if len(heads) < 2:
            raise WorkbenchError(
                f"window {window} changes {len(heads)} heads of {m!r}; expected 2 at least: pass a smaller window"
            )
        return heads


class StudyWork:
    """The pieces of a call that are left, as they become known; `left_out` has sentences on what cannot be done."""

    def __init__(self, call: StudyCall, m: HookedModel):
        self.call, self.m = call, m
        self.pending: list[Job] = []
        self.n_known = 0
        self.known: set[Path] = set()
        self._is_closed = False
        self.refresh()

    def close(self) -> None:
        """Begin no further piece."""
        self._is_closed = True
        self.pending.clear()

    def finish(self, job: Job) -> None:
        """Add the pieces that become known with a finished one."""
        del job
        self.refresh()

    def refresh(self) -> None:
        """Add every piece that is missing and has all that it needs."""
        for piece in ready(self.call, self.m):
            if not (self._is_closed or piece.path in self.known or piece.path.exists()):
                self.known.add(piece.path)
                urgency = 1000 * KINDS.index(piece.kind) + (piece.steps if piece.kind == "training" else 0)
                work = partial(do_piece, self.call, piece)
                heappush(self.pending, Job(urgency, self.n_known, str(piece), work, piece))
                self.n_known += 1


def ready(call: StudyCall, m: HookedModel) -> Iterator[StudyPiece]:
    """The pieces, done or not, that have all that they need."""
    study, files = call.study, call.files
    if study.linear:
        yield StudyPiece("linear", files.linear, _fit_tokens())
    for window in study.windows:
        lengths = lengths_of_study(study, m, window)
        seeds = range(study.seeds)
        both = [*end_arms(study, call.heads(m, window))]
        ends = {n: [p for s in seeds for p in _answers(call, m, "ends", (window, n, s), both)] for n in lengths}
        yield from (piece for of_length in ends.values() for piece in of_length)
        ready_lengths = [n for n in lengths if all(piece.path.exists() for piece in ends[n])]
        if lengths[0] not in ready_lengths:
            continue
        for seed in seeds:
            if window == study.windows[0]:
                yield StudyPiece("heads", files.heads(seed), pattern_tokens(call, m), seed=seed)
            path = files.rankings(window, seed)
            yield StudyPiece("rankings", path, ranking_tokens(call, m, window), window, seed)
            if not path.exists():
                continue
            arms = arms_of(call, m, window, seed)
            yield from _answers(call, m, "arms", (window, lengths[0], seed), arms)
            longer = long_arms(study, arms, len(call.heads(m, window)))
            for length in ready_lengths[1:]:
                yield from _answers(call, m, "longer texts", (window, length, seed), longer)
    yield from _trainings(call, m)


def arms_of(call: StudyCall, m: HookedModel, window: int, seed: int) -> list[StudyArm]:
    """The arms of a seed whose heads are ranked."""
    heads = call.heads(m, window)
    by_method = read(call.files.rankings(window, seed))["rankings"]
    scores = {name: ranking["scores"] for name, ranking in by_method.items() if "scores" in ranking}
    arms = arms_of_seed(call.study, heads, scores, seed=seed)
    if call.study.linear and not call.files.linear.exists():
        arms = [arm for arm in arms if arm.to != "linear"]
    return [*arms, *ablated_arms(call.study, m.layers, heads), *wider_arms(call.study, m.layers, heads)]


def do_piece(call: StudyCall, piece: StudyPiece) -> None:
    """Do a piece and write its file."""
    if piece.path.exists():
        return
    started = time.process_time()
    with one_thread():
        if piece.kind == "training":
            _train(call, piece)
        else:
            m = opened(call.source)
            if piece.kind == "linear":
                _fit(call, m, piece.path)
            elif piece.kind == "heads":
                window = call.study.windows[0]
                rows = pattern_rows(m, _ranked_probe(call, m, window, piece.seed), seed=piece.seed)
                write(piece.path, {"heads": rows})
            elif piece.kind == "rankings":
                _rank(call, m, piece)
            elif piece.kind == "aligned":
                _align(call, m, piece)
            else:
                _answer(call, m, piece, piece.path)
    call.files.took(piece.kind, time.process_time() - started, piece.tokens)


def forms_of(call: StudyCall) -> Forms:
    """The linear attention of the heads that can have it; none before it is fitted."""
    if not call.files.linear.exists():
        return {}
    rows = read(call.files.linear)["forms"]
    return {KVHead(*row["head"]): LinearAttention(**row["form"]) for row in rows if not row["flags"]}


def ranking_tokens(call: StudyCall, m: HookedModel, window: int) -> int:
    """Tokens of all rankings of a seed, at most."""
    per_pass = _ranked_tokens(call, m, window)
    n_single = len([name for name in call.study.rankings if name not in (GATES, "first_order")])
    return per_pass * (call.study.nodes * (1 + BACKWARD) + n_single)


def training_tokens(call: StudyCall, m: HookedModel, n_steps: int) -> int:
    """Tokens of a training of so many steps, of the answers after it, and of the head scores."""
    study, window = call.study, call.study.windows[0]
    judged = sum(n_tokens(m, study, call.held_out, length) for length in lengths_of_study(study, m, window))
    scored = study.nodes * (1 + BACKWARD) * _ranked_tokens(call, m, window) + pattern_tokens(call, m)
    return n_steps * study.training.n_sequences * study.training.length * (1 + BACKWARD) + judged + scored


def _ranked_tokens(call: StudyCall, m: HookedModel, window: int) -> int:
    return call.study.n_ranked * lengths_of_study(call.study, m, window)[0]


def pattern_tokens(call: StudyCall, m: HookedModel) -> int:
    """Tokens of the scores of patterns of a seed."""
    n_on_repeats = sum(probe == "repeats" for probe in PATTERNS.values())
    return n_on_repeats * N_REPEATS * N_REPEATED + _ranked_tokens(call, m, call.study.windows[0])


def _fit_tokens() -> int:
    return round((1 + _PER_CANDIDATE * n_candidates()) * _FIT_TOKENS)


def _answers(
    call: StudyCall, m: HookedModel, kind: Kind, where: tuple[int, int, int], arms: list[StudyArm]
) -> Iterator[StudyPiece]:
    """The answers of some arms; `where`: window, length and seed."""
    window, length, seed = where
    tokens = n_tokens(m, call.study, call.held_out, length)
    for arm in arms:
        yield StudyPiece(kind, call.files.answers(window, seed, length, arm.key), tokens, window, seed, length, 0, arm)


def _trainings(call: StudyCall, m: HookedModel) -> Iterator[StudyPiece]:
    """The trainings of the first window, each number of steps after the one before."""
    study, files, window = call.study, call.files, call.study.windows[0]
    heads, lengths = call.heads(m, window), lengths_of_study(study, m, window)
    done_steps = 0
    for steps in study.training.steps:
        tokens = training_tokens(call, m, steps - done_steps)
        for seed in range(study.seeds):
            if not files.rankings(window, seed).exists():
                continue
            for arm in main_arms(study, arms_of(call, m, window, seed), len(heads)):
                before = files.trained(window, seed, arm.name, done_steps)
                if done_steps == 0 or before.exists():
                    path = files.trained(window, seed, arm.name, steps)
                    yield StudyPiece("training", path, tokens, window, seed, 0, steps, arm)
        done_steps = steps
    if study.training.steps and files.rankings(window, 0).exists():
        n_texts = min(_ALIGNED_TEXTS, study.n_ranked)
        tokens = (2 * len(heads) + 5 + ALIGNMENT_STEPS * (1 + BACKWARD)) * n_texts * lengths[0]
        yield StudyPiece("aligned", files.rankings(window, 0).with_name("aligned.json"), tokens, window)


def _counted(call: StudyCall, m: HookedModel, window: int, length: int) -> set[str]:
    measures: dict[str, Measure] = {task.name: task.measure for task in judged_tasks(call.study, m)}
    return counted_tasks(abilities(call.study, call.files, measures, window=window, length=length))


def _ranked_probe(call: StudyCall, m: HookedModel, window: int, seed: int) -> Probe:
    """The texts that heads are ranked on: tasks that the model does at the first length."""
    tasks, length = judged_tasks(call.study, m), lengths_of_study(call.study, m, window)[0]
    chosen = ranked_tasks(tasks, _counted(call, m, window, length))
    if not chosen:
        raise WorkbenchError(
            f"at {length:,} tokens the model does none of the tasks {', '.join(t.name for t in tasks)}, or needs "
            f"nothing beyond a window of {window} for them, so that no heads can be ranked; pass other tasks (--task), "
            "or another window"
        )
    return ranked_probe(call.study, m, window, chosen, seed=seed)


def _rank(call: StudyCall, m: HookedModel, piece: StudyPiece) -> None:
    probe = _ranked_probe(call, m, piece.window, piece.seed)
    settings = {"probe": probe.digest, "window": piece.window, "sink": call.study.sink, "nodes": call.study.nodes}
    piece.path.parent.mkdir(parents=True, exist_ok=True)
    with pieces_beside(piece.path, settings, announce=lambda _: None) as parts:
        rankings = rankings_of_seed(m, call.study, probe, window=piece.window, seed=piece.seed, pieces=parts)
        write(piece.path, rankings)


def _answer(call: StudyCall, m: HookedModel, piece: StudyPiece, path: Path) -> None:
    assert piece.arm is not None
    where = (piece.window, piece.length, piece.seed)
    # What the model itself cannot do no other arm is judged on.
    tasks = None if piece.kind == "ends" else _counted(call, m, piece.window, piece.length)
    heads = call.heads(m, piece.window)
    with as_arm(m, piece.arm, heads, window=piece.window, forms=forms_of(call)):
        by_part, text = answers_of_arm(
            m, call.study, call.held_out, where=where, tasks=tasks, made_for=opened(call.source)
        )
    write_answers(path, by_part, text)


def _fit(call: StudyCall, m: HookedModel, path: Path) -> None:
    """Linear attention fitted to the texts that the first seed's heads are ranked on."""
    window = call.study.windows[0]
    tasks = ranked_tasks(judged_tasks(call.study, m), {task.name for task in judged_tasks(call.study, m)})
    probe = ranked_probe(call.study, m, window, tasks, seed=0)
    fit = fit_linear_attention(m, part(probe, 0, max(1, _FIT_TOKENS // probe.tokens.shape[1])), progress=False)
    rows: list[dict[str, Any]] = [
        {
            "head": list(head),
            "form": {"features": form.features, "sharpness": form.sharpness, "decay": form.decay},
            "error": fit.error[head],
            "flags": fit.flags[head],
        }
        for head, form in fit.forms.items()
    ]
    write(path, {"forms": rows})


def _align(call: StudyCall, m: HookedModel, piece: StudyPiece) -> None:
    """One head restored at a time, before and after a short alignment of the windowed model."""
    probe = _ranked_probe(call, m, piece.window, piece.seed)
    few = part(probe, 0, min(_ALIGNED_TEXTS, len(probe.tokens)))
    game = Game(m, few, piece.window, sink=call.study.sink, objective="kl", seed=piece.seed)
    document: dict[str, Any] = {"heads": [list(head) for head in game.heads], "rankings": {}}
    for method in ("restore_one", "restore_one_aligned"):
        ranking = rank(game, method, progress=False)
        document["rankings"][method] = {"scores": ranking.scores.tolist(), "evidence": ranking.evidence}
    write(piece.path, document)


def _train(call: StudyCall, piece: StudyPiece) -> None:
    """Train an arm up to a number of steps, judge it at every length, and score its heads."""
    assert piece.arm is not None
    study, files, window, seed, arm = call.study, call.files, piece.window, piece.seed, piece.arm
    m = opened_anew(call.source)
    state = files.state(window, seed, arm.name)
    trained = begun(m, study.training, state)
    heads = call.heads(m, window)
    tokens = np.load(call.out / "text" / "trained.npy", mmap_mode="r")

    def is_over() -> bool:
        return time.time() >= call.until

    with as_arm(m, arm, heads, window=window, forms={}):
        is_done = train_until(trained, tokens, state, seed=seed, steps=piece.steps, is_over=is_over)
    if not is_done:
        return
    m.model.requires_grad_(False)
    for length in lengths_of_study(study, m, window):
        path = files.trained_answers(window, seed, arm.name, piece.steps, length)
        if not path.exists():
            answered_piece = StudyPiece("training", path, 0, window, seed, length, piece.steps, arm)
            _answer(call, m, answered_piece, path)
    probe = _ranked_probe(call, opened(call.source), window, seed)
    game = Game(m, probe, window, sink=study.sink, seed=seed)
    rows = [*pattern_rows(m, probe, seed=seed), *gate_rows(gates_of(game, study))]
    write(piece.path, {"losses": [round(x, 6) for x in trained.losses], "heads": rows})
    if piece.steps == study.training.steps[-1]:
        state.unlink(missing_ok=True)
