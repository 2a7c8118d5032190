"""Experiments: conversion of small models head by head, parity with published heads, and early choices of heads."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.experiments.conversion.results import Results, read_finished, read_results
    from workbench.experiments.conversion.settings import Continued, Conversion, larger_study, medium_study, quick_study
    from workbench.experiments.conversion.study import StudyProgress, run_conversion
    from workbench.experiments.conversion.study_report import write_report
    from workbench.experiments.early_plans import EarlyChoices, early_choices

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
    "Continued": "conversion.settings",
    "Conversion": "conversion.settings",
    "EarlyChoices": "early_plans",
    "early_choices": "early_plans",
    "Results": "conversion.results",
    "StudyProgress": "conversion.study",
    "larger_study": "conversion.settings",
    "medium_study": "conversion.settings",
    "quick_study": "conversion.settings",
    "read_finished": "conversion.results",
    "read_results": "conversion.results",
    "run_conversion": "conversion.study",
    "write_report": "conversion.study_report",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that settings are read without importing torch and transformers.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
