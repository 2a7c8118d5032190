"""What names a model: a path on this disk, the short name of a published model, or a reference to a hub."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from workbench.hub.published_models import PUBLISHED, published_folder, published_here
from workbench.hub.references import HubReference, parse_reference


def resolve_model(
    reference: str | os.PathLike[str] | HubReference, *, exists: bool | None = None
) -> Path | HubReference:
    """The path or the reference to a hub that names a model; every reader of a model's name goes through here.

    A path that exists goes before a published model (`smollm2`, which becomes its folder), and this before an id. What
    is neither of them nor an id is a path that is not there.

    Args:
        exists: whether there is such a path; None: looked up from the working directory.

    Raises:
        WorkbenchError: for a published model that was not fetched: with the command that fetches it.
    """
    if isinstance(reference, HubReference):
        return reference
    if (published := published_folder(reference, exists=exists)) is not None:
        return published
    parsed = parse_reference(reference, exists=exists)
    return Path(reference) if parsed is None else parsed


def did_you_mean(text: str) -> str:
    """A question after the names that a mistyped one comes near to: of published models, else of what lies beside it.

    "" where there is none.
    """
    path = Path(text)
    # What was written alone may come as a path below the working directory.
    word = path.name if path.is_absolute() and path.parent == Path.cwd() else text
    near = difflib.get_close_matches(word.lower(), PUBLISHED, n=2) if "/" not in word else []
    if near:
        is_here = near[0] in published_here()
        return f"did you mean {' or '.join(near)}?{'' if is_here else f' `workbench get {near[0]}` fetches it.'}"
    try:
        beside = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, beside, n=2, cutoff=0.8)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
