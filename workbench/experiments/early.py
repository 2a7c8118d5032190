"""How early is a plan safe? The heads that each checkpoint would have chosen, kept in the final model.

1. At every scored checkpoint n, the key/value heads of full-attention layers are ranked by a detector (the maximum over
   the query heads that read them) and the first `keep` of them are chosen.
2. In the final model those keep the whole context and the other heads of those layers get a window. Layers that are
   windowed or linear by architecture stay as they are.
3. On every probe: nats and accuracy per sequence, with the 95 % bootstrap over sequences; and, on the same sequences,
   the nats lost against the heads that the last checkpoint chooses (`lost`).

A choice is called safe from the first checkpoint on after which `lost` never again exceeds the tolerance, the upper end
of its interval included.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from workbench.detectors.scoring import bootstrap
from workbench.emergence import chosen_at
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.answer_loss import batches
from workbench.probes import Probe
from workbench.runs import Run

_RANDOM_CHOICES = 5
_WHERE = ("ckpt", "branch", "step", "step_total", "tokens")


@dataclass(frozen=True, slots=True)
class EarlyChoices:
    """What choosing early would have been worth.

    `table`: one row per checkpoint and probe: ckpt, branch, step, step_total, tokens, probe, heads (chosen, as text),
    n_kept, in_common (with those chosen at the last), nats, accuracy, lost, each with _lo and _hi, n_seq.
    `references`: the final model with all heads full, with none, and with random choices (mean over five): choice,
    probe, nats, accuracy, lost. `detector`, `on`: what heads were chosen by. `window`, `sink`: in tokens.
    """

    table: pd.DataFrame
    references: pd.DataFrame
    detector: str
    on: str
    window: int
    sink: int

    def safe_since(self, tolerance: float = 0.1) -> pd.DataFrame:
        """Per probe, since when `lost` stays within this many nats per answer: probe, ckpt, step, tokens, share.

        `share` of training; all are missing where that is so at the last checkpoint only. Nothing is known (NaN in the
        interval) with fewer than five sequences, and nothing is then safe.
        """
        found = [_safe(probe, group, tolerance) for probe, group in self.table.groupby("probe", sort=False)]
        return pd.DataFrame(found)

    def sentences(self, tolerance: float = 0.1) -> list[str]:
        """For every probe, what the numbers support."""
        return [self._said(row, tolerance) for row in self.safe_since(tolerance).to_dict("records")]

    def _said(self, row: dict[str, Any], tolerance: float) -> str:
        gap = self.references.loc[self.references["probe"] == row["probe"]].set_index("choice")["nats"]
        lost = gap["none"] - gap["all"]
        head = f"{row['probe']}: windowing every head costs {lost:.2f} nats per answer"
        if lost <= tolerance:
            return f"{head}, within the tolerance of {tolerance:g}: any choice is safe, and nothing is learnt."
        chosen = f"heads chosen by {self.detector} on {self.on}"
        if row["ckpt"] is None:
            return f"{head}; {chosen} before the last checkpoint are not within {tolerance:g} of the last choice."
        share = "" if pd.isna(row["share"]) else f" ({row['share']:.0%} of training)"
        return f"{head}; {chosen} stay within {tolerance:g} of the last choice from {row['ckpt']} on{share}."


def early_choices(
    m: HookedModel,
    run: Run,
    probes: Sequence[Probe],
    *,
    detector: str = "induction",
    on: str | None = None,
    window: int,
    sink: int = 0,
    keep: float | int = 0.25,
    seed: int = 0,
) -> EarlyChoices:
    """Keep, in the final model, the heads that each checkpoint would have chosen, and measure what is lost.

    Args:
        m: the model of the run's last checkpoint.
        probes: with answers; others than heads were chosen on, if the numbers are to be trusted.
        detector, on: what heads are chosen by; `on` may be left out where the detector was scored on one probe.
        window, sink: tokens that a windowed head still sees.
        keep: share of the key/value heads of full-attention layers; at least one.

    Raises:
        WorkbenchError: if the run has no such scores, several branches, no full-attention layer in common with the
            model, a probe has no answers, or the share is out of range.
    """
    scores = _scores(run, detector, on)
    players = [KVHead(i.index, h) for i in m.layers if i.kind == "full" for h in range(i.n_kv_heads)]
    if not players:
        raise WorkbenchError("the model has no layer of full attention: there is nothing to keep")
    if not 0 < keep < 1:
        raise WorkbenchError(f"keep is {keep}; expected a share above 0 and below 1 of {len(players)} heads")
    n_kept = max(1, round(keep * len(players)))
    chosen = {ckpt: _chosen(scores, str(ckpt), players, n_kept) for ckpt in dict.fromkeys(scores["ckpt"])}
    table = _Table(m, probes, players, window=window, sink=sink, seed=seed)
    last = list(chosen.values())[-1]
    places = scores.drop_duplicates("ckpt").loc[:, list(_WHERE)].to_dict("records")
    rows = [row for place in places for row in table.rows(place, chosen[place["ckpt"]], last)]
    references = table.references(last, n_kept, np.random.default_rng(seed))
    return EarlyChoices(pd.DataFrame(rows), references, detector, str(scores["probe"].iloc[0]), window, sink)


class _Table:
    """The final model's outcomes on every probe, each kept set measured once."""

    def __init__(
        self, m: HookedModel, probes: Sequence[Probe], players: Sequence[KVHead], *, window: int, sink: int, seed: int
    ) -> None:
        self.m, self.players, self.window, self.sink, self.seed = m, players, window, sink, seed
        self.probes = probes
        self._seen: dict[tuple[int, frozenset[KVHead]], Float[np.ndarray, "n_seq 2"]] = {}

    def outcome(self, i: int, kept: Collection[KVHead]) -> Float[np.ndarray, "n_seq 2"]:
        """Nats and accuracy of every sequence of probe i that has an answer."""
        key = (i, frozenset(kept))
        if key not in self._seen:
            windowed = [head for head in self.players if head not in key[1]]
            with self.m.restrict(windowed, self.window, self.sink):
                pieces = batches(self.probes[i])
                if not pieces:
                    raise WorkbenchError(f"probe {self.probes[i].name!r} has no answers; expected one with answers")
                self._seen[key] = np.concatenate([_by_sequence(self.m, piece) for piece in pieces])
        return self._seen[key]

    def rows(self, place: dict[str, Any], kept: Collection[KVHead], last: Collection[KVHead]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for i, probe in enumerate(self.probes):
            ours, final = self.outcome(i, kept), self.outcome(i, last)
            values = np.column_stack([ours, ours[:, 0] - final[:, 0]])
            low, high = bootstrap(values, np.ones(values.shape, dtype=bool), seed=self.seed)
            mean = values.mean(0)
            row: dict[str, Any] = {**place, "probe": probe.name, "heads": " ".join(map(str, sorted(kept)))}
            row |= {"n_kept": len(kept), "in_common": len(set(kept) & set(last))}
            for j, name in enumerate(("nats", "accuracy", "lost")):
                row |= {name: mean[j], f"{name}_lo": low[j], f"{name}_hi": high[j]}
            found.append({**row, "n_seq": len(values)})
        return found

    def references(self, last: Collection[KVHead], n_kept: int, rng: np.random.Generator) -> pd.DataFrame:
        draws = [[self.players[j] for j in rng.permutation(len(self.players))[:n_kept]] for _ in range(_RANDOM_CHOICES)]
        rows: list[dict[str, Any]] = []
        for i, probe in enumerate(self.probes):
            final = self.outcome(i, last)[:, 0].mean()
            for choice, sets in (("all", [list(self.players)]), ("none", [[]]), ("random", draws)):
                nats, accuracy = np.mean([self.outcome(i, kept).mean(0) for kept in sets], axis=0)
                rows.append(
                    {"choice": choice, "probe": probe.name, "nats": nats, "accuracy": accuracy, "lost": nats - final}
                )
        return pd.DataFrame(rows)


def _by_sequence(m: HookedModel, piece: Probe) -> Float[np.ndarray, "n_seq 2"]:
    found = m.answers(piece)
    assert piece.answer_rows is not None
    sequence = piece.answer_rows[:, 0]
    values = torch.stack([found.loss_nats, found.is_right], -1).double().cpu()
    totals = torch.zeros(len(piece.tokens), 2, dtype=torch.float64).index_add(0, sequence, values)
    counts = torch.bincount(sequence, minlength=len(piece.tokens))
    return (totals / counts.clamp_min(1)[:, None])[counts > 0].numpy()


def _scores(run: Run, detector: str, on: str | None) -> pd.DataFrame:
    """The scores that heads are chosen by, in training order."""
    scores = run.scores(detector=detector, probe=on)
    scored_on = list(dict.fromkeys(scores["probe"]))
    if len(scored_on) > 1:
        raise WorkbenchError(f"{detector} was scored on {', '.join(map(str, scored_on))}; name one of them")
    if len(set(scores["branch"].fillna(""))) > 1:
        raise WorkbenchError(f"{run.path} has several branches; expected one line of checkpoints")
    scores = scores.loc[scores["score"].notna() & (scores["kind"] == "full")]
    if scores.empty:
        raise WorkbenchError(f"{run.path} has no scores of {detector} in layers of full attention")
    return scores


def _chosen(scores: pd.DataFrame, ckpt: str, players: Sequence[KVHead], n_kept: int) -> list[KVHead]:
    """The key/value heads with the highest scores; heads of one group count once."""
    ranked = chosen_at(scores, ckpt, share=1.0)
    pairs = ranked.loc[:, ["layer", "kv_head"]].itertuples(index=False)
    heads = list(dict.fromkeys(KVHead(int(layer), int(kv)) for layer, kv in pairs))
    strangers = [str(head) for head in heads if head not in players]
    if strangers:
        raise WorkbenchError(f"the run scores {', '.join(strangers)}, which the model has not: is it the run's model?")
    return heads[:n_kept]


def _safe(probe: object, group: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    holds = np.append(group["lost_hi"].to_numpy(np.float64)[:-1] <= tolerance, True)  # the last is the reference
    first = int(np.logical_and.accumulate(holds[::-1])[::-1].argmax())
    row = group.iloc[first]
    if first == len(group) - 1:
        return {"probe": probe, "ckpt": None, "step": None, "tokens": None, "share": np.nan}
    tokens = group["tokens"].to_numpy(np.float64, na_value=np.nan)
    steps = group["step_total"].to_numpy(np.float64, na_value=np.nan)
    amount = steps if np.isnan(tokens).any() else tokens
    share = float(amount[first] / amount[-1]) if amount[-1] > 0 else np.nan
    return {"probe": probe, "ckpt": row["ckpt"], "step": row["step"], "tokens": row["tokens"], "share": share}
