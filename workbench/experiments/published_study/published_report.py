"""The report of a study of a published model: the questions with their answers, tables, figures, the plan, scores.

<out>/report.md, report.json      the same bytes for the same study, however often it was interrupted
<out>/figures.html                its figures, in one file that needs no network
<out>/plan.json, plan-512.json    the plan of the first window, and of the others
<out>/scores.parquet              scores of every head, before and after training
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from workbench.console import fixed
from workbench.experiments.conversion.report_tables import DASH, markdown
from workbench.experiments.published_study.given_text import PYTHON
from workbench.experiments.published_study.judged_texts import lengths_of_study
from workbench.experiments.published_study.published_plan import plan_of_study
from workbench.experiments.published_study.published_results import PublishedResults
from workbench.experiments.published_study.published_settings import GATES
from workbench.figures import lost_by_length, recovered_by_kept
from workbench.figures.conversion_effects import heads_before_and_after
from workbench.files.atomic import replace_file, replacing_file
from workbench.files.plain_json import json_text
from workbench.heads import WorkbenchError

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return


def write_published_report(results: PublishedResults, out: Path) -> Path:
    """Write all files of the report; returns the path of the Markdown.

    Raises:
        StoreNotWritable: if the folder cannot be written.
    """
    replace_file(out / "report.json", (json_text(results.document(), indent=1) + "\n").encode())
    replace_file(out / "report.md", published_markdown(results).encode())
    replace_file(out / "figures.html", _figures_page(results).encode())
    for i, window in enumerate(results.study.windows):
        plan = plan_of_study(results, window)
        if plan is not None:
            plan.save(out / ("plan.json" if i == 0 else f"plan-{window}.json"))
    with replacing_file(out / "scores.parquet") as stream:
        results.scores.to_parquet(stream, index=False)
    return out / "report.md"


def published_markdown(results: PublishedResults) -> str:
    """The report as Markdown."""
    study = results.study
    sections = [f"# Which heads of {results.m.name} need the whole context", *_unfinished(results)]
    sections += [f"**{claim.question}** {claim.answer}" for claim in results.claims()]
    sections += ["## Setting", _setting(results)]
    for window in study.windows:
        sections += [*_window_sections(results, window)]
    if results.remarks:
        sections += ["## What is left out", "\n".join(f"- {remark}" for remark in results.remarks)]
    return "\n\n".join(sections) + "\n"


def published_figures(results: PublishedResults) -> Iterator[go.Figure]:
    """What is back by heads kept, what is lost by length, and heads before and after training."""
    for window in results.study.windows:
        lengths = lengths_of_study(results.study, results.m, window)
        parts = dict.fromkeys(part for n in lengths for part in results.answers.counted(window, n))
        for part in parts:
            try:
                yield recovered_by_kept(results.cells, part, window=window, length=lengths[0])
            except WorkbenchError:  # not measured yet
                continue
        for steps in (0, *results.study.training.steps):
            for part in parts:
                try:
                    yield lost_by_length(results.cells, part, window=window, steps=steps)
                except WorkbenchError:
                    continue
    yield from _moved_figures(results)


def _moved_figures(results: PublishedResults) -> Iterator[go.Figure]:
    scores: Table = results.scores
    if not results.study.training.steps or scores.empty:
        return
    table = scores.assign(
        training=[f"{n} steps" if n else "no training" for n in scores.steps], method=scores.arm, draw=0, lifted=True
    )
    # A prior is a ranking, too; what is compared with trained heads is the pattern's score, which knows no window.
    at_window = results.study.windows[0]
    table = table[(table.steps > 0) | (table.at_window == [at_window * (name == GATES) for name in table.detector])]
    last = f"{int(scores.steps.max())} steps"
    for arm in dict.fromkeys(scores[scores.steps > 0].arm):
        for detector in (GATES, "retrieval", "induction"):
            try:
                yield heads_before_and_after(table, training=last, method=arm, detector=detector)
            except WorkbenchError:
                continue


def _figures_page(results: PublishedResults) -> str:
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, div_id=f"figure-{i}")
        for i, figure in enumerate(published_figures(results))
    ]
    title = f"Which heads of {results.m.name} need the whole context"
    body = "\n".join(parts) or "<p>No figure yet: nothing is measured.</p>"
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
    return f"{head}\n<body>\n{body}\n</body></html>\n"


def _unfinished(results: PublishedResults) -> list[str]:
    if not results.n_missing:
        return []
    by_steps = ""
    if results.study.training.steps:
        cells: Table = results.cells
        reached = [
            f"{steps} steps: {len(of_steps)} arms, {int(of_steps.n_seeds.min())} to {int(of_steps.n_seeds.max())} seeds"
            for steps in results.study.training.steps
            if len(of_steps := cells[cells.steps == steps].drop_duplicates("arm"))
        ]
        by_steps = f" Training reached {'; '.join(reached) or 'no number of steps that is measured'}."
    return [f"**Partial: at most {results.n_missing} pieces are not done.** Numbers are of what is there.{by_steps}"]


def _setting(results: PublishedResults) -> str:
    study, training = results.study, results.study.training
    lines = [
        f"{len(results.m.layers)} layers; {study.seeds} seeds, each with texts, random heads and training data of its "
        f"own; sink {study.sink}; {study.n_ranked} texts to rank on, {study.n_texts} of each task, length and seed to "
        "judge on. Intervals are over the texts of all seeds together, losses are paired question by question."
    ]
    quantisation = {info.quantisation for info in results.m.layers if info.quantisation}
    if quantisation:
        lines.append(f"The weights are dequantised from {', '.join(sorted(quantisation))}.")
    if study.text:
        lines.append(
            f"Text: documents of {PYTHON}, or of what was named with --text, held out from training (digest "
            f"{study.text}). Needles stand in Python's documentation."
        )
    if training.steps:
        lines.append(
            f"Trained: {training.n_sequences} × {training.length} tokens a step, AdamW (β 0.9, 0.95, no weight decay) "
            f"at {training.rate:g} after {training.warmup} steps of warm-up, constant from there, gradients clipped to "
            "norm 1; the same batches in the same order for every arm of a seed."
        )
    return " ".join(lines)


def _window_sections(results: PublishedResults, window: int) -> list[str]:
    study = results.study
    lengths = lengths_of_study(study, results.m, window)
    parts = list(dict.fromkeys(part for n in lengths for part in results.answers.counted(window, n)))
    sections = [f"## Window {window}"]
    if not lengths or not parts:
        return [*sections, "No task counts."]
    sections += [
        f"### Every arm at {lengths[0]:,} tokens, without training",
        "Share of the loss by windowing that is back [95 % interval over texts], right answers in brackets.",
        _arms_table(results, window, lengths[0], parts),
    ]
    if len(lengths) > 1:
        sections += [
            "### By length",
            "Nats per answer more than the published model [95 % interval], and the mean over doublings of the length.",
            _lengths_table(results, window, lengths, parts),
        ]
    if len(results.by_distance):
        sections += ["### Loss on text by distance", *_distance_sections(results, window, max(lengths))]
    return sections


def _arms_table(results: PublishedResults, window: int, length: int, parts: list[str]) -> str:
    cells: Table = results.cells
    at = cells[(cells.window == window) & (cells.length == length) & (cells.steps == 0)]
    rows = [["arm", "heads full", *parts]]
    for (arm, n_kept), of_arm in at.groupby(["arm", "n_kept"], sort=False):
        by_part = {row["part"]: row for row in of_arm.to_dict("records")}
        rows.append([f"`{arm}`", str(n_kept), *(_shared_cell(by_part.get(part)) for part in parts)])
    return markdown(rows)


def _lengths_table(results: PublishedResults, window: int, lengths: tuple[int, ...], parts: list[str]) -> str:
    cells, area = results.cells, results.areas
    table: Table = cells[cells["window"] == window]
    rows = [["task", "arm", "steps", *(f"{n:,}" for n in lengths), "area: right", "area: nats lost"]]
    for part in parts:
        of_part = table[(table.part == part) & (table.left_out == "")]
        for (arm, n_kept, steps), of_arm in of_part.groupby(["arm", "n_kept", "steps"], sort=False):
            by_length = {row["length"]: row for row in of_arm.to_dict("records")}
            if len(by_length) < min(2, len(lengths)) and not steps:
                continue
            values = [DASH if n not in by_length else _interval(by_length[n], "lost") for n in lengths]
            found_area = _area_of(area, (window, int(steps), arm, int(n_kept), part))
            rows.append([part, f"`{arm}` ({n_kept})", str(steps), *values, *found_area])
    return markdown(rows)


def _area_of(area: Table, key: tuple[int, int, str, int, str]) -> list[str]:
    if area.empty:
        return [DASH, DASH]
    names = ("window", "steps", "arm", "n_kept", "part")
    chosen = area
    for name, value in zip(names, key, strict=True):
        chosen = chosen[chosen[name] == value]
    return [DASH, DASH] if chosen.empty else [_number(chosen.iloc[0][name]) for name in ("right", "lost")]


def _distance_sections(results: PublishedResults, window: int, length: int) -> list[str]:
    table: Table = results.by_distance
    at = table[(table.window == window) & (table.length == length) & (table.arm != "all")]
    sections: list[str] = []
    for by, words in (
        ("position", "the row's position"),
        ("distance", "the distance to the same n-gram before"),
    ):
        of_by = at[at.by == by]
        if of_by.empty:
            continue
        octaves = sorted(of_by.tokens.unique())
        rows = [["arm", "steps", *(f"{n:,}" for n in octaves)]]
        for (arm, n_kept, steps), of_arm in of_by.groupby(["arm", "n_kept", "steps"], sort=False):
            by_octave = {row["tokens"]: row for row in of_arm.to_dict("records")}
            values = [DASH if n not in by_octave else _interval(by_octave[n], "lost") for n in octaves]
            rows.append([f"`{arm}` ({n_kept})", str(steps), *values])
        sections += [
            f"Nats lost per token of texts of {length:,} tokens, by {words} in tokens, from on.",
            markdown(rows),
        ]
    return sections


def _shared_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["left_out"]:
        return DASH
    right = "" if row["right"] != row["right"] else f" ({_number(row['right'])})"
    return f"{_interval(row, 'recovered')}{right}"


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_lo", "_hi"))
    if value != value:
        return DASH
    return _number(value) + ("" if low != low else f" [{_number(low)}, {_number(high)}]")


def _number(value: float) -> str:
    return DASH if value != value else fixed(round(value, 4) or 0.0, 2)
