"""Experiments: what happens to the heads of small models that are converted here, and do we find published heads?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.experiments.conversion import StudyProgress, run_conversion
    from workbench.experiments.early import EarlyChoices, early_choices
    from workbench.experiments.report import write_report
    from workbench.experiments.settings import Continued, Conversion, larger_study, medium_study, quick_study
    from workbench.experiments.tables import Results, read_finished, read_results

__all__ = [
    "Continued",
    "Conversion",
    "EarlyChoices",
    "Results",
    "StudyProgress",
    "early_choices",
    "larger_study",
    "medium_study",
    "quick_study",
    "read_finished",
    "read_results",
    "run_conversion",
    "write_report",
]

_HOME = {
    "Continued": "settings",
    "Conversion": "settings",
    "EarlyChoices": "early",
    "early_choices": "early",
    "Results": "tables",
    "StudyProgress": "conversion",
    "larger_study": "settings",
    "medium_study": "settings",
    "quick_study": "settings",
    "read_finished": "tables",
    "read_results": "tables",
    "run_conversion": "conversion",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    # Settings must be readable without the seconds that torch and transformers take to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
