"""Refuse files that are not a checkpoint's own: links to files outside it, pipes and devices."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.heads import BadCheckpoint

# Endings of the files that transformers and tokenizers read beside the weights.
_ENDINGS = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".safetensors")
# huggingface_hub 2 keeps the blobs of all models of a cache in one store, and marks it.
_SHARED, _SHARED_MARK = "blobs", ".huggingface-shared-blobs"
_TEMPLATES = "additional_chat_templates"


def own_file(root: Path, file: Path) -> Path:
    """Return `file` if it is a regular file inside the folder `root`, or does not exist.

    Links are allowed within the folder, and from a snapshot of a Hugging Face cache to the cache's own blobs.

    Raises:
        BadCheckpoint: if it lies elsewhere, or is no regular file.
    """
    real_root, real = root.resolve(), file.resolve()
    if not real.is_relative_to(real_root) and not _is_blob(real_root, real):
        raise BadCheckpoint(f"{file}: is a symlink to {real}, outside the checkpoint; copy the file into the folder")
    if real.exists() and not real.is_file():
        raise BadCheckpoint(f"{file}: is no regular file, and reading it might never end; fetch the checkpoint again")
    return file


def refuse_foreign(root: Path) -> None:
    """Refuse a folder if a file that is read by name is not its own.

    Raises:
        BadCheckpoint: naming the first such file.
    """
    if not root.is_dir():
        return
    templates = root / _TEMPLATES
    inside = sorted(templates.iterdir()) if templates.is_dir() else []
    named = [root / name for name in sorted(os.listdir(root)) if name.endswith(_ENDINGS)]
    for file in [*named, *inside]:
        own_file(root, file)


def _is_blob(root: Path, real: Path) -> bool:
    snapshots = next((folder for folder in root.parents if folder.name == "snapshots"), None)
    if snapshots is None:
        return False
    store = snapshots.parent.parent / _SHARED
    is_shared = real.parent.parent == store and (store / _SHARED_MARK).is_file()
    return is_shared or real.parent == snapshots.parent / _SHARED
