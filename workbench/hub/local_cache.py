"""Read a Hugging Face cache on this disk: its models and their revisions. Nothing is asked of a hub.

A cache holds one folder per model, `models--org--name`. In it, `snapshots` has a folder for each revision, named by its
commit, and `refs` a file for each revision that was fetched by a name (`main`, `step1000`), which holds the commit.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
_MODEL = "models--"
_PULL_REQUESTS = ("pr/", "refs/pr/")


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a model in a cache. `is_bare`: it has no name, so that nothing says where in training it stands."""

    name: str
    folder: Path
    is_bare: bool


def cache_folder() -> Path:
    """The Hugging Face cache of this process, as the environment says now, else as huggingface_hub found it."""
    from huggingface_hub import constants

    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME")
    return Path(home).expanduser() / "hub" if home else Path(constants.HF_HUB_CACHE)


def repository_folder(repo: str) -> Path:
    """The folder that a model has in the cache, whether it is there or not."""
    return cache_folder() / f"{_MODEL}{repo.replace('/', '--')}"


def snapshot_folder(repo: str, commit: str) -> Path:
    """The folder that a revision has in the cache, whether it is there or not."""
    return repository_folder(repo) / "snapshots" / commit


def is_repository(path: Path) -> bool:
    """Whether a folder is that of one model in a Hugging Face cache."""
    is_named = path.name.startswith(_MODEL) or (path / "refs").is_dir() or (path / "blobs").is_dir()
    return is_named and (path / "snapshots").is_dir()


def model_id(repository: Path) -> str:
    """`org/name` of a model's folder in a cache. Of a name with `--` in it, the first ends the organization."""
    return repository.resolve().name.removeprefix(_MODEL).replace("--", "/", 1)


def revisions(repository: Path) -> tuple[list[Revision], dict[str, str]]:
    """The revisions of a model in a cache, and the reason for each that is left out.

    Those with a name come first, by name; then those that are known by their commit alone, by commit.
    """
    refs, snapshots = repository / "refs", repository / "snapshots"
    present = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
    named: list[Revision] = []
    ignored: dict[str, str] = {}
    has_name: set[str] = set()
    for file in sorted(file for file in refs.rglob("*") if file.is_file()):
        name = file.relative_to(refs).as_posix()
        commit = file.read_text(encoding="utf-8", errors="replace").strip()
        # A revision that was fetched by the first digits of its commit has a file of that name.
        if _COMMIT.fullmatch(name) and commit.startswith(name):
            continue
        has_name.add(commit)
        if name.startswith(_PULL_REQUESTS):
            ignored[name] = "a pull request"
        elif commit not in present:
            ignored[name] = "no files of this revision are in the cache"
        else:
            named.append(Revision(name, snapshots / commit, is_bare=False))
    bare = [Revision(commit, snapshots / commit, is_bare=True) for commit in present if commit not in has_name]
    return [*named, *bare], ignored


def with_name(repository: Path, name: str) -> list[Revision]:
    """The revisions of this name, else those whose commit is it, else those whose commit begins so."""
    present, _ = revisions(repository)
    is_commit = _COMMIT.fullmatch(name) is not None
    fitting = [r for r in present if r.name == name] or [r for r in present if is_commit and r.folder.name == name]
    return fitting or [r for r in present if is_commit and r.folder.name.startswith(name)]


def cached_models(path: Path) -> dict[str, Path]:
    """The models in a Hugging Face cache, by id; none if the folder is no cache."""
    for folder in (path, path / "hub"):  # the cache is the folder `hub` of HF_HOME
        if folder.is_dir():
            entries = sorted(entry for entry in folder.iterdir() if entry.name.startswith(_MODEL))
            models = {model_id(entry): entry for entry in entries if is_repository(entry)}
            if models:
                return models
    return {}
