"""Does a wider window make the full layers of a hybrid form their heads later? Pretrained here, on real text.

1. For each window and seed a hybrid is pretrained, sliding and full layers in turn, and for each seed a model of full
   layers alone: the same weights at the start, the same text in the same order.
2. Every run's checkpoints are scanned for induction, retrieval on repeated n-grams of held-out text, and previous-token
   heads.
3. A row per window and seed: the tokens at which the first head of each kind emerged, in a full layer and in a
   sliding one.

The store is a run for each model, which `workbench app` and `workbench emergence` open. Training and scans resume.

Reference:
    Large-window laziness, arXiv 2606.15378: with wide windows the full layers of a hybrid learn to retrieve late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappush
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.experiments.pieces_of_work import Job, done, worker_pool
from workbench.heads import WorkbenchError
from workbench.pretrain.corpus import Corpus, open_corpus
from workbench.pretrain.recipes import TEXT, Recipe, text_recipe
from workbench.pretrain.training import one_thread, pretrain_run
from workbench.runs import open_run
from workbench.scanning import scan

WINDOWS = (16, 32, 64, 128)
DETECTORS = ("previous_token", "induction", "retrieval")
FULL = "full"


@dataclass(frozen=True, slots=True)
class WidthRun:
    """One pretraining: a hybrid of this window, or None for full attention in every layer."""

    window: int | None
    seed: int

    @property
    def name(self) -> str:
        return f"{FULL if self.window is None else f'window{self.window}'}-seed{self.seed}"


def width_runs(windows: Sequence[int] = WINDOWS, *, seeds: int = 3) -> list[WidthRun]:
    """All runs, those of one seed together.

    Raises:
        WorkbenchError: for no window, one that is given twice, or no seed.
    """
    if not windows or len(set(windows)) < len(windows) or min(windows) < 1 or seeds < 1:
        raise WorkbenchError(f"windows are {tuple(windows)}, seeds {seeds}; expected windows from 1, each once, a seed")
    return [WidthRun(window, seed) for seed in range(seeds) for window in (*sorted(windows), None)]


def width_recipe(run: WidthRun, corpus: Corpus, *, steps: int, batch: int = 16, checkpoints: int = 20) -> Recipe:
    """The recipe of a run: that of real text, with the window of its sliding layers.

    Raises:
        WorkbenchError: for a window that is no shorter than the sequences.
    """
    shape = replace(TEXT, vocabulary=corpus.vocabulary, window=run.window or TEXT.window)
    recipe = text_recipe(
        FULL if run.window is None else "hybrid", corpus.digest, seed=run.seed, steps=steps, shape=shape
    )
    if run.window is not None and run.window >= recipe.length:
        raise WorkbenchError(
            f"window {run.window} hides nothing in sequences of {recipe.length} tokens; pass a shorter"
        )
    return replace(recipe, batch=batch, n_checkpoints=checkpoints)


def run_window_widths(  # the store, what is in it, and how it is made
    out: Path,
    corpus: Corpus,
    runs: Sequence[WidthRun],
    *,
    steps: int,
    workers: int = 1,
    on_run: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Pretrain and scan every run into `out`, or go on, and return the table of `width_table`.

    Raises:
        WorkbenchError: for a window that is too wide, or a folder of other runs.
        StoreNotWritable: if the folder cannot be written.
    """
    for run in runs:
        width_recipe(run, corpus, steps=steps)
    work = _Widths([partial(_pretrained_and_scanned, out, corpus.folder, run, steps) for run in runs], runs)
    n_done = 0
    with worker_pool(workers) as pool:
        for job, n_known in done(work, pool, workers):
            n_done += 1
            if on_run is not None:
                on_run(job.name, n_done, n_known)
    return width_table(out, runs)


class _Widths:
    """The pieces: one for each run."""

    def __init__(self, works: Sequence[Callable[[], Any]], runs: Sequence[WidthRun]):
        self.pending: list[Job] = []
        self.n_known = len(runs)
        for i, (work, run) in enumerate(zip(works, runs, strict=True)):
            heappush(self.pending, Job(0, i, run.name, work))

    def finish(self, job: Job) -> None:
        """Nothing becomes known with a run."""


def width_table(out: Path, runs: Sequence[WidthRun]) -> pd.DataFrame:
    """The first onset of each kind of head in each run, in tokens; NaN where no head of it emerged.

    Columns: window (0: full attention in every layer), seed, detector, probe, layers (`full` or `sliding`), n_heads
    that emerged, head, tokens (of the checkpoint since which it is there, as `Run.onsets` has it), tokens_before (of
    the checkpoint before), best (the highest score at the end), trained (tokens in all).
    """
    rows: list[dict[str, Any]] = []
    for of_run in runs:
        run = open_run(out / "runs" / of_run.name)
        last: Any = run.scores(step="last")
        trained = int(last["tokens"].max())
        for (detector, probe), at_end in last.groupby(["detector", "probe"], observed=True):
            onsets: Any = run.onsets(str(detector), probe=str(probe))
            for kind, of_kind in at_end.groupby("kind", observed=True):
                own = onsets[(onsets.kind == kind) & onsets.onset_tokens.notna()].sort_values("onset_tokens")
                first = None if own.empty else own.iloc[0].to_dict()
                rows.append(
                    {
                        "window": of_run.window or 0,
                        "seed": of_run.seed,
                        "detector": str(detector),
                        "probe": str(probe),
                        "layers": str(kind),
                        "n_heads": len(own),
                        "head": "" if first is None else f"L{first['layer']}H{first['head']}",
                        "tokens": None if first is None else int(first["onset_tokens"]),
                        "tokens_before": None if first is None else _number(first["previous_tokens"]),
                        "best": float(of_kind.score.max()),
                        "trained": trained,
                    }
                )
    return pd.DataFrame(rows)


def width_sentences(table: pd.DataFrame) -> list[str]:
    """For each detector and probe, when the first head of a full layer emerged, window by window."""
    rows: Any = table[table["layers"] == FULL]
    sentences: list[str] = []
    for (detector, probe), group in rows.groupby(["detector", "probe"], sort=False):
        parts: list[str] = []
        for window, of_window in group.groupby("window"):
            name = f"window {window}" if window else "no window"
            emerged = of_window.tokens.dropna()
            best = f"highest {of_window.best.mean():.2f}"
            if emerged.empty:
                parts.append(f"{name} in none of {len(of_window)} seeds ({best})")
            else:
                spread = f"{int(emerged.min()):,} to {int(emerged.max()):,}"
                parts.append(f"{name} from {spread} tokens in {len(emerged)} of {len(of_window)} seeds ({best})")
        sentences.append(f"First {detector} head of a full layer on {probe}: {'; '.join(parts)}.")
    return sentences


def _number(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _pretrained_and_scanned(out: Path, corpus_folder: Path, run: WidthRun, steps: int) -> None:
    corpus = open_corpus(corpus_folder)
    checkpoints = out / "checkpoints" / run.name
    held_out = f"path={corpus.held_out},length=256,n_sequences=24"
    with one_thread():
        pretrain_run(width_recipe(run, corpus, steps=steps), checkpoints, corpus, on_step=lambda _: None)
        scan(
            checkpoints,
            out / "runs" / run.name,
            detectors=list(DETECTORS),
            probes=[f"text:{held_out}", "repeats:n=64,n_sequences=12", f"repeated_ngrams:{held_out}"],
            maps=False,
            on_progress=lambda _: None,
        )
