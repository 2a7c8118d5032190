"""A study as Markdown tables: keep-sets down, trainings, heads kept or classes across, mean and deviation in a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    causes,
    damages,
    lock_in,
    over_seeds,
    recall_by_seed,
    trainings,
)

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return
_MAIN = (
    "all",
    "none",
    "none_sink",
    "induction",
    "window_gates",
    "window_gates_mixed",
    "least_induction",
    "random_non_top",
    "random",
    "none_linear",
    "linear_gates",
    "linear_gates_mixed",
    "window_gates_linear",
    "induction_linear",
    "random_linear",
)


def by_count(results: Results, table: Table) -> str:
    """Methods down, heads kept across, without training."""
    mine = table[table.training == NO_TRAINING]
    overlaps: Table = over_seeds(recall_by_seed(results), ["training", "method", "n_kept"], "overlap")
    counts = results.study.kept_counts
    rows = [["method", *(f"{k} full" for k in counts), "top heads among them"]]
    for method in mine.method.unique():
        if method.startswith(("all", "none", "layers_")):  # of a number of its own
            found = mine[mine.method == method].iloc[0]
            shown = ["–"] * len(counts)
            shown[0] = f"{cell(found)} ({int(found.n_kept)} full)"
            rows.append([f"`{method}`", *shown, ""])
            continue
        cells = [cell(picked(mine, NO_TRAINING, method, k)) for k in counts]
        shared = [picked(overlaps, NO_TRAINING, method, k) for k in counts]
        rows.append([f"`{method}`", *cells, " ".join("–" if s is None else f"{s['mean']:.1f}" for s in shared)])
    return markdown(rows)


def by_training(results: Results, table: Table, *, known: bool = True) -> str:
    """Methods down, trainings across."""
    across = trainings(results.study)[0 if known else 1 :]
    rows = [[f"`{method}`", *cells] for method, *cells in training_rows(results, table, across)]
    return markdown([["kept full", *across], *rows])


def training_rows(results: Results, table: Table, across: Sequence[str]) -> list[list[str]]:
    """The keep-sets that the first continued pretraining was done with, and their cells."""
    trained = table[table.training == str(results.study.continued[0])]
    kept = trained[["method", "n_kept"]].drop_duplicates().itertuples(index=False)
    return [[method, *(cell(picked(table, t, method, n_kept)) for t in across)] for method, n_kept in kept]


def classes(results: Results, table: Table, name: str, across: Sequence[str]) -> str:
    """Trainings and the main keep-sets down, the classes of a probe across."""
    labels = sorted(int(label) for label in table.label.unique())
    rows = [["training", "kept full", *(f"{name} {label}" for label in labels)]]
    for training in across:
        for method in _MAIN:
            cells = [cell(picked(table[table.label == x], training, method, results.study.n_kept)) for x in labels]
            if set(cells) != {"–"}:
                rows.append([training, f"`{method}`", *cells])
    return markdown(rows)


def lock_in_table(results: Results) -> str:
    """Trainings and keep-sets down, detectors across."""
    table: Table = lock_in(results)
    by = ["training", "method", "n_kept", "detector"]
    plain: Table = over_seeds(table, by, "spearman")
    centred: Table = over_seeds(table, by, "spearman_centred")
    detectors = table.detector.unique().tolist()
    rows = [["training", "kept full", *detectors]]
    for training, method, n_kept in plain[["training", "method", "n_kept"]].drop_duplicates().itertuples(index=False):
        if method not in _MAIN:
            continue
        cells: list[str] = []
        for detector in detectors:
            two = [picked(t[t.detector == detector], training, method, n_kept) for t in (plain, centred)]
            cells.append(f"{cell(two[0])} [{cell(two[1])}]")
        rows.append([training, f"`{method}`", *cells])
    order = {name: i for i, name in enumerate(trainings(results.study))}
    return markdown([rows[0], *sorted(rows[1:], key=lambda row: order[row[0]])])


def causes_table(results: Results) -> str:
    """Detectors down, ways to measure the damage across."""
    table: Table = causes(results)
    by = ["detector", "damage"]
    plain: Table = over_seeds(table, by, "spearman")
    centred: Table = over_seeds(table, by, "spearman_centred")
    rows = [["score", *(f"`{damage}`" for damage in damages(results))]]
    for detector in table.detector.unique():
        cells: list[str] = []
        for damage in damages(results):
            two = [t[(t.detector == detector) & (t.damage == damage)].iloc[0].to_dict() for t in (plain, centred)]
            cells.append(f"{cell(two[0])} [{cell(two[1])}]")
        rows.append([detector, *cells])
    return markdown(rows)


def picked(table: Table, training: str, method: str, n_kept: int) -> dict[str, Any] | None:
    """The row of a keep-set; sets of no chosen number have one number only."""
    mine = table[(table.training == training) & (table.method == method)]
    if len(mine.n_kept.unique()) > 1:
        mine = mine[mine.n_kept == n_kept]
    return None if mine.empty else mine.iloc[0].to_dict()


def cell(found: Any) -> str:
    """`.83 ± .05`; a dash where nothing was measured, no deviation from one seed."""
    if found is None or math.isnan(found["mean"]):
        return "–"
    mean = round(found["mean"], 2) or 0.0  # no minus before a zero
    return f"{mean:.2f}" + ("" if math.isnan(found["std"]) else f" ± {found['std']:.2f}")


def frame_table(frame: Table) -> str:
    """A table as it is, fractions to two places."""
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return markdown([list(map(str, frame.columns)), *rows])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of which the first row is the head."""
    first, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([first, "|" + "---|" * len(rows[0]), *rest])
