"""What a browser may load, run and ask for on a page of the app, and which pages may frame it: the policy headers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workbench.heads import WorkbenchError

# Pages that a notebook on this machine is shown in.
NOTEBOOKS = ("http://127.0.0.1:*", "http://localhost:*")
# Styles may be inline: Mantine and plotly write them into elements. Images of canvases and figures are data. Scripts
# come from the app alone; they may compile text, as plotly does for WebGL traces that a page of another package draws.
_LOADS = (
    "default-src 'none'",
    "connect-src 'self'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "worker-src 'self' blob:",
    "manifest-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
)
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:(\d{1,5}|\*))?", re.IGNORECASE)


def content_policy(scripts: Sequence[str], framed_by: Sequence[str]) -> str:
    """The header's text: all that a page needs comes from the app, and nothing goes elsewhere.

    `scripts`: hashes of the scripts that stand in the page itself.  `framed_by`: origins whose pages may frame it,
    besides the app's own.
    """
    run = " ".join(("script-src 'self' 'unsafe-eval'", *scripts))
    return "; ".join((*_LOADS, run, " ".join(("frame-ancestors 'self'", *framed_by))))


def checked_origin(text: str) -> str:
    """The origin that may frame cards, as `https://notes.example.org`; a port may be `*`.

    Raises:
        WorkbenchError: for a text that is no origin; `*` alone would let every page frame the cards.
    """
    if not _ORIGIN.fullmatch(text):
        raise WorkbenchError(
            f"{text!r} is no origin; write scheme, host and port alone, as https://notes.example.org or "
            "http://localhost:8888"
        )
    return text.lower()
