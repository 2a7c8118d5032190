"""Where the checkpoints of a series come from: a folder on this disk, the Hugging Face cache, or a hub."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workbench.checkpoints.candidates import Candidates, find_candidates
from workbench.checkpoints.hub_candidates import cached_candidates, remote_candidates, root_of
from workbench.checkpoints.hub_references import is_whole, locate_series
from workbench.heads import NoCheckpoints, WorkbenchError, some_of
from workbench.hub.hub_errors import Unreachable, is_offline
from workbench.hub.local_cache import cache_folder, cached_models, is_repository, repository_folder, with_name
from workbench.hub.local_cache import revisions as cached_revisions
from workbench.hub.references import HubReference, parse_reference, parse_references
from workbench.hub.repositories import remark_on_others, remote_revisions, revision_pattern

Source = str | os.PathLike[str] | Sequence[str | HubReference]


def settled_source(source: Source, revisions: str | None = None) -> Path | str:
    """The folder on this disk that a source names, else its references to a hub, with commas between.

    A folder goes before a model of its name. The id of a model is its folder in the cache if that has weights and no
    `revisions` are asked for.

    Raises:
        WorkbenchError: if one of several is no reference, or revisions are asked of a folder that is no model's.
        NoCheckpoints: if the cache holds the model, but not the revision, and no hub may be asked.
    """
    references = _references(source)
    if references is None or (isinstance(source, str) and ids_in(source, revisions) is None):
        path = locate_series(_only(source))
        if revisions is not None and path.exists() and not is_repository(path):
            raise WorkbenchError(
                f"{path}: is a folder, and revisions {revisions!r} are those of a model at a hub; leave revisions out, "
                "or pass the model's id"
            )
        return path
    if revisions is None and len(references) == 1 and (folder := _in_cache(references[0])) is not None:
        return folder
    return ",".join(map(_written, references))


def _written(reference: HubReference) -> str:
    """A reference that is read as one again, wherever it stands."""
    is_word = "/" not in reference.repo and reference.revision is None
    return f"hf://{reference}" if is_word else str(reference)


def ids_in(text: str, revisions: object = None) -> list[HubReference] | None:
    """The models at a hub that a text names which is no path; None if it names none.

    A single word is more often a folder that is not there. It is an id with `hf:` before it, with a revision after it
    or beside it, and where the cache has a model of this name.
    """
    references = parse_references(text, exists=False)
    if references is None or len(references) > 1 or revisions is not None:
        return references
    is_word = "/" not in text and "@" not in text and text == references[0].repo
    return None if is_word and not is_repository(repository_folder(text)) else references


def candidates_of(source: Source, revisions: str | None) -> Candidates:
    """The checkpoints that a source names, unordered.

    Raises:
        NoCheckpoints, HubError, WorkbenchError: as `workbench.checkpoints.find_checkpoints`.
    """
    settled = settled_source(source, revisions)
    if isinstance(settled, Path):
        if revisions is not None and is_repository(settled):
            return cached_candidates([settled], revision_pattern(revisions), root=settled)
        is_by_id = isinstance(source, str) and not Path(source).exists() and is_repository(settled)
        candidates = find_candidates(settled if settled.exists() or not isinstance(source, str) else Path(source))
        return _with_remarks(candidates, _ONLY_CACHED) if is_by_id else candidates
    references = _references(source) or []
    try:
        listed = remote_revisions(references, revisions)
        is_one = revisions is None and len(listed.chosen) == 1 and references[0].revision is None
        remark = remark_on_others(listed.chosen[0]) if is_one and not references[0].is_glob else ""
    except Unreachable as error:
        return _cached_instead(references, revisions, error)
    candidates = remote_candidates(references, listed)
    return _with_remarks(candidates, remark) if remark else candidates


_ONLY_CACHED = "these are the revisions in the Hugging Face cache; --revisions PATTERN (revisions=) asks the hub"


def _with_remarks(candidates: Candidates, *remarks: str) -> Candidates:
    return replace(candidates, remarks=(*candidates.remarks, *remarks))


def _cached_instead(references: Sequence[HubReference], revisions: str | None, error: Unreachable) -> Candidates:
    """What the cache has of what a hub that cannot be reached was asked for."""
    if is_offline() and revisions is None and len(references) == 1 and not references[0].is_glob:
        return find_candidates(Path(str(references[0])))  # as where there is no hub at all
    repositories = [folder for reference in references for folder in _repositories(reference)]
    if not repositories:
        there = some_of([*cached_models(cache_folder())]) or "no model"
        raise Unreachable(f"{error}. The Hugging Face cache {cache_folder()} has {there}") from error
    remark = f"{error}. Only what is in the Hugging Face cache is listed"
    if revisions is not None:
        matches = revision_pattern(revisions)
    else:
        names = {reference.revision or "main" for reference in references}
        folders = {r.folder for folder in repositories for name in names for r in with_name(folder, name)}
        chosen = {r.name for folder in repositories for r in cached_revisions(folder)[0] if r.folder in folders}
        matches = chosen.__contains__
    try:
        candidates = cached_candidates(repositories, matches, root=root_of(references))
    except NoCheckpoints as nothing:
        raise Unreachable(f"{error}; {nothing}") from error
    return _with_remarks(candidates, remark)


def _repositories(reference: HubReference) -> list[Path]:
    """The folders in the cache of the models that a reference names."""
    folder = repository_folder(reference.repo)
    if not reference.is_glob:
        return [folder] if is_repository(folder) else []
    models = cached_models(cache_folder())
    return [folder for repo, folder in models.items() if fnmatch.fnmatchcase(repo, reference.repo)]


def _in_cache(reference: HubReference) -> Path | None:
    """The folder in the cache of a model or of its revision, if there are weights in it."""
    folder = repository_folder(reference.repo)
    if reference.is_glob or not is_repository(folder):
        return None
    if reference.revision is not None:
        fitting = {r.folder for r in with_name(folder, reference.revision)}
        whole = [each for each in fitting if is_whole(each)]
        return whole[0] if len(fitting) == len(whole) == 1 else None
    present, _ = cached_revisions(folder)
    return folder if any(is_whole(revision.folder) for revision in present) else None


def _references(source: Source) -> list[HubReference] | None:
    """The references to a hub that a source consists of; None for a path.

    Raises:
        WorkbenchError: if one of several is none.
    """
    if isinstance(source, str | os.PathLike):
        written = os.fspath(source)
        is_one = "," not in written or Path(written).exists()
        parts: list[str | HubReference] = [written] if is_one else [part.strip() for part in written.split(",")]
    else:
        parts = list(source)
    parsed = [part if isinstance(part, HubReference) else parse_reference(part) for part in parts]
    if not parsed:
        raise WorkbenchError("no checkpoints are named; pass a folder or the id of a model")
    if parsed == [None]:
        return None
    for part, reference in zip(parts, parsed, strict=True):
        is_word = isinstance(part, str) and len(parts) > 1 and "/" not in part and "@" not in part
        if reference is None or is_word:
            what = "is on this disk" if part and Path(str(part)).exists() else "is no id of a model"
            raise WorkbenchError(
                f"{part!r} {what}; several checkpoints are named by the ids of models at a hub, as org/name or "
                "org/name@revision. Checkpoints on this disk belong into one folder"
            )
    return [reference for reference in parsed if reference is not None]


def _only(source: Source) -> str | os.PathLike[str]:
    return source if isinstance(source, str | os.PathLike) else str(source[0])
