"""The runs that the app shows: those of the folders it was given, each under a name of its own, with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.heads import WorkbenchError
from workbench.runs import Run
from workbench.store import Store

# Of each run's tables and arrays: those of 12 detectors of 48 layers of 64 heads over 150 checkpoints.
_CACHE_BYTES = 160 * 2**20


def live_runs(paths: Sequence[str | Path | Run]) -> dict[str, Run]:
    """Open runs, and the runs inside folders that are none themselves, each under a name of its own.

    Of each detector on each probe they have the newest scores alone, or those of the settings of an opened run. Their
    parts are read with the first table.

    Raises:
        WorkbenchError: if a path holds no run.
    """
    settings = {path.path.resolve(): path.settings for path in paths if isinstance(path, Run)}
    folders = run_folders([path.path if isinstance(path, Run) else path for path in paths])
    if not folders:
        raise WorkbenchError("there is no run to show; pass the folder of one: `workbench app RUN...`")
    names = [folder.name for folder in folders]
    unique = [
        name if names.count(name) == 1 else f"{folder.parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]
    unique = [name if unique.count(name) == 1 else str(folder) for name, folder in zip(unique, folders, strict=True)]
    return {
        name: Run(
            Store.open(folder),
            name=name,
            settings=settings.get(folder, {}),
            cache_bytes=_CACHE_BYTES,
            single_precision=True,
        )
        for name, folder in zip(unique, folders, strict=True)
    }


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """These folders, or the runs inside where one is no run itself; each once."""
    return list(dict.fromkeys(folder for path in paths for folder in _run_folders(Path(path))))


def _run_folders(path: Path) -> list[Path]:
    path = path.resolve()
    inside = sorted(child.parent for child in path.glob("*/run.json"))
    return inside if inside and not (path / "run.json").exists() else [path]
