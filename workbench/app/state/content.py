"""What the app is opened on: runs, plans, probe runs on demand, and the figures that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.app.probe_processes import Probings
from workbench.app.state.live_runs import LiveRun
from workbench.app.state.remembered import Remembered

Runs = Mapping[str, LiveRun]


@dataclass(frozen=True, slots=True)
class Content:
    """Runs and plans under the names that the app shows, the probe runs it started, and kept figures (`made`)."""

    runs: Runs
    plans: Mapping[str, Path] = field(default_factory=dict[str, Path])
    probings: Probings = field(default_factory=Probings)
    made: Remembered = field(default_factory=Remembered)
