"""The measurements of a study as tables, and the tables that follow from them: recall, lock-in, early choices, causes.

Tables have a row per seed; `over_seeds` makes means and deviations of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.emergence.rank_statistics import spearman, within_layers
from workbench.experiments.conversion.arms import PREPARED, arm_of, sets_of
from workbench.experiments.conversion.keep_sets import (
    KeepSet,
    early_methods,
    is_linear,
    is_trained,
    ordered,
    trained_sets,
)
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import calls, piece_path, read
from workbench.heads import KVHead, WorkbenchError, brief

NO_TRAINING, CONTINUED, FROM_SCRATCH = "no training", "continued pretraining", "from scratch"
DAMAGES = ("leave_one_windowed", "restore_one", "window_gates", "linear_gates")
_HEAD = ["layer", "head"]


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a study, finished or not.

    `measured`: a row per seed, training, keep-set, probe and class (`label`; missing: all): `nats` and `accuracy` over
    `n` answers; `overlap` heads of the set are among the top. `scores`: a row per seed, training, keep-set, detector
    and head, with windows lifted or not. `rankings`: a row per seed, method and head. `early`: a row per seed,
    step, method, probe and class: nats and accuracy of the final model with the heads full that the checkpoint of that
    step would have kept, `shared` of which the last one keeps too. `forms`: a row per seed and head: the linear
    attention it gets, and the share of its output's variance which that leaves unexplained. `top`: each seed's top
    heads.
    `cpu_s`: of each kind of work, all processes. `calls`: how long each call took, how many pieces it finished, in how
    many processes. `missing`: files of pieces that are not finished.
    """

    study: Conversion
    seeds: tuple[int, ...]
    measured: pd.DataFrame
    scores: pd.DataFrame
    rankings: pd.DataFrame
    early: pd.DataFrame
    forms: pd.DataFrame
    top: dict[int, list[str]]
    cpu_s: dict[str, float]
    calls: list[dict[str, Any]]
    missing: list[Path]

    def __repr__(self) -> str:
        return brief(self)


def read_results(study: Conversion, out: Path, *, seeds: int) -> Results:
    """Read a finished study.

    Raises:
        WorkbenchError: if a piece is missing or damaged.
    """
    results = read_finished(study, out, seeds=seeds)
    if results.missing:
        raise WorkbenchError(f"{results.missing[0]} is missing; run the study for {seeds} seeds or more")
    return results


def read_finished(study: Conversion, out: Path, *, seeds: int) -> Results:
    """Read the finished pieces of a study that may still run: prepared seeds, and arms.

    Raises:
        WorkbenchError: if no seed is prepared, or a piece is damaged.
    """
    prepared = [seed for seed in range(seeds) if piece_path(out, seed, PREPARED).exists()]
    missing = [piece_path(out, seed, PREPARED) for seed in range(seeds) if seed not in prepared]
    if not prepared:
        raise WorkbenchError(f"{missing[0]} is missing; run the study for {seeds} seeds or more")
    by_seed = {seed: _of_seed(study, out, seed) for seed in prepared}
    missing += [path for rows in by_seed.values() for path in rows["missing"]]
    kinds_of_work = by_seed[prepared[0]]["cpu_s"]
    measured, scores, rankings, early, forms = (
        pd.DataFrame([row for rows in by_seed.values() for row in rows[name]])
        for name in ("measured", "scores", "rankings", "early", "forms")
    )
    return Results(
        study=study,
        seeds=tuple(prepared),
        measured=measured,
        scores=scores,
        rankings=rankings,
        early=early,
        forms=forms,
        top={seed: rows["top"] for seed, rows in by_seed.items()},
        cpu_s={kind: float(sum(rows["cpu_s"][kind] for rows in by_seed.values())) for kind in kinds_of_work},
        calls=calls(out),
        missing=missing,
    )


def _of_seed(study: Conversion, out: Path, seed: int) -> dict[str, Any]:
    """The rows of one seed's pieces, each with its keep-set and training."""
    prepared = read(piece_path(out, seed, PREPARED))
    sets = sets_of(prepared)
    top = {KVHead(*head) for head in prepared["top"]}

    def labelled(keep_set: KeepSet, training: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = {"method": keep_set.method, "n_kept": keep_set.n_kept, "draw": keep_set.draw, "sink": keep_set.sink}
        overlap = len(top & set(keep_set.heads))
        return [{"seed": seed, "training": training, **names, "overlap": overlap, **row} for row in rows]

    measured = [
        row
        for keep_set, rows in zip(sets, prepared["converted"], strict=True)
        for row in labelled(keep_set, NO_TRAINING, rows)
    ]
    scores = labelled(sets[0], NO_TRAINING, prepared["head_scores"] + prepared["converted_retrieval"])
    cost: dict[str, tuple[str, float]] = {}  # by name: methods that keep the same heads share an arm
    missing: dict[Path, None] = {}
    for keep_set in trained_sets(study, sets):
        for n in (n for n in (None, *range(len(study.continued))) if is_trained(study, keep_set, n_th=n)):
            arm = arm_of(keep_set, seed, None if n is None else study.continued[n])
            path = piece_path(out, seed, arm.name)
            if not path.exists():
                missing[path] = None
                continue
            piece = read(path)
            measured += labelled(keep_set, training_name(study, n), piece["measurements"])
            scores += labelled(keep_set, training_name(study, n), piece["head_scores"])
            cost[arm.name] = (FROM_SCRATCH if n is None else CONTINUED, piece["cpu_s"])
    spent = {kind: sum(seconds for k, seconds in cost.values() if k == kind) for kind in (CONTINUED, FROM_SCRATCH)}
    pretraining = prepared["pretraining_cpu_s"]
    return {
        "measured": measured,
        "scores": scores,
        "rankings": [{"seed": seed, **row} for row in prepared["rankings"]],
        "early": [{"seed": seed, **row} for row in _early_rows(study, prepared, sets)],
        "forms": [{"seed": seed, **row} for row in prepared.get("forms", [])],
        "top": [f"L{layer}H{head}" for layer, head in prepared["top"]],
        "missing": [*missing],
        "cpu_s": {"pretraining": pretraining, "ranking and converting": prepared["cpu_s"] - pretraining, **spent},
    }


def _early_rows(study: Conversion, prepared: dict[str, Any], sets: Sequence[KeepSet]) -> list[dict[str, Any]]:
    """Measurements of the final model with the heads that earlier checkpoints and it itself choose."""
    names = early_methods(study) if study.early else ()
    final = {s.method: i for i, s in enumerate(sets) if s.n_kept == study.n_kept and s.method in names}
    choices = prepared["early"] if study.early else []
    choices = choices + [
        {"step": study.steps, "method": name, "heads": sets[i].heads, "measurements": prepared["converted"][i]}
        for name, i in final.items()
    ]
    rows: list[dict[str, Any]] = []
    for choice in choices:
        of_final = set(sets[final[choice["method"]]].heads)
        shared = len(of_final & {KVHead(*head) for head in choice["heads"]})
        labels = {"step": choice["step"], "method": choice["method"], "shared": shared}
        rows += [{**labels, **row} for row in choice["measurements"]]
    return rows


def training_name(study: Conversion, n_th: int | None) -> str:
    """The name in tables of the n-th continued pretraining, or (None) of training from scratch."""
    return FROM_SCRATCH if n_th is None else str(study.continued[n_th])


def trainings(study: Conversion) -> list[str]:
    """The names of all trainings in tables, in order."""
    return [NO_TRAINING, *map(str, study.continued), FROM_SCRATCH]


def over_seeds(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds; draws of one seed are averaged first."""
    rows: Any = table  # pandas' own types know no grouping by several columns
    each = rows.groupby([*by, "seed"], sort=False, dropna=False)[value].mean().reset_index()
    return each.groupby(list(by), sort=False, dropna=False)[value].agg(["mean", "std", "count"]).reset_index()


def by_class(results: Results, probe: str, value: str) -> pd.DataFrame:
    """Mean and deviation over seeds of a probe's classes, by training and keep-set."""
    table: Any = results.measured
    table = table[(table.probe == probe) & table.label.notna()]
    return over_seeds(table, ["training", "method", "n_kept", "label"], value)


def recall_by_seed(results: Results) -> pd.DataFrame:
    """Per seed, training and keep-set: accuracy on needles from beyond the window, loss and accuracy on documents."""
    keys = ["seed", "training", "method", "n_kept", "draw", "overlap"]
    table: Any = results.measured
    far = table[(table.probe == "needle") & table.label.isin(results.study.far)]
    documents = table[(table.probe == "documents") & table.label.isna()]
    recall = far.groupby(keys, sort=False).accuracy.mean().rename("far_accuracy").to_frame()
    recall["far_nats"] = far.groupby(keys, sort=False).nats.mean()
    recall["documents_nats"] = documents.groupby(keys, sort=False).nats.mean()
    return recall.reset_index()


def damage_by_context(results: Results) -> pd.DataFrame:
    """Loss on documents above that of all heads full after the same training, by the length of the context."""
    table: Any = results.measured
    table = table[(table.probe == "documents") & table.label.notna()]
    full = table[table.method == "all"].set_index(["seed", "training", "label"]).nats.to_dict()
    # From scratch with every head full is the pretrained model itself.
    keys = zip(table.seed, table.training.replace(FROM_SCRATCH, NO_TRAINING), table.label, strict=True)
    above = table.nats - [full.get(key, float("nan")) for key in keys]
    return over_seeds(table.assign(above=above), ["training", "method", "n_kept", "label"], "above")


def recovered_share(results: Results) -> pd.DataFrame:
    """The share of the loss of converting every head that is recovered without training, per seed, keep-set and probe.

    Converting to windows or to linear attention, as the keep-set does with the other heads. `probe`: needles from
    beyond the window, documents, and every task; `share` of the gap in nats.
    """
    measured: Any = results.measured
    table: Any = _whole_probes(results, measured[measured.training == NO_TRAINING])
    keys = ["seed", "method", "n_kept", "draw", "probe"]
    nats = table.groupby(keys, sort=False).nats.mean().reset_index()
    none = nats.method.map(lambda method: "none_linear" if is_linear(method) else "none")
    ends = nats[nats.n_kept.isin((0, results.study.n_heads * results.study.n_layers))]
    ends = ends.drop_duplicates(["method", "seed", "probe"]).set_index(["method", "seed", "probe"]).nats

    def end(method: Any) -> Any:
        return ends.reindex(pd.MultiIndex.from_arrays([method, nats.seed, nats.probe])).to_numpy()

    full, converted = end(["all"] * len(nats)), end(none)
    return nats.assign(share=(converted - nats.nats) / (converted - full), training=NO_TRAINING)


def lost_early(results: Results) -> pd.DataFrame:
    """Nats per answer that an early choice of heads loses in the final model, against the choice of its window gates.

    The gates are those on the same probe where heads were ranked on it, else those on needles. Rows: seed, step,
    method, probe, shared (heads in common with the method's last choice), nats, accuracy, lost.
    """
    table: Any = _whole_probes(results, results.early) if len(results.early) else results.early
    if table.empty:
        return pd.DataFrame(columns=["seed", "step", "method", "probe", "shared", "nats", "accuracy", "lost"])
    keys = ["seed", "step", "method", "probe"]
    choices = table.groupby(keys, sort=False)[["shared", "nats", "accuracy"]].mean().reset_index()
    own = choices.probe.map(lambda probe: gates_on(probe, choices.method.unique()))
    best = choices[(choices.step == results.study.steps) & (choices.method == own)].set_index(["seed", "probe"]).nats
    index = pd.MultiIndex.from_frame(choices[["seed", "probe"]])
    return choices.assign(lost=choices.nats - best.reindex(index).to_numpy())


def _whole_probes(results: Results, measured: pd.DataFrame) -> pd.DataFrame:
    """Of measurements, those over all classes of a probe; of needles, those of the classes beyond the window."""
    table: Any = measured
    is_far = (table.probe == "needle") & table.label.isin(results.study.far)
    return table[is_far | ((table.probe != "needle") & table.label.isna())]


def gates_on(probe: str, methods: Collection[str]) -> str:
    """The window gates that were ranked on a probe, or those on needles."""
    return own if (own := f"window_gates_{probe}") in methods else "window_gates"


def random_sets(results: Results) -> pd.DataFrame:
    """Every plainly random set that was trained on: how many of its heads are top, recall before and after."""
    first = str(results.study.continued[0])
    table: Any = recall_by_seed(results)
    table = table[(table.method == "random") & (table.n_kept == results.study.n_kept)]
    wide = table.pivot_table(index=["seed", "draw", "overlap"], columns="training", values="far_accuracy")
    return (
        wide.reindex(columns=[NO_TRAINING, first])
        .dropna(subset=[first])
        .reset_index()[["overlap", "seed", "draw", NO_TRAINING, first]]
        .sort_values(["overlap", "seed", "draw"], ignore_index=True)
    )


def lock_in(results: Results) -> pd.DataFrame:
    """Spearman's correlation of each detector's scores in the pretrained model and after training.

    Windows are lifted on both sides. `spearman`: over all heads; `spearman_centred`: after subtracting each layer's
    mean. Rows: seed, training, method, draw, detector.
    """
    scores: Any = results.scores
    lifted = scores[scores.lifted]
    rows: list[dict[str, Any]] = []
    pretrained = lifted[lifted.training == NO_TRAINING].set_index(["seed", "detector", *_HEAD]).score.sort_index()
    trained = lifted[lifted.training != NO_TRAINING]
    keys = ["seed", "training", "method", "n_kept", "draw", "detector"]
    for key, group in trained.groupby(keys, sort=False):
        labels = dict(zip(keys, key, strict=True))
        after = group.set_index(_HEAD).score
        before = pretrained.loc[labels["seed"], labels["detector"]].reindex(after.index)
        rows.append({**labels, **_spearmans(before, after)})
    return pd.DataFrame(rows, columns=[*keys, "spearman", "spearman_centred"])


def kept_role(results: Results) -> pd.DataFrame:
    """The highest retrieval beyond the window of any head after training, in the model as converted.

    Windowed heads have none, so it is the best of the kept heads.
    """
    scores: Any = results.scores
    table = scores[~scores.lifted & (scores.training != NO_TRAINING)]
    keys = ["seed", "training", "method", "n_kept", "draw"]
    return table.groupby(keys, sort=False).score.max().reset_index()


def causes(results: Results) -> pd.DataFrame:
    """Spearman's correlation of heads' scores with the damage of converting them, per seed, detector and damage."""
    scores: Any = results.scores
    lifted = scores[scores.lifted & (scores.training == NO_TRAINING)]
    rankings: Any = results.rankings.rename(columns={"kv_head": "head"})
    rows: list[dict[str, Any]] = []
    for (seed, detector), group in lifted.groupby(["seed", "detector"], sort=False):
        score = group.set_index(_HEAD).score
        for name in damages(results):
            damage = rankings[(rankings.seed == seed) & (rankings.method == name)].set_index(_HEAD).score
            correlations = _spearmans(score, damage.reindex(score.index))
            rows.append({"seed": seed, "detector": detector, "damage": name, **correlations})
    return pd.DataFrame(rows)


def damages(results: Results) -> tuple[str, ...]:
    """The rankings of a study that measure what converting a head costs."""
    return DAMAGES if results.study.linear else DAMAGES[:-1]


def first_heads(results: Results, seed: int, method: str) -> list[KVHead]:
    """The first `n_kept` heads of a seed's model by a ranking."""
    rankings: Any = results.rankings
    rows = rankings[(rankings.seed == seed) & (rankings.method == method)].to_dict("records")
    scores = {KVHead(int(r["layer"]), int(r["kv_head"])): float(r["score"]) for r in rows}
    return ordered(scores)[: results.study.n_kept]


def _spearmans(a: Any, b: Any) -> dict[str, float]:
    """Of two series with the same index of heads: over all heads, and after subtracting each layer's mean."""
    layer = a.index.get_level_values("layer").to_numpy()
    one, other = a.to_numpy(), b.to_numpy()
    centred = within_layers(one, layer), within_layers(other, layer)
    return {"spearman": spearman(one, other), "spearman_centred": spearman(*centred)}
