"""`workbench experiment`: one command per experiment."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from workbench.cli.arguments import Device, Json, Revisions, SettingOption, Tokenizer, open_named_model, open_runs
from workbench.console import duration, print_json, print_table, warn
from workbench.heads import BadCheckpoint, WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoints import Series
    from workbench.runs import Run

experiment = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Experiments: on small models that are pretrained here and now, and on published models.",
)


@experiment.callback()
def experiments() -> None:
    """Experiments on small models that are pretrained here and now, and on published models that you have."""


@experiment.command()
def conversion(
    quick: Annotated[bool, typer.Option("--quick", help="16 heads, minutes. Default: 64 heads, half a day.")] = False,
    medium: Annotated[
        bool, typer.Option("--medium", help="64 heads, fewer arms: an hour and a half of a core.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Study this published model, its folder or its name, and no small ones made here."
        ),
    ] = None,
    window: Annotated[
        list[int] | None,
        typer.Option(help="With --model: last tokens that a windowed head sees; repeat for more. Default: 128."),
    ] = None,
    sink: Annotated[int, typer.Option(help="With --model: first tokens that it sees as well.")] = 4,
    effort: Annotated[
        Literal["quick", "standard", "thorough"],
        typer.Option(help="With --model: seeds, budgets, texts and their lengths."),
    ] = "standard",
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="With --model: text to judge on and to train on. Default: the documentation and sources of Python.",
        ),
    ] = None,
    train: Annotated[
        list[int] | None,
        typer.Option(
            metavar="STEPS",
            help="With --model: also continue pretraining for so many steps; repeat for more. Default: none.",
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="With --train: AdamW's learning rate. Default: 1e-4.")] = None,
    train_length: Annotated[
        int | None, typer.Option(help="With --train: tokens of a sequence. Default: 1,024.")
    ] = None,
    train_tokens: Annotated[int | None, typer.Option(help="With --train: tokens of a step. Default: 8,192.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="With --model: a task, as `workbench verdict` takes it; repeat for more. Default: all."),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            help="With --model: tokens of the texts to judge on; repeat for more; the shortest is for every arm. "
            "Default: doubling from at least twice the window, up to 2,048 or four times the window."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="With --model: begin nothing after so many minutes; the next call goes on.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --model: say what it costs, and run nothing.")
    ] = False,
    so_far: Annotated[bool, typer.Option("--so-far", help="Run nothing; report what is finished.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Models, parts and report. Default: runs/conversion, …-quick, …-medium or …-MODEL."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Models to pretrain, or seeds of texts and training data. Default: 3.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of one thread. Default: one per core.")] = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """Convert full attention to windows or linear attention head by head: what is lost, what repairs it?"""
    if seeds is not None and seeds < 1:
        raise WorkbenchError(f"--seeds {seeds}: expected at least 1; without several there are no error bars")
    if model is not None:
        if quick or medium:
            raise WorkbenchError("--model was given with --quick or --medium, which make models; pass --effort")
        from workbench.cli.published_experiment import PublishedOptions, study_published

        options = PublishedOptions(
            model=model,
            window=window or [],
            sink=sink,
            effort=effort,
            text=text,
            tasks=task or [],
            lengths=length or [],
            train=train or [],
            rate=rate,
            train_shape=(train_length, train_tokens),
            seeds=seeds,
            out=out,
            tokenizer=tokenizer,
            workers=workers,
            minutes=minutes,
            is_dry=dry_run,
            so_far=so_far,
        )
        study_published(options, as_json=as_json)
        return
    of_models = {"--window": window, "--text": text, "--train": train, "--task": task, "--length": length}
    of_models |= {"--minutes": minutes, "--dry-run": dry_run or None, "--rate": rate, "--tokenizer": tokenizer}
    of_models |= {"--train-length": train_length, "--train-tokens": train_tokens}
    if alone := [name for name, value in of_models.items() if value is not None]:
        raise WorkbenchError(f"{', '.join(alone)}: given without --model, which names the model to study")
    seeds = 3 if seeds is None else seeds

    from workbench.experiments.conversion.keep_sets import format_trainings
    from workbench.experiments.conversion.results import read_finished, read_results
    from workbench.experiments.conversion.settings import larger_study, medium_study, quick_study
    from workbench.experiments.conversion.study import StudyProgress, run_conversion
    from workbench.experiments.conversion.study_report import as_document, headline, write_report

    if quick and medium:
        raise WorkbenchError("--quick and --medium were given; expected one of them, or none for the larger study")
    study = quick_study() if quick else medium_study() if medium else larger_study()
    folder = out or Path(f"runs/conversion{'-quick' if quick else '-medium' if medium else ''}")

    def print_progress(progress: StudyProgress) -> None:
        warn(f"{progress.done}/{progress.total} {progress.finished} ({duration(progress.elapsed_s)})")

    started, n_workers = time.monotonic(), (os.cpu_count() or 1) if workers is None else workers
    if so_far:
        results = read_finished(study, folder, seeds=seeds)
    else:
        for line in format_trainings(study):
            warn(line)
        try:
            run_conversion(study, folder, seeds=seeds, workers=n_workers, on_progress=print_progress)
        except KeyboardInterrupt:
            warn("interrupted; what is finished is kept, the same command goes on from there, --so-far reports it")
            raise
        results = read_results(study, folder, seeds=seeds)
    markdown, _ = write_report(results, folder)
    warn(f"{duration(time.monotonic() - started)}; the report is {markdown}")
    if as_json:
        print_json(as_document(results))
    else:
        columns, rows = headline(results)
        print_table(columns, rows, title="Needle words from beyond the window copied right, by heads kept full")


@experiment.command("window-width")
def window_width(
    window: Annotated[
        list[int] | None, typer.Option(help="Window of the sliding layers; repeat for more. Default: 16, 32, 64, 128.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of weights and of the order of the text.")] = 3,
    steps: Annotated[int, typer.Option(help="Updates of 16 windows of 256 tokens.")] = 200,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|FOLDER", help="Text to train on; repeat for more. Default: the installed Python."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Bytes of text at most.")] = 40_000_000,
    out: Annotated[Path, typer.Option(help="Corpus, checkpoints and runs.")] = Path("runs/window-width"),
    workers: Annotated[int | None, typer.Option(help="Processes of one thread. Default: one per core.")] = None,
    as_json: Json = False,
) -> None:
    """Do wider windows delay the heads of a hybrid's full layers? Pretrains hybrids of several windows on real text."""
    from workbench.experiments.window_width import WINDOWS, run_window_widths, width_runs, width_sentences
    from workbench.files.atomic import replace_file
    from workbench.files.plain_json import json_text
    from workbench.pretrain.corpus import CorpusSettings, prepare_corpus, python_sources, text_files

    runs = width_runs(window or WINDOWS, seeds=seeds)
    settings = CorpusSettings("text" if text else "python", 1024, max_bytes, 0)
    corpus = prepare_corpus(text_files(text) if text else python_sources(), out / "corpus", settings)
    warn(
        f"{len(runs)} models, {steps} steps of 4,096 tokens each: about {duration(0.65 * steps * len(runs))} of CPU "
        "time for the training, as one machine took, and a quarter of a minute for each scan"
    )
    n_workers = (os.cpu_count() or 1) if workers is None else workers
    started = time.monotonic()

    def show(name: str, done: int, known: int) -> None:
        elapsed = time.monotonic() - started
        warn(f"{done}/{known} {name}; {duration(elapsed / done * (known - done))} to go")

    table = run_window_widths(out, corpus, runs, steps=steps, workers=n_workers, on_run=show)
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    document = {"onsets": records, "says": width_sentences(table)}
    replace_file(out / "onsets.json", (json_text(document, indent=1) + "\n").encode())
    if as_json:
        print_json(document)
        return
    print_table(list(table.columns), [list(row.values()) for row in records], title="First heads of each kind")
    for sentence in width_sentences(table):
        print(f"\n{sentence}")


@experiment.command()
def parity(
    model: Annotated[str, typer.Argument(metavar="MODEL_DIR", help="A published model: its folder, or its id.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Published figures to compare with. Default: those of the published model of this shape.",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="Figures of this detector; repeat for more. Default: all.")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="Probe to score on. Default: the one that each figure names.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    device: Device = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """Do our detectors find the heads published for this model? Rank correlation and overlap, beside their limit."""
    from workbench.checkpoints.fetched_models import obtain_configuration
    from workbench.experiments.parity.published import choose, published_models, read_published, shape_of

    shape = shape_of(obtain_configuration(model))
    is_file = against is not None and Path(against).suffix == ".json"
    known = read_published(Path(against)) if against is not None and is_file else published_models()
    published = choose(shape, known, None if is_file else against)

    from workbench.experiments.parity.own_scores import hold_against

    comparisons = hold_against(
        open_named_model(model, device, tokenizer),
        published,
        detectors=detector or None,
        probe=probe,
        seed=seed,
        on_figure=lambda figure: warn(f"scoring on {figure.probe}"),
    )
    if as_json:
        figures = [asdict(comparison) for comparison in comparisons]
        print_json({"model": model, "shape": shape.model_dump(), "against": published.name, "figures": figures})
        return
    columns = ("detector", "n_listed", "spearman", "ceiling", "n_best", "overlap", "overlap_ceiling", "overlap_chance")
    columns += ("auroc", "published", "ours", "flags", "source")
    rows = [[getattr(comparison, c) for c in columns] for comparison in comparisons]
    print_table(columns, rows, title=f"{model} against {published.name}")


@experiment.command()
def early(
    model: Annotated[str, typer.Argument(metavar="CHECKPOINT_DIR", help="The checkpoints of the run, or its last.")],
    run: Annotated[Path, typer.Option(help="A scan of these checkpoints.")],
    window: Annotated[int, typer.Option(help="Last tokens that a windowed head sees, its own included.")],
    sink: Annotated[int, typer.Option(help="First tokens that it sees as well.")] = 0,
    keep: Annotated[float, typer.Option(help="Share of the full-attention key/value heads to keep.")] = 0.25,
    detector: Annotated[str, typer.Option(help="Detector that heads are chosen by.")] = "induction",
    on: Annotated[str | None, typer.Option(help="Probe of its scores, where there are several.")] = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="Probe for the final model; repeat for more. Default: far needles.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Nats per answer that an early choice may lose.")] = 0.1,
    figure: Annotated[Path | None, typer.Option(help="Write the figure here as HTML.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of probes, random choices and bootstrap.")] = 0,
    setting: SettingOption = None,
    revisions: Revisions = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """How early is a plan safe? Keep in the final model what each checkpoint would have chosen."""
    from workbench.checkpoints import find_checkpoints
    from workbench.experiments.early_plans import early_choices
    from workbench.figures import early_choices as draw
    from workbench.hooks import open_model
    from workbench.planning import evaluation_on

    (opened,) = open_runs([run], setting)
    is_one = (Path(model) / "config.json").exists()
    folder = Path(model) if is_one else _last_of(find_checkpoints(model, revisions=revisions))
    m = open_model(folder, tokenizer=tokenizer)
    probes = evaluation_on(m, window, sink, held_out=probe or (), seed=seed).held_out
    remarks = [*opened.left_out, *_other_weights(folder, opened, detector)]
    choices = early_choices(m, opened, probes, detector=detector, on=on, window=window, sink=sink, keep=keep, seed=seed)
    if figure is not None:
        draw(choices).write_html(figure, include_plotlyjs=True)
    if as_json:
        print_json(
            {
                "choices": choices.table.to_dict("records"),
                "references": choices.references.to_dict("records"),
                "safe_since": choices.safe_since(tolerance).to_dict("records"),
                "says": choices.sentences(tolerance),
                "remarks": remarks,
            }
        )
        return
    columns = ("probe", "ckpt", "heads", "in_common", "accuracy", "accuracy_lo", "accuracy_hi")
    columns += ("lost", "lost_lo", "lost_hi", "n_seq")
    table = choices.table.sort_values("probe", kind="stable")
    print_table(columns, table.loc[:, list(columns)].to_numpy(object).tolist(), title=f"Heads chosen by {detector}")
    print()
    print_table(list(choices.references.columns), choices.references.to_numpy(object).tolist(), title="For comparison")
    for sentence in choices.sentences(tolerance):
        print(f"\n{sentence}")


def _last_of(series: Series) -> Path:
    """The folder of the last checkpoint of a series; one at a hub is fetched."""
    from workbench.checkpoints.fetched_models import obtain_checkpoint

    last = series.checkpoints[-1]
    if last.name not in series.remote:
        return last.path
    return obtain_checkpoint(str(series.remote[last.name].revision)).folder


def _other_weights(folder: Path, run: Run, detector: str) -> list[str]:
    """A remark, also printed, where the run has no scores of the model's weights."""
    from workbench.checkpoints import fingerprint

    try:
        is_scored = fingerprint(folder).weights in run.weight_digests(detector)
    except BadCheckpoint:  # no folder of weights: nothing to compare
        return []
    if is_scored:
        return []
    remark = f"{run.path} has no scores of the weights in {folder}: other checkpoints chose the heads; scan it again"
    warn(remark)
    return [remark]
