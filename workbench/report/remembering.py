"""A run that traces and compares its heads once: tables, sentences and figures of a report ask for the same."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.runs.run import Run
from workbench.store import Store


class RememberingRun(Run):
    """As the run of this folder was when first asked; its tables are shared, so nobody may write into them."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._found: dict[tuple[Any, ...], pd.DataFrame] = {}

    def emergence(
        self, detector: str, *, probe: str | None = None, least: float = 0.2, past: bool = False
    ) -> pd.DataFrame:
        """As `Run.emergence`."""
        key = ("emergence", detector, probe, least, past)
        if key not in self._found:
            self._found[key] = super().emergence(detector, probe=probe, least=least, past=past)
        return self._found[key]

    def lock_in(
        self, detector: str, *, probe: str | None = None, against: int | str = "last", k: int | None = None
    ) -> pd.DataFrame:
        """As `Run.lock_in`."""
        key = ("lock_in", detector, probe, against, k)
        if key not in self._found:
            self._found[key] = super().lock_in(detector, probe=probe, against=against, k=k)
        return self._found[key]
