"""How early a choice of heads is safe: keep, in the final model, the heads that each checkpoint would have chosen.

1. At every scored checkpoint n, the key/value heads of full-attention layers are ranked by a detector (the maximum over
   the query heads that read them), and the first `keep` are chosen.
2. In the final model these keep the whole context, and the other heads of full-attention layers get a window. Layers
   that are windowed or linear by architecture do not change.
3. On every probe: nats and accuracy per sequence, with the 95 % bootstrap over sequences; and, on the same sequences,
   the nats lost against the heads that the last checkpoint chooses (`lost`).

A choice is safe from the first checkpoint on after which `lost`, the upper end of its interval included, never again
exceeds the tolerance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from workbench.console import fixed
from workbench.detectors.bootstrap import bootstrap
from workbench.emergence import chosen_at
from workbench.heads import KVHead, WorkbenchError, brief
from workbench.hooks import HookedModel
from workbench.planning.answer_loss import answer_batches
from workbench.probes import Probe
from workbench.runs import Run

_RANDOM_CHOICES = 5
_CHECKPOINT = ("ckpt", "branch", "step", "step_total", "tokens")


@dataclass(frozen=True, slots=True)
class EarlyChoices:
    """The outcomes of early choices of heads.

    `table`: one row per checkpoint and probe: ckpt, branch, step, step_total, tokens, probe, heads (chosen, as text),
    n_kept, in_common (with those chosen at the last), nats, accuracy, lost, each with _lo and _hi, n_seq.
    `references`: the final model with all heads full, with none, and with random choices (mean over five): choice,
    probe, nats, accuracy, lost. `detector`, `on`: the scores that chose heads, and their probe. `window`, `sink`: in
    tokens.
    """

    table: pd.DataFrame
    references: pd.DataFrame
    detector: str
    on: str
    window: int
    sink: int

    def __repr__(self) -> str:
        return brief(self)

    def safe_since(self, tolerance: float = 0.1) -> pd.DataFrame:
        """Per probe, the first checkpoint from which on `lost` stays within the tolerance, in nats per answer.

        Columns: probe, ckpt, step, tokens, share (of training); all but the probe are missing where only the last
        checkpoint is safe. With fewer than five sequences the interval is NaN, and nothing is safe.
        """
        rows = [_safe_since(probe, group, tolerance) for probe, group in self.table.groupby("probe", sort=False)]
        return pd.DataFrame(rows)

    def sentences(self, tolerance: float = 0.1) -> list[str]:
        """A sentence for every probe."""
        return [self._sentence(row, tolerance) for row in self.safe_since(tolerance).to_dict("records")]

    def _sentence(self, row: dict[str, Any], tolerance: float) -> str:
        gap = self.references.loc[self.references["probe"] == row["probe"]].set_index("choice")["nats"]
        lost = gap["none"] - gap["all"]
        cost = f"{row['probe']}: windowing every head costs {fixed(lost, 2)} nats per answer"
        if lost <= tolerance:
            return f"{cost}, within the tolerance of {tolerance:g}: any choice is safe, and nothing is learnt."
        choice = f"heads chosen by {self.detector} on {self.on}"
        if row["ckpt"] is None:
            return f"{cost}; {choice} before the last checkpoint are not within {tolerance:g} of the last choice."
        share = "" if pd.isna(row["share"]) else f" ({row['share']:.0%} of training)"
        return f"{cost}; {choice} stay within {tolerance:g} of the last choice from {row['ckpt']} on{share}."


def early_choices(  # noqa: PLR0913  # public keywords
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
    """Keep, in the final model, the heads that each checkpoint would have chosen, and measure the loss.

    Args:
        m: the model of the run's last checkpoint.
        probes: with answers; for sound numbers others than the one heads were chosen on.
        detector, on: the scores that choose heads, and their probe; `on` may be left out where there is only one.
        window, sink: last and first tokens that a windowed head sees.
        keep: share of the key/value heads of full-attention layers; at least one.

    Raises:
        WorkbenchError: if the run has no such scores, several branches, no full-attention layer in common with the
            model, a probe has no answers, or the share is out of range.
    """
    scores = _scores(run, detector, on)
    heads = [KVHead(i.index, h) for i in m.layers if i.kind == "full" for h in range(i.n_kv_heads)]
    if not heads:
        raise WorkbenchError("the model has no layer of full attention: there is nothing to keep")
    if not 0 < keep < 1:
        raise WorkbenchError(f"keep is {keep}; expected a share above 0 and below 1 of {len(heads)} heads")
    n_kept = max(1, round(keep * len(heads)))
    choices = {ckpt: _first_heads(scores, str(ckpt), heads, n_kept) for ckpt in dict.fromkeys(scores["ckpt"])}
    outcomes = _Outcomes(m, probes, heads, window=window, sink=sink)
    final = list(choices.values())[-1]
    checkpoints = scores.drop_duplicates("ckpt").loc[:, list(_CHECKPOINT)].to_dict("records")
    rows = [
        row
        for checkpoint in checkpoints
        for row in _choice_rows(outcomes, checkpoint, choices[checkpoint["ckpt"]], final, seed=seed)
    ]
    references = _references(outcomes, final, n_kept, np.random.default_rng(seed))
    return EarlyChoices(pd.DataFrame(rows), references, detector, str(scores["probe"].iloc[0]), window, sink)


class _Outcomes:
    """The final model's nats and accuracy on every probe by full heads, each set measured once."""

    def __init__(
        self, m: HookedModel, probes: Sequence[Probe], heads: Sequence[KVHead], *, window: int, sink: int
    ) -> None:
        self.m, self.probes, self.heads, self.window, self.sink = m, probes, heads, window, sink
        self._known: dict[tuple[int, frozenset[KVHead]], Float[np.ndarray, "n_seq 2"]] = {}

    def of(self, i: int, full: Collection[KVHead]) -> Float[np.ndarray, "n_seq 2"]:
        """Nats and accuracy of every sequence of probe i that has an answer, with these heads full."""
        key = (i, frozenset(full))
        if key not in self._known:
            windowed = [head for head in self.heads if head not in key[1]]
            with self.m.restrict(windowed, self.window, self.sink):
                batches = answer_batches(self.probes[i])
                if not batches:
                    raise WorkbenchError(f"probe {self.probes[i].name!r} has no answers; expected one with answers")
                self._known[key] = np.concatenate([_by_sequence(self.m, batch) for batch in batches])
        return self._known[key]


def _choice_rows(
    outcomes: _Outcomes,
    checkpoint: dict[str, Any],
    choice: Collection[KVHead],
    final: Collection[KVHead],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """A row per probe for one checkpoint's choice beside the final one."""
    rows: list[dict[str, Any]] = []
    for i, probe in enumerate(outcomes.probes):
        of_choice, of_final = outcomes.of(i, choice), outcomes.of(i, final)
        values = np.column_stack([of_choice, of_choice[:, 0] - of_final[:, 0]])
        low, high = bootstrap(values, np.ones(values.shape, dtype=bool), seed=seed)
        mean = values.mean(0)
        row: dict[str, Any] = {**checkpoint, "probe": probe.name, "heads": " ".join(map(str, sorted(choice)))}
        row |= {"n_kept": len(choice), "in_common": len(set(choice) & set(final))}
        for j, name in enumerate(("nats", "accuracy", "lost")):
            row |= {name: mean[j], f"{name}_lo": low[j], f"{name}_hi": high[j]}
        rows.append({**row, "n_seq": len(values)})
    return rows


def _references(outcomes: _Outcomes, final: Collection[KVHead], n_kept: int, rng: np.random.Generator) -> pd.DataFrame:
    """The final model with all heads full, with none and with random ones."""
    heads = list(outcomes.heads)
    draws = [[heads[j] for j in rng.permutation(len(heads))[:n_kept]] for _ in range(_RANDOM_CHOICES)]
    rows: list[dict[str, Any]] = []
    for i, probe in enumerate(outcomes.probes):
        final_nats = outcomes.of(i, final)[:, 0].mean()
        for choice, sets in (("all", [heads]), ("none", [[]]), ("random", draws)):
            nats, accuracy = np.mean([outcomes.of(i, full).mean(0) for full in sets], axis=0)
            values = {"nats": nats, "accuracy": accuracy, "lost": nats - final_nats}
            rows.append({"choice": choice, "probe": probe.name, **values})
    return pd.DataFrame(rows)


def _by_sequence(m: HookedModel, probe: Probe) -> Float[np.ndarray, "n_seq 2"]:
    """Mean nats and accuracy over the answers of every sequence that has one."""
    answers = m.answers(probe)
    assert probe.answer_rows is not None
    sequence = probe.answer_rows[:, 0]
    values = torch.stack([answers.loss_nats, answers.is_right], -1).double().cpu()
    totals = torch.zeros(len(probe.tokens), 2, dtype=torch.float64).index_add(0, sequence, values)
    counts = torch.bincount(sequence, minlength=len(probe.tokens))
    return (totals / counts.clamp_min(1)[:, None])[counts > 0].numpy()


def _scores(run: Run, detector: str, on: str | None) -> pd.DataFrame:
    """The scores that choose heads, in training order."""
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


def _first_heads(scores: pd.DataFrame, ckpt: str, of_model: Sequence[KVHead], n_kept: int) -> list[KVHead]:
    """The key/value heads with the highest scores; heads of one group count once."""
    ranked = chosen_at(scores, ckpt, share=1.0)
    pairs = ranked.loc[:, ["layer", "kv_head"]].itertuples(index=False)
    heads = list(dict.fromkeys(KVHead(int(layer), int(kv)) for layer, kv in pairs))
    unknown = [str(head) for head in heads if head not in of_model]
    if unknown:
        raise WorkbenchError(f"the run scores {', '.join(unknown)}, which the model has not: is it the run's model?")
    return heads[:n_kept]


def _safe_since(probe: object, group: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    is_safe = np.append(group["lost_hi"].to_numpy(np.float64)[:-1] <= tolerance, True)  # the last is the reference
    first = int(np.logical_and.accumulate(is_safe[::-1])[::-1].argmax())
    row = group.iloc[first]
    if first == len(group) - 1:
        return {"probe": probe, "ckpt": None, "step": None, "tokens": None, "share": np.nan}
    tokens = group["tokens"].to_numpy(np.float64, na_value=np.nan)
    steps = group["step_total"].to_numpy(np.float64, na_value=np.nan)
    amount = steps if np.isnan(tokens).any() else tokens
    share = float(amount[first] / amount[-1]) if amount[-1] > 0 else np.nan
    return {"probe": probe, "ckpt": row["ckpt"], "step": row["step"], "tokens": row["tokens"], "share": share}
