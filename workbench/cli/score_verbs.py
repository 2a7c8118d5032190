"""The verb `workbench score`: one model, scored here and now without a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.arguments import Device, Json, Tokenizer, open_named_model
from workbench.console import TokenPace, print_json, print_table, warn

if TYPE_CHECKING:
    from workbench.emergence import ModelSummary


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or a model's id at a hub.")],
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; repeat for more. Default: all that read recordings.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="A probe, as repeats:n=64; repeat for more. Default: such as a trained model can do, and controls."
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    rows: Annotated[int | None, typer.Option(help="Query rows per sequence to sample. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Heads of each class to list.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write all scores there as CSV or Parquet, by its ending.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """What one model gets right, and its retrieval, induction, previous-token and sink heads."""
    from workbench.detectors import describe
    from workbench.heads import WorkbenchError

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise WorkbenchError(f"--out is {out}; expected a file that ends in .csv or .parquet")
    opened = open_named_model(model, device, tokenizer)
    described = describe(opened, detector, probe or None, rows=rows or "all", seed=seed, on_progress=TokenPace())
    if out is not None:
        _write(described.scores, out)
    if as_json:
        scores = described.scores.to_dict("records")
        metrics = described.metrics.to_dict("records")
        print_json({"model": str(model), **described.summary.document(), "metrics": metrics, "scores": scores})
        return
    print_summary(described.summary, n=n)


def print_summary(summary: ModelSummary, *, n: int = 5) -> None:
    """Print what a model gets right and its heads of each class, `n` by name."""
    columns = ("probe", "answers right", "95 % interval", "nats", "right without answers", "verdict")
    rows = [
        [row["probe"], row["right"], _interval(row, "right"), row["nats"], row["chance"], row["verdict"]]
        for row in summary.abilities.to_dict("records")
    ]
    if rows:
        print_table(columns, rows, title="What the model gets right")
    if len(summary.classes):
        print()
        columns = ("class", "heads", "undecided", "rule", "strongest")
        rows = [
            [c["class"], f"{c['n_heads']} of {c['of']}", c["undecided"], _rule(c), summary.strongest(c["class"], n)]
            for c in summary.classes.to_dict("records")
        ]
        print_table(columns, rows, title="Its heads, by thresholds of their authors")
        for c in summary.classes.to_dict("records"):
            print(f"{c['class']}: {c['source']}")
    for remark in summary.remarks:
        warn(remark)


def _rule(row: dict[str, Any]) -> str:
    return f"{row['detector']} > {row['threshold']:g} on {row['probe']}"


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    return "–" if low != low else f"{low:.2f}–{high:.2f}"


def _write(table: Any, out: Path) -> None:
    from workbench.heads import StoreNotWritable

    try:
        if out.suffix == ".csv":
            table.to_csv(out, index=False)
        else:
            table.to_parquet(out, index=False)
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror or error}); pass another --out") from error
    warn(f"wrote {out}")
