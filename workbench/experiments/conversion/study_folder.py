"""A study on disk: its settings, and a JSON file for each finished piece of work. Files are replaced atomically.

<out>/study.json                  the settings; other settings need another folder, more seeds do not
<out>/calls.json                  how long each call took
<out>/models/seed0/checkpoint-600 a pretrained model
<out>/parts/seed0/<name>.json     what was measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.experiments.conversion.settings import Conversion
from workbench.files.atomic import replace_file
from workbench.files.plain_json import json_text, plain
from workbench.heads import StoreNotWritable, WorkbenchError

_STUDY, _CALLS = "study.json", "calls.json"


def claim(study: Conversion, out: Path) -> None:
    """Make the folder for this study, or check that it holds this study.

    Raises:
        WorkbenchError: if it holds another study, or other things.
        StoreNotWritable: if it cannot be made or written.
    """
    claim_folder(asdict(study), out, defaults=asdict(Conversion()))


def claim_folder(settings: Mapping[str, Any], out: Path, *, defaults: Mapping[str, Any]) -> None:
    """Make the folder for a study of these settings, or check that it holds it.

    `defaults`: of settings that a folder may lack since it is older than they are.

    Raises:
        WorkbenchError: if it holds another study, or other things.
        StoreNotWritable: if it cannot be made or written.
    """
    path, expected = out / _STUDY, plain(dict(settings))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            stored: dict[str, Any] = {**plain(dict(defaults)), **json.loads(path.read_text(encoding="utf-8"))}
            differs = [f"{k} {stored.get(k)!r}, asked for {v!r}" for k, v in expected.items() if stored.get(k) != v]
            if differs:
                raise WorkbenchError(f"{out} holds another study: {'; '.join(differs)}. Pass another --out")
        elif any(out.iterdir()):
            raise WorkbenchError(f"{out} is not empty and holds no study; pass an --out of its own")
        else:
            write(path, expected)
    except OSError as error:
        raise StoreNotWritable(f"{out} cannot be written ({error.strerror}); pass another --out") from error


def piece_path(out: Path, seed: int, name: str) -> Path:
    """The file of a finished piece of work."""
    return out / "parts" / f"seed{seed}" / f"{name}.json"


def add_call(out: Path, wall_s: float, *, finished: int, workers: int) -> None:
    """Add how long a call took and how many pieces it finished to the record of earlier calls."""
    if finished:
        call = {"wall_s": wall_s, "finished": finished, "workers": workers}
        write(out / _CALLS, {"calls": [*calls(out), call]})


def calls(out: Path) -> list[dict[str, Any]]:
    """The calls that finished something; calls that were killed are missing."""
    return read(out / _CALLS)["calls"] if (out / _CALLS).exists() else []


def write(path: Path, document: object) -> None:
    """Write JSON atomically; NaN becomes null."""
    replace_file(path, (json_text(document) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        WorkbenchError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkbenchError(f"{path} is damaged ({error}); delete it and run the study again") from error
