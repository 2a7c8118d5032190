"""The report of a study: report.md for people, report.json with the same numbers per seed for programs.

The Markdown report begins with the study's questions (`answers`); each answer and finding is filled in from the tables.
Numbers are means over seeds ± one standard deviation, a dash where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.console import duration
from workbench.experiments.conversion.arms import PREPARED
from workbench.experiments.conversion.keep_sets import format_trainings
from workbench.experiments.conversion.report_tables import (
    BY_KEEP_SET,
    DASH,
    Table,
    by_class_table,
    by_count,
    by_training,
    causes_table,
    early_table,
    either_conversion_table,
    forms_table,
    frame_table,
    least_induction_table,
    lock_in_table,
    mean_and_sd,
    recovered_table,
    row_of,
    training_rows,
)
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    by_class,
    causes,
    damage_by_context,
    first_heads,
    gates_on,
    kept_role,
    lock_in,
    lost_early,
    over_seeds,
    random_sets,
    recall_by_seed,
    recovered_share,
    trainings,
)
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import write
from workbench.heads import KVHead
from workbench.hooks import LinearAttention

TOLERANCE = 0.1  # nats per answer that an early choice of heads may lose
_PRIORS = ("induction", "retrieval", "far_mass")
_REPAIRED_BY = ("all", "none", "window_gates", "window_gates_mixed", "induction", "least_induction", "random_non_top")
_LINEAR_REPAIRED_BY = (
    *("all", "none", "none_linear", "linear_gates", "linear_gates_mixed", "window_gates_linear"),
    *("window_gates_mixed_linear", "induction_linear", "random_linear"),
)
_PATTERNS = ("previous_token", "induction", "sink")  # of the heads that only one conversion needs
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
    """The report's tables as records, per seed; of `measured` the keep-sets of `n_kept` heads, of all or of none."""
    measured: Table = results.measured
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
    recall, documents = _recall(results), _document_loss(results)
    sections = [
        "# Conversion to sliding windows and linear attention, head by head",
        _setting(results),
        _unfinished(results),
        "\n".join(f"- {line}." for line in format_trainings(study)),
        "## Answers",
        answers(results),
        "## Findings",
        _findings(results, recall),
        "## What comes back on each kind of question, without training",
        f"Share of the loss of windowing every head (of making it linear, where the name says so) that the first "
        f"{study.n_kept} heads bring back when they stay full; needles from beyond the window, documents, and tasks.",
        recovered_table(results),
        *_linear_sections(results),
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
        by_class_table(results, by_class(results, "needle", "accuracy"), "distance", trainings(study)),
        "## Damage by length of context",
        "Loss on documents above that of `all` in the same training (nats per token), by how many tokens can be seen, "
        "rounded down to a power of two.",
        by_class_table(results, damage_by_context(results), "context", trainings(study)),
        *_task_sections(results),
        *_early_sections(results),
        "## Random sets and the top",
        f"The top of each seed: {_tops(results)}. Plain random sets of {study.n_kept}, by how many of them are top:",
        frame_table(random_sets(results)),
        "## Lock-in",
        "Spearman of head scores before and after, windows lifted on both sides; in brackets after taking off each "
        "layer's mean. `all` is continued pretraining without any window, the measure of how far scores move anyway.",
        lock_in_table(results),
        "Highest retrieval beyond the window of any head, as the converted model runs (a windowed head has none). "
        f"Before conversion: {_retrieval_before(results)}.",
        by_training(results, over_seeds(kept_role(results), BY_KEEP_SET, "score"), with_untrained=False),
        "Who takes the role over? Induction of each head that `least_induction` keeps, windows lifted:",
        least_induction_table(results),
        "## Are sinks the cause?",
        "Spearman of a head's score with the damage of windowing it (`linear_gates`: of making it linear), all heads; "
        "in brackets layer-centred.",
        causes_table(results),
        "A correlation may be there because sinks sit on the heads that matter for another reason. The test is to keep "
        f"the first tokens ({study.sink}) in sight of windowed heads:",
        _sinks_kept(recall, documents, study),
        "## What is not claimed",
        not_claimed(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def headline(results: Results) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of recall beyond the window, keep-sets down and trainings across."""
    across = trainings(results.study)
    return ["kept full", *across], training_rows(results, _recall(results), across)


def answers(results: Results) -> str:
    """A paragraph for every question of the study."""
    recall, documents = _recall(results), _document_loss(results)
    by_question = {
        "Does the damage grow with the length of the context?": _growth(results),
        "Do kept detected heads repair it?": _repair(results, recall),
        "What do priors miss that gates find?": _missed(results),
        "Do heads' scores move under continued pretraining?": _moves(results),
        "Are sinks the cause?": _sinks(results, recall, documents),
    }
    if results.study.linear:
        question = "Which heads need softmax where the others get linear attention?"
        by_question[question] = _linear(results, recall, documents)
    if results.study.early:
        by_question["How early could the heads be chosen?"] = _early(results)
    return "\n\n".join(f"**{question}** {answer}" for question, answer in by_question.items())


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


def _growth(results: Results) -> str:
    table: Table = damage_by_context(results)
    table = table[table.training == NO_TRAINING]
    labels = sorted(int(label) for label in table.label.unique() if label >= results.study.window)
    n_kept = results.study.n_kept

    def by_label(method: str) -> str:
        rows = [row_of(table[table.label == label], NO_TRAINING, method, n_kept) for label in labels]
        return ", ".join(map(mean_and_sd, rows))

    return (
        f"Loss on documents above the full model's, in nats per token, at contexts from {_listed(labels)} tokens on "
        f"(window {results.study.window}): every head windowed {by_label('none')}; first {n_kept} by window gates full "
        f"{by_label('window_gates')}. Recall by distance is in its own table."
    )


def _repair(results: Results, recall: Table) -> str:
    first = f"Recall beyond the window with {results.study.n_kept} heads full. {_repaired(results, recall)}."
    of_tasks = [
        f"Share of {task} right. {_repaired(results, _accuracy(results, task))}." for task in results.study.tasks
    ]
    return "\n\n".join([first, *of_tasks])


def _repaired(results: Results, accuracy: Table) -> str:
    """Accuracy with the main keep-sets, training by training."""
    across = trainings(results.study)[: 1 + len(results.study.continued)]
    return ". ".join(f"{training}: {_by_method(results, accuracy, training, _REPAIRED_BY)}" for training in across)


def _missed(results: Results) -> str:
    """For every probe: the share that gates ranked on it and each prior recover, and how many heads no prior has."""
    table: Table = over_seeds(recovered_share(results), [*BY_KEEP_SET, "probe"], "share")
    n_kept = results.study.n_kept
    sentences: list[str] = []
    for probe in table.probe.unique():
        own = "window_gates" if probe == "needle" else f"window_gates_{probe}"
        mixed = ["window_gates_mixed"] if results.study.tasks else []
        of_probe = table[table.probe == probe]
        rows = {method: row_of(of_probe, NO_TRAINING, method, n_kept) for method in (own, *mixed, *_PRIORS)}
        shares = ", ".join(f"`{method}` {mean_and_sd(row)}" for method, row in rows.items())
        sentences.append(f"{probe}: {shares} ({_in_no_prior(results, own)})")
    return f"Share of the loss gap that the first {n_kept} heads bring back without training. {'; '.join(sentences)}."


def _in_no_prior(results: Results, method: str) -> str:
    """How many of the first heads of a method are not among the first as many of any prior."""
    n, counts = results.study.n_kept, list[int]()
    for seed in results.seeds:
        first = {m: set(first_heads(results, seed, m)) for m in (method, *_PRIORS)}
        counts.append(len(first[method] - set.union(*(first[prior] for prior in _PRIORS))))
    return f"heads of it that none of these has, by seed: {_listed(counts)} of {n}"


def _moves(results: Results) -> str:
    table: Table = lock_in(results)
    if table.empty:
        return DASH
    centred: Table = over_seeds(table, [*BY_KEEP_SET, "detector"], "spearman_centred")
    n_kept, sentences = results.study.n_kept, list[str]()
    for training in map(str, results.study.continued):
        correlations = [
            f"`{method}` {detector} {value}"
            for method in ("all", "window_gates", "least_induction", "none")
            for detector in ("induction", "retrieval")
            if (value := mean_and_sd(row_of(centred[centred.detector == detector], training, method, n_kept))) != DASH
        ]
        sentences.append(f"{training}: {', '.join(correlations) or DASH}")
    return (
        "Spearman of scores before and after, windows lifted, each layer's mean taken off; 1 means that no head moved "
        f"within its layer. {'; '.join(sentences)}."
    )


def _sinks(results: Results, recall: Table, documents: Table) -> str:
    study = results.study

    def value(table: Table, training: str, method: str) -> str:
        return mean_and_sd(row_of(table, training, method, study.n_kept))

    sentences = [
        f"{training}: recall {value(recall, training, 'none')} without and {value(recall, training, 'none_sink')} with "
        f"the first tokens ({study.sink}) in sight, loss on documents {value(documents, training, 'none')} and "
        f"{value(documents, training, 'none_sink')} (full {value(documents, training, 'all')})"
        for training in (NO_TRAINING, str(study.continued[0]))
    ]
    return f"Every head windowed. {'; '.join(sentences)}."


def _linear(results: Results, recall: Table, documents: Table) -> str:
    """What linear attention costs beside a window, the heads that recover it, and their patterns."""
    n_kept = results.study.n_kept

    def value(table: Table, training: str, method: str) -> str:
        return mean_and_sd(row_of(table, training, method, n_kept))

    costs = "; ".join(
        f"{training}: every head linear, recall beyond the window {value(recall, training, 'none_linear')} and loss on "
        f"documents {value(documents, training, 'none_linear')}, every head windowed "
        f"{value(recall, training, 'none')} and {value(documents, training, 'none')}"
        for training in (NO_TRAINING, str(results.study.continued[0]))
    )
    suffix = "_mixed" if results.study.tasks else ""
    linear, windowed = (
        {seed: set(first_heads(results, seed, f"{gates}{suffix}")) for seed in results.seeds}
        for gates in ("linear_gates", "window_gates")
    )
    shared = [len(linear[seed] & windowed[seed]) for seed in results.seeds]
    only = {
        "linear": {seed: linear[seed] - windowed[seed] for seed in results.seeds},
        "windowed": {seed: windowed[seed] - linear[seed] for seed in results.seeds},
    }
    return (
        f"{costs}. Of the first {n_kept} heads by gates towards linear attention and those by gates towards a window "
        f"{_listed(shared)} are the same, by seed; {_patterns(results, only)}. {_linear_repaired(results)}"
    )


def _patterns(results: Results, only: dict[str, dict[int, set[KVHead]]]) -> str:
    """Mean pattern scores of the heads, by conversion and seed, that only one conversion needs."""
    scores: Table = results.scores
    plain = scores[(scores.training == NO_TRAINING) & scores.lifted & scores.detector.isin(_PATTERNS)]
    sentences: list[str] = []
    for conversion, by_seed in only.items():
        needed = [
            KVHead(layer, head) in by_seed[seed]
            for seed, layer, head in zip(plain.seed, plain.layer, plain["head"], strict=True)
        ]
        means: Table = over_seeds(plain[needed], ["detector"], "score").set_index("detector")
        values = ", ".join(f"{d} {mean_and_sd(means.loc[d]) if d in means.index else DASH}" for d in _PATTERNS)
        sentences.append(f"those only needed where others are {conversion}: {values}")
    every: Table = over_seeds(plain, ["detector"], "score").set_index("detector")
    return f"{'; '.join(sentences)}; all heads: {', '.join(f'{d} {mean_and_sd(every.loc[d])}' for d in _PATTERNS)}"


def _linear_repaired(results: Results) -> str:
    """Accuracy with the same number of heads by either gates and a prior, without training and after some."""
    study = results.study
    by_probe = {probe: _accuracy(results, probe) for probe in ("needle", *study.tasks)}
    sentences: list[str] = []
    for training in (NO_TRAINING, *map(str, study.continued)):
        values = [
            f"{probe} {_by_method(results, accuracy, training, _LINEAR_REPAIRED_BY)}"
            for probe, accuracy in by_probe.items()
        ]
        sentences.append(f"{training}: {'; '.join(values)}")
    trained = ". ".join(sentences)
    return f"Right answers with {study.n_kept} heads full and the others linear (`none`: all windowed). {trained}."


def _early(results: Results) -> str:
    """For every probe, the step since which the choices by its own gates and by a prior are as good as the last one."""
    table: Table = lost_early(results)
    sentences: list[str] = []
    for probe in table.probe.unique():
        methods = (gates_on(probe, table.method.unique()), "induction")
        of_probe = table[table.probe == probe]
        steps = [f"by `{m}` from {_safe_steps(results, of_probe[of_probe.method == m])}" for m in methods]
        sentences.append(f"{probe}: {', '.join(steps)}")
    return (
        f"First step since which the {results.study.n_kept} heads then chosen, kept in the final model, stay within "
        f"{TOLERANCE:g} nats per answer of the heads that its own window gates choose (on the same probe; for "
        f"documents on needles), by seed, of {results.study.steps} steps. {'; '.join(sentences)}."
    )


def _safe_steps(results: Results, table: Table) -> str:
    """The first step from which on no choice loses more than the tolerance, for each seed."""
    steps: list[str] = []
    for seed in results.seeds:
        of_seed = table[table.seed == seed]
        last_unsafe = of_seed[of_seed.lost > TOLERANCE].step.max()  # NaN if there is none
        safe = of_seed[~(of_seed.step <= last_unsafe)].step
        steps.append("never" if safe.empty else str(int(safe.min())))
    return ", ".join(steps)


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
    """What is missing of an unfinished study."""
    if not results.missing:
        return ""
    unprepared = [path for path in results.missing if path.stem == PREPARED]
    n_arms = len(results.missing) - len(unprepared)
    reasons = [f"seed {path.parent.name.removeprefix('seed')} is not prepared" for path in unprepared]
    reasons += [f"{n_arms} arms of the other seeds are not trained"] if n_arms else []
    return (
        f"**Partial: {'; '.join(reasons)}.** Means are over the seeds that are there; a dash or no ± means one or none."
    )


def _findings(results: Results, recall: pd.DataFrame) -> str:
    study, first = results.study, str(results.study.continued[0])

    def value(training: str, method: str) -> str:
        return mean_and_sd(row_of(recall, training, method, study.n_kept))

    repaired = "; ".join(f"`{m}` {value(NO_TRAINING, m)}" for m in ("induction", "window_gates", "random_non_top"))
    least = ", ".join(f"{value(t, 'least_induction')} ({t})" for t in trainings(study)[1:])
    none = ", ".join(f"{value(t, 'none')} ({t})" for t in trainings(study)[1:])
    return "\n".join(
        [
            f"- Windowing every head takes recall beyond the window from {value(NO_TRAINING, 'all')} to "
            f"{value(NO_TRAINING, 'none')}; where windowed heads see the first tokens ({study.sink}) as well, to "
            f"{value(NO_TRAINING, 'none_sink')}.",
            f"- {study.n_kept} heads full, no training: {repaired}.",
            f"- The same after {first}: `induction` {value(first, 'induction')}, `window_gates` "
            f"{value(first, 'window_gates')}, `random_non_top` {value(first, 'random_non_top')}; no window at all "
            f"{value(first, 'all')}.",
            f"- The {study.n_kept} least induction-like heads: {value(NO_TRAINING, 'least_induction')} (no training), "
            f"{least}.",
            f"- Every head windowed: {none}.",
        ]
    )


def _linear_sections(results: Results) -> list[str]:
    study = results.study
    if study.linear is None:
        return []
    state_size = LinearAttention(study.linear).state_size(study.d_head)
    return [
        "## Windows and linear attention",
        f"Linear attention: weights λ^(i−j) φ(q_i) · φ(k_j), normalised, with `{study.linear}` features of the rotated "
        "queries and keys; each head has the sharpness and the decay λ of a ladder that come nearest to its outputs on "
        f"text, without training. A head's state is {state_size} numbers, a window's cache "
        f"{2 * study.window * study.d_head}.",
        forms_table(results),
        f"The same {study.n_kept} heads kept in either conversion, no training: share of its loss that comes back.",
        either_conversion_table(results),
    ]


def _task_sections(results: Results) -> list[str]:
    names = {"hops": "hops", "counting": "lead"}
    sections: list[str] = []
    for task in results.study.tasks:
        accuracy = by_class(results, task, "accuracy")
        sections.append(f"## Accuracy on {task}")
        sections.append(by_class_table(results, accuracy, names[task], trainings(results.study)))
    return sections


def _early_sections(results: Results) -> list[str]:
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


def _sinks_kept(recall: pd.DataFrame, documents: pd.DataFrame, study: Conversion) -> str:
    def both(training: str, method: str) -> str:
        rows = [row_of(table, training, method, study.n_kept) for table in (recall, documents)]
        return f"recall {mean_and_sd(rows[0])}, loss on documents {mean_and_sd(rows[1])}"

    pairs = (("none", "none_sink"), ("induction", "induction_sink"))
    return "\n".join(
        f"- {training}: `{without}` {both(training, without)}; `{with_sink}` {both(training, with_sink)}."
        for training in (NO_TRAINING, str(study.continued[0]))
        for without, with_sink in pairs
    )


def _retrieval_before(results: Results) -> str:
    table: Table = results.scores
    before = table[(table.training == NO_TRAINING) & (table.detector == "retrieval") & ~table.lifted]
    return ", ".join(f"{value:.2f}" for value in before.groupby("seed").score.max())


def _tops(results: Results) -> str:
    return "; ".join(f"seed {seed}: {' '.join(heads)}" for seed, heads in results.top.items())


def _recall(results: Results) -> pd.DataFrame:
    return over_seeds(recall_by_seed(results), BY_KEEP_SET, "far_accuracy")


def _document_loss(results: Results) -> pd.DataFrame:
    return over_seeds(recall_by_seed(results), BY_KEEP_SET, "documents_nats")


def _accuracy(results: Results, probe: str) -> pd.DataFrame:
    """Of a task; of needles, recall beyond the window."""
    if probe == "needle":
        return _recall(results)
    measured: Table = results.measured
    return over_seeds(measured[(measured.probe == probe) & measured.label.isna()], BY_KEEP_SET, "accuracy")


def _by_method(results: Results, accuracy: Table, training: str, methods: Sequence[str]) -> str:
    """The values of some keep-sets after a training, without those that were not measured."""
    values = {m: mean_and_sd(row_of(accuracy, training, m, results.study.n_kept)) for m in methods}
    return ", ".join(f"`{method}` {value}" for method, value in values.items() if value != DASH)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _records(table: Table) -> list[dict[str, Any]]:
    table = table.round(5)
    return table.astype(object).where(table.notna(), None).to_dict("records")
