"""What became of the scan that wrote a run, in the same words on every page: writing, complete, failed, gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.app.state.view import Scored
from workbench.heads import WorkbenchError
from workbench.runs import Run, Status

# A scan that has written nothing for so long is called quiet.
_QUIET_S = 120
GONE, UNREADABLE = "run folder gone", "cannot be read"


@dataclass(frozen=True, slots=True)
class ScanState:
    """A run's state in words, and its counts.

    `status` is None where the run cannot be read; `reason` says why, and what to do.
    """

    run: Run
    in_words: str
    status: Status | None = None
    reason: str = ""
    remarks: tuple[str, ...] = ()


def scan_state(run: Run, now: float) -> ScanState:
    """Look at a run's folder; `now` in seconds since 1970."""
    try:
        status = run.status()
        return ScanState(run, _in_words(run, status, now), status, remarks=run.left_out)
    except (WorkbenchError, OSError) as error:
        return ScanState(run, UNREADABLE if is_there(run) else GONE, reason=str(error))


def unread_state(run: Run) -> ScanState:
    """The state of a run that is not shown, as far as it cannot be read; reads no more of the disk than it must."""
    if not is_there(run):
        return scan_state(run, 0.0)
    try:
        _ = run.detectors
    except (WorkbenchError, OSError) as error:
        return ScanState(run, UNREADABLE, reason=str(error))
    return ScanState(run, "")


def why_unreadable(run: Run | Scored) -> str:
    """Why a run has nothing that can be shown; "" if it can be read. Reads no more of the disk than it must."""
    try:
        if isinstance(run, Run) and not is_there(run):
            return scan_state(run, 0.0).reason
        return "" if run.detectors or not isinstance(run, Run) else _why_unscored(run)
    except (WorkbenchError, OSError) as error:
        return str(error)


def why_empty(runs: Iterable[Run]) -> str:
    """Why none of these runs has anything to show, run by run: unreadable, gone or failed; "" if they are just new."""
    reasons = {run.name: why_unreadable(run) for run in runs}
    return "<br>".join(f"<b>{name}</b>: {reason}" for name, reason in reasons.items() if reason)


def _why_unscored(run: Run) -> str:
    """Why there is no score yet, if it is because the scan failed."""
    status = run.status()
    if not status.checkpoints_failed:
        return ""
    first = run.failures().loc[:, ["ckpt", "message"]].iloc[0]
    return (
        f"the scan failed at {status.checkpoints_failed} of {status.checkpoints} checkpoints, at {first['ckpt']}: "
        f"{first['message']}; the Jobs page lists them and has the command that tries again"
    )


def _in_words(run: Run, status: Status, now: float) -> str:
    written = run.last_written()
    if status.planned and status.done >= status.planned:
        return "complete"
    if status.is_complete and status.checkpoints_failed:
        return "ended with failures"
    if written is not None and now - written < _QUIET_S:
        return "writing"
    return "not started" if written is None else "quiet: stopped, or on a long unit"


def is_there(run: Run) -> bool:
    """Whether the run's folder still holds a run."""
    return (run.path / "run.json").is_file()
