"""The contents of a report: facts, claims with their n and interval, and tables, from the runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from workbench.console import shown
from workbench.emergence import ModelSummary
from workbench.heads import Head, KVHead, WorkbenchError
from workbench.runs import Run, Summary, summarise
from workbench.runs.answers import Answer, answer_of, answer_or_reason
from workbench.runs.plans_of_runs import find_plans

# Of each run: tables and sentences need the traced heads that figures are drawn from.
_CACHE_BYTES = 512 * 2**20
_BEST = ("run", "detector", "probe", "head", "kind", "score", "ci_lo", "ci_hi", "n", "n_seq", "onset_tokens")


@dataclass(frozen=True, slots=True)
class Contents:
    """The report of some runs.

    `answers`: which heads of each run need the whole context, by a plan in its folder or beside it, else by detectors,
    whatever detectors the rest is of. `facts`: per run its series, job, versions and progress. `claims`: sentences.
    `best`, `failures`: tables with a column `run`; `summary`: that of `workbench emergence`. `classes`: the (detector,
    probe) pairs of all runs. `models`: by name, what is known of the runs of one checkpoint.
    """

    runs: tuple[Run, ...]
    answers: tuple[Answer, ...]
    facts: dict[str, dict[str, Any]]
    claims: list[str]
    best: pd.DataFrame
    summary: Summary
    failures: pd.DataFrame
    classes: tuple[tuple[str, str], ...]
    models: dict[str, ModelSummary]

    def document(self) -> dict[str, Any]:
        """The contents as one JSON document."""
        tables = {name: table.to_dict("records") for name, table in self.summary.tables.items()}
        lists = {"best_heads": self.best, "failures": self.failures}
        return {
            "runs": self.facts,
            "answers": [_answer_document(answer) for answer in self.answers],
            "claims": self.claims,
            **{name: table.to_dict("records") for name, table in lists.items()},
            **tables,
            "lock_in": self.summary.sentences,
            "models": {name: model.document() for name, model in self.models.items()},
        }


def contents_of(
    runs: Sequence[Run], *, detectors: Sequence[str] | None = None, probe: str | None = None, n: int = 5
) -> Contents:
    """Gather the contents for these runs; `n` heads of each class are listed.

    Raises:
        WorkbenchError: as `workbench.runs.summarise`: no run, runs of one name, or no detector in common.
    """
    if not runs:
        raise WorkbenchError("no run was given; pass the folders of one or several")
    runs = [run.with_cache(_CACHE_BYTES) for run in runs]
    # First: it reads the disk anew, and all that follows is of the same parts.
    facts = {run.name: _facts(run) for run in runs}
    summary = summarise(runs, detectors=detectors, probe=probe, n=n)
    classes = summary.tables["classes"]
    pairs = tuple(dict.fromkeys(classes.loc[:, ["detector", "probe"]].itertuples(index=False, name=None)))
    of_training = {run.name for run in runs if run.n_scored > 1}
    models = {run.name: run.model_summary() for run in runs if run.n_scored == 1}
    best = pd.concat([_best(run, detector, on, n) for detector, on in pairs for run in runs], ignore_index=True)
    failed = pd.concat([run.failures().drop(columns="traceback").assign(run=run.name) for run in runs])
    plans = find_plans([run.path for run in runs], [])
    return Contents(
        tuple(runs),
        tuple(answer_or_reason(run, lambda each: answer_of(each, plans)) for run in runs),
        facts,
        [
            *(f"{name}: {sentence}" for name, model in models.items() for sentence in model.sentences()),
            *_claims(classes, of_training),
            *(
                f"{s['run']}, {s['detector']} on {s['probe']}: {s['says']}"
                for s in summary.sentences
                if s["run"] in of_training
            ),
        ],
        best,
        summary,
        failed.reset_index(drop=True),
        pairs,
        models,
    )


def _answer_document(answer: Answer) -> dict[str, Any]:
    return {**asdict(answer), "heads": [str(head) for head in answer.heads], "sentence": answer.sentence}


def _facts(run: Run) -> dict[str, Any]:
    description, status = run.description(), run.status()
    series: Any = run.checkpoints()
    job = {name: value for name, value in run.last_job().as_dict().items() if value is not None and value != []}
    settings = {
        str(run.settings_of(detector, probe)) for detector in run.detectors for probe in run.probes_of(detector)
    }
    tokens, steps = series["tokens"].dropna(), series["step"].dropna()
    layers: Any = run.layers()
    kinds = [
        f"{len(group)} {kind}" + (f" (window {window})" if pd.notna(window) else "")
        for (kind, window), group in layers.groupby(["kind", "window"], dropna=False, sort=False)
    ]
    return {
        "folder": str(run.path),
        "scanned": description.created,
        "checkpoints": len(series),
        "steps": None if steps.empty else f"{steps.min()} to {steps.max()}",
        "tokens": None if tokens.empty else f"{tokens.min():,} to {tokens.max():,}",
        "layers": ", ".join(kinds),
        "heads": int(layers["n_heads"].sum()),
        "detectors": ", ".join(run.detectors),
        "probes": ", ".join(run.probes),
        "settings": "; ".join(sorted(settings - {""})) or None,
        "remarks": "; ".join(run.remarks) or None,
        "progress": status.in_words,
        "versions": ", ".join(f"{name} {value}" for name, value in description.versions.packages.items()),
        "job": ", ".join(f"{name}={value}" for name, value in job.items()),
        "status": asdict(status),
    }


def _claims(classes: pd.DataFrame, names: set[str]) -> list[str]:
    """One sentence per class and run of these names: how many heads there are, and when half of their rise was over."""
    return [_claim(row) for row in classes.to_dict("records") if row["run"] in names]


def _claim(row: dict[str, Any]) -> str:
    there = f"{row['at_first'] + row['emerged']} of {row['n_heads']} heads are there at the end"
    counts = [f"{row['emerged']} emerged", f"{row['at_first']} there at first", f"{row['transient']} transient"]
    claim = f"{row['run']}, {row['detector']} on {row['probe']}: {there} ({', '.join(counts)})"
    if pd.isna(row["first"]):
        return f"{claim}."
    unit = "tokens" if row["unit"] == "tokens" else "steps"
    return (
        f"{claim}; half of the first rise was over at {row['first']:,.0f} {unit}, the median at {row['median']:,.0f}."
    )


def _best(run: Run, detector: str, probe: str, n: int) -> pd.DataFrame:
    table: Any = run.top(detector, n, probe=probe).assign(run=run.name)
    labels = [
        str(KVHead(row["layer"], row["kv_head"]) if pd.isna(row["head"]) else Head(row["layer"], row["head"]))
        for row in table.to_dict("records")
    ]
    return table.assign(head=labels).loc[:, list(_BEST)]


def value_text(value: Any) -> str:
    """A value as text for a table of the page; large whole numbers with commas."""
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shown(value)
