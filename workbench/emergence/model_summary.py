"""The summary of one checkpoint: what it gets right, and its retrieval, induction, previous-token and sink heads.

Each class of heads has a detector, a threshold with its source, and the probe that it is read on. A class that asks for
an answer is named only where the model gives the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.emergence.right_answers import abilities, in_words
from workbench.emergence.thresholds import GIVEN_ANSWERS, THRESHOLDS, claims
from workbench.heads import Head, KVHead, brief

COLUMNS = (
    *("class", "name", "layer", "head", "kv_head", "kind", "detector", "probe"),
    *("score", "ci_lo", "ci_hi", "n_seq", "threshold", "source", "claim"),
)


@dataclass(frozen=True, slots=True)
class HeadClass:
    """A class of heads and how it is read.

    `detectors`, `probes`: the first that there are scores of; a probe by the beginning of its name, "" any. `verdicts`:
    of the model on the probe, where the class is named. `next_step`: how to have such scores. `ties`: a detector on the
    same probe that orders heads of equal score.
    """

    name: str
    detectors: tuple[str, ...]
    probes: tuple[str, ...]
    verdicts: tuple[str, ...]
    next_step: str
    ties: str = ""


_UNKNOWN = "not known"
_VERDICTS = ("does", "partly", _UNKNOWN, "cannot")
# These count only what the model answers right.
_GATED = ("retrieval_wu_offsets", "retrieval_wu")
_KEY = ("layer", "head", "kv_head", "kind")
_COUNTS = ("class", "n_heads", "undecided", "of", "detector", "probe", "threshold", "source")
CLASSES = (
    HeadClass(
        "retrieval",
        ("retrieval_wu_offsets", "retrieval_wu", "retrieval_top1"),
        ("niah", "needle", "passkey", "multi_passkey"),
        ("does",),
        "score a needle that it can find: --probe niah_single_1:length=512",
    ),
    HeadClass(
        "induction",
        ("induction",),
        ("repeats", "copy_needle", "abfill"),
        ("does", "partly", _UNKNOWN),
        "--probe repeats",
    ),
    HeadClass("previous token", ("previous_token",), ("repeats", ""), _VERDICTS, "--detector previous_token"),
    HeadClass("sink", ("sink_gu",), ("repeated_ngrams", "text", ""), _VERDICTS, "--detector sink_gu", ties="sink"),
)
_THRESHOLDS = {threshold.detector: threshold for threshold in (*THRESHOLDS, GIVEN_ANSWERS)}


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What one checkpoint gets right and which heads it has.

    `abilities`: as the function of this name. `heads`: the heads of each class, best first, `claim` "yes" or
    "undecided", with threshold and source. `classes`: per class how many of each. `remarks`: sentences on what is not
    named and why.
    """

    abilities: pd.DataFrame
    heads: pd.DataFrame
    classes: pd.DataFrame
    remarks: tuple[str, ...]

    def __repr__(self) -> str:
        return brief(self)

    def document(self) -> dict[str, Any]:
        """The summary as one JSON document."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("abilities", "classes", "heads")}
        return {**tables, "remarks": list(self.remarks)}

    def strongest(self, name: str, n: int) -> str:
        """The `n` best heads of a class with score and interval, and how many more there are."""
        heads = self.heads.loc[(self.heads["class"] == name) & (self.heads["claim"] == "yes")]
        names = ", ".join(f"{row['name']} {with_interval(row)}" for row in heads.head(n).to_dict("records"))
        return f"{names} and {len(heads) - n} more" if len(heads) > n else names

    def sentences(self, n: int = 3) -> list[str]:
        """The summary in sentences; `n` heads of each class by name."""
        sentences = [f"{_capital(in_words(row))}." for row in self.abilities.to_dict("records")]
        for row in self.classes.to_dict("records"):
            names = self.strongest(row["class"], n)
            sentences.append(
                f"{row['n_heads']} of {row['of']} heads are {row['class']} heads, {row['undecided']} more undecided: "
                f"{row['detector']} above {row['threshold']:g} on {row['probe']} ({row['source']})"
                f"{': ' if names else ''}{names}."
            )
        return [*sentences, *self.remarks]


def summarise_model(scores: pd.DataFrame, metrics: pd.DataFrame) -> ModelSummary:
    """Summarise rows of `Run.scores` and `Run.metrics` of one checkpoint, or of `score_and_measure`.

    Raises:
        WorkbenchError: if the scores are of several steps.
    """
    done = abilities(metrics)
    by_probe = {str(row["probe"]): row for row in done.to_dict("records")}
    heads = [pd.DataFrame(columns=pd.Index(COLUMNS))]
    counted: list[dict[str, Any]] = []
    remarks: list[str] = []
    for head_class in CLASSES:
        detector, probe = _read_on(head_class, scores, by_probe)
        why_not = _why_not(head_class, detector, by_probe.get(probe))
        if why_not:
            remarks.append(f"{_capital(head_class.name)} heads are not named: {why_not}; {head_class.next_step}.")
            continue
        judged = claims(
            scores.loc[(scores["detector"] == detector) & (scores["probe"] == probe)], [_THRESHOLDS[detector]]
        )
        beside = scores.loc[(scores["detector"] == (head_class.ties or detector)) & (scores["probe"] == probe)]
        heads.append(_named(judged, head_class.name, beside))
        counted.append(_counts(judged, head_class.name))
    remarks += [
        f"Scores on {row['probe']} say where heads look, not that they retrieve: {in_words(row)}."
        for row in by_probe.values()
        if row["verdict"] == "cannot"
    ]
    table = pd.concat([each for each in heads if len(each)] or heads, ignore_index=True)
    return ModelSummary(done, table, pd.DataFrame(counted, columns=pd.Index(_COUNTS)), tuple(remarks))


def with_interval(row: dict[str, Any]) -> str:
    """A score with its 95 % interval, if it has one."""
    if pd.isna(row["ci_lo"]):
        return f"{row['score']:.2f}"
    return f"{row['score']:.2f} ({row['ci_lo']:.2f}–{row['ci_hi']:.2f})"


def _read_on(head_class: HeadClass, scores: pd.DataFrame, by_probe: Mapping[str, dict[str, Any]]) -> tuple[str, str]:
    """The detector and the probe that a class is read on; a probe that the model can do comes first; "" for none."""
    pairs = scores.loc[scores["score"].notna(), ["detector", "probe"]].drop_duplicates()
    ranked: list[tuple[int, int, int, str, str]] = []
    for detector, probe in pairs.itertuples(index=False, name=None):
        beginnings = [i for i, beginning in enumerate(head_class.probes) if str(probe).startswith(beginning)]
        if detector in head_class.detectors and beginnings:
            verdict = by_probe.get(str(probe), {}).get("verdict", _UNKNOWN)
            rank = _VERDICTS.index(verdict) if head_class.verdicts != _VERDICTS else 0
            ranked.append((head_class.detectors.index(detector), rank, beginnings[0], str(detector), str(probe)))
    return min(ranked)[3:] if ranked else ("", "")


def _why_not(head_class: HeadClass, detector: str, ability: dict[str, Any] | None) -> str:
    """Why a class is not named; "" where it is."""
    if not detector:
        return "there are no scores of " + " or ".join(head_class.detectors[-1:]) + " on such a probe"
    if detector in _GATED:
        return ""
    verdict = _UNKNOWN if ability is None else ability["verdict"]
    if verdict in head_class.verdicts:
        return ""
    return "it was not measured what the model gets right" if ability is None else in_words(ability)


def _named(judged: pd.DataFrame, name: str, beside: pd.DataFrame) -> pd.DataFrame:
    """The heads that pass, best first, then those that may; of equal ones first the higher in the scores `beside`."""
    rows = judged.loc[judged["claim"].isin(["yes", "undecided"])]
    rows = rows.assign(**{"class": name, "is_open": rows["claim"] == "undecided"})
    tie = beside.loc[:, [*_KEY, "score"]].rename(columns={"score": "tie"}).drop_duplicates(list(_KEY))
    rows = rows.merge(tie, on=list(_KEY), how="left")
    rows = rows.sort_values(["is_open", "score", "tie"], ascending=[True, False, False], kind="stable")
    numbers: Any = rows.loc[:, ["layer", "head", "kv_head"]].itertuples(index=False, name=None)
    names = [str(KVHead(layer, kv) if pd.isna(head) else Head(layer, int(head))) for layer, head, kv in numbers]
    return rows.assign(name=names).loc[:, list(COLUMNS)]


def _counts(judged: pd.DataFrame, name: str) -> dict[str, Any]:
    claim = judged["claim"].tolist()
    numbers = (claim.count("yes"), claim.count("undecided"), len(claim) - claim.count("no score"))
    first = judged.to_dict("records")[0]
    return dict(zip(_COUNTS, (name, *numbers, *(first[column] for column in _COUNTS[4:])), strict=True))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
