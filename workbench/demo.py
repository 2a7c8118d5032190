"""The demo: pretrain a small model of each attention kind, scan its checkpoints, and report when its heads emerged.

Variants run in parallel processes of one thread each. Training and scanning both resume where an earlier call stopped,
so an interrupted demo loses at most the steps since a checkpoint.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.heads import Head
from workbench.pretrain import Language, TrainingProgress, pretrain_run, recipe
from workbench.probes import Probe, Vocabulary, copy_needle, repeats, token_sequences
from workbench.runs import Run, open_run
from workbench.scanning import Progress, scan
from workbench.scanning.interrupts import follow_parent

# The longest first, so that the others run on a second core meanwhile.
ALL_VARIANTS = ("linear", "full", "hybrid", "sliding")
QUICK_VARIANTS = ("full", "sliding")
DISTANCES = (8, 12, 16, 24, 32, 40, 52)
_LENGTH = 64
_PROBE_SEED = 777
_REPORTED = (
    ("previous_token", "repeats"),
    ("induction", "repeats"),
    ("induction", "repeats_near"),
    ("retrieval", "copy_needle"),
    ("sink", "documents"),
)


@dataclass(frozen=True, slots=True)
class DemoProgress:
    """The state of one variant: `done` of `total` steps or units of a phase, "training" or "scanning"."""

    variant: str
    phase: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finding:
    """The best head of a run for one detector at the last checkpoint, and the onset of its score."""

    variant: str
    detector: str
    probe: str
    head: Head
    kind: str
    score: float
    ci_lo: float
    ci_hi: float
    onset_step: int | None
    onset_tokens: int | None


def demo_probes() -> list[Probe]:
    """The probes of the demo: long and short repeats, needles in the synthetic language, documents."""
    language = Language()
    words = Vocabulary(torch.tensor(language.words), bos=language.bos)
    rng = np.random.default_rng(_PROBE_SEED)
    filler = torch.from_numpy(language.backbone(12 * len(DISTANCES), _LENGTH, rng))
    documents = torch.from_numpy(language.documents(48, _LENGTH, rng))
    return [
        repeats(words, n=28, n_sequences=16, seed=_PROBE_SEED),
        repeats(words, n=6, n_sequences=16, seed=_PROBE_SEED, name="repeats_near"),
        copy_needle(words, DISTANCES, n_sequences=12, filler=filler, seed=_PROBE_SEED),
        token_sequences(documents, name="documents"),
    ]


def run_demo(
    out: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    on_progress: Callable[[DemoProgress], None] | None = None,
) -> list[Run]:
    """Pretrain and scan the demo's models into `out`/checkpoints and `out`/runs. Call it again to resume.

    Args:
        quick: only full and sliding attention, with fewer steps.
        on_progress: called after every tenth step and every change of a scan; None: no output.

    Raises:
        WorkbenchError: if `out` holds a demo of another seed or length, or cannot be written.
    """
    variants = QUICK_VARIANTS if quick else ALL_VARIANTS
    context = get_context("spawn")
    progress: Queue[DemoProgress] = context.Queue()
    n_workers = min(len(variants), os.cpu_count() or 1)
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        futures = [pool.submit(_run_variant, v, out, quick, seed) for v in variants]
        _forward_progress(futures, progress, on_progress or (lambda _: None))
        for future in futures:
            future.result()
    except BaseException:
        for process in list(pool._processes.values()):  # pyright: ignore[reportPrivateUsage]  # no public way to kill
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [open_run(out / "runs" / variant) for variant in sorted(variants)]


def findings(run: Run) -> list[Finding]:
    """The best previous-token, induction, retrieval and sink heads of a demo run."""
    return [
        _finding(run.name, record)
        for detector, probe in _REPORTED
        for record in run.top(detector, 1, probe=probe).to_dict("records")
    ]


def _finding(variant: str, record: dict[str, Any]) -> Finding:
    def whole(value: Any) -> int | None:
        return None if pd.isna(value) else int(value)

    return Finding(
        variant=variant,
        detector=record["detector"],
        probe=record["probe"],
        head=Head(int(record["layer"]), int(record["head"])),
        kind=record["kind"],
        score=record["score"],
        ci_lo=record["ci_lo"],
        ci_hi=record["ci_hi"],
        onset_step=whole(record["onset_step"]),
        onset_tokens=whole(record["onset_tokens"]),
    )


def copy_accuracy(run: Run) -> dict[int, float]:
    """Share of needle words copied correctly at the last checkpoint, by distance in tokens."""
    table = run.metrics(probe="copy_needle", metric="copy_accuracy", step=int(run.checkpoints().step.max()))
    table = table[table.distance.notna()]
    return {int(d): float(v) for d, v in zip(table.distance, table.value, strict=True)}


_progress: Queue[DemoProgress] | None = None


def _start_worker(progress: Queue[DemoProgress]) -> None:
    global _progress
    _progress = progress
    follow_parent()  # files are written atomically
    torch.set_num_threads(1)


def _run_variant(variant: str, out: Path, quick: bool, seed: int) -> None:
    assert _progress is not None
    put, variant_recipe = _progress.put, recipe(variant, seed=seed, quick=quick)

    def on_step(progress: TrainingProgress) -> None:
        if progress.step % 10 == 0 or progress.checkpoint is not None:
            put(DemoProgress(variant, "training", progress.step, variant_recipe.steps))

    def on_scan(progress: Progress) -> None:
        put(DemoProgress(variant, "scanning", progress.done, progress.planned))

    checkpoints = out / "checkpoints" / variant
    pretrain_run(variant_recipe, checkpoints, on_step=on_step)
    scan(checkpoints, out / "runs" / variant, probes=demo_probes(), on_progress=on_scan)


def _forward_progress(
    futures: Sequence[Future[None]], progress: Queue[DemoProgress], on_progress: Callable[[DemoProgress], None]
) -> None:
    """Forward progress until every variant is done or one has failed."""
    while True:
        try:
            on_progress(progress.get(timeout=0.2))
            continue
        except queue.Empty:
            pass
        done, pending = wait(futures, timeout=0)
        if not pending or any(f.exception() is not None for f in done):
            return
