"""Scan a directory of checkpoints: every detector on every probe of every checkpoint, into a run that can be resumed.

A unit is a checkpoint, a probe and a detector. The units of one checkpoint and probe share one forward pass; each is
committed on its own. Detectors of weights read them once, without a probe. The key of a unit is a digest of all that
determines its numbers: weights, configuration, detector version, probe digest, settings. The same command therefore
computes only the missing units.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.scanning.dry_run import Outlook, look_ahead
    from workbench.scanning.execution import run_job, scan
    from workbench.scanning.job import Job, make_job, read_job
    from workbench.scanning.progress import OnProgress, Progress

__all__ = ["Job", "OnProgress", "Outlook", "Progress", "look_ahead", "make_job", "read_job", "run_job", "scan"]

_HOME = {
    "Job": "job",
    "OnProgress": "progress",
    "Outlook": "dry_run",
    "Progress": "progress",
    "look_ahead": "dry_run",
    "make_job": "job",
    "read_job": "job",
    "run_job": "execution",
    "scan": "execution",
}


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds, and reading a job must not.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
