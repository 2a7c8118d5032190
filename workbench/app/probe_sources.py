"""What the Probe page runs: checkpoints of a run's series, published models that are here, and models at a hub.

A reader of the page cannot name a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.checkpoints.hub_references import cached_checkpoint, is_whole
from workbench.checkpoints.other_contents import TOKENIZER_FILES
from workbench.heads import WorkbenchError
from workbench.hub.hub_errors import endpoint, is_offline
from workbench.hub.named_models import resolve_model
from workbench.hub.published_models import PUBLISHED, published_here
from workbench.hub.references import HubReference, parse_reference


def checkpoint_source(series: Sequence[Mapping[str, Any]], ckpt: str) -> Path | HubReference:
    """The folder of a checkpoint or, where a scan of a hub has removed its weights, its place at the hub.

    Of a published model whose folder is elsewhere on the machine that scanned it, the folder that it has here.

    Raises:
        WorkbenchError: if the series has no such checkpoint.
    """
    folder = checkpoint_folder(series, ckpt)
    record = next(record for record in series if record["ckpt"] == ckpt)
    repo, commit = record.get("repo"), record.get("commit")
    if isinstance(repo, str) and isinstance(commit, str) and not (folder.is_dir() and is_whole(folder)):
        return HubReference(repo, commit)
    if not folder.exists() and folder.name in PUBLISHED:
        return published_here().get(folder.name, folder)
    return folder


def foreign_tokenizer(series: Sequence[Mapping[str, Any]], tokenizer: str | None) -> str | None:
    """The tokenizer of a run; None where it is that of a checkpoint, which is with it wherever this lies now."""
    return None if tokenizer in {str(folder) for folder in checkpoint_folders(series).values()} else tokenizer


def named_model(text: str) -> Path | HubReference:
    """The model that a reader of the page names: the folder of a published one that is here, or a model at a hub.

    Raises:
        WorkbenchError: if it is no id of one model, or a published one that was not fetched.
    """
    written = text.strip()
    if written in PUBLISHED:
        return resolve_model(written, exists=False)
    reference = parse_reference(written, exists=False)
    if reference is None or reference.is_glob:
        raise WorkbenchError(
            f"{written!r} is no id of a model; write org/name, org/name@revision, or one of {', '.join(PUBLISHED)}"
        )
    return reference


def missing_folder(folder: Path) -> str:
    """The sentence on a checkpoint whose folder is not on this disk; empty where it is."""
    if folder.exists():
        return ""
    published = f", or `workbench get {folder.name}` and write its name as the model's id"
    return (
        f"the checkpoint's folder {folder} is not on this disk; put it back, or choose another checkpoint"
        f"{published if folder.name in PUBLISHED else ''}"
    )


def reads_text(source: Path | HubReference, tokenizer: str | None) -> bool:
    """Whether a checkpoint is on this disk and has a tokenizer, with it or as its run names one."""
    if isinstance(source, HubReference) or not source.exists():
        return False
    if tokenizer is not None or source.suffix == ".gguf":
        return True
    return any((folder / name).exists() for folder in (source, source.parent) for name in TOKENIZER_FILES) or any(
        source.glob("*.gguf")
    )


def note_on(source: Path | HubReference) -> str:
    """What running a checkpoint will fetch, in words; nothing is asked of a hub. Empty where it is on this disk."""
    if isinstance(source, Path):
        return missing_folder(source)
    if cached_checkpoint(source) is not None:
        return f"{source} is in the Hugging Face cache; nothing is fetched"
    if is_offline():
        return f"{source} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set: it cannot be fetched"
    return f"{source} is not in the Hugging Face cache: Run fetches it from {endpoint()}, and says its size"


def checkpoint_folder(series: Sequence[Mapping[str, Any]], ckpt: str) -> Path:
    """The folder of a checkpoint, as its run's series recorded it.

    Raises:
        WorkbenchError: if the series has no such checkpoint.
    """
    paths = checkpoint_folders(series)
    if ckpt not in paths:
        raise WorkbenchError(f"the run's series has no checkpoint {ckpt!r} with a folder; choose one of the list")
    return paths[ckpt]


def checkpoint_folders(series: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The recorded folders of a run's checkpoints, by name; those of checkpoints that are gone are left out."""
    there = [record for record in series if not record.get("is_gone")]
    return {str(record["ckpt"]): Path(path) for record in there if isinstance(path := record.get("path"), str)}
