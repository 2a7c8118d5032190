"""Windows against linear attention: what either costs, and which heads must keep softmax attention for each."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.experiments.conversion.markdown_tables import cell, markdown, picked
from workbench.experiments.conversion.recovered import recovered_share
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    Results,
    first_heads,
    over_seeds,
    recall_by_seed,
)
from workbench.heads import KVHead
from workbench.hooks import LinearAttention

_BY = ["training", "method", "n_kept"]
# The same heads kept in either conversion: what the table puts side by side.
_RANKINGS = ("window_gates", "linear_gates", "window_gates_mixed", "linear_gates_mixed", "induction", "random")
_PATTERNS = ("previous_token", "induction", "sink")
_SHORT = 16.0  # tokens
# By seed: the first heads by gates towards linear attention, and by gates towards a window.
_Firsts = dict[int, tuple[set[KVHead], set[KVHead]]]


def linear_answer(results: Results) -> str:
    """What linear attention costs, whose heads repair it, and who those are."""
    first = str(results.study.continued[0])
    recall: Any = over_seeds(recall_by_seed(results), _BY, "far_accuracy")
    documents: Any = over_seeds(recall_by_seed(results), _BY, "documents_nats")

    def at(table: Any, training: str, method: str) -> str:
        return cell(picked(table, training, method, results.study.n_kept))

    costs = "; ".join(
        f"{training}: every head linear, recall beyond the window {at(recall, training, 'none_linear')} and loss on "
        f"documents {at(documents, training, 'none_linear')}, every head windowed {at(recall, training, 'none')} and "
        f"{at(documents, training, 'none')}"
        for training in (NO_TRAINING, first)
    )
    firsts, n_kept = _firsts(results), results.study.n_kept
    shared = [len(linear & windowed) for linear, windowed in firsts.values()]
    return (
        f"{costs}. Of the first {n_kept} heads by gates towards linear attention and those by gates towards a window "
        f"{', '.join(map(str, shared))} are the same, by seed; {_who(results, firsts)}. {_repaired(results)}"
    )


def needs_table(results: Results) -> str:
    """Rankings down, conversions and probes across: the share that the first `n_kept` heads bring back."""
    table: Any = recovered_share(results)
    probes, n_kept = table.probe.unique().tolist(), results.study.n_kept
    means: Any = over_seeds(table, [*_BY, "probe"], "share")
    rows = [["first heads by", *(f"{to}: `{p}`" for to in ("windows", "linear") for p in probes)]]
    for ranking in _RANKINGS:
        sets = (ranking if not ranking.startswith("linear_gates") else "", _beside_linear(ranking))
        cells = [
            cell(picked(means[means.probe == probe], NO_TRAINING, method, n_kept))
            for method in sets
            for probe in probes
        ]
        if set(cells) != {"–"}:
            rows.append([f"`{ranking}`", *cells])
    return markdown(rows)


def forms_table(results: Results) -> str:
    """Layers down: how near linear attention comes to the heads of each without training, and what it looks like."""
    forms: Any = results.forms
    rows = [["layer", "variance of outputs left unexplained", "heads that forget half within 16 tokens", "sharpness"]]
    for layer, mine in forms.groupby("layer"):
        by_seed = mine.groupby("seed").error.mean()
        is_short = mine.decay < 0.5 ** (1 / _SHORT) + 1e-9
        found = {"mean": float(by_seed.mean()), "std": float(by_seed.std())}
        values = ", ".join(f"{value:g}" for value in sorted(mine.sharpness.unique()))
        rows.append([str(layer), cell(found), f"{int(is_short.sum())} of {len(mine)}", values])
    return markdown(rows)


def told_forms(results: Results) -> str:
    """The feature map, and how large the state of a head is beside the cache of a window."""
    study = results.study
    assert study.linear is not None
    size = LinearAttention(study.linear).state_size(study.d_head)
    return (
        f"Linear attention: weights λ^(i−j) φ(q_i) · φ(k_j), normalised, with `{study.linear}` features of the rotated "
        "queries and keys; each head has the sharpness and the decay λ of a ladder that come nearest to its outputs on "
        f"text, without training. A head's state is {size} numbers, a window's cache {2 * study.window * study.d_head}."
    )


def _beside_linear(ranking: str) -> str:
    return ranking if ranking.startswith("linear_gates") else f"{ranking}_linear"


def _firsts(results: Results) -> _Firsts:
    """Each seed's first heads by gates towards linear attention and towards a window."""
    suffix = "_mixed" if results.study.tasks else ""

    def first(seed: int, gates: str) -> set[KVHead]:
        return set(first_heads(results, seed, f"{gates}{suffix}"))

    return {seed: (first(seed, "linear_gates"), first(seed, "window_gates")) for seed in results.seeds}


def _who(results: Results, firsts: _Firsts) -> str:
    """Mean pattern scores of the heads that only one of the two gates has."""
    scores: Any = results.scores
    plain = scores[(scores.training == NO_TRAINING) & scores.lifted & scores.detector.isin(_PATTERNS)]
    told: list[str] = []
    for name, side in (("linear", 0), ("windowed", 1)):
        rows = []
        for seed, both in firsts.items():
            alone = both[side] - both[1 - side]
            mine = plain[plain.seed == seed]
            is_it = [KVHead(layer, head) in alone for layer, head in zip(mine.layer, mine["head"], strict=True)]
            rows.append(mine[is_it])
        found: Any = pd.concat(rows)
        means: Any = over_seeds(found, ["detector"], "score").set_index("detector")
        shown = ", ".join(f"{d} {cell(means.loc[d]) if d in means.index else '–'}" for d in _PATTERNS)
        told.append(f"those only needed where others are {name}: {shown}")
    every: Any = over_seeds(plain, ["detector"], "score").set_index("detector")
    return f"{'; '.join(told)}; all heads: {', '.join(f'{d} {cell(every.loc[d])}' for d in _PATTERNS)}"


def _repaired(results: Results) -> str:
    """What the same number of heads brings back, by either gates and a prior, without training and after some."""
    study = results.study
    by_probe = {probe: _accuracy(results, probe) for probe in ("needle", *study.tasks)}
    sentences: list[str] = []
    for training in (NO_TRAINING, *map(str, study.continued)):
        shown: list[str] = []
        for probe, accuracy in by_probe.items():
            pairs = [(m, cell(picked(accuracy, training, m, study.n_kept))) for m in _LINEAR_SETS]
            found = ", ".join(f"`{method}` {value}" for method, value in pairs if value != "–")
            shown.append(f"{probe} {found}")
        sentences.append(f"{training}: {'; '.join(shown)}")
    told = ". ".join(sentences)
    return f"Right answers with {study.n_kept} heads full and the others linear (`none`: all windowed). {told}."


_LINEAR_SETS = (
    *("all", "none", "none_linear", "linear_gates", "linear_gates_mixed", "window_gates_linear"),
    *("window_gates_mixed_linear", "induction_linear", "random_linear"),
)


def _accuracy(results: Results, probe: str) -> Any:
    if probe == "needle":
        return over_seeds(recall_by_seed(results), _BY, "far_accuracy")
    measured: Any = results.measured
    return over_seeds(measured[(measured.probe == probe) & measured.label.isna()], _BY, "accuracy")
