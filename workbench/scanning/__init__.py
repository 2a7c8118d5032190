"""Scan a directory of checkpoints: every detector on every probe of every checkpoint, into a run that can be resumed.

The work is a product of units (checkpoint, probe, detector); the units of one checkpoint and probe share one forward
pass, and each is committed on its own. Detectors that read weights share one reading of them in place of a probe. A
unit is known by what determines its numbers: weights, configuration, detector version, probe digest, settings. So the
same command run again does what is missing, and nothing twice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.scanning.execution import run_job, scan
    from workbench.scanning.job import Job, make_job, read_job
    from workbench.scanning.outlook import Outlook, look_ahead
    from workbench.scanning.progress import OnProgress, Progress

__all__ = ["Job", "OnProgress", "Outlook", "Progress", "look_ahead", "make_job", "read_job", "run_job", "scan"]

_HOME = {
    "Job": "job",
    "OnProgress": "progress",
    "Outlook": "outlook",
    "Progress": "progress",
    "look_ahead": "outlook",
    "make_job": "job",
    "read_job": "job",
    "run_job": "execution",
    "scan": "execution",
}


def __getattr__(name: str) -> Any:
    # A job must be readable without the seconds that torch and transformers take to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
