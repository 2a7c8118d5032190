"""The parts of a study as tables, and what follows from them: recall by keep-set and training, lock-in, sinks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.experiments.conversion.arms import PREPARED, arm_of, sets_of
from workbench.experiments.conversion.keep_sets import KeepSet, early_methods, is_trained, ordered, trained_sets
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import calls, part_path, read
from workbench.heads import KVHead, WorkbenchError

NO_TRAINING, CONTINUED, FROM_SCRATCH = "no training", "continued pretraining", "from scratch"
DAMAGES = ("leave_one_windowed", "restore_one", "window_gates", "linear_gates")


@dataclass(frozen=True, slots=True)
class Results:
    """A study, finished or as far as it is.

    `measured`: a row per seed, training, keep-set, probe and class (`label`; missing: all): `nats` and `accuracy` over
    `n` answers; `overlap` heads of the set are among the top. `scores`: a row per seed, training, keep-set, detector
    and head, with windows lifted or not. `rankings`: a row per seed, method and head. `early`: a row per seed,
    step, method, probe and class: nats and accuracy of the final model with the heads full that the checkpoint of that
    step would have kept, `shared` of which the last one keeps too. `forms`: a row per seed and head: the linear
    attention it gets, and the share of its output's variance which that leaves unexplained. `top`: each seed's top
    heads.
    `cpu_s`: of each kind of work, all processes. `calls`: how long each call took, how many pieces it finished, in how
    many processes. `missing`: parts that are not there yet.
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


def read_results(study: Conversion, out: Path, *, seeds: int) -> Results:
    """Read a study that has been run.

    Raises:
        WorkbenchError: if some of it is missing or damaged.
    """
    results = read_finished(study, out, seeds=seeds)
    if results.missing:
        raise WorkbenchError(f"{results.missing[0]} is missing; run the study for {seeds} seeds or more")
    return results


def read_finished(study: Conversion, out: Path, *, seeds: int) -> Results:
    """Read what is there of a study that may still run: the seeds that are prepared, the arms that are done.

    Raises:
        WorkbenchError: if no seed is prepared, or a part is damaged.
    """
    prepared = [seed for seed in range(seeds) if part_path(out, seed, PREPARED).exists()]
    missing = [part_path(out, seed, PREPARED) for seed in range(seeds) if seed not in prepared]
    if not prepared:
        raise WorkbenchError(f"{missing[0]} is missing; run the study for {seeds} seeds or more")
    found = [_of_seed(study, out, seed) for seed in prepared]
    missing += [path for one in found for path in one["missing"]]
    cpu_s = {kind: float(sum(one["cpu_s"][kind] for one in found)) for kind in found[0]["cpu_s"]}
    measured, scores, rankings, early, forms = (
        pd.DataFrame([row for one in found for row in one[name]])
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
        top={seed: one["top"] for seed, one in zip(prepared, found, strict=True)},
        cpu_s=cpu_s,
        calls=calls(out),
        missing=missing,
    )


def _of_seed(study: Conversion, out: Path, seed: int) -> dict[str, Any]:
    """The rows of one seed's parts, each with the keep-set and training it is of."""
    prepared = read(part_path(out, seed, PREPARED))
    sets = sets_of(prepared)
    top = {KVHead(*head) for head in prepared["top"]}

    def of(one: KeepSet, training: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = {"method": one.method, "n_kept": one.n_kept, "draw": one.draw, "sink": one.sink}
        overlap = len(top & set(one.heads))
        return [{"seed": seed, "training": training, **names, "overlap": overlap, **row} for row in rows]

    measured = [r for one, rows in zip(sets, prepared["converted"], strict=True) for r in of(one, NO_TRAINING, rows)]
    scores = of(sets[0], NO_TRAINING, prepared["head_scores"] + prepared["converted_retrieval"])
    cost: dict[str, tuple[str, float]] = {}  # by name: methods that keep the same heads share an arm
    missing: dict[Path, None] = {}
    for one in trained_sets(study, sets):
        for n in (n for n in (None, *range(len(study.continued))) if is_trained(study, one, n_th=n)):
            arm = arm_of(one, seed, None if n is None else study.continued[n])
            path = part_path(out, seed, arm.name)
            if not path.exists():
                missing[path] = None
                continue
            part = read(path)
            measured += of(one, training_name(study, n), part["measurements"])
            scores += of(one, training_name(study, n), part["head_scores"])
            cost[arm.name] = (FROM_SCRATCH if n is None else CONTINUED, part["cpu_s"])
    spent = {kind: sum(seconds for k, seconds in cost.values() if k == kind) for kind in (CONTINUED, FROM_SCRATCH)}
    pretraining = prepared["pretraining_cpu_s"]
    return {
        "measured": measured,
        "scores": scores,
        "rankings": [{"seed": seed, **row} for row in prepared["rankings"]],
        "early": [{"seed": seed, **row} for row in _early(study, prepared, sets)],
        "forms": [{"seed": seed, **row} for row in prepared.get("forms", [])],
        "top": [f"L{layer}H{head}" for layer, head in prepared["top"]],
        "missing": [*missing],
        "cpu_s": {"pretraining": pretraining, "ranking and converting": prepared["cpu_s"] - pretraining, **spent},
    }


def _early(study: Conversion, prepared: dict[str, Any], sets: Sequence[KeepSet]) -> list[dict[str, Any]]:
    """What heads chosen early are worth in the final model, and those that it chooses itself."""
    names = early_methods(study) if study.early else ()
    last = {one.method: i for i, one in enumerate(sets) if one.n_kept == study.n_kept and one.method in names}
    found = prepared["early"] if study.early else []
    found = found + [
        {"step": study.steps, "method": name, "heads": sets[i].heads, "measurements": prepared["converted"][i]}
        for name, i in last.items()
    ]
    rows: list[dict[str, Any]] = []
    for one in found:
        of_last = set(sets[last[one["method"]]].heads)
        shared = len(of_last & {KVHead(*head) for head in one["heads"]})
        where = {"step": one["step"], "method": one["method"], "shared": shared}
        rows += [{**where, **row} for row in one["measurements"]]
    return rows


def training_name(study: Conversion, n_th: int | None) -> str:
    """How tables call the n-th continued pretraining, or (None) training from scratch."""
    return FROM_SCRATCH if n_th is None else str(study.continued[n_th])


def trainings(study: Conversion) -> list[str]:
    """All that tables have, in order."""
    return [NO_TRAINING, *map(str, study.continued), FROM_SCRATCH]


def recall_by_seed(results: Results) -> pd.DataFrame:
    """Per seed, training and keep-set: accuracy on needles from beyond the window, loss and accuracy on documents."""
    who = ["seed", "training", "method", "n_kept", "draw", "overlap"]
    table: Any = results.measured
    far = table[(table.probe == "needle") & table.label.isin(results.study.far)]
    pooled = table[(table.probe == "documents") & table.label.isna()]
    found = far.groupby(who, sort=False).accuracy.mean().rename("far_accuracy").to_frame()
    found["far_nats"] = far.groupby(who, sort=False).nats.mean()
    found["documents_nats"] = pooled.groupby(who, sort=False).nats.mean()
    return found.reset_index()


def pooled(results: Results, measured: pd.DataFrame) -> pd.DataFrame:
    """Of measurements, those of whole probes; of needles, those from beyond the window."""
    table: Any = measured
    is_far = (table.probe == "needle") & table.label.isin(results.study.far)
    return table[is_far | ((table.probe != "needle") & table.label.isna())]


def lost_early(results: Results) -> pd.DataFrame:
    """Nats per answer that a choice of heads loses in the final model against what its own window gates choose.

    Those on the same probe, where heads were ranked on it, else those on needles. Rows: seed, step, method, probe,
    shared (heads in common with the method's last choice), nats, accuracy, lost.
    """
    table: Any = pooled(results, results.early) if len(results.early) else results.early
    if table.empty:
        return pd.DataFrame(columns=["seed", "step", "method", "probe", "shared", "nats", "accuracy", "lost"])
    who = ["seed", "step", "method", "probe"]
    found = table.groupby(who, sort=False)[["shared", "nats", "accuracy"]].mean().reset_index()
    own = found.probe.map(lambda probe: gates_on(probe, found.method.unique()))
    best = found[(found.step == results.study.steps) & (found.method == own)].set_index(["seed", "probe"]).nats
    at = pd.MultiIndex.from_frame(found[["seed", "probe"]])
    return found.assign(lost=found.nats - best.reindex(at).to_numpy())


def gates_on(probe: str, methods: Collection[str]) -> str:
    """The window gates that were ranked on a probe, or those on needles."""
    return own if (own := f"window_gates_{probe}") in methods else "window_gates"


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


def damage_by_context(results: Results) -> pd.DataFrame:
    """Loss on documents above that of all heads full after the same training, by the length of the context."""
    table: Any = results.measured
    table = table[(table.probe == "documents") & table.label.notna()]
    full = table[table.method == "all"].set_index(["seed", "training", "label"]).nats.to_dict()
    # From scratch with every head full is the pretrained model itself.
    keys = zip(table.seed, table.training.replace(FROM_SCRATCH, NO_TRAINING), table.label, strict=True)
    above = table.nats - [full.get(key, float("nan")) for key in keys]
    return over_seeds(table.assign(above=above), ["training", "method", "n_kept", "label"], "above")


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
    """Do heads keep their scores? Spearman of each detector's scores in the pretrained model and after training.

    Windows are lifted on both sides. `spearman`: over all heads; `spearman_centred`: after each layer's mean is taken
    off. Rows: seed, training, method, draw, detector.
    """
    scores: Any = results.scores
    lifted = scores[scores.lifted]
    where = ["layer", "head"]
    rows: list[dict[str, Any]] = []
    first = lifted[lifted.training == NO_TRAINING].set_index(["seed", "detector", *where]).score.sort_index()
    after = lifted[lifted.training != NO_TRAINING]
    who = ["seed", "training", "method", "n_kept", "draw", "detector"]
    for key, group in after.groupby(who, sort=False):
        found = dict(zip(who, key, strict=True))
        now = group.set_index(where).score
        before = first.loc[found["seed"], found["detector"]].reindex(now.index)
        layer = now.index.get_level_values("layer").to_numpy()
        rows.append({**found, **_spearmans(before.to_numpy(), now.to_numpy(), layer)})
    return pd.DataFrame(rows, columns=[*who, "spearman", "spearman_centred"])


def kept_role(results: Results) -> pd.DataFrame:
    """The highest retrieval beyond the window of any head, as the converted model runs, after training.

    Windowed heads cannot have any: it is the best of the kept heads.
    """
    scores: Any = results.scores
    table = scores[~scores.lifted & (scores.training != NO_TRAINING)]
    who = ["seed", "training", "method", "n_kept", "draw"]
    return table.groupby(who, sort=False).score.max().reset_index()


def causes(results: Results) -> pd.DataFrame:
    """Which scores of a head go with the damage that converting it does? Spearman per seed, detector and damage."""
    scores: Any = results.scores
    lifted = scores[scores.lifted & (scores.training == NO_TRAINING)]
    where = ["layer", "head"]
    ranked: Any = results.rankings.rename(columns={"kv_head": "head"})
    rows: list[dict[str, Any]] = []
    for (seed, detector), group in lifted.groupby(["seed", "detector"], sort=False):
        score = group.set_index(where).score
        layer = score.index.get_level_values("layer").to_numpy()
        for damage in damages(results):
            mine = ranked[(ranked.seed == seed) & (ranked.method == damage)].set_index(where).score
            found = _spearmans(score.to_numpy(), mine.reindex(score.index).to_numpy(), layer)
            rows.append({"seed": seed, "detector": detector, "damage": damage, **found})
    return pd.DataFrame(rows)


def first_heads(results: Results, seed: int, method: str) -> list[KVHead]:
    """The first `n_kept` heads of a seed's model by a ranking."""
    ranked: Any = results.rankings
    rows = ranked[(ranked.seed == seed) & (ranked.method == method)].to_dict("records")
    scores = {KVHead(int(r["layer"]), int(r["kv_head"])): float(r["score"]) for r in rows}
    return ordered(scores)[: results.study.n_kept]


def damages(results: Results) -> tuple[str, ...]:
    """The rankings of a study that say what converting a head costs."""
    return DAMAGES if results.study.linear else DAMAGES[:-1]


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of ranks, ties sharing theirs; NaN where one of them is constant."""
    of_a, of_b = (pd.Series(x).rank().to_numpy(dtype=np.float64) for x in (a, b))
    if np.ptp(of_a) == 0 or np.ptp(of_b) == 0:
        return float("nan")
    return float(np.corrcoef(of_a, of_b)[0, 1])


def _spearmans(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], layer: Int[np.ndarray, " n"]
) -> dict[str, float]:
    of_a, of_b = (_centred(x, layer) for x in (a, b))
    return {"spearman": spearman(a, b), "spearman_centred": spearman(of_a, of_b)}


def _centred(x: Float[np.ndarray, " n"], layer: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    of_layer = [x[layer == one].mean() for one in layer]
    return x - np.array(of_layer)
