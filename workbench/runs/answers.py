"""Which heads of a run need the whole context: by a plan of its model, or by detectors with their thresholds.

A plan has measured what is lost without a head. Detectors say where heads look, which is less; the answer names which
of the two it rests on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.console import fixed
from workbench.emergence import summarise_model
from workbench.emergence.onset_words import in_order_of_onset, onset_words
from workbench.heads import Head, WorkbenchError
from workbench.runs.plans_of_runs import plan_of_run
from workbench.runs.run import Run
from workbench.store.plan_file import Plan

# The classes of heads that fetch from far, in the order in which they name a head; and the detectors that find them.
FAR_CLASSES = ("retrieval", "induction")
DETECTORS = ("retrieval_wu_offsets", "retrieval_wu", "retrieval_top1", "induction")
# Kinds of layers whose heads may reach any earlier token: what an indexer selects, it selects from the whole past.
_OF_WHOLE = ("full", "sparse")
_NEXT_STEP = "detectors say where heads look; what is lost without them says workbench plan MODEL --window N"


@dataclass(frozen=True, slots=True)
class Answer:
    """The heads of one run that need the whole context.

    `heads`: its query heads, the strongest first. `count`: how many of what; "" where it is not known. `basis`: by what
    that is known, or why it is not. `source`: whose thresholds they are. `since`: when the heads came, "" where there
    is no training to tell. `plan`: the name of the plan that says so, "" for detectors. `detector`,
    `probe`: those that found most of the heads. `remarks`: what else is to be known.
    """

    run: str
    heads: tuple[Head, ...]
    count: str
    basis: str
    source: str = ""
    since: str = ""
    plan: str = ""
    detector: str = ""
    probe: str = ""
    remarks: tuple[str, ...] = ()

    def phrases(self) -> tuple[tuple[str, str], ...]:
        """The sentence in pieces, each with what it is: "run", "count", "basis", or "" for the words between."""
        if not self.count:
            return ("run", self.run), ("", ": not known: "), ("basis", self.basis), ("", ".")
        # A plan has measured that they need it, detectors only where they look.
        verb = " need it, " if self.plan else " look far, "
        end = f"; {self.since}." if self.since else "."
        return ("run", self.run), ("", ": "), ("count", self.count), ("", verb), ("basis", self.basis), ("", end)

    @property
    def sentence(self) -> str:
        """The answer as one sentence, without the names of heads."""
        return "".join(text for _, text in self.phrases())


def shared_remarks(several: Iterable[Answer]) -> list[str]:
    """The remarks of more than one answer, which are said once."""
    counts = Counter(remark for answer in several for remark in answer.remarks)
    return [remark for remark, n in counts.items() if n > 1]


def answer_of(run: Run, plans: Mapping[str, Path], *, unit: str = "tokens") -> Answer:
    """The answer of one run, by the plan of its model among `plans`, else by detectors.

    `unit`: in which the answer counts training, "tokens" or "step".

    Raises:
        WorkbenchError: if the run cannot be read.
    """
    scores, metrics = _far_scores(run)
    by_detectors = _by_detectors(run, scores, metrics, unit=unit)
    planned = plan_of_run(run, plans)
    return by_detectors if planned is None else _by_plan(run, *planned, by_detectors=by_detectors, unit=unit)


def answer_or_reason(run: Run, answer: Callable[[Run], Answer]) -> Answer:
    """What `answer` says of a run; of one that cannot be read, why."""
    try:
        return answer(run)
    except (WorkbenchError, OSError) as error:
        return Answer(run.name, (), "", str(error))


def query_heads(plan: Plan) -> tuple[Head, ...]:
    """The query heads that read the key/value heads which a plan keeps, in the order of its ranking."""
    infos = {info.index: info for info in plan.layers if info.mixer == "softmax"}
    keep = set(plan.keep)
    kept_in_order = (ranked.head for ranked in plan.ranking if ranked.head in keep)
    return tuple(head for layer, kv_head in kept_in_order for head in infos[layer].query_heads(kv_head))


def _by_plan(run: Run, name: str, plan: Plan, *, by_detectors: Answer, unit: str) -> Answer:
    heads = query_heads(plan)
    judged = [p for p in plan.curve if p.method == plan.method and p.n_kept == len(plan.keep)]
    brought_back = ", ".join(
        f"{fixed(p.recovered, 2)}{_interval(p.ci_lo, p.ci_hi)} of what windows cost on {p.probe}" for p in judged[:2]
    )
    others = f"a window of {plan.window:,} tokens" + (f" behind {plan.sink} sinks" if plan.sink else "")
    others += f", or linear attention ({len(plan.linear)} heads)" if plan.linear else ""
    basis = f"by the plan {name}, which gives the others {others}" + (
        f" and brings back {brought_back}" if brought_back else ""
    )
    both = len(set(heads) & set(by_detectors.heads))
    seen = f"of the {len(by_detectors.heads)} heads that look far {by_detectors.basis} it keeps {both}"
    return Answer(
        run.name,
        heads,
        f"{len(plan.keep)} of {len(plan.ranking)} key/value heads",
        basis,
        source=by_detectors.source,
        since=_since_of(run, heads, by_detectors, unit),
        plan=name,
        detector=by_detectors.detector,
        probe=by_detectors.probe,
        remarks=(seen,) if by_detectors.heads else (),
    )


def _by_detectors(run: Run, scores: pd.DataFrame, metrics: pd.DataFrame, *, unit: str) -> Answer:
    unknown = (
        f"there are no scores of {DETECTORS[2]} on a needle that the model finds, nor of {DETECTORS[3]} on repeats; "
        "workbench scan DIR --out RUN --probe repeats adds some"
    )
    if scores.empty:
        return Answer(run.name, (), "", unknown)
    summary = summarise_model(scores, metrics)
    classes = summary.classes.loc[summary.classes["class"].isin(FAR_CLASSES)]
    if classes.empty:
        return Answer(run.name, (), "", unknown)
    heads = summary.heads.loc[(summary.heads["claim"] == "yes") & summary.heads["class"].isin(FAR_CLASSES)]
    heads = heads.loc[heads["kind"].isin(_OF_WHOLE) & heads["head"].notna()]
    named = tuple(dict.fromkeys(Head(int(row["layer"]), int(row["head"])) for row in heads.to_dict("records")))
    whole = scores.loc[scores["kind"].isin(_OF_WHOLE) & scores["head"].notna(), ["layer", "head"]].drop_duplicates()
    if whole.empty:
        n_heads = len(scores.drop_duplicates(["layer", "head"]))
        return Answer(run.name, (), f"0 of {n_heads} heads", "by its layers: none sees the whole context")
    rows = classes.to_dict("records")
    rules = [f"{r['detector']} > {r['threshold']:g} on {r['probe']} ({_n_of(heads, r['class'])})" for r in rows]
    missing = [name for name in FAR_CLASSES if name not in set(classes["class"])]
    return Answer(
        run.name,
        named,
        f"{len(named)} of the {len(whole)} heads that see the whole context",
        "by " + " or ".join(rules),
        source="; ".join(f"{r['detector']}: {r['source']}" for r in rows),
        since=_since(run, heads, unit),
        detector=str(rows[0]["detector"]),
        probe=str(rows[0]["probe"]),
        remarks=(*(f"not counted, for want of scores: {name} heads" for name in missing), _NEXT_STEP),
    )


def _far_scores(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of `DETECTORS` at the last checkpoint, and the metrics there."""
    tables = [run.scores(detector=name, step="last") for name in run.detectors if name in DETECTORS]
    if not tables:
        return pd.DataFrame(), pd.DataFrame()
    scores = pd.concat(tables, ignore_index=True)
    order = {name: i for i, name in enumerate(run.checkpoints()["ckpt"])}
    last = max(scores["ckpt"].unique(), key=lambda name: order.get(name, -1))
    metrics = run.metrics()
    return scores.loc[scores["ckpt"] == last], metrics.loc[metrics["ckpt"] == last]


def _since(run: Run, heads: pd.DataFrame, unit: str) -> str:
    """When these heads came: the onset of the first and of half of them, each under the detector that names it."""
    if run.n_scored < 2 or heads.empty:
        return ""
    tables: list[pd.DataFrame] = []
    pairs = heads.loc[:, ["detector", "probe"]].drop_duplicates().to_numpy().tolist()
    for detector, probe in pairs:
        group = heads.loc[(heads["detector"] == detector) & (heads["probe"] == probe)]
        onsets = run.onsets(detector, probe=probe)
        own = onsets.merge(group.loc[:, ["layer", "head"]].drop_duplicates(), on=["layer", "head"])
        tables.append(own.drop_duplicates(["layer", "head"], keep="last"))  # as on the last branch
    rows = pd.concat(tables, ignore_index=True).drop_duplicates(["layer", "head"])
    ordered = in_order_of_onset(rows)
    if not ordered:
        return ""
    first, half = (onset_words(ordered[i], unit=unit) for i in (0, (len(ordered) - 1) // 2))
    return f"the first since {first}" + (f", half of them by {half}" if len(ordered) > 1 else "")


def _since_of(run: Run, heads: Sequence[Head], by_detectors: Answer, unit: str) -> str:
    """When a plan's query heads came, under the detector that finds such heads; those without an onset are left out."""
    if not by_detectors.detector or not heads:
        return ""
    table = pd.DataFrame(heads, columns=["layer", "head"])
    since = _since(run, table.assign(detector=by_detectors.detector, probe=by_detectors.probe), unit)
    return since and f"{since} (onsets of {by_detectors.detector} on {by_detectors.probe})"


def _n_of(heads: pd.DataFrame, name: str) -> int:
    return len(heads.loc[heads["class"] == name])


def _interval(low: float, high: float) -> str:
    return "" if low != low else f" [{fixed(low, 2)}, {fixed(high, 2)}]"
