"""A plan as the files of others: DuoAttention's folder, and a neutral JSON for engines that serve models. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.files.atomic import replace_file
from workbench.files.plain_json import json_text
from workbench.heads import KVHead, LayerInfo, StoreNotWritable, WorkbenchError
from workbench.store.conversions import Choice, LinearAttention, SparseAttention, Window

# Raised when a field of the JSON for serving engines changes its meaning.
SPEC_VERSION = 1


def conversion_record(choice: Choice) -> dict[str, Any]:
    """What a head becomes: `kind` full, window (with `window` and `sink`) linear or sparse (with its form)."""
    if isinstance(choice, Window):
        return {"kind": "window", **asdict(choice)}
    if isinstance(choice, SparseAttention):
        return {"kind": "sparse", **asdict(choice)}
    return {"kind": "linear", **asdict(choice)} if isinstance(choice, LinearAttention) else {"kind": "full"}


def spec_of_layers(layers: Sequence[LayerInfo], choices: Mapping[KVHead, Choice]) -> list[dict[str, Any]]:
    """One object for each token mixer, with `kv_heads`, what each key/value head of a softmax layer becomes."""
    names = ("index", "kind", "mixer", "window", "has_sinks", "n_heads", "n_kv_heads", "d_head")
    return [
        {
            **{name: getattr(info, name) for name in names},
            "kv_heads": [conversion_record(choices.get(KVHead(info.index, h), "full")) for h in range(info.n_kv_heads)]
            if info.mixer == "softmax"
            else [],
        }
        for info in layers
    ]


def fingerprint(layers: Sequence[LayerInfo]) -> str:
    """The sha256 of what the layers of a model are: of the JSON of the spec's layers without what a plan chooses."""
    bare = [{k: v for k, v in layer.items() if k != "kv_heads"} for layer in spec_of_layers(layers, {})]
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_duo(path: str | Path, rows: Sequence[Sequence[str]], window: Window) -> None:
    """Write DuoAttention's head file, and beside it the `config.json` from which it reads the sizes.

    Raises:
        WorkbenchError: if a file cannot be written, or the `config.json` there is of something else.
    """
    check_duo(path)
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))
    if Path(path).is_file():  # a pipe has nothing beside it
        beside = Path(path).with_name("config.json")
        sizes = {"sink_size": window.sink, "recent_size": window.window}
        write_text(beside, json_text({**_duo_config(beside), **sizes}, indent=2) + "\n")


def check_duo(path: str | Path) -> None:
    """Refuse a place where DuoAttention's files cannot lie.

    Raises:
        WorkbenchError: if its folder does not exist, or has a `config.json` of something else.
    """
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise WorkbenchError(f"{path}: its folder does not exist; make it first")
    if path.is_file() or not path.exists():
        _duo_config(path.with_name("config.json"))


def _duo_config(path: Path) -> dict[str, Any]:
    """The `config.json` of DuoAttention that is there already, with all that it says; empty if there is none."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict) and {"sink_size", "recent_size"} <= config.keys():
        return config
    raise WorkbenchError(
        f"{path} is of something else, and beside its head file DuoAttention reads sink_size and recent_size from a "
        "file of that name; write the head file to a folder of its own"
    )


def write_text(path: str | Path, text: str) -> None:
    """Write a plan or what is made of it, whole or not at all.

    Raises:
        WorkbenchError: if it cannot be written.
    """
    path = Path(path)
    try:
        if path.is_file() or (path.parent.is_dir() and not path.exists()):
            replace_file(path, text.encode())
        else:
            # Pipes and devices are written directly. The system refuses a folder, and a path in a missing folder.
            path.write_text(text)
    except StoreNotWritable as error:
        raise WorkbenchError(f"the plan cannot be written: {error}") from error
    except OSError as error:
        raise WorkbenchError(f"{path}: the plan cannot be written: {error.strerror}") from error
