"""A study told: report.md for people, report.json with the same numbers per seed for programs.

Numbers are means over seeds ± one standard deviation; each sentence of the findings is filled in from the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.console import duration
from workbench.experiments.conversion.answers import answers, early_table
from workbench.experiments.conversion.arms import PREPARED
from workbench.experiments.conversion.keep_sets import least, told_trainings
from workbench.experiments.conversion.linear_answer import forms_table, needs_table, told_forms
from workbench.experiments.conversion.markdown_tables import (
    by_count,
    by_training,
    causes_table,
    cell,
    classes,
    frame_table,
    lock_in_table,
    markdown,
    picked,
    training_rows,
)
from workbench.experiments.conversion.recovered import recovered_share, recovered_table
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    by_class,
    causes,
    damage_by_context,
    kept_role,
    lock_in,
    lost_early,
    over_seeds,
    random_sets,
    recall_by_seed,
    trainings,
)
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import write
from workbench.heads import KVHead

_LINEAR_LIMITS = (
    "Linear attention is of one feature map with two numbers fitted to each head; maps that are learned, larger "
    "states, gates or a window beside the state may cost less, and which heads then need softmax was not asked."
)


def write_report(results: Results, out: Path) -> tuple[Path, Path]:
    """Write out/report.md and out/report.json."""
    text, document = out / "report.md", out / "report.json"
    text.write_text(as_markdown(results), encoding="utf-8")
    write(document, as_document(results))
    return text, document


def as_document(results: Results) -> dict[str, Any]:
    """The report's tables as records, per seed; of `measured` what has `n_kept` heads, or all or none."""
    measured: Any = results.measured
    sizes = (0, results.study.n_kept, results.study.n_layers * results.study.n_heads)
    tables = {
        "recall": recall_by_seed(results),
        "measured": measured[measured.n_kept.isin(sizes)],
        "random": random_sets(results),
        "lock_in": lock_in(results),
        "kept_role": kept_role(results),
        "causes": causes(results),
        "recovered": recovered_share(results),
        "rankings": results.rankings,
        "early": lost_early(results),
        "forms": results.forms,
    }
    return {
        "study": asdict(results.study),
        "seeds": list(results.seeds),
        "missing": [f"{path.parent.name}/{path.stem}" for path in results.missing],
        "cpu_s": results.cpu_s,
        "calls": results.calls,
        "top": results.top,
        "not_claimed": not_claimed(results),
        **{name: _records(table) for name, table in tables.items()},
    }


def as_markdown(results: Results) -> str:
    """The whole report."""
    study = results.study
    recall = over_seeds(recall_by_seed(results), ["training", "method", "n_kept"], "far_accuracy")
    documents = over_seeds(recall_by_seed(results), ["training", "method", "n_kept"], "documents_nats")
    sections = [
        "# Conversion to sliding windows and linear attention, head by head",
        _setting(results),
        _unfinished(results),
        "\n".join(f"- {line}." for line in told_trainings(study)),
        "## Answers",
        answers(results),
        "## Findings",
        _findings(results, recall),
        "## What comes back on each kind of question, without training",
        f"Share of the loss of windowing every head (of making it linear, where the name says so) that the first "
        f"{study.n_kept} heads bring back when they stay full; needles from beyond the window, documents, and tasks.",
        recovered_table(results),
        *_linear(results),
        "## Recall beyond the window, without training",
        f"Share of needle words copied right, mean over distances {_listed(study.far)} (window {study.window}). "
        f"Random sets: {study.n_random} draws per seed, averaged first.",
        by_count(results, recall),
        "## Loss on documents, without training (nats per token)",
        by_count(results, documents),
        "## Recall beyond the window after training",
        f"{study.n_kept} heads full (`all`, `none`, `layers_*`: as named).",
        by_training(results, recall),
        "## Loss on documents after training (nats per token)",
        by_training(results, documents),
        "## Recall by distance",
        classes(results, by_class(results, "needle", "accuracy"), "distance", trainings(study)),
        "## Damage by length of context",
        "Loss on documents above that of `all` in the same training (nats per token), by how many tokens can be seen, "
        "rounded down to a power of two.",
        classes(results, damage_by_context(results), "context", trainings(study)),
        *_tasks(results),
        *_early(results),
        "## Random sets and the top",
        f"The top of each seed: {_tops(results)}. Plain random sets of {study.n_kept}, by how many of them are top:",
        frame_table(random_sets(results)),
        "## Lock-in",
        "Spearman of head scores before and after, windows lifted on both sides; in brackets after taking off each "
        "layer's mean. `all` is continued pretraining without any window, the measure of how far scores move anyway.",
        lock_in_table(results),
        "Highest retrieval beyond the window of any head, as the converted model runs (a windowed head has none). "
        f"Before conversion: {_retrieval_before(results)}.",
        by_training(results, over_seeds(kept_role(results), ["training", "method", "n_kept"], "score"), known=False),
        "Who takes the role over? Induction of each head that `least_induction` keeps, windows lifted:",
        _least(results),
        "## Are sinks the cause?",
        "Spearman of a head's score with the damage of windowing it (`linear_gates`: of making it linear), all heads; "
        "in brackets layer-centred.",
        causes_table(results),
        "A correlation may be there because sinks sit on the heads that matter for another reason. The test is to keep "
        f"the first tokens ({study.sink}) in sight of windowed heads:",
        _sinks(recall, documents, study),
        "## What is not claimed",
        not_claimed(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def headline(results: Results) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of recall beyond the window, keep-sets down and trainings across."""
    across = trainings(results.study)
    recall = over_seeds(recall_by_seed(results), ["training", "method", "n_kept"], "far_accuracy")
    return ["kept full", *across], training_rows(results, recall, across)


def not_claimed(results: Results) -> str:
    """The limits of such a study."""
    study = results.study
    return (
        f"These are models of {study.n_layers * study.n_heads} heads on a synthetic language of 32 words, one window "
        f"({study.window} of {study.length} tokens) and seeds {_listed(results.seeds)}, which share language and "
        "probes; step counts and learning rates were tuned to that language. In such models the heads that retrieve a "
        "needle are the induction heads, so that nothing is said about retrieval heads of another kind, about natural "
        "text, or about models a thousand times larger. That a role does not move is claimed for the lengths and "
        "learning rates of the table alone; longer or hotter training may move it further. Rankings were made on "
        "needles and are judged on other needles of the same kind. Correlations over few heads are rough, and in "
        "these models sinks form on the induction heads themselves." + (f" {_LINEAR_LIMITS}" if study.linear else "")
    )


def _setting(results: Results) -> str:
    study = results.study
    cpu = ", ".join(f"{name} {duration(seconds)}" for name, seconds in results.cpu_s.items())
    wall = ", ".join(
        f"{duration(call['wall_s'])} ({call['finished']} pieces, {call['workers']} processes)" for call in results.calls
    )
    tasks = f", with {' and '.join(study.tasks)}" if study.tasks else ""
    return (
        f"Llama of {study.n_layers} layers × {study.n_heads} heads × {study.d_head}, d_model {study.d_model}, trained "
        f"on {study.steps} steps of {study.batch} × {study.length} tokens of Copybook documents{tasks}. Window "
        f"{study.window}; seeds {_listed(results.seeds)}; mean ± standard deviation over seeds. "
        f"CPU time: {cpu}. Wall time of the calls that came to an end: {wall}."
    )


def _unfinished(results: Results) -> str:
    """What is missing where the study has not come to its end."""
    if not results.missing:
        return ""
    prepared = [path for path in results.missing if path.stem == PREPARED]
    n_arms = len(results.missing) - len(prepared)
    told = [f"seed {path.parent.name.removeprefix('seed')} is not prepared" for path in prepared]
    told += [f"{n_arms} arms of the other seeds are not trained"] if n_arms else []
    return f"**Partial: {'; '.join(told)}.** Means are over the seeds that are there; a dash or no ± means one or none."


def _findings(results: Results, recall: pd.DataFrame) -> str:
    study, first = results.study, str(results.study.continued[0])

    def at(training: str, method: str) -> str:
        return cell(picked(recall, training, method, study.n_kept))

    repaired = "; ".join(f"`{m}` {at(NO_TRAINING, m)}" for m in ("induction", "window_gates", "random_non_top"))
    least = ", ".join(f"{at(t, 'least_induction')} ({t})" for t in trainings(study)[1:])
    none = ", ".join(f"{at(t, 'none')} ({t})" for t in trainings(study)[1:])
    return "\n".join(
        [
            f"- Windowing every head takes recall beyond the window from {at(NO_TRAINING, 'all')} to "
            f"{at(NO_TRAINING, 'none')}; where windowed heads see the first tokens ({study.sink}) as well, to "
            f"{at(NO_TRAINING, 'none_sink')}.",
            f"- {study.n_kept} heads full, no training: {repaired}.",
            f"- The same after {first}: `induction` {at(first, 'induction')}, `window_gates` "
            f"{at(first, 'window_gates')}, `random_non_top` {at(first, 'random_non_top')}; no window at all "
            f"{at(first, 'all')}.",
            f"- The {study.n_kept} least induction-like heads: {at(NO_TRAINING, 'least_induction')} (no training), "
            f"{least}.",
            f"- Every head windowed: {none}.",
        ]
    )


def _tasks(results: Results) -> list[str]:
    names = {"hops": "hops", "counting": "lead"}
    found: list[str] = []
    for task in results.study.tasks:
        found.append(f"## Accuracy on {task}")
        found.append(classes(results, by_class(results, task, "accuracy"), names[task], trainings(results.study)))
    return found


def _early(results: Results) -> list[str]:
    if not results.study.early:
        return []
    return [
        "## How early could the heads be chosen?",
        f"Nats per answer lost in the final model, without training, by keeping the {results.study.n_kept} heads that "
        "the checkpoint of a step ranks first instead of those that window gates rank first in the final model, on the "
        "same probe (for documents on needles, which lie beyond the window). Below 0 a choice is the better one. Heads "
        "in common: with the last choice by the same ranking.",
        early_table(results),
    ]


def _linear(results: Results) -> list[str]:
    if results.study.linear is None:
        return []
    return [
        "## Windows and linear attention",
        told_forms(results),
        forms_table(results),
        f"The same {results.study.n_kept} heads kept in either conversion, no training: share of its loss that comes "
        "back.",
        needs_table(results),
    ]


def _sinks(recall: pd.DataFrame, documents: pd.DataFrame, study: Conversion) -> str:
    def both(training: str, method: str) -> str:
        found = [picked(table, training, method, study.n_kept) for table in (recall, documents)]
        return f"recall {cell(found[0])}, loss on documents {cell(found[1])}"

    times, pairs = (NO_TRAINING, str(study.continued[0])), (("none", "none_sink"), ("induction", "induction_sink"))
    return "\n".join(
        f"- {training}: `{without}` {both(training, without)}; `{kept}` {both(training, kept)}."
        for training in times
        for without, kept in pairs
    )


def _retrieval_before(results: Results) -> str:
    table: Any = results.scores
    mine = table[(table.training == NO_TRAINING) & (table.detector == "retrieval") & ~table.lifted]
    best = mine.groupby("seed").score.max()
    return ", ".join(f"{value:.2f}" for value in best)


def _tops(results: Results) -> str:
    return "; ".join(f"seed {seed}: {' '.join(heads)}" for seed, heads in results.top.items())


def _least(results: Results) -> str:
    """Induction of each kept head of `least_induction`, before and after every training, windows lifted."""
    table: Any = results.scores
    rankings: Any = results.rankings
    table = table[table.lifted & (table.detector == "induction")]
    across = trainings(results.study)
    rows: list[list[str]] = []
    for seed in results.seeds:
        mine = rankings[(rankings.seed == seed) & (rankings.method == "induction")].to_dict("records")
        induction = {KVHead(row["layer"], row["kv_head"]): float(row["score"]) for row in mine}
        for layer, head in least(induction, results.study.n_kept):
            of = table[(table.seed == seed) & (table.layer == layer) & (table["head"] == head)]
            after = of[of.method == "least_induction"].set_index("training").score.to_dict()
            cells = [f"{after[t]:.2f}" if t in after else "–" for t in across[1:]]
            rows.append([f"seed {seed} L{layer}H{head}", f"{induction[KVHead(layer, head)]:.2f}", *cells])
    return markdown([["head", *across], *rows])


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _records(table: Any) -> list[dict[str, Any]]:
    table = table.round(5)
    return table.astype(object).where(table.notna(), None).to_dict("records")
