"""The checkpoints of a series that lie at a hub, or in its cache, with the names that their order is read from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workbench.checkpoints.candidates import Candidate, Candidates, RemoteCheckpoint
from workbench.checkpoints.formats import Format, checkpoint_format
from workbench.checkpoints.names import CheckpointName, parse_name, parse_revision
from workbench.checkpoints.series_overrides import read_overrides
from workbench.console import warn, watched_bar
from workbench.heads import NoCheckpoints, some_of
from workbench.hub.file_choice import RemoteFile, needed_files
from workbench.hub.local_cache import cache_folder, model_id, repository_folder, revisions, snapshot_folder
from workbench.hub.references import HubReference
from workbench.hub.repositories import MAIN, RemoteRevision, RemoteRevisions, remote_files

# Requests at a time.
_AT_A_TIME = 8
# Revisions from which the listing is announced: hubs limit requests to some hundreds in five minutes.
_MANY = 200
_FORMATS: tuple[tuple[str, Format], ...] = ((".safetensors", "safetensors"), (".gguf", "gguf"))


def remote_candidates(references: Sequence[HubReference], listed: RemoteRevisions) -> Candidates:
    """The checkpoints at a hub, each with the sizes of its files. No weights are fetched.

    Raises:
        HubError: if the hub cannot be reached.
        NoCheckpoints: if no revision has weights.
        WorkbenchError: if `series.toml` is malformed; it lies in the model's folder of the cache.
    """
    root = root_of(references)
    names = names_of([(each.repo, each.name) for each in listed.chosen])
    files = _files(listed.chosen)
    checkpoints: list[Candidate] = []
    ignored = dict(listed.ignored)
    for revision, own in zip(listed.chosen, files, strict=True):
        name = names[revision.repo, revision.name]
        kind = format_of(own)
        if kind == "none":
            alone = f", {some_of([file.name for file in own])} alone" if own else ""
            ignored[name] = f"no weights at the hub{alone}"
            continue
        if kind == "gguf":
            names_there = some_of([file.name for file in own if file.is_weights])
            ignored[name] = f"GGUF weights alone at the hub ({names_there}); download one, and pass its folder"
            continue
        is_bare = revision.name == revision.commit
        folder = snapshot_folder(revision.repo, revision.commit)
        remote = RemoteCheckpoint(revision, own)
        parsed = CheckpointName() if is_bare else _parsed(name, revision.name)
        checkpoints.append(Candidate(name, folder, kind, parsed, is_bare=is_bare, remote=remote))
    if not checkpoints:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(ignored.items())[:3])
        raise NoCheckpoints(f"{', '.join(map(str, references))}: none of the revisions is a checkpoint. {why}")
    return Candidates(root, checkpoints, ignored, read_overrides(root), listed.remarks)


def cached_candidates(repositories: Sequence[Path], matches: Callable[[str], bool], *, root: Path) -> Candidates:
    """The checkpoints of models in a cache whose revision's name fits.

    Raises:
        NoCheckpoints: if there are none; it says which revisions the cache has.
        WorkbenchError: if `series.toml` is malformed.
    """
    present = [(folder, revision) for folder in repositories for revision in revisions(folder)[0]]
    fitting = [(folder, revision) for folder, revision in present if matches(revision.name)]
    names = names_of([(model_id(folder), revision.name) for folder, revision in fitting])
    checkpoints: list[Candidate] = []
    ignored = {name: reason for folder in repositories for name, reason in revisions(folder)[1].items()}
    for folder, revision in fitting:
        name = names[model_id(folder), revision.name]
        kind = checkpoint_format(revision.folder)
        if kind == "none":
            ignored[name] = "no weights of this revision are in the cache"
        else:
            parsed = CheckpointName() if revision.is_bare else _parsed(name, revision.name)
            checkpoints.append(Candidate(name, revision.folder, kind, parsed, is_bare=revision.is_bare))
    if not checkpoints:
        there = [revision.name for _, revision in present]
        of = ", ".join(model_id(folder) for folder in repositories)
        raise NoCheckpoints(f"the Hugging Face cache has {some_of(there) or 'no revision'} of {of}, and none that fits")
    return Candidates(root, checkpoints, ignored, read_overrides(root))


def names_of(revisions: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The checkpoints' names in a series, by repository and revision.

    Of one repository they are the names of its revisions. Of several with one `main` each they are the last parts of
    the repositories' names, `org/name` where two are alike. Else they are both, as `name/revision`.
    """
    repos = {repo for repo, _ in revisions}
    if len(repos) == 1:
        return {(repo, name): name for repo, name in revisions}
    last = {repo: repo.rpartition("/")[2] for repo in repos}
    short = last if len(set(last.values())) == len(repos) else {repo: repo for repo in repos}
    if all(name == MAIN for _, name in revisions):
        return {(repo, name): short[repo] for repo, name in revisions}
    return {(repo, name): f"{short[repo]}/{name}" for repo, name in revisions}


def root_of(references: Sequence[HubReference]) -> Path:
    """The folder in the cache that a series of a hub has, where its `series.toml` may be written."""
    repos = list(dict.fromkeys(reference.repo for reference in references))
    if len(repos) == 1 and not references[0].is_glob:
        return repository_folder(repos[0])
    return cache_folder() / ("series--" + re.sub(r"[^\w.]+", "-", repos[0]).strip("-"))


def format_of(files: Sequence[RemoteFile]) -> Format:
    """The format of the weights among the files that a checkpoint needs."""
    names = [file.name for file in files if file.is_weights]
    if not names:
        return "none"
    if all(name.startswith("adapter") for name in names):
        return "adapter"
    for ending, kind in _FORMATS:
        if any(name.endswith(ending) for name in names):
            return kind
    if any(name.startswith("pytorch_model") for name in names):
        return "bin"
    return "pt" if any(name.endswith((".pt", ".pth", ".ckpt", ".bin")) for name in names) else "none"


def _parsed(name: str, revision: str) -> CheckpointName:
    """The fields of a checkpoint's name: of its revision, else of its repository. A commit's digits say nothing."""
    return parse_revision(name) if name.endswith(revision) else parse_name(name)


def _files(revisions: Sequence[RemoteRevision]) -> list[tuple[RemoteFile, ...]]:
    """The needed files of each revision; one request for each commit."""
    commits = list(dict.fromkeys((revision.repo, revision.commit) for revision in revisions))
    files: dict[tuple[str, str], tuple[RemoteFile, ...]] = {}
    if len(commits) > _MANY:
        warn(f"asking the hub for the files of {len(commits)} revisions, a request each; it may slow them down")
    with ThreadPoolExecutor(min(_AT_A_TIME, len(commits) or 1)) as pool, watched_bar("revision") as show:
        try:
            for commit, own in zip(commits, pool.map(lambda each: remote_files(*each), commits), strict=True):
                files[commit] = needed_files(own)
                show(len(files), len(commits), "sizes at the hub")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [files[revision.repo, revision.commit] for revision in revisions]
