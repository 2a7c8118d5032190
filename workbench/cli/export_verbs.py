"""`workbench export-plan`: a plan as files of others, and a model under a plan as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.arguments import Device, Json, Tokenizer, open_named_model
from workbench.console import print_json, warn
from workbench.heads import WorkbenchError

if TYPE_CHECKING:
    from workbench.store.plan_file import Plan


def export_plan(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `workbench plan --out` wrote.")],
    duo: Annotated[
        Path | None, typer.Option(help="Write DuoAttention's head file here, and its config.json beside it.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Write the JSON for serving engines here.")] = None,
    layer_types: Annotated[
        bool, typer.Option("--layer-types", help="Print layer_types and sliding_window of a Hugging Face config.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The plan's model: a checkpoint's folder, or its id at a hub.")
    ] = None,
    save_model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write MODEL under the plan to this new folder.")
    ] = None,
    device: Device = None,
    tokenizer: Tokenizer = None,
    as_json: Json = False,
) -> None:
    """Take a plan away: to DuoAttention, to a serving engine, to a config, or as a folder that transformers loads."""
    from workbench.store.plan_file import Plan

    if duo is None and spec is None and not layer_types and save_model is None:
        raise WorkbenchError("nothing to write was named; pass --duo, --spec, --layer-types or --save-model")
    if save_model is not None and model is None:
        raise WorkbenchError("--save-model writes a model under the plan; name it with --model")
    heads_plan = Plan.load(plan)
    document: dict[str, Any] = {}
    if layer_types:
        document["layer_types"] = _layer_types(heads_plan, model)
    if duo is not None:
        heads_plan.to_duo_attention(duo)
        document["duo"] = str(duo)
    if spec is not None:
        heads_plan.to_json_spec(spec)
        document["spec"] = str(spec)
    if save_model is not None and model is not None:
        heads_plan.save_model(open_named_model(model, device, tokenizer), save_model)
        document["folder"] = str(save_model)
    for name in document.keys() - {"layer_types"}:
        warn(f"wrote {document[name]}")
    if as_json:
        print_json(document)
    elif layer_types:
        print_json(document["layer_types"])


def _layer_types(heads_plan: Plan, model: str | None) -> dict[str, Any]:
    """The settings, after a word on what reads them."""
    from workbench.checkpoints.fetched_models import obtain_checkpoint
    from workbench.loading.pretrained import load_config

    if model is None:
        warn("not every family reads layer_types; with --model, a model that would ignore them is refused")
        return heads_plan.to_layer_types()
    config: Any = load_config(obtain_checkpoint(model, check=load_config).folder)
    return heads_plan.to_layer_types(str(config.model_type))
