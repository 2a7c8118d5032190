"""The questions that a study is made for, each answered with its own numbers; a dash where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.experiments.conversion.linear_answer import linear_answer
from workbench.experiments.conversion.markdown_tables import Table, cell, markdown, picked
from workbench.experiments.conversion.recovered import recovered_share
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    damage_by_context,
    first_heads,
    gates_on,
    lock_in,
    lost_early,
    over_seeds,
    recall_by_seed,
    trainings,
)

_BY = ["training", "method", "n_kept"]
# Nats per answer that an early choice of heads may lose.
TOLERANCE = 0.1
_PATTERNS = ("induction", "retrieval", "far_mass")
_REPAIRED_BY = ("all", "none", "window_gates", "window_gates_mixed", "induction", "least_induction", "random_non_top")


def answers(results: Results) -> str:
    """A paragraph for every question."""
    recall = over_seeds(recall_by_seed(results), _BY, "far_accuracy")
    documents = over_seeds(recall_by_seed(results), _BY, "documents_nats")
    told = {
        "Does the damage grow with the length of the context?": _growth(results),
        "Do kept detected heads repair it?": _repair(results, recall),
        "What do priors miss that gates find?": _missed(results),
        "Do heads' scores move under continued pretraining?": _moves(results),
        "Are sinks the cause?": _sinks(results, recall, documents),
    }
    if results.study.linear:
        told["Which heads need softmax where the others get linear attention?"] = linear_answer(results)
    if results.study.early:
        told["How early could the heads be chosen?"] = _early(results)
    return "\n\n".join(f"**{question}** {answer}" for question, answer in told.items())


def _growth(results: Results) -> str:
    table: Any = damage_by_context(results)
    table = table[table.training == NO_TRAINING]
    labels = sorted(int(label) for label in table.label.unique() if label >= results.study.window)
    n_kept = results.study.n_kept

    def along(method: str) -> str:
        found = [picked(table[table.label == label], NO_TRAINING, method, n_kept) for label in labels]
        return ", ".join(cell(one) for one in found)

    return (
        f"Loss on documents above the full model's, in nats per token, at contexts from {_listed(labels)} tokens on "
        f"(window {results.study.window}): every head windowed {along('none')}; first {n_kept} by window gates full "
        f"{along('window_gates')}. Recall by distance is in its own table."
    )


def _repair(results: Results, recall: Table) -> str:
    told = [f"Recall beyond the window with {results.study.n_kept} heads full. {_repaired(results, recall)}."]
    for task in results.study.tasks:
        measured: Any = results.measured
        of_task = measured[(measured.probe == task) & measured.label.isna()]
        told.append(f"Share of {task} right. {_repaired(results, over_seeds(of_task, _BY, 'accuracy'))}.")
    return "\n\n".join(told)


def _repaired(results: Results, accuracy: Table) -> str:
    """Accuracy with the main keep-sets, training by training."""
    n_kept, across = results.study.n_kept, trainings(results.study)[: 1 + len(results.study.continued)]
    sentences: list[str] = []
    for training in across:
        pairs = [(m, cell(picked(accuracy, training, m, n_kept))) for m in _REPAIRED_BY]
        sentences.append(f"{training}: " + ", ".join(f"`{method}` {found}" for method, found in pairs if found != "–"))
    return ". ".join(sentences)


def _missed(results: Results) -> str:
    """For every probe: what gates ranked on it bring back, what the best prior does, and which heads it lacks."""
    table: Any = over_seeds(recovered_share(results), [*_BY, "probe"], "share")
    n_kept = results.study.n_kept
    sentences: list[str] = []
    for probe in table.probe.unique():
        own = "window_gates" if probe == "needle" else f"window_gates_{probe}"
        mine = table[table.probe == probe]
        mixed = ["window_gates_mixed"] if results.study.tasks else []
        found = {m: picked(mine, NO_TRAINING, m, n_kept) for m in (own, *mixed, *_PATTERNS)}
        shown = ", ".join(f"`{m}` {cell(one)}" for m, one in found.items())
        sentences.append(f"{probe}: {shown} ({_not_shared(results, own)})")
    return f"Share of the loss gap that the first {n_kept} heads bring back without training. {'; '.join(sentences)}."


def _not_shared(results: Results, method: str) -> str:
    """How many of the first heads by window gates no pattern has among its first as many."""
    n, counts = results.study.n_kept, list[int]()
    for seed in results.seeds:
        first = {m: set(first_heads(results, seed, m)) for m in (method, *_PATTERNS)}
        counts.append(len(first[method] - set.union(*(first[m] for m in _PATTERNS))))
    return f"heads of it that none of these has, by seed: {_listed(counts)} of {n}"


def _moves(results: Results) -> str:
    table: Any = lock_in(results)
    if table.empty:
        return "–"
    centred: Any = over_seeds(table, [*_BY, "detector"], "spearman_centred")
    n_kept, sentences = results.study.n_kept, list[str]()
    for training in map(str, results.study.continued):
        shown = [
            f"`{method}` {detector} {found}"
            for method in ("all", "window_gates", "least_induction", "none")
            for detector in ("induction", "retrieval")
            if (found := cell(picked(centred[centred.detector == detector], training, method, n_kept))) != "–"
        ]
        sentences.append(f"{training}: {', '.join(shown) or '–'}")
    return (
        "Spearman of scores before and after, windows lifted, each layer's mean taken off; 1 means that no head moved "
        f"within its layer. {'; '.join(sentences)}."
    )


def _sinks(results: Results, recall: Table, documents: Table) -> str:
    study = results.study

    def at(table: Table, training: str, method: str) -> str:
        return cell(picked(table, training, method, study.n_kept))

    told = [
        f"{training}: recall {at(recall, training, 'none')} without and {at(recall, training, 'none_sink')} with the "
        f"first tokens ({study.sink}) in sight, loss on documents {at(documents, training, 'none')} and "
        f"{at(documents, training, 'none_sink')} (full {at(documents, training, 'all')})"
        for training in (NO_TRAINING, str(study.continued[0]))
    ]
    return f"Every head windowed. {'; '.join(told)}."


def early_table(results: Results) -> str:
    """Methods and probes down, steps across: nats per answer lost, as `lost_early` has it."""
    table: Any = lost_early(results)
    steps = (*results.study.early_steps, results.study.steps)
    means: Any = over_seeds(table, ["step", "method", "probe"], "lost")
    shared: Any = over_seeds(table, ["step", "method"], "shared")
    rows = [["chosen by", "", *(f"step {step}" for step in steps)]]
    for method in table.method.unique():
        mine = shared[shared.method == method].set_index("step")
        rows.append([f"`{method}`", "heads in common", *(cell(mine.loc[step]) for step in steps)])
        for probe in table.probe.unique():
            mine = means[(means.method == method) & (means.probe == probe)].set_index("step")
            rows.append(["", f"lost on {probe}", *(cell(mine.loc[step]) for step in steps)])
    return markdown(rows)


def _early(results: Results) -> str:
    """For every probe, since when the choices by its own gates and by a prior are as good as the last one."""
    table: Any = lost_early(results)
    told: list[str] = []
    for probe in table.probe.unique():
        methods = (gates_on(probe, table.method.unique()), "induction")
        mine = table[table.probe == probe]
        shown = [f"by `{method}` from {_safe_steps(results, mine[mine.method == method])}" for method in methods]
        told.append(f"{probe}: {', '.join(shown)}")
    return (
        f"First step since which the {results.study.n_kept} heads then chosen, kept in the final model, stay within "
        f"{TOLERANCE:g} nats per answer of the heads that its own window gates choose (on the same probe; for "
        f"documents on needles), by seed, of {results.study.steps} steps. {'; '.join(told)}."
    )


def _safe_steps(results: Results, table: Table) -> str:
    """Per seed."""
    found: list[str] = []
    for seed in results.seeds:
        mine = table[table.seed == seed]
        late = mine[mine.lost > TOLERANCE].step.max()  # NaN if there is none
        safe = mine[~(mine.step <= late)].step
        found.append("never" if safe.empty else str(int(safe.min())))
    return ", ".join(found)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
