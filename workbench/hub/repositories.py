"""What a hub has: the revisions of a model, the repositories that a glob names, and the files of a revision."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workbench.heads import WorkbenchError, some_of
from workbench.hub.file_choice import RemoteFile
from workbench.hub.hub_errors import BadReference, NotAtHub, ask, endpoint
from workbench.hub.references import HubReference, parse_reference

MAIN = "main"
_TIMEOUT_S = 30.0
# A listing for near names is no reason to page through an organization of thousands.
_MOST_NEIGHBOURS = 2000
# What may be the beginning of a commit; shorter ones are more often a name.
_FIRST_DIGITS = re.compile(r"[0-9a-f]{4,39}")


@dataclass(frozen=True, slots=True)
class RemoteRevision:
    """A revision of a model at a hub. `name`: its branch, its tag or, without either, its commit."""

    repo: str
    name: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.name}"


class RemoteRevisions(NamedTuple):
    """Those that were asked for, unordered; the reason for each that is left out; sentences for the user."""

    chosen: tuple[RemoteRevision, ...]
    ignored: dict[str, str]
    remarks: tuple[str, ...]


def remote_revisions(
    references: HubReference | str | Sequence[HubReference | str], pattern: str | None = None
) -> RemoteRevisions:
    """The revisions that references name, with their commits. No file is fetched.

    Without a revision and a pattern it is the default branch, `main`. A glob of repositories (`org/name-*`) is every
    model of the organization that fits.

    Args:
        pattern: of branches and tags: a glob, several with commas between (`step*,main`), or a regular expression for
            the whole name between slashes (`/step\\d+000/`). Pull requests are no revisions.

    Raises:
        HubError: if the hub cannot be reached, has no such model or revision, or does not show it; near names are said.
        WorkbenchError: if a pattern stands beside a reference with a revision, or is no regular expression.
    """
    several = [references] if isinstance(references, HubReference | str) else list(references)
    parsed = [_reference(each) for each in several]
    matches = None if pattern is None else revision_pattern(pattern)
    chosen: list[RemoteRevision] = []
    ignored: dict[str, str] = {}
    remarks: list[str] = []
    for reference in parsed:
        if matches is not None and reference.revision is not None:
            raise WorkbenchError(f"{reference} names a revision, and {pattern!r} others; pass one of the two")
        for repo in _repositories(reference):
            own = HubReference(repo, reference.revision)
            listed = _one(own) if matches is None else _matching(repo, str(pattern), matches)
            chosen += listed.chosen
            ignored |= listed.ignored
            remarks += listed.remarks
    return RemoteRevisions(tuple(dict.fromkeys(chosen)), ignored, tuple(dict.fromkeys(remarks)))


def remote_files(repo: str, commit: str) -> tuple[RemoteFile, ...]:
    """All files of a revision with their sizes, by name.

    Raises:
        HubError: if the hub cannot be reached, or has no such revision.
    """
    tree = ask(
        lambda api: list(api.list_repo_tree(repo, revision=commit, recursive=True)), repo, commit, tries_again=False
    )
    files = [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in tree
        if hasattr(entry, "size")  # else a folder
    ]
    return tuple(sorted(files, key=lambda file: file.name))


def remark_on_others(revision: RemoteRevision) -> str:
    """Which other branches and tags the repository has, in a sentence for the user; empty if it has none.

    Raises:
        HubError: if the hub cannot be reached.
    """
    refs = ask(lambda api: api.list_repo_refs(revision.repo), revision.repo)
    others = [ref.name for ref in (*refs.branches, *refs.tags) if ref.name != revision.name]
    if not others:
        return ""
    return (
        f"{revision} alone; of its branches and tags, the hub has {len(others)} more ({some_of(others)}): --revisions "
        "PATTERN (revisions=) makes a series of them"
    )


def revision_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a revision's name fits: a glob, several with commas between, or `/regular expression/`.

    Raises:
        WorkbenchError: if it is empty, or no regular expression.
    """
    if len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            compiled = re.compile(pattern[1:-1])
        except re.error as error:
            raise WorkbenchError(f"revisions {pattern!r}: is no regular expression: {error}") from error
        return lambda name: compiled.fullmatch(name) is not None
    globs = [glob.strip() for glob in pattern.split(",")]
    if not all(globs):
        raise WorkbenchError(
            f"revisions {pattern!r}: expected a glob as 'step*', several with commas between, or a regular expression "
            r"between slashes, as '/step\d+000/'"
        )
    return lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def near_names(name: str, names: Iterable[str]) -> str:
    """The names that one may have been meant as, in words to be put after a message; empty without any."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f". Near: {', '.join(close)}" if close else ""


def _reference(text: HubReference | str) -> HubReference:
    reference = text if isinstance(text, HubReference) else parse_reference(text)
    if reference is None:
        raise BadReference(f"{text}: is no id of a model; expected org/name or org/name@revision")
    return reference


def _repositories(reference: HubReference) -> list[str]:
    """The repositories that a reference names; of a glob, those that the hub has."""
    if not reference.is_glob:
        return [reference.repo]
    author, slash, name = reference.repo.partition("/")
    if not slash or HubReference(author).is_glob:
        raise BadReference(f"{reference.repo}: a glob needs its organization, as org/{name or author}")
    literal = max(re.split(r"\[[^\]]*\]|[*?]", name), key=len).strip("-_.") or None
    every: list[str] = []
    fitting = _fitting(name, _listed(author, literal))
    if not fitting:  # a hub's search may pass over what fits
        every = _listed(author)
        fitting = _fitting(name, every)
    if not fitting:
        others = [repo.rpartition("/")[2] for repo in every]
        there = near_names(name, others) or f". It has {some_of(others)}" if others else ""
        raise NotAtHub(f"{reference.repo}: {endpoint()} shows no such model of {author}{there}. Check the glob")
    return sorted(fitting)


def _fitting(glob: str, repos: Iterable[str]) -> list[str]:
    return [repo for repo in repos if fnmatch.fnmatchcase(repo.rpartition("/")[2], glob)]


def _listed(author: str, search: str | None = None, limit: int | None = None) -> list[str]:
    """The models of an organization."""
    return ask(
        lambda api: [info.id for info in api.list_models(author=author, search=search, limit=limit)],
        author,
        tries_again=False,
    )


def _one(reference: HubReference) -> RemoteRevisions:
    """The revision of a reference, else the default branch."""
    repo, revision = reference.repo, reference.revision
    try:
        info = ask(lambda api: api.model_info(repo, revision=revision, timeout=_TIMEOUT_S), repo, revision)
    except NotAtHub as error:
        whole = None if revision is None else _whole_commit(repo, revision)
        if whole is None:
            raise NotAtHub(f"{error}{_alternatives(repo, revision)}") from error
        return _one(HubReference(repo, whole))
    commit = str(info.sha)
    is_commit = revision is not None and len(revision) >= 7 and commit.startswith(revision)
    name = commit if is_commit else revision or MAIN
    return RemoteRevisions((RemoteRevision(info.id, name, commit),), {}, _renamed(repo, info.id))


def _whole_commit(repo: str, digits: str) -> str | None:
    """The commit of a branch or tag that begins with these digits; None without one.

    Raises:
        NotAtHub: if several begin so.
    """
    if _FIRST_DIGITS.fullmatch(digits) is None:
        return None
    try:
        refs = ask(lambda api: api.list_repo_refs(repo), repo)
    except WorkbenchError:  # what is said of the revision itself says more
        return None
    commits = {ref.target_commit for ref in (*refs.branches, *refs.tags) if ref.target_commit.startswith(digits)}
    if len(commits) > 1:
        raise NotAtHub(f"{repo}@{digits}: several commits begin so ({some_of(sorted(commits))}); pass more digits")
    return next(iter(commits), None)


def _matching(repo: str, pattern: str, matches: Callable[[str], bool]) -> RemoteRevisions:
    """The branches and tags of a repository that a pattern takes."""
    try:
        refs = ask(lambda api: api.list_repo_refs(repo), repo)
    except NotAtHub as error:
        raise NotAtHub(f"{error}{_alternatives(repo, None)}") from error
    repo, remarks = _name_now(repo)
    commits = {ref.name: ref.target_commit for ref in refs.branches}
    ignored: dict[str, str] = {}
    for tag in refs.tags:
        if commits.setdefault(tag.name, tag.target_commit) != tag.target_commit:
            ignored[f"tag {tag.name}"] = "a branch has this name at another commit; the branch is read"
    chosen = [RemoteRevision(repo, name, commit) for name, commit in commits.items() if matches(name)]
    if not chosen:
        near = near_names(pattern.strip("/*"), commits) or f". It has {some_of(sorted(commits))}"
        whole = "; a regular expression has to fit the whole name" if pattern.startswith("/") else ""
        raise NotAtHub(f"{repo}: none of its {len(commits)} branches and tags fits {pattern!r}{near}{whole}")
    if others := [name for name in commits if not matches(name)]:
        verb = "does" if len(others) == 1 else "do"
        remarks.append(f"{repo}: {some_of(others)} {verb} not fit {pattern!r}")
    return RemoteRevisions(tuple(chosen), ignored, tuple(remarks))


def _name_now(repo: str) -> tuple[str, list[str]]:
    """The name that a repository has now, and a remark where it was renamed."""
    try:
        own = _one(HubReference(repo))
    except NotAtHub:  # it has no `main`
        return repo, []
    return own.chosen[0].repo, list(own.remarks)


def _renamed(repo: str, now: str) -> tuple[str, ...]:
    return () if repo == now else (f"{repo} is called {now} at {endpoint()} now; that is read",)


def _alternatives(repo: str, revision: str | None) -> str:
    """Near names of a model or a revision that the hub does not have, in words to be put after a message."""
    author, slash, name = repo.partition("/")
    try:
        if revision is not None:
            try:
                return _other_revisions(repo, revision)
            except NotAtHub:  # the model itself is not there
                pass
        names = [each.rpartition("/")[2] for each in _listed(author, limit=_MOST_NEIGHBOURS)] if slash else []
        return near_names(name, names).replace(": ", f": {author}/", 1)
    except WorkbenchError:
        return ""


def _other_revisions(repo: str, revision: str) -> str:
    refs = ask(lambda api: api.list_repo_refs(repo), repo)
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    is_short = _FIRST_DIGITS.fullmatch(revision) is not None
    digits = "; a commit that is no branch's or tag's now is named by all of its 40 digits" if is_short else ""
    return (near_names(revision, names) or f". It has {some_of(names)}") + digits
