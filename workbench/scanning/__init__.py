"""Scan a directory of checkpoints: every detector on every probe of every checkpoint, into a run that can be resumed.

The work is a product of units (checkpoint, probe, detector); the units of one checkpoint and probe share one forward
pass, and each is committed on its own. Detectors that read weights share one reading of them in place of a probe. A
unit is known by what determines its numbers: weights, configuration, detector version, probe digest, settings. So the
same command run again does what is missing, and nothing twice.
"""

from workbench.jobs import Job, make_job, read_job
from workbench.scanning.outlook import Outlook, look_ahead
from workbench.scanning.progress import OnProgress, Progress
from workbench.scanning.running import run_job, scan

__all__ = ["Job", "OnProgress", "Outlook", "Progress", "look_ahead", "make_job", "read_job", "run_job", "scan"]
