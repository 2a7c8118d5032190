"""What the app is opened on: runs, plans, probe runs on demand, and the figures that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.app.probe_processes import Probings
from workbench.app.state.opened_model import OpenedModel
from workbench.runs import Run
from workbench.runs.cache import SharedCache

Runs = Mapping[str, Run]
# With 3,072 heads at 154 checkpoints a figure has 20 to 180 kB, all scores of a detector 750.
_MOST_ANSWERS = 64


@dataclass(frozen=True, slots=True)
class Content:
    """Runs and plans under the names that the app shows, the probe runs it started, and kept figures (`made`).

    `model`: what the app is opened on where it has no run; `first_job`: the name of the probe run that it began with.
    """

    runs: Runs
    plans: Mapping[str, Path] = field(default_factory=dict[str, Path])
    probings: Probings = field(default_factory=Probings)
    made: SharedCache = field(default_factory=lambda: SharedCache(_MOST_ANSWERS))
    model: OpenedModel | None = None
    first_job: str = ""
