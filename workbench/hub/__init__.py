"""Models at a Hugging Face hub and in its cache on this disk: references, revisions, files, downloads. No torch.

Everything is asked through huggingface_hub, which is imported when it is first needed.
"""

from workbench.hub.file_choice import RemoteFile, needed_files
from workbench.hub.hub_errors import (
    BadReference,
    GatedModel,
    HubError,
    NotAtHub,
    RateLimited,
    Unreachable,
    as_hub_error,
)
from workbench.hub.references import HubReference, parse_reference
from workbench.hub.repositories import RemoteRevision, RemoteRevisions, remote_files, remote_revisions

__all__ = [
    "BadReference",
    "GatedModel",
    "HubError",
    "HubReference",
    "NotAtHub",
    "RateLimited",
    "RemoteFile",
    "RemoteRevision",
    "RemoteRevisions",
    "Unreachable",
    "as_hub_error",
    "needed_files",
    "parse_reference",
    "remote_files",
    "remote_revisions",
]
