"""Tiny real checkpoints with a tokenizer, and the hub that serves them as revisions of one model."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.hub.hub_server import HubServer
from tests.loading.word_tokenizers import word_tokenizer
from tests.series import write_series

REPO = "org/name"


def write_checkpoints(directory: Path, steps: range | tuple[int, ...]) -> Path:
    """Folders `step0`, `step1`, … of a Llama-like model of two layers, each with the same tokenizer."""
    write_series(directory, "llama", steps)
    for step in steps:
        folder = directory / f"checkpoint-{step}"
        word_tokenizer(40).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        folder.rename(directory / f"step{step}")
    return directory


def serve(hub: HubServer, directory: Path, repo: str = REPO) -> dict[str, str]:
    """Put every checkpoint of a directory to the hub, and a main with the weights of the last; their commits."""
    folders = sorted(directory.iterdir(), key=lambda folder: int(folder.name.removeprefix("step")))
    commits = {folder.name: hub.put(repo, folder.name, folder) for folder in folders}
    hub.put(repo, "main", folders[-1])
    return commits


def copy_of(directory: Path, target: Path, names: list[str]) -> Path:
    """A directory of some of the checkpoints."""
    for name in names:
        shutil.copytree(directory / name, target / name)
    return target
