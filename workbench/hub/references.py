"""Read what names a model at a Hugging Face hub: `org/name`, `org/name@revision`, an address, or a glob of names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

_GLOB = re.compile(r"[*?\[]")
_PART = r"[A-Za-z0-9*?\[][\w.*?\[\]!-]*"
_REFERENCE = re.compile(
    r"(?:(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/{1,2})?"
    rf"(?P<repo>{_PART}(?:/{_PART})?)"
    # What git allows in the name of a branch or tag, but commas, which stand between references.
    r"(?:@(?P<revision>[^\s~^:?*\[\\,]+?)|/(?:tree|commit)/(?P<in_address>[\w.%+=/-]+?))?/?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model at a hub. `repo` is `org/name`, of which each part may be a glob; `revision` a branch, tag or commit.

    `revision` None: the reference names none, which means `main`.
    """

    repo: str
    revision: str | None = None

    @property
    def is_glob(self) -> bool:
        """Whether it names several repositories by `*`, `?` or `[…]`."""
        return _GLOB.search(self.repo) is not None

    @property
    def last_part(self) -> str:
        """The name without the organization."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_reference(text: str | os.PathLike[str], *, exists: bool | None = None) -> HubReference | None:
    """The model at a hub that a text names; None for a path that exists and for what cannot be a model's id.

    `org/name`, `org/name@revision`, `https://huggingface.co/org/name/tree/revision`, `hf://org/name`. Whether there is
    such a model is not asked. `exists`: whether there is such a path; None: looked up from the working directory.
    """
    written = os.fspath(text)
    if _exists(written) if exists is None else exists:
        return None
    match = _REFERENCE.fullmatch(written)
    if match is None:
        return None
    in_address = match["in_address"]
    return HubReference(match["repo"], match["revision"] if in_address is None else unquote(in_address))


def parse_references(text: str, *, exists: bool | None = None) -> list[HubReference] | None:
    """The models at a hub that a text with commas between names; None if a part cannot be one, or is on this disk."""
    if "," in text and exists is None and _exists(text):
        return None
    parsed = [parse_reference(part.strip(), exists=exists) for part in text.split(",")]
    return None if None in parsed else [reference for reference in parsed if reference is not None]


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or a zero byte in it
        return False
