"""Keep-sets: the heads that a converted model keeps full, the first k of each ranking, and controls.

- `all`, `none`; `none_sink`, `<method>_sink`: windowed heads also see the first tokens.
- `least_induction`: in the layers of the first k by induction, as many heads with the least induction.
- `random`: any k heads; `random_non_top`: any k heads that are not top. With few heads a plain random set often holds
  some that matter, so the report has its overlap with the top.
- `layers_even`, `layers_odd`: every other layer, as layer-wise hybrids interleave them.
- `<method>_linear`: the same heads, the others with linear attention instead of a window. `linear_gates`: gates
  between full and linear attention; the other heads have linear attention.

The top is the fewest first heads by `window_gates` (with tasks, by `window_gates_mixed`) that bring back 95 % of the
held-out loss on needles that windowing costs, at most half of all heads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from workbench.experiments.conversion.measurements import HeadScore, head_scores
from workbench.experiments.conversion.settings import Conversion, ConvertedTo
from workbench.experiments.conversion.study_data import Probes
from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.planning import Game, first_at, rank
from workbench.planning.keep_curves import Order, keep_curve
from workbench.probes import Probe
from workbench.store.conversions import Forms

_BY_WINDOWING = ("window_gates", "leave_one_windowed", "restore_one", "far_mass")
_BY_PATTERN = ("induction", "retrieval")
# Window gates on needles and every task with equal weights: gates of a mean loss are the mean of the gates.
_MIXED = "window_gates_mixed"
# Gates between full and linear attention, and their mean over needles and tasks.
_LINEAR_GATES, _LINEAR_MIXED = "linear_gates", "linear_gates_mixed"
# Rankings whose heads are also kept where the others have linear attention.
_BESIDE_LINEAR = ("window_gates", _MIXED, "induction")
# The keep-sets with every continued pretraining; the others have only the first.
MAIN = (
    *("all", "none", "window_gates", _MIXED, "induction", "least_induction"),
    *("none_linear", _LINEAR_GATES, _LINEAR_MIXED),
)
# Trained from scratch; with all heads full that is the pretrained model.
FROM_SCRATCH = ("none", "induction", "least_induction", _LINEAR_GATES)
# Controls of the main keep-sets, trained where nothing else is.
_CONTROLS = ("none_sink", "random_non_top", "window_gates_linear", "induction_linear", "random_linear")
_RANDOM = ("random", "random_non_top")

Scores = dict[str, dict[KVHead, float]]


class KeepSet(NamedTuple):
    """Heads that stay full, by a method; `draw` numbers random sets.

    `sink`: the first tokens that windowed heads see. `to`: the attention of the other heads.
    """

    method: str
    n_kept: int
    draw: int
    sink: int
    heads: tuple[KVHead, ...]
    to: ConvertedTo = "window"


def rankings(
    m: HookedModel,
    study: Conversion,
    probes: Probes,
    by_head: Sequence[HeadScore],
    *,
    forms: Forms | None = None,
    among: Collection[str] | None = None,
) -> Scores:
    """Every head's score by every method, or only by those named in `among`, higher for heads to keep.

    Windowing methods rank on needles from beyond the window. Window gates also rank on documents, on tasks, and on
    needles and tasks together, under names of their own. With `forms` of linear attention, linear gates rank on needles
    and tasks. The scores of patterns are those in `by_head`.
    """
    scores: Scores = {}
    to_rank: list[tuple[str, str, Probe]] = [(method, method, probes.ranking) for method in _BY_WINDOWING]
    to_rank += [(f"window_gates_{p.name}", "window_gates", p) for p in (probes.documents, *probes.tasks)]
    if forms:
        to_rank.append((_LINEAR_GATES, "window_gates", probes.ranking))
        to_rank += [(f"{_LINEAR_GATES}_{p.name}", "window_gates", p) for p in probes.tasks]
    for name, method, probe in to_rank:
        if among is not None and name not in among:
            continue
        ranking = rank(
            Game(m, probe, forms if forms and name.startswith(_LINEAR_GATES) else study.window), method, progress=False
        )
        scores[name] = dict(zip(ranking.heads, ranking.scores.tolist(), strict=True))
    for gates, mixed in (("window_gates", _MIXED), (_LINEAR_GATES, _LINEAR_MIXED)):
        if study.tasks and gates in scores:
            by_probe = [scores[name] for name in (gates, *(f"{gates}_{p.name}" for p in probes.tasks))]
            scores[mixed] = {head: sum(gate[head] for gate in by_probe) / len(by_probe) for head in by_probe[0]}
    for detector in _BY_PATTERN:
        scores[detector] = {KVHead(s["layer"], s["head"]): s["score"] for s in by_head if s["detector"] == detector}
    return scores if among is None else {name: scores[name] for name in among}


def early_methods(study: Conversion) -> tuple[str, ...]:
    """Methods that choose heads before pretraining ends: gates on needles, on every task and on both, and a prior."""
    of_tasks = (*(f"window_gates_{task}" for task in study.tasks), _MIXED) if study.tasks else ()
    return ("window_gates", *of_tasks, "induction")


def early_sets(m: HookedModel, study: Conversion, probes: Probes) -> list[KeepSet]:
    """The heads that a model in the middle of its training would keep."""
    scores = rankings(m, study, probes, head_scores(m, probes), among=early_methods(study))
    return [
        KeepSet(name, study.n_kept, 0, 0, tuple(ordered(by_head)[: study.n_kept])) for name, by_head in scores.items()
    ]


def top_heads(m: HookedModel, study: Conversion, probes: Probes, scores: Scores) -> tuple[KVHead, ...]:
    """The fewest first heads that bring back 95 % of the loss, best first."""
    order = ordered(scores.get(_MIXED, scores["window_gates"]))
    counts = [0, *range(1, len(order) // 2 + 1, max(1, len(order) // 16)), len(order) // 2]
    game = Game(m, probes.needles, study.window)
    singly = Order(tuple((head,) for head in order))
    points = keep_curve("window_gates", singly, [game], counts=sorted(set(counts)), context=study.length)
    enough = first_at(points)
    return tuple(order[: len(order) // 2 if enough is None else max(enough, study.n_kept)])


def keep_sets(study: Conversion, seed: int, scores: Scores, top: Sequence[KVHead]) -> list[KeepSet]:
    """All keep-sets of a seed's model."""
    heads = sorted(scores["window_gates"])
    sets = [
        KeepSet("all", len(heads), 0, 0, tuple(heads)),
        KeepSet("none", 0, 0, 0, ()),
        KeepSet("none_sink", 0, 0, study.sink, ()),
    ]
    for name, parity in (("layers_even", 0), ("layers_odd", 1)):
        in_layers = tuple(h for h in heads if h.layer % 2 == parity)
        sets.append(KeepSet(name, len(in_layers), 0, 0, in_layers))
    for k in study.kept_counts:
        to_windows = {method: by_head for method, by_head in scores.items() if not method.startswith(_LINEAR_GATES)}
        sets += [KeepSet(method, k, 0, 0, tuple(ordered(by_head)[:k])) for method, by_head in to_windows.items()]
        sets.append(KeepSet("induction_sink", k, 0, study.sink, tuple(ordered(scores["induction"])[:k])))
        sets.append(KeepSet("least_induction", k, 0, 0, least(scores["induction"], k)))
        for draw in range(study.n_random):
            rng = np.random.default_rng([seed, k, draw])
            for method in _RANDOM:
                pool = [h for h in heads if method == "random" or h not in top]
                if len(pool) >= k:
                    picked = sorted(rng.choice(len(pool), k, replace=False).tolist())
                    sets.append(KeepSet(method, k, draw, 0, tuple(pool[i] for i in picked)))
    return sets if study.linear is None else [*sets, *_linear_sets(study, sets, scores)]


def _linear_sets(study: Conversion, windowed: Sequence[KeepSet], scores: Scores) -> list[KeepSet]:
    """Keep-sets whose other heads have linear attention."""
    of_gates = {method: by_head for method, by_head in scores.items() if method.startswith(_LINEAR_GATES)}
    return [
        *(
            s._replace(method=f"{s.method}_linear", to="linear")
            for s in windowed
            if s.method in ("none", *_BESIDE_LINEAR, "random") or s.method.startswith("layers_")
        ),
        *(
            KeepSet(method, k, 0, 0, tuple(ordered(by_head)[:k]), "linear")
            for k in study.kept_counts
            for method, by_head in of_gates.items()
        ),
    ]


def trained_sets(study: Conversion, sets: Sequence[KeepSet]) -> list[KeepSet]:
    """The keep-sets to train: those of `n_kept` heads and those whose number is not chosen."""
    counted = [s for s in sets if s.n_kept == study.n_kept or s.n_kept in (0, len(sets[0].heads))]
    layers = [s for s in sets if s.method.startswith("layers_")]
    return [*dict.fromkeys([*counted, *layers])]


def is_trained(study: Conversion, keep_set: KeepSet, *, n_th: int | None) -> bool:
    """Whether a set has the n-th continued pretraining, or (None) training from scratch."""
    if n_th is None:
        return study.is_from_scratch and keep_set.method in FROM_SCRATCH
    if study.trained == "main" and keep_set.method not in (*MAIN, *_CONTROLS):
        return False
    if n_th == 0:
        if keep_set.to == "linear":
            return keep_set.draw == 0 and not keep_set.method.startswith("layers_")
        return keep_set.method not in _RANDOM or keep_set.draw < study.n_random_trained
    return keep_set.method in MAIN and keep_set.draw == 0


def methods(study: Conversion) -> list[str]:
    """The names of all keep-sets of a study, in their order."""
    on_probes = [f"window_gates_{name}" for name in ("documents", *study.tasks)]
    mixed = [_MIXED] if study.tasks else []
    ranked = [*_BY_WINDOWING, *on_probes, *mixed, *_BY_PATTERN, "induction_sink", "least_induction"]
    layers = ["layers_even", "layers_odd"]
    windowed = ["all", "none", "none_sink", *ranked, *_RANDOM, *layers]
    if study.linear is None:
        return windowed
    beside = ["none", *(m for m in _BESIDE_LINEAR if m in ranked), "random", *layers]
    gates = [_LINEAR_GATES, *(f"{_LINEAR_GATES}_{task}" for task in study.tasks)]
    return [*windowed, *(f"{method}_linear" for method in beside), *gates, *([_LINEAR_MIXED] if study.tasks else [])]


def is_linear(method: str) -> bool:
    """Whether the heads that a set of this name does not keep have linear attention."""
    return method.endswith("_linear") or method.startswith(_LINEAR_GATES)


def format_trainings(study: Conversion) -> list[str]:
    """The plan of a study before it runs: what is converted, trained and left out, a line each."""
    every = [KeepSet(m, study.n_kept, 0, 0, (), "linear" if is_linear(m) else "window") for m in methods(study)]

    def trained(n: int | None) -> list[str]:
        return [s.method for s in every if is_trained(study, s, n_th=n)]

    n_heads, counts = study.n_layers * study.n_heads, ", ".join(map(str, study.kept_counts))
    left_out = [method for method in methods(study) if method not in trained(0)]
    return [
        f"{n_heads} heads, {study.steps} steps of {study.batch} × {study.length} tokens; converted without training to "
        f"the first {counts} heads of each of: {', '.join(methods(study))}",
        *(f"{how}: {', '.join(trained(n))}" for n, how in enumerate(study.continued)),
        f"from scratch: {', '.join(trained(None)) or 'nothing'}",
        f"left out of all training: {', '.join(left_out) or 'nothing'}",
    ]


def ordered(scores: dict[KVHead, float]) -> list[KVHead]:
    """The heads, best first; equal ones by layer and head."""
    return sorted(scores, key=lambda head: (-scores[head], head))


def least(scores: dict[KVHead, float], k: int) -> tuple[KVHead, ...]:
    """As many heads of each layer as the first k have there, but its lowest."""
    order = ordered(scores)
    lowest: list[KVHead] = []
    for layer in sorted({head.layer for head in order[:k]}):
        n = sum(head.layer == layer for head in order[:k])
        lowest += [head for head in reversed(order) if head.layer == layer][:n]
    return tuple(sorted(lowest))
