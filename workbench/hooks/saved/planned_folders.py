"""A model under a plan as a folder of weights that transformers loads without the workbench.

Where the plan is one of whole layers without sinks, and transformers has the model's own type, or one of the same
forward pass, with a window for each layer, the folder has that type and needs no code. Every other plan goes with a
file of code, `modeling_planned.py`, that holds the attention of the plan and needs torch and transformers alone. Such a
folder has a model type of its own, so that no program loads it as the model without the plan.

A folder is loaded again before it is put in place, and its logits are compared with those of the model under the plan.
"""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from workbench.files.atomic import replacing_folder
from workbench.files.plain_json import json_text
from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.taps.eager import is_without_interface
from workbench.hooks.taps.layer_lists import numbered
from workbench.loading.quiet_transformers import quiet
from workbench.store.layer_type_families import EQUIVALENT, HONOURING
from workbench.store.plan_exports import spec_of_layers
from workbench.store.plan_file import Plan

CODE = "modeling_planned"
# The comparison has this many tokens and windows no wider than that, whatever the plan's: what is compared is whether
# the folder computes windows as the workbench does.
_TOKENS, _WINDOW, _SINK = 96, 24, 4
# Where layers have windows of their own, the plan's window is compared as it is, on no more tokens than these.
_MOST_TOKENS = 1024
# Share of the largest logit by which two ways to sum may differ, in float32 and in 16 bits.
_TOLERANCE, _TOLERANCE_NARROW = 1e-5, 3e-2
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")


@runtime_checkable
class Convertible(Protocol):
    """What a `HookedModel` has."""

    model: Any
    tokenizer: Any

    @property
    def layers(self) -> tuple[LayerInfo, ...]: ...

    def restrict(self, kv_heads: Any, window: int, sink: int = 0) -> AbstractContextManager[Any]: ...

    def linearize(self, forms: Any) -> AbstractContextManager[Any]: ...


def save_planned(m: Convertible, plan: Plan, folder: str | Path) -> Path:
    """Write a model under a plan to a new folder, with the plan, the tokenizer and the licence files.

    The folder is loaded once, beside the model, to compare logits.

    Raises:
        WorkbenchError: if the folder exists, the plan is for another model, or the logits of what was written are not
            those of the model under the plan; then nothing is left of it.
    """
    plan.check(m.layers)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkbenchError(f"{folder} exists; expected a new folder for the model")
    if not folder.resolve().parent.is_dir():
        raise WorkbenchError(f"{folder}: its parent folder does not exist; make it first")
    selecting = [info.index for info in m.layers if info.kind == "sparse"]
    if selecting:
        raise WorkbenchError(
            f"layers {selecting} attend to keys that an indexer selects, which no folder can say together with a plan; "
            "apply the plan with m.apply(plan)"
        )
    attends = {module: i for module, i in numbered(m.model).items() if hasattr(module, "is_causal")}
    shared = sorted({i for module, i in attends.items() if module.layer_idx != i})
    if shared:
        raise WorkbenchError(
            f"layers {shared} share the weights of their attention, which does not know whose call it answers, so that "
            "no folder can say a plan of single layers; apply the plan with m.apply(plan)"
        )
    if plan.sparse:
        raise WorkbenchError(
            f"the plan gives {len(plan.sparse)} heads sparse attention, which no folder that transformers loads can "
            "say; apply the plan with m.apply(plan)"
        )
    if plan.choices and all(choice == "full" for choice in plan.choices.values()):
        raise WorkbenchError("the plan keeps every head full, so that the model is unchanged; save it as it is")
    problems: list[str] = []
    for write in (_write_layer_types, _write_code):
        try:
            with replacing_folder(folder) as path:
                write(m, plan, path)
                _compare(m, plan, path)
                _write_beside(m, plan, path)
        except _Unsuitable as problem:
            problems.append(str(problem))
            shutil.rmtree(problem.path, ignore_errors=True)
        else:
            return folder
    raise WorkbenchError(
        f"no folder that transformers loads gives the logits of {type(m.model).__name__} under this plan: "
        f"{'; '.join(problems)}. Apply the plan with m.apply(plan)"
    )


class _Unsuitable(Exception):
    """A way to write a folder that is none for this model or plan. `path`: of what was written until then."""

    def __init__(self, reason: str, path: Path):
        super().__init__(reason)
        self.path = path


def _write_layer_types(m: Convertible, plan: Plan, path: Path) -> None:
    """The weights under the model's own type or its equivalent, with the plan in the layers' types."""
    own = str(m.model.config.model_type)
    model_type = own if own in HONOURING else EQUIVALENT.get(own)
    if model_type is None:
        raise _Unsuitable(f"models of type {own} ignore layer_types", path)
    try:
        settings = plan.to_layer_types()
    except WorkbenchError as error:
        raise _Unsuitable(str(error), path) from error
    _save(m.model, path)
    settings["use_sliding_window"] = True
    if model_type != own:
        settings |= {"model_type": model_type, "architectures": [f"{model_type.title()}ForCausalLM"]}
    _change_config(path, settings)


def _write_code(m: Convertible, plan: Plan, path: Path) -> None:
    """The weights under a type of their own, with code that computes the plan's attention."""
    classes = type(m.model.config), type(m.model)
    if is_without_interface(m.model):
        raise _Unsuitable(f"{classes[1].__name__} calls no attention function that code could stand for", path)
    if not all(cls.__module__.startswith("transformers.models.") for cls in classes):
        raise _Unsuitable(f"{classes[1].__name__} is not a class of transformers", path)
    _save(m.model, path)
    own = str(m.model.config.model_type)
    text = files("workbench.hooks.saved").joinpath(f"{CODE}.txt").read_text()
    imports = [f"from {cls.__module__} import {cls.__name__}" for cls in classes]
    for name, value in (
        ("from transformers.models.MODULE import BASE_CONFIG, BASE_MODEL", "\n".join(imports)),
        *zip(("BASE_CONFIG", "BASE_MODEL"), (cls.__name__ for cls in classes), strict=True),
        ("MODEL_TYPE", own),
    ):
        text = text.replace(name, value)
    (path / f"{CODE}.py").write_text(text)
    _change_config(
        path,
        {
            "model_type": f"planned_{own}",
            "architectures": ["PlannedForCausalLM"],
            "auto_map": {"AutoConfig": f"{CODE}.PlannedConfig", "AutoModelForCausalLM": f"{CODE}.PlannedForCausalLM"},
            "planned_heads": planned_heads(plan),
        },
    )


def planned_heads(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """For each softmax layer that the plan changes, by its number, the conversion of each key/value head."""
    changed = {head.layer for head, choice in plan.choices.items() if choice != "full"}
    layers = spec_of_layers(plan.layers, plan.choices)
    return {str(x["index"]): x["kv_heads"] for x in layers if x["index"] in changed and x["kv_heads"]}


def _save(model: PreTrainedModel, path: Path) -> None:
    # What the weights were dequantised from does not hold of the copy.
    settings: dict[str, Any] = model.config.__dict__
    quantisation = settings.pop("quantization_config", None)
    try:
        with quiet():
            model.save_pretrained(path)
    finally:
        if quantisation is not None:
            settings["quantization_config"] = quantisation


def _change_config(path: Path, settings: dict[str, Any]) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json_text({**config, **settings}, indent=2) + "\n")


def _compare(m: Convertible, plan: Plan, path: Path) -> None:
    """Raises:
    _Unsuitable: if the folder's logits are not those of the model under the plan.
    """
    is_narrowed = all(info.window is None for info in m.layers)
    window, sink = (min(plan.window, _WINDOW), min(plan.sink, _SINK)) if is_narrowed else (plan.window, plan.sink)
    n_tokens = _TOKENS if is_narrowed else min(_MOST_TOKENS, window + sink + _TOKENS)
    config = m.model.config.get_text_config(decoder=True)
    n_tokens = min(n_tokens, getattr(config, "max_position_embeddings", None) or n_tokens)
    tokens = torch.randint(0, int(config.vocab_size), (1, n_tokens), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(m.model.device)
    plain = _logits(m.model, tokens)
    with m.restrict(plan.windowed, window, sink), m.linearize(plan.linear):
        expected = _logits(m.model, tokens)
    try:
        loaded = _loaded(path, m.model, window=window, sink=sink)
        logits = _logits(loaded, tokens)
    except Exception as error:  # whatever transformers raises for weights that do not fit a type
        raise _Unsuitable(f"what was written cannot be run: {type(error).__name__}: {error}", path) from error
    size = float(expected.abs().max())
    tolerance = size * (_TOLERANCE if m.model.dtype == torch.float32 else _TOLERANCE_NARROW)
    difference, effect = (float((x - expected).abs().max()) for x in (logits, plain))
    if not difference <= tolerance:
        raise _Unsuitable(f"its logits differ by {difference:.2g} of {size:.2g}", path)
    if not effect > tolerance:
        raise _Unsuitable(f"the plan changes no logit of {n_tokens} tokens, so that nothing can be compared", path)


def _loaded(path: Path, model: PreTrainedModel, *, window: int, sink: int) -> PreTrainedModel:
    with quiet():
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        for conversion in (c for layer in (getattr(config, "planned_heads", None) or {}).values() for c in layer):
            if conversion["kind"] == "window":
                conversion |= {"window": window, "sink": sink}
        if getattr(config, "planned_heads", None) is None:
            config.sliding_window = window
        loaded = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=model.dtype, trust_remote_code=True)
    return loaded.to(str(model.device)).eval()  # pyright: ignore[reportArgumentType]


def _logits(model: PreTrainedModel, tokens: Int[Tensor, "1 t"]) -> Float[Tensor, "t vocabulary"]:
    is_training = model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens, use_cache=False).logits[0].float()
    model.train(is_training)
    return logits


def _write_beside(m: Convertible, plan: Plan, path: Path) -> None:
    """The plan, the tokenizer, and the licence files of the folder that the model was loaded from."""
    plan.save(path / "plan.json")
    if hasattr(m.tokenizer, "save_pretrained"):
        m.tokenizer.save_pretrained(path)
    source = Path(str(getattr(m.model.config, "_name_or_path", "")))
    for pattern in _LICENCES if source.is_dir() and str(source) != "." else ():
        for file in filter(Path.is_file, source.glob(pattern)):
            shutil.copy(file, path / file.name)
