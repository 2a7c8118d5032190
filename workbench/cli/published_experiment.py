"""`workbench experiment conversion --model`: the study of a published model at the command line."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.console import duration, print_json, print_table, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.experiments.published_study.published_run import PieceDone, PreparedStudy
    from workbench.experiments.published_study.study_cost import StudyCost
    from workbench.planning.efforts import Effort

# What is said of progress, at most so often.
_SAID_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class PublishedOptions:
    """The options of the verb for a published model; None where one was not passed."""

    model: str
    window: list[int]
    sink: int
    effort: Effort
    text: Path | None
    tasks: list[str]
    lengths: list[int]
    train: list[int]
    rate: float | None
    train_shape: tuple[int | None, int | None]
    seeds: int | None
    out: Path | None
    tokenizer: str | None
    workers: int | None
    minutes: float | None
    is_dry: bool
    so_far: bool


def study_published(options: PublishedOptions, *, as_json: bool) -> None:
    """Prepare the study, say what it costs, run what is missing, and write the report of what is there."""
    prepared = _prepared(options)
    out = prepared.call.out
    n_workers = (os.cpu_count() or 1) if options.workers is None else options.workers
    if not options.so_far:
        cost = prepared.cost()
        if options.is_dry:
            _print_cost(cost, n_workers, as_json=as_json)
            return
        for line in cost.lines:
            warn(line)
        warn(cost.sentence(n_workers))
        _run(prepared, n_workers, options.minutes)
    elif options.is_dry:
        raise WorkbenchError("--so-far and --dry-run were given; pass one of them")

    from workbench.experiments.published_study.published_report import write_published_report
    from workbench.experiments.published_study.published_results import published_results

    results = published_results(prepared.call, prepared.m)
    path = write_published_report(results, out)
    warn(f"the report is {path}")
    if as_json:
        print_json(results.document())
        return
    for claim in results.claims():
        print(f"{claim.question}\n  {claim.answer}\n")


def _prepared(options: PublishedOptions) -> PreparedStudy:
    from workbench.experiments.published_study.published_run import prepare_study
    from workbench.experiments.published_study.published_settings import Pretraining, settings_of

    length, tokens = options.train_shape
    passed: dict[str, Any] = {"rate": options.rate, "length": length, "tokens": tokens}
    changes = {name: value for name, value in passed.items() if value is not None}
    training = Pretraining(tuple(sorted(set(options.train))), **changes)
    settings: dict[str, Any] = {
        "sink": options.sink,
        "tasks": tuple(options.tasks),
        "lengths": tuple(sorted(set(options.lengths))),
        "training": training,
    }
    if options.seeds is not None:
        settings["seeds"] = options.seeds
    study = settings_of(options.effort, options.model, windows=options.window or [128], **settings)
    out = options.out or Path("runs") / f"conversion-{Path(options.model).name}"
    return prepare_study(study, out, tokenizer=options.tokenizer, text=options.text, is_kept=not options.is_dry)


def _run(prepared: PreparedStudy, workers: int, minutes: float | None) -> None:
    from workbench.experiments.published_study.published_run import run_published

    said_at = -_SAID_EVERY_S

    def show(piece: PieceDone) -> None:
        nonlocal said_at
        if piece.elapsed_s - said_at >= _SAID_EVERY_S:
            said_at = piece.elapsed_s
            warn(f"{piece.done} of at most {piece.left}; {piece.name}; {duration(piece.to_go_s)} to go at most")

    began = time.monotonic()
    try:
        n_left = run_published(prepared, workers=workers, minutes=minutes, on_progress=show)
    except KeyboardInterrupt:
        warn("interrupted; what is finished stays, the same command goes on from there, --so-far reports it")
        raise
    rest = f"; at most {n_left} pieces are left, and the same command goes on" if n_left else ""
    warn(f"{duration(time.monotonic() - began)}{rest}")


def _print_cost(cost: StudyCost, workers: int, *, as_json: bool) -> None:
    if as_json:
        parts = [
            {"part": kind, "pieces": n, "tokens": tokens, "cpu_s": cost.seconds[kind]}
            for kind, (n, tokens) in cost.parts.items()
        ]
        print_json({"parts": parts, "cpu_s": cost.total_s, "disk_bytes": cost.disk_bytes, "says": list(cost.lines)})
        return
    for line in cost.lines:
        warn(line)
    rows = [[kind, n, tokens, cost.seconds[kind]] for kind, (n, tokens) in cost.parts.items()]
    print_table(("part", "pieces", "tokens", "CPU s"), rows, title="What is left to do, at most")
    warn(cost.sentence(workers))
