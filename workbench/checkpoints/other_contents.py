"""Say what a path holds that is no checkpoint to be read, and the next step: adapters, single files, runs, series.

Weights in a format that is not read are named with the way to convert them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from workbench.checkpoints.configs import CONFIG
from workbench.checkpoints.formats import (
    ADAPTER_CONFIG,
    HINTS,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    Format,
    checkpoint_format,
    weight_files,
)
from workbench.checkpoints.hub_references import why_missing
from workbench.heads import some_of
from workbench.hub.small_files import revision_of

_RUN = "run.json"
_FEW = 3
_OTHER_FRAMEWORKS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".npz": "NumPy",
    ".tflite": "TensorFlow Lite",
}
# The files by any of which a folder has a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def why_no_weights(path: Path) -> str:
    """Why a path is no checkpoint with safetensors weights: what it is instead, and the next step."""
    if not path.exists():
        return why_missing(path)
    return _of_folder(path) if path.is_dir() else _of_file(path)


def run_at(path: Path) -> str | None:
    """What to do with a run that `workbench scan` wrote; None for any other folder."""
    try:
        description: Any = json.loads((path / _RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if (
        not isinstance(description, dict)
        or not {"schema", "job", "versions"} <= cast("dict[str, Any]", description).keys()
    ):
        return None
    job = cast("dict[str, Any]", description)["job"]
    source = cast("dict[str, Any]", job).get("checkpoints") if isinstance(job, dict) else None
    of = f". It has the scores of the checkpoints in {source}: pass these" if source else ""
    return f"a run that `workbench scan` wrote, without weights; open it with wb.open_run or `workbench status`{of}"


def _of_folder(path: Path) -> str:
    kind = checkpoint_format(path)
    if kind == "adapter":
        return f"{path}: {_adapter(path)}"
    if kind == "none" and (revision := revision_of(path)) is not None:
        return (
            f"{path}: the weights of {revision} are at the hub; a scan removes them when it has scored them. Fetch "
            f"them: `hf download {revision.repo} --revision {revision.commit}`, or scan with --keep-downloads"
        )
    if kind == "gguf":
        return f"{path}: {_GGUF}"
    files = weight_files(path)
    if kind == "safetensors" and files:
        gone = next((file for file in files if not file.exists()), files[0])
        return f"{gone}: is named and not there: a download broke off, or it was removed; fetch the checkpoint again"
    if kind != "none" and files:
        name = files[0].relative_to(path)
        return f"{path / name}: no safetensors; {kind} weights are pickle files and not read; {HINTS[kind]}"
    missing = f"{path}: holds no weights, expected {SAFETENSORS} or {SAFETENSORS_INDEX}"
    if run := run_at(path):
        return f"{path}: is {run}"
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    below = [entry.name for entry in entries if entry.is_dir() and checkpoint_format(entry) != "none"]
    if below:
        return f"{missing}. There are weights in folders below: pass one of them ({some_of(below, _FEW)})"
    for entry in entries:
        if entry.is_file() and entry.suffix in _OTHER_FRAMEWORKS:
            return f"{missing}; {entry.name} is of {_OTHER_FRAMEWORKS[entry.suffix]}, which is not read: {_CONVERT}"
    parts = {"a config.json": [CONFIG], "a tokenizer": TOKENIZER_FILES}
    there = [part for part, names in parts.items() if any((path / name).exists() for name in names)]
    found_there = f"; there is {' and '.join(there)} alone" if there else ""
    return f"{missing}{found_there}. Put the weights there, or check the path"


def _of_file(path: Path) -> str:
    folder, has_config = path.parent, (path.parent / CONFIG).exists()
    if (folder / ADAPTER_CONFIG).exists() and path.name.startswith("adapter"):
        return f"{path}: is a file of an adapter; {folder} {_adapter(folder)}"
    if path.suffix == ".toml":
        return f"{path}: is a file, expected a checkpoint folder; a job file is run with `workbench scan {path}`"
    is_of_folder = path.suffix == ".safetensors" or path.name == CONFIG or path.name.endswith(".index.json")
    if is_of_folder and has_config:
        return f"{path}: is a file of a checkpoint, expected its folder; pass {folder}"
    if path.suffix == ".safetensors":
        return (
            f"{path}: is a file of weights, expected a checkpoint folder; put it as {SAFETENSORS} into a folder with "
            f"its {CONFIG}"
        )
    kind: Format = checkpoint_format(path)
    if kind == "gguf":
        return f"{path}: {_GGUF}"
    if kind == "none":
        other = _OTHER_FRAMEWORKS.get(path.suffix)
        what = "no weights" if other is None else f"of {other}, which is not read"
        return f"{path}: is a file ({what}), expected a checkpoint folder with {SAFETENSORS} and {CONFIG}; {_CONVERT}"
    step = f"pass {folder} and --allow-pickle (tensors alone are read)" if has_config else HINTS[kind]
    return f"{path}: is a file (pickle weights are not read), expected a checkpoint folder; {step}"


_GGUF = "is a GGUF model and has no safetensors; open_model and `workbench scan` read it, read_gguf_header its header"
_CONVERT = "save the model with save_pretrained, and pass that folder"


def _adapter(folder: Path) -> str:
    """What an adapter's folder is, and how to make a model of it."""
    try:
        config: Any = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = {}
    settings = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    kind, base = settings.get("peft_type") or "PEFT", settings.get("base_model_name_or_path")
    return (
        f"is an adapter ({kind}{f' of {base}' if base else ''}), not a model. Merge it into its model: "
        "peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT), and pass OUT"
    )
