"""Verbs that read runs: `workbench top`, `emergence`, `report` and `check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.arguments import Json, RunFolder, SettingOption, open_runs
from workbench.console import print_json, print_table, warn
from workbench.heads import Head, WorkbenchError

if TYPE_CHECKING:
    from workbench.runs import Run


def top(
    run: RunFolder,
    detector: Annotated[str | None, typer.Option(help="One detector. Default: each.")] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads per detector.")] = 10,
    setting: SettingOption = None,
    as_json: Json = False,
) -> None:
    """List the highest-scoring heads at the last checkpoint, with interval, n, and onset."""
    from workbench.emergence.right_answers import in_words

    (opened,) = open_runs([run], setting)
    table = opened.top(detector, n, probe=probe)
    on = set(table["probe"])
    cannot = [f"{in_words(row)}: scores on it are where heads look" for row in opened.cannot() if row["probe"] in on]
    if as_json:
        records = table.to_dict("records")
        settings = [opened.settings_of(record["detector"], record["probe"]).as_dict() for record in records]
        beside = {"remarks": [*opened.left_out, *cannot]}
        print_json([{**record, "settings": s, **beside} for record, s in zip(records, settings, strict=True)])
        return
    columns = ("detector", "probe", "head", "kind", "score", "ci_lo", "ci_hi", "n", "onset_step", "onset_tokens")
    rows = []
    for record in table.to_dict("records"):
        label = str(Head(record["layer"], record["head"])) if record["head"] == record["head"] else "–"
        rows.append([{**record, "head": label}[c] for c in columns])
    print_table(columns, rows)
    for sentence in cannot:
        warn(sentence)


def emergence(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared by class.")],
    detector: Annotated[list[str] | None, typer.Option(help="A detector; repeat for more. Default: each.")] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads per class to list, earliest onset first.")] = 3,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Also the heads of each class in order of onset, run beside run.")
    ] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Also the number of heads of each class over time.")] = False,
    setting: SettingOption = None,
    as_json: Json = False,
) -> None:
    """How many heads emerged and when, with intervals; the earliest; and what lock-in supports."""
    from workbench.runs import summarise

    opened = open_runs(runs, setting)
    _require_training(opened)
    summary = summarise(opened, detectors=detector, probe=probe, n=n)
    titles = {
        "classes": "Heads of each class, and when half of their rise was over",
        "heads": "The earliest of each class",
        "phase_changes": "When the model as a whole changed its course",
    }
    if aligned:
        titles["aligned"] = "Onsets of the k-th head of each class: heads meet by class and place, never by number"
    if counts:
        titles["counts"] = "Heads of each class that are there by a time"
    if as_json:
        tables = {name: summary.tables[name].to_dict("records") for name in titles}
        remarks = {run.name: run.left_out for run in opened}
        print_json({**tables, "lock_in": summary.sentences, "remarks": remarks})
        return
    for i, (name, title) in enumerate(titles.items()):
        table = summary.tables[name]
        print("\n" if i else "", end="")
        print_table(list(table.columns), table.to_numpy(object).tolist(), title=title)
    for sentence in summary.sentences:
        print(f"\n{sentence['run']}, {sentence['detector']} on {sentence['probe']}: {sentence['says']}")


def _require_training(runs: Sequence[Run]) -> None:
    """Refuse runs of one checkpoint each: nothing emerges in them. One beside others is named on stderr.

    Raises:
        WorkbenchError: if no run has scores of two checkpoints.
    """
    alone = [run for run in runs if run.n_scored < 2]
    if len(alone) == len(runs):
        each = "; ".join(f"{run.path} has scores of {run.n_scored}" for run in alone)
        raise WorkbenchError(
            f"what emerged takes two checkpoints or more, and {each}; see the heads of one with `workbench top "
            f"{alone[0].path}` or `workbench report {alone[0].path}`, or scan a directory of checkpoints"
        )
    for run in alone:
        warn(f"{run.path}: one checkpoint has scores; its heads count as there at first")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; several are set side by side. Or one plan file."),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; repeat for more. Default: all rising.")
    ] = None,
    probe: Annotated[str | None, typer.Option(help="One probe. Default: each.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads of each class to list.")] = 5,
    setting: SettingOption = None,
    as_json: Json = False,
) -> None:
    """Write what runs or a plan show into one HTML file: claims, tables, figures. It needs no network."""
    from workbench.report import contents_of, write_page

    if any(path.is_file() for path in runs):
        _report_of_plan(runs, out, as_json)
        return
    contents = contents_of(open_runs(runs, setting), detectors=detector, probe=probe, n=n)
    written = write_page(contents, out)
    if as_json:
        print_json({"report": written, **contents.document()})
        return
    for claim in (*(answer.sentence for answer in contents.answers), *contents.claims):
        print(claim)
    warn(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


def _report_of_plan(paths: list[Path], out: Path, as_json: bool) -> None:
    from workbench.report import plan_claims, write_plan_page
    from workbench.store.plan_file import Plan

    if len(paths) > 1:
        raise WorkbenchError(f"{len(paths)} paths were given, a file among them; pass run folders, or one plan file")
    plan = Plan.load(paths[0])
    claims, written = plan_claims(plan), write_plan_page(plan, out)
    if as_json:
        print_json({"report": written, "claims": claims})
        return
    for claim in claims:
        print(claim)
    warn(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


def check(run: RunFolder, as_json: Json = False) -> None:
    """Read every stored part again; exit 1 if one is damaged."""
    from workbench.store import Store

    store = Store.open(run)
    problems = store.check()
    if as_json:
        print_json([{"path": p.path, "reason": p.reason} for p in problems])
    else:
        for problem in problems:
            print(f"{problem.path}: {problem.reason}")
        warn(f"{len(problems)} damaged parts" if problems else "every part is whole")
    if problems:
        warn("delete the damaged parts and run the scan again: it makes just those anew")
        raise typer.Exit(1)
