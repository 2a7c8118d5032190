"""A run as tables, how far its scan is, and a summary of what emerged in it."""

from workbench.runs.run import Run, open_run
from workbench.runs.status import Status, status_of
from workbench.runs.summary import Summary, summarise

__all__ = ["Run", "Status", "Summary", "open_run", "status_of", "summarise"]
