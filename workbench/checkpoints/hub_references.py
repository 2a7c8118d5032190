"""Turn what names checkpoints into folders: a path, a model's id, or a folder of a Hugging Face cache.

Nothing is downloaded: an id is looked up in the cache on this disk. A cache holds one folder per model,
`models--org--name`. In it, `snapshots` has a folder for each revision, named by its commit, and `refs` a file for each
revision that was fetched by a name (`main`, `step1000`), which holds the commit.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from workbench.heads import BadCheckpoint, NoCheckpoints

_ID = re.compile(
    r"(?:(?:https?:/{1,2})?huggingface\.co/|hf:/{1,2})?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:(?:@|/tree/)(?P<revision>[\w./-]+))?/?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{7,64}", re.ASCII)
_MODEL, _OTHERS = "models--", ("datasets--", "spaces--")
_PULL_REQUEST = "pr/"
_FEW = 5


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a model in a cache. `is_bare`: it has no name, so that nothing says where in training it stands."""

    name: str
    folder: Path
    is_bare: bool


@dataclass(frozen=True, slots=True)
class Located:
    """The folder of a checkpoint, and its name for users."""

    folder: Path
    name: str


def locate_series(reference: str | os.PathLike[str]) -> Path:
    """The folder of checkpoints that a path or a cached model's id names; an unknown name is returned as a path.

    `org/name` is the model's folder in the cache, with all its revisions; `org/name@revision` is one of them.

    Raises:
        NoCheckpoints: if the cache holds the model, but not the revision.
    """
    path, named = Path(reference), _cached(reference)
    if named is None:
        is_inside = path.name == "snapshots" and is_repository(path.parent)
        return path.parent if is_inside else path
    repository, revision = named
    return repository if revision is None else _revision(repository, revision, NoCheckpoints).folder


def locate_checkpoint(reference: str | os.PathLike[str]) -> Located:
    """The folder of the checkpoint that a path or a cached model's id names.

    Of a model's folder in a cache it is the revision `main`, else the only one.

    Raises:
        BadCheckpoint: if the cache does not hold the model or the revision, or several of which none is `main`.
    """
    path, named = Path(reference), _cached(reference)
    if named is not None:
        repository, revision = named
        chosen = _main(repository) if revision is None else _revision(repository, revision, BadCheckpoint)
        return Located(chosen.folder, model_id(repository).rpartition("/")[2])
    repository = path.parent if path.name == "snapshots" else path
    if is_repository(repository):
        return Located(_main(repository).folder, model_id(repository).rpartition("/")[2])
    if models := cached_models(path):
        raise BadCheckpoint(f"{path}: is a Hugging Face cache with {_listed(models)}; pass one of them")
    if not path.exists():
        raise BadCheckpoint(why_missing(reference))
    return Located(path, path.name)


def is_repository(path: Path) -> bool:
    """Whether a folder is that of one model in a Hugging Face cache."""
    is_named = path.name.startswith(_MODEL) or (path / "refs").is_dir() or (path / "blobs").is_dir()
    return is_named and (path / "snapshots").is_dir()


def model_id(repository: Path) -> str:
    """`org/name` of a model's folder in a cache."""
    return repository.resolve().name.removeprefix(_MODEL).replace("--", "/")


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
        if name.startswith(_PULL_REQUEST):
            ignored[name] = "a pull request"
        elif commit not in present:
            ignored[name] = "no files of this revision are in the cache"
        else:
            named.append(Revision(name, snapshots / commit, is_bare=False))
    bare = [Revision(commit, snapshots / commit, is_bare=True) for commit in present if commit not in has_name]
    return [*named, *bare], ignored


def cached_models(path: Path) -> dict[str, Path]:
    """The models in a Hugging Face cache, by id; none if the folder is no cache."""
    for folder in (path, path / "hub"):  # the cache is the folder `hub` of HF_HOME
        if folder.is_dir():
            entries = sorted(entry for entry in folder.iterdir() if entry.name.startswith(_MODEL))
            models = {model_id(entry): entry for entry in entries if is_repository(entry)}
            if models:
                return models
    return {}


def why_missing(reference: str | os.PathLike[str], noun: str = "folder") -> str:
    """Why a reference that is neither a path nor a cached model's id leads nowhere, and what to do."""
    text = os.fspath(reference)
    match = _ID.fullmatch(text)
    if text.rpartition("/")[2].startswith(_OTHERS):
        return f"{text}: is no model of a Hugging Face cache; pass a model's id, as org/name"
    if match is None:
        return f"{text}: no such {noun}; check the path"
    revision = match["revision"]
    flag = "" if revision is None else f" --revision {revision}"
    return (
        f"{text}: no such {noun}, and no model of that name in the Hugging Face cache {cache_folder()}. Check the path;"
        f" if it is a model's id, download it: `hf download {match['repo']}{flag}`"
    )


def cache_folder() -> Path:
    """The Hugging Face cache of this process, as the environment says now, else as huggingface_hub found it."""
    from huggingface_hub import constants

    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME")
    return Path(home).expanduser() / "hub" if home else Path(constants.HF_HUB_CACHE)


def _cached(reference: str | os.PathLike[str]) -> tuple[Path, str | None] | None:
    """The folder of a cached model's id, and the revision it names; None for a path and for models not in the cache."""
    from huggingface_hub.file_download import repo_folder_name

    match = None if Path(reference).exists() else _ID.fullmatch(os.fspath(reference))
    if match is None:
        return None
    repository = cache_folder() / repo_folder_name(repo_id=match["repo"], repo_type="model")
    return (repository, match["revision"]) if is_repository(repository) else None


def _main(repository: Path) -> Revision:
    present, _ = revisions(repository)
    main = [revision for revision in present if revision.name == "main"] or present
    if len(main) == 1:
        return main[0]
    repo = model_id(repository)
    if not present:
        raise BadCheckpoint(f"{repository}: holds no revision of {repo}; download it: `hf download {repo}`")
    raise BadCheckpoint(
        f"{repository}: holds {_listed([r.name for r in present], 'revisions')} of {repo}, and none is main; pass one, "
        f"as {repo}@{present[0].name}, or its folder {present[0].folder}"
    )


def _revision(repository: Path, name: str, error: type[BadCheckpoint | NoCheckpoints]) -> Revision:
    """The revision of this name, or whose commit begins so.

    Raises:
        BadCheckpoint or NoCheckpoints: whichever is `error`, if there is none, or several commits begin so.
    """
    present, _ = revisions(repository)
    is_commit = _COMMIT.fullmatch(name) is not None
    fitting = [r for r in present if r.name == name] or [r for r in present if is_commit and r.folder.name == name]
    fitting = fitting or [r for r in present if is_commit and r.folder.name.startswith(name)]
    if len({r.folder for r in fitting}) == 1:
        return fitting[0]
    repo = model_id(repository)
    there = _listed([r.name for r in present], "revisions") if present else "no revision"
    raise error(
        f"{repo}@{name}: {'several commits begin so' if fitting else 'no such revision is in the cache'}; {repository} "
        f"holds {there}. Pass one of them, or download it: `hf download {repo} --revision {name}`"
    )


def _listed(names: dict[str, Path] | list[str], noun: str = "models") -> str:
    every = list(names)
    more = f" and {len(every) - _FEW} more" if len(every) > _FEW else ""
    return f"{len(every)} {noun if len(every) > 1 else noun.removesuffix('s')} ({', '.join(every[:_FEW])}{more})"
