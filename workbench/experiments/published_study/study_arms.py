"""The arms of a study: which heads stay full, and what the others get. No arm is dropped after its result is known.

- `all`, `none`: nothing is converted, everything is.
- by each ranking, its first heads, for every budget; `random`: any heads; `random_in_layer`: as many heads of each
  layer as the gates keep there, but any of them.
- `layers_even`, `layers_odd`, `layers_last_of_4`: whole layers among those that can be converted, interleaved.
- `only …`, `all but …`: where there are few heads, each alone.
- `without L5H1`: nothing is windowed, and the outputs of one query head are its mean; where there are few of them.
- `wider L3`, `wider all`: nothing is windowed, and a sliding layer, or every one, sees the whole past.
- `… without sinks`: windowed heads do not see the first tokens.
- `… linear`: the others get linear attention. Another conversion is a further value of `To` and one branch in
  `as_arm`.
- `… sparse oracle`, `… sparse mean`: the others read, row by row, as many keys as a window lets them, in selected
  blocks: by the attention of the full head, which covers the most of it, or by the mean of a block's keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np

from workbench.experiments.published_study.published_settings import GATES, MAIN, PublishedStudy
from workbench.experiments.published_study.wider_layers import sliding_layers, without_own_window
from workbench.heads import Head, KVHead, LayerInfo
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import converted
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.registry import Ranking
from workbench.store.conversions import Conversions, Forms, Rule, SparseAttention, Window

To = Literal["window", "linear", "mean", "wider", "sparse oracle", "sparse mean"]
# With so many heads, each is also kept alone, and windowed alone.
FEW = 6
# With so many query heads in the layers that a window is for, each is ablated alone.
FEW_QUERY_HEADS = 24
# With so many sliding layers, each is also widened alone.
FEW_LAYERS = 32
WITHOUT_SINKS = " without sinks"
LINEAR = " linear"
SPARSE: tuple[To, ...] = ("sparse oracle", "sparse mean")
# Selected blocks of a row, the one that it stands in and the first block of the text among them.
N_BLOCKS = 8
_SINKLESS = ("none", GATES, "induction")
_LINEAR = ("none", GATES, "random")
_SPARSE = ("none", GATES)


class StudyArm(NamedTuple):
    """`heads`: those that stay full, in order. `sink`: the first tokens that windowed heads see.

    `to`: what the others get; `mean`: nothing is windowed, and the query head of the name is ablated; `wider`: nothing
    is, and the layers of the name see the whole past.
    """

    name: str
    n_kept: int
    sink: int
    heads: tuple[KVHead, ...]
    to: To = "window"

    @property
    def key(self) -> str:
        """The name of its file: the same for the same model."""
        if self.name == "all":
            return "all"
        if self.to in ("mean", "wider"):
            return self.name.replace(" ", "-")
        digest = hashlib.blake2b(" ".join(map(str, self.heads)).encode(), digest_size=4).hexdigest()
        return f"keep{self.n_kept}-{digest}-{f'sink{self.sink}' if self.to == 'window' else self.to.replace(' ', '-')}"


def end_arms(study: PublishedStudy, heads: Sequence[KVHead]) -> tuple[StudyArm, StudyArm]:
    """The model itself, and the model with every head windowed."""
    return StudyArm("all", len(heads), study.sink, tuple(heads)), StudyArm("none", 0, study.sink, ())


def arms_of_seed(
    study: PublishedStudy, heads: Sequence[KVHead], scores: Mapping[str, Sequence[float]], *, seed: int
) -> list[StudyArm]:
    """All arms of a seed, from the scores of its rankings, head by head."""
    orders = {name: _order(heads, of_heads) for name, of_heads in scores.items()}
    gates = Ranking(GATES, "nats", tuple(heads), np.array(scores[GATES]))
    chance = {
        "random": random_order(heads, 1000 + seed).order,
        "random_in_layer": shuffled_in_layers(gates, 1000 + seed).order,
    }
    arms = [*end_arms(study, heads)]
    counts = dict.fromkeys(study.n_kept(share, len(heads)) for share in study.budgets)
    at_chance = {study.n_kept(share, len(heads)) for share in study.chance}
    for n in counts:
        arms += [_first(name, order, n, study.sink) for name, order in orders.items()]
        arms += [_first(name, order, n, study.sink) for name, order in chance.items() if n in at_chance]
    arms += _layers(heads, study.sink)
    if len(heads) <= FEW:
        arms += [StudyArm(f"only {head}", 1, study.sink, (head,)) for head in heads]
        arms += [
            StudyArm(f"all but {head}", len(heads) - 1, study.sink, tuple(h for h in heads if h != head))
            for head in heads
        ]
    main = {arm.name: arm for arm in main_arms(study, arms, len(heads))}
    if study.sink:
        arms += [main[n]._replace(name=n + WITHOUT_SINKS, sink=0) for n in _SINKLESS if n in main]
    if study.linear:
        arms += [main[n]._replace(name=n + LINEAR, sink=0, to="linear") for n in _LINEAR]
    if study.sparse:
        arms += [main[n]._replace(name=f"{n} {to}", sink=0, to=to) for n in _SPARSE for to in SPARSE]
    return arms


def ablated_arms(study: PublishedStudy, layers: Sequence[LayerInfo], heads: Sequence[KVHead]) -> list[StudyArm]:
    """Each query head alone ablated, where there are few in the layers that a window is for."""
    chosen = {head.layer for head in heads}
    query_heads = [
        Head(info.index, i)
        for info in layers
        if info.mixer == "softmax" and info.index in chosen
        for i in range(info.n_heads)
    ]
    if len(query_heads) > FEW_QUERY_HEADS:
        return []
    return [StudyArm(f"without {head}", len(heads), study.sink, tuple(heads), "mean") for head in query_heads]


def main_arms(study: PublishedStudy, arms: Sequence[StudyArm], n_heads: int) -> list[StudyArm]:
    """The arms that are trained."""
    n_main = study.n_kept(study.main, n_heads)
    return [arm for arm in arms if arm.name in MAIN and (arm.name in ("all", "none") or arm.n_kept == n_main)]


def long_arms(study: PublishedStudy, arms: Sequence[StudyArm], n_heads: int) -> list[StudyArm]:
    """The arms that are also judged at longer texts: those that are trained, layers, and few heads each alone."""
    others = [arm for arm in arms if arm.name.startswith(("layers_", "only ", "all but ", "wider "))]
    return [*main_arms(study, arms, n_heads), *others]


def wider_arms(study: PublishedStudy, layers: Sequence[LayerInfo], heads: Sequence[KVHead]) -> list[StudyArm]:
    """Each sliding layer alone without its window, where there are few, and all of them together; not for a model
    without sliding layers.
    """
    sliding = sliding_layers(layers)
    if not sliding:
        return []
    alone = [f"L{i}" for i in sliding] if len(sliding) <= FEW_LAYERS else []
    return [StudyArm(f"wider {which}", len(heads), study.sink, tuple(heads), "wider") for which in (*alone, "all")]


@contextmanager
def as_arm(m: HookedModel, arm: StudyArm, heads: Sequence[KVHead], *, window: int, forms: Forms) -> Generator[None]:
    """Inside the block the model is that of the arm; `heads`: those that a window is for."""
    if arm.to == "wider":
        which = arm.name.removeprefix("wider ")
        with without_own_window(m, sliding_layers(m.layers) if which == "all" else [int(which.removeprefix("L"))]):
            yield
        return
    if arm.to == "mean":
        with m.ablate([arm.name.removeprefix("without ")], how="mean"):
            yield
        return
    others = [head for head in heads if head not in set(arm.heads)]
    own = Window(window, arm.sink)
    to: Window | Conversions = own
    if arm.to in SPARSE:
        to = dict.fromkeys(others, selection_of(arm.to, window))
    if arm.to == "linear":
        # A head without a usable form of linear attention gets the window.
        to = {head: forms.get(head, own) for head in others}
    with converted(m, others, to):
        yield


def selection_of(to: To, window: int) -> SparseAttention:
    """The selected blocks of a row, which hold as many keys as the window or, where it does not divide, fewer."""
    rule: Rule = "oracle" if to == "sparse oracle" else "mean"
    n_blocks = max(2, min(N_BLOCKS, window))
    return SparseAttention(max(1, window // n_blocks), n_blocks, sink_blocks=1, rule=rule)


def record_of(arm: StudyArm) -> dict[str, Any]:
    """An arm as files have it."""
    return {**arm._asdict(), "heads": [str(head) for head in arm.heads]}


def _first(name: str, order: Sequence[KVHead], n: int, sink: int) -> StudyArm:
    return StudyArm(name, n, sink, tuple(sorted(order[:n])))


def _order(heads: Sequence[KVHead], scores: Sequence[float]) -> list[KVHead]:
    return [heads[i] for i in np.argsort(-np.array(scores), kind="stable")]


def _layers(heads: Sequence[KVHead], sink: int) -> list[StudyArm]:
    layers = sorted({head.layer for head in heads})
    chosen = {"layers_even": layers[::2], "layers_odd": layers[1::2], "layers_last_of_4": layers[3::4]}
    arms: list[StudyArm] = []
    for name, full in chosen.items():
        kept_heads = tuple(head for head in heads if head.layer in full)
        if 0 < len(kept_heads) < len(heads):
            arms.append(StudyArm(name, len(kept_heads), sink, kept_heads))
    return arms
