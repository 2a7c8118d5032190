"""`workbench pretrain`: train small models on the synthetic language, on text or on Python sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.cli.arguments import Json
from workbench.console import print_json, print_table, showing_phases, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.pretrain.corpus import Corpus
    from workbench.pretrain.recipes import Recipe, Shape

Data = Literal["language", "text", "python"]


def pretrain(
    variants: Annotated[
        list[str] | None, typer.Argument(metavar="[VARIANT...]", help="full, sliding, hybrid, linear. Default: all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for corpus/ and checkpoints/VARIANT/.")] = Path("runs/pretrained"),
    data: Annotated[Data, typer.Option(help="The synthetic language, --text files, or installed Python.")] = "language",
    text: Annotated[list[Path] | None, typer.Option(help="A text file or a folder of them; repeat for more.")] = None,
    vocabulary: Annotated[int, typer.Option(help="Tokens of the byte-pair tokenizer trained on the text.")] = 1024,
    max_bytes: Annotated[int, typer.Option(help="Bytes of text at most.")] = 40_000_000,
    windows: Annotated[
        Literal["packed", "plain"] | None, typer.Option(help="Windows across documents, or within one each.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of updates.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="Number of checkpoints, step 0 included.")] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the residual stream; the MLP scales with it.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads per layer; their total width stays.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens that a sliding layer sees.")] = None,
    local_per_full: Annotated[int | None, typer.Option(help="Sliding or linear layers per full one.")] = None,
    optimiser: Annotated[
        Literal["muon", "adamw"] | None, typer.Option(help="Optimiser of matrices; AdamW for the rest.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of matrices.")] = None,
    final_lr: Annotated[float | None, typer.Option(help="Share of the peak rates that is left at the end.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Precision of products; weights and updates are float32."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for models of tens of millions of parameters.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data and shuffle.")] = 0,
    as_json: Json = False,
) -> None:
    """Pretrain small models here and now, checkpoints log-spaced; run the same command again to go on."""
    from workbench.pretrain.recipes import VARIANTS, as_variant
    from workbench.pretrain.training import pretrain_run

    names = [as_variant(name) for name in dict.fromkeys(variants or VARIANTS)]
    corpus = _corpus(data, text or [], out / "corpus", vocabulary=vocabulary, max_bytes=max_bytes, seed=seed)
    training: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "length": length,
        "n_checkpoints": checkpoints,
        "windows": windows,
        "optimiser": optimiser,
        "lr_matrices": lr,
        "final_lr": final_lr,
        "precision": precision,
    }
    size = {"n_layers": layers, "window": window, "local_per_full": local_per_full, "d_model": width, "n_heads": heads}
    recipes = [_recipe(name, corpus, seed, training=training, size=size) for name in names]
    folders: dict[str, list[Path]] = {}
    try:
        with showing_phases() as show:
            for recipe in recipes:
                folders[recipe.variant] = pretrain_run(
                    recipe,
                    out / "checkpoints" / recipe.variant,
                    corpus,
                    device=device,
                    on_step=lambda p: show(p.recipe.variant, "training", p.step, p.recipe.steps),
                )
    except KeyboardInterrupt:
        warn("interrupted; what is finished is kept, and the same command goes on from there")
        raise
    if as_json:
        print_json({"checkpoints": folders, "corpus": None if corpus is None else corpus.folder})
        return
    rows = [[r.variant, r.steps, r.steps * r.tokens_per_step, len(folders[r.variant])] for r in recipes]
    print_table(("model", "steps", "tokens", "checkpoints"), rows)
    warn(f"next: workbench scan {out / 'checkpoints' / names[0]} --out {out / 'runs' / names[0]}")


def _corpus(data: Data, text: list[Path], folder: Path, *, vocabulary: int, max_bytes: int, seed: int) -> Corpus | None:
    if text and data != "text":
        raise WorkbenchError(f"--text was given with --data {data}; pass --data text")
    if data == "language":
        return None
    from workbench.pretrain.corpus import CorpusSettings, prepare_corpus, python_sources, text_files

    if data == "text" and not text:
        raise WorkbenchError("--data text needs text; pass --text FILE")
    if not (folder / "corpus.json").exists():
        warn("tokenizing the text")
    files = text_files(text) if data == "text" else python_sources()
    return prepare_corpus(files, folder, CorpusSettings(data, vocabulary, max_bytes, seed))


def _recipe(
    variant: str,
    corpus: Corpus | None,
    seed: int,
    *,
    training: dict[str, Any],
    size: dict[str, int | None],
) -> Recipe:
    """The default recipe of a variant, changed by the fields of `training` and `size` that are not None."""
    from workbench.pretrain.recipes import TEXT, recipe, text_recipe

    base = recipe(variant, seed=seed)
    if corpus is not None:
        base = text_recipe(variant, corpus.digest, seed=seed, shape=replace(TEXT, vocabulary=corpus.vocabulary))
    if training["optimiser"] == "adamw" and training["lr_matrices"] is None:
        training = {**training, "lr_matrices": base.lr_rest}
    sizes = {name: value for name, value in size.items() if value is not None}
    # An unchanged shape stays None, so that the run of a demo folder can be resumed.
    changes: dict[str, Any] = {"shape": _resized(base.dimensions, sizes)} if sizes else {}
    return replace(base, **changes, **{name: value for name, value in training.items() if value is not None})


def _resized(shape: Shape, sizes: dict[str, int]) -> Shape:
    """A shape with new sizes. The MLP scales with `d_model`, and so do the heads unless `n_heads` divides it anew."""
    width, heads = sizes.get("d_model"), sizes.get("n_heads")
    derived: dict[str, int] = {}
    if width is not None:
        derived |= {"d_ff": width * shape.d_ff // shape.d_model, "d_head": width * shape.d_head // shape.d_model}
    if heads is not None:
        channels = shape.n_heads * shape.d_head if width is None else width
        if channels % heads:
            raise WorkbenchError(f"--heads {heads} does not divide the {channels} channels of the heads together")
        derived["d_head"] = channels // heads
    return replace(shape, **sizes, **derived)
