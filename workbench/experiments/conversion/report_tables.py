"""Markdown tables of a study's results: keep-sets or rankings down, trainings, counts or classes across.

A value is a mean over seeds ± a standard deviation, or a dash where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workbench.experiments.conversion.keep_sets import least
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    causes,
    damages,
    lock_in,
    lost_early,
    over_seeds,
    recall_by_seed,
    recovered_share,
    trainings,
)
from workbench.heads import KVHead

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return
DASH = "–"
BY_KEEP_SET = ["training", "method", "n_kept"]
_SHORT_HALF_LIFE = 16.0  # tokens
_MAIN = (
    *("all", "none", "none_sink", "induction", "window_gates", "window_gates_mixed", "least_induction"),
    *("random_non_top", "random", "none_linear", "linear_gates", "linear_gates_mixed", "window_gates_linear"),
    *("induction_linear", "random_linear"),
)
# Rankings whose heads are kept in either conversion.
_IN_EITHER = ("window_gates", "linear_gates", "window_gates_mixed", "linear_gates_mixed", "induction", "random")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the head."""
    first, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([first, "|" + "---|" * len(rows[0]), *rest])


def mean_and_sd(row: Any) -> str:
    """`0.83 ± 0.05`; a dash where nothing was measured, no deviation from one seed."""
    if row is None or math.isnan(row["mean"]):
        return DASH
    mean = round(row["mean"], 2) or 0.0  # no minus before a zero
    return f"{mean:.2f}" + ("" if math.isnan(row["std"]) else f" ± {row['std']:.2f}")


def row_of(table: Table, training: str, method: str, n_kept: int) -> dict[str, Any] | None:
    """The row of a keep-set; sets whose number is not chosen have one number only."""
    rows = table[(table.training == training) & (table.method == method)]
    if len(rows.n_kept.unique()) > 1:
        rows = rows[rows.n_kept == n_kept]
    return None if rows.empty else rows.iloc[0].to_dict()


def by_count(results: Results, table: Table) -> str:
    """Methods down, heads kept across, without training."""
    untrained = table[table.training == NO_TRAINING]
    overlaps: Table = over_seeds(recall_by_seed(results), BY_KEEP_SET, "overlap")
    counts = results.study.kept_counts
    rows = [["method", *(f"{k} full" for k in counts), "top heads among them"]]
    for method in untrained.method.unique():
        if method.startswith(("all", "none", "layers_")):  # with a number of heads of its own
            row = untrained[untrained.method == method].iloc[0]
            values = [DASH] * len(counts)
            values[0] = f"{mean_and_sd(row)} ({int(row.n_kept)} full)"
            rows.append([f"`{method}`", *values, ""])
            continue
        values = [mean_and_sd(row_of(untrained, NO_TRAINING, method, k)) for k in counts]
        shared = [row_of(overlaps, NO_TRAINING, method, k) for k in counts]
        rows.append([f"`{method}`", *values, " ".join(DASH if s is None else f"{s['mean']:.1f}" for s in shared)])
    return markdown(rows)


def by_training(results: Results, table: Table, *, with_untrained: bool = True) -> str:
    """Methods down, trainings across."""
    across = trainings(results.study)[0 if with_untrained else 1 :]
    rows = [[f"`{method}`", *values] for method, *values in training_rows(results, table, across)]
    return markdown([["kept full", *across], *rows])


def training_rows(results: Results, table: Table, across: Sequence[str]) -> list[list[str]]:
    """The keep-sets that had the first continued pretraining, and their values."""
    trained = table[table.training == str(results.study.continued[0])]
    keep_sets = trained[["method", "n_kept"]].drop_duplicates().itertuples(index=False)
    return [[method, *(mean_and_sd(row_of(table, t, method, n_kept)) for t in across)] for method, n_kept in keep_sets]


def by_class_table(results: Results, table: Table, name: str, across: Sequence[str]) -> str:
    """Trainings and the main keep-sets down, the classes of a probe across."""
    labels = sorted(int(label) for label in table.label.unique())
    rows = [["training", "kept full", *(f"{name} {label}" for label in labels)]]
    for training in across:
        for method in _MAIN:
            of_label = [row_of(table[table.label == label], training, method, results.study.n_kept) for label in labels]
            values = [mean_and_sd(row) for row in of_label]
            if set(values) != {DASH}:
                rows.append([training, f"`{method}`", *values])
    return markdown(rows)


def recovered_table(results: Results) -> str:
    """Rankings down, probes across: the share that the first `n_kept` heads recover."""
    table: Table = recovered_share(results)
    n_kept, probes = results.study.n_kept, table.probe.unique().tolist()
    means: Table = over_seeds(table, [*BY_KEEP_SET, "probe"], "share")
    rows = [["first heads by", *(f"`{probe}`" for probe in probes)]]
    for method in means[means.n_kept == n_kept].method.unique():
        of_probe = [row_of(means[means.probe == probe], NO_TRAINING, method, n_kept) for probe in probes]
        rows.append([f"`{method}`", *map(mean_and_sd, of_probe)])
    return markdown(rows)


def either_conversion_table(results: Results) -> str:
    """Rankings down, conversions and probes across: the share that the first `n_kept` heads recover."""
    table: Table = recovered_share(results)
    probes, n_kept = table.probe.unique().tolist(), results.study.n_kept
    means: Table = over_seeds(table, [*BY_KEEP_SET, "probe"], "share")
    rows = [["first heads by", *(f"{to}: `{p}`" for to in ("windows", "linear") for p in probes)]]
    for ranking in _IN_EITHER:
        is_linear_only = ranking.startswith("linear_gates")
        methods = ("", ranking) if is_linear_only else (ranking, f"{ranking}_linear")
        values = [
            mean_and_sd(row_of(means[means.probe == probe], NO_TRAINING, method, n_kept))
            for method in methods
            for probe in probes
        ]
        if set(values) != {DASH}:
            rows.append([f"`{ranking}`", *values])
    return markdown(rows)


def forms_table(results: Results) -> str:
    """Layers down: how near linear attention comes to the heads of each without training, and its numbers."""
    forms: Table = results.forms
    rows = [["layer", "variance of outputs left unexplained", "heads that forget half within 16 tokens", "sharpness"]]
    for layer, of_layer in forms.groupby("layer"):
        by_seed = of_layer.groupby("seed").error.mean()
        is_short = of_layer.decay < 0.5 ** (1 / _SHORT_HALF_LIFE) + 1e-9
        error = {"mean": float(by_seed.mean()), "std": float(by_seed.std())}
        sharpness = ", ".join(f"{value:g}" for value in sorted(of_layer.sharpness.unique()))
        rows.append([str(layer), mean_and_sd(error), f"{int(is_short.sum())} of {len(of_layer)}", sharpness])
    return markdown(rows)


def early_table(results: Results) -> str:
    """Methods and probes down, steps across: nats per answer lost, as `lost_early` has it."""
    table: Table = lost_early(results)
    steps = (*results.study.early_steps, results.study.steps)
    lost: Table = over_seeds(table, ["step", "method", "probe"], "lost")
    shared: Table = over_seeds(table, ["step", "method"], "shared")
    rows = [["chosen by", "", *(f"step {step}" for step in steps)]]
    for method in table.method.unique():
        by_step = shared[shared.method == method].set_index("step")
        rows.append([f"`{method}`", "heads in common", *(mean_and_sd(by_step.loc[step]) for step in steps)])
        for probe in table.probe.unique():
            by_step = lost[(lost.method == method) & (lost.probe == probe)].set_index("step")
            rows.append(["", f"lost on {probe}", *(mean_and_sd(by_step.loc[step]) for step in steps)])
    return markdown(rows)


def lock_in_table(results: Results) -> str:
    """Trainings and keep-sets down, detectors across: the correlation, and in brackets the layer-centred one."""
    table: Table = lock_in(results)
    by = [*BY_KEEP_SET, "detector"]
    plain: Table = over_seeds(table, by, "spearman")
    centred: Table = over_seeds(table, by, "spearman_centred")
    detectors = table.detector.unique().tolist()
    rows: list[list[str]] = []
    for training, method, n_kept in plain[BY_KEEP_SET].drop_duplicates().itertuples(index=False):
        if method not in _MAIN:
            continue
        values: list[str] = []
        for detector in detectors:
            pair = [row_of(t[t.detector == detector], training, method, n_kept) for t in (plain, centred)]
            values.append(f"{mean_and_sd(pair[0])} [{mean_and_sd(pair[1])}]")
        rows.append([training, f"`{method}`", *values])
    order = {name: i for i, name in enumerate(trainings(results.study))}
    return markdown([["training", "kept full", *detectors], *sorted(rows, key=lambda row: order[row[0]])])


def causes_table(results: Results) -> str:
    """Detectors down, ways to measure the damage across: the correlation, and in brackets the layer-centred one."""
    table: Table = causes(results)
    by = ["detector", "damage"]
    plain: Table = over_seeds(table, by, "spearman")
    centred: Table = over_seeds(table, by, "spearman_centred")
    rows = [["score", *(f"`{damage}`" for damage in damages(results))]]
    for detector in table.detector.unique():
        values: list[str] = []
        for damage in damages(results):
            pair = [t[(t.detector == detector) & (t.damage == damage)].iloc[0].to_dict() for t in (plain, centred)]
            values.append(f"{mean_and_sd(pair[0])} [{mean_and_sd(pair[1])}]")
        rows.append([detector, *values])
    return markdown(rows)


def least_induction_table(results: Results) -> str:
    """Induction of each head that `least_induction` keeps, before and after every training, windows lifted."""
    scores: Table = results.scores
    rankings: Table = results.rankings
    scores = scores[scores.lifted & (scores.detector == "induction") & (scores.method == "least_induction")]
    across = trainings(results.study)
    rows: list[list[str]] = []
    for seed in results.seeds:
        of_seed = rankings[(rankings.seed == seed) & (rankings.method == "induction")].to_dict("records")
        induction = {KVHead(row["layer"], row["kv_head"]): float(row["score"]) for row in of_seed}
        for layer, head in least(induction, results.study.n_kept):
            of_head = scores[(scores.seed == seed) & (scores.layer == layer) & (scores["head"] == head)]
            after = of_head.set_index("training").score.to_dict()
            values = [f"{after[t]:.2f}" if t in after else DASH for t in across[1:]]
            rows.append([f"seed {seed} L{layer}H{head}", f"{induction[KVHead(layer, head)]:.2f}", *values])
    return markdown([["head", *across], *rows])


def frame_table(frame: Table) -> str:
    """A data frame as it is, fractions to two decimals."""
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return markdown([list(map(str, frame.columns)), *rows])
