"""What names a model: a path on this disk, the short name of a published model, or a reference to a hub."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.hub.published_models import published_folder
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
