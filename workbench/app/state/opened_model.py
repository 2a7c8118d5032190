"""A model that the app is opened on without a run: only the Probe page is of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.heads import Head


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model, and what its page shows first.

    `source`: its folder, or a GGUF file. `tokenizer`: as in `open_model`; None: the model's own. `probe`: what it is
    run on first, as `workbench.probes.build` reads it. `head`, `kind`: whose pattern is shown, and of which mixer.
    `about`: a sentence on that head.
    """

    name: str
    source: Path
    tokenizer: str | None
    probe: str
    head: Head
    kind: str
    about: str
