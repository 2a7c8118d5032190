"""Processes of this machine under one supervisor, which replaces those that die and gives their task to another.

Each has a pipe of its own: the end of it is how the supervisor learns of a death, and a process of the supervisor's.
The pools of the standard library and of joblib lose tasks, hang, or end altogether when a process is killed.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from workbench.heads import WorkbenchError
from workbench.scanning.engines.environment import environment
from workbench.scanning.engines.tasks import RETRIES, Opener, Outcome, ShouldStop, Task, Tell

_POLL_S = 0.2
_STOP = "stop"
_Message = tuple[Literal["ready", "event", "done", "error"], Any]


@dataclass(slots=True)
class _Process:
    """A worker process: in its place among the others, and the task it has."""

    place: int
    process: BaseProcess
    pipe: Connection
    is_ready: bool = False
    task: Task | None = None


def run_local(
    opener: Opener,
    tasks: Sequence[Task],
    *,
    tell: Tell,
    should_stop: ShouldStop,
    environments: Sequence[Mapping[str, str]],
) -> Iterator[Outcome]:
    """See `Engine`: one process for each of `environments`, which is set before the process begins.

    Raises:
        WorkbenchError: if processes end before they can begin.
    """
    supervisor = _Supervisor(opener, tasks, environments, tell)
    try:
        yield from supervisor.outcomes(should_stop)
    finally:
        supervisor.end()


class _Supervisor:
    """The queue of tasks, and who works on what."""

    def __init__(
        self, opener: Opener, tasks: Sequence[Task], environments: Sequence[Mapping[str, str]], tell: Tell
    ) -> None:
        self._opener, self._environments, self._tell = opener, environments, tell
        self._queue = deque(tasks)
        self._deaths: Counter[str] = Counter()
        self._unborn = 0
        self._processes: dict[Connection, _Process] = {}
        self._is_stopping = False

    def outcomes(self, should_stop: ShouldStop) -> Iterator[Outcome]:
        while True:
            if should_stop() and not self._is_stopping:
                self._stop()
            if not self._is_stopping:
                self._fill_places()
            busy = [p.pipe for p in self._processes.values() if p.task is not None or not p.is_ready]
            if not busy or (self._is_stopping and not any(p.task for p in self._processes.values())):
                return
            for pipe in wait(busy, timeout=_POLL_S):
                outcome = self._heard(self._processes[pipe])  # type: ignore[index]
                if outcome is not None:
                    yield outcome

    def end(self) -> None:
        """Leave no process behind: those without a task end by themselves, the others are killed."""
        for each in self._processes.values():
            each.pipe.close()
            if each.task is not None or not each.is_ready:
                each.process.kill()
        for each in self._processes.values():
            each.process.join(timeout=5)
            each.process.kill()
            each.process.join()

    def _fill_places(self) -> None:
        taken = {each.place for each in self._processes.values()}
        free = [place for place in range(len(self._environments)) if place not in taken]
        idle = [each for each in self._processes.values() if each.is_ready and each.task is None]
        unready = sum(not each.is_ready for each in self._processes.values())
        for place in free[: max(0, len(self._queue) - len(idle) - unready)]:
            self._start(place)
        for each in idle:
            if self._queue:
                each.task = self._queue.popleft()
                with contextlib.suppress(OSError):  # it died meanwhile, as its pipe will tell
                    each.pipe.send(each.task.argument)

    def _start(self, place: int) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._opener), name=f"workbench worker {place}", daemon=True
        )
        with environment(self._environments[place]):
            process.start()
        theirs.close()
        self._processes[ours] = _Process(place, process, ours)

    def _heard(self, each: _Process) -> Outcome | None:
        try:
            kind, value = each.pipe.recv()
        except (EOFError, OSError):
            return self._died(each)
        if kind == "event":
            self._tell(value)
        elif kind == "ready":
            each.is_ready, self._unborn = True, 0
        elif kind == "error":
            raise value
        else:
            assert each.task is not None
            task, each.task = each.task, None
            return Outcome(task, is_done=True, deaths=self._deaths[task.name])
        return None

    def _died(self, each: _Process) -> Outcome | None:
        del self._processes[each.pipe]
        each.pipe.close()
        each.process.join()
        if self._is_stopping:
            return None
        if each.task is None:
            self._unborn += 1
            if self._unborn > RETRIES:
                raise WorkbenchError(
                    f"worker processes end before they can begin (exit code {each.process.exitcode}); a script that "
                    "scans with engine='local' does so under `if __name__ == '__main__':`"
                )
            return None
        self._deaths[each.task.name] += 1
        if self._deaths[each.task.name] > RETRIES:
            return Outcome(each.task, is_done=False, deaths=self._deaths[each.task.name])
        self._queue.append(each.task)
        return None

    def _stop(self) -> None:
        self._is_stopping = True
        self._queue.clear()
        for each in self._processes.values():
            if each.task is not None:
                with contextlib.suppress(OSError):
                    each.pipe.send(_STOP)


def _serve(pipe: Connection, opener: Opener) -> None:
    """The life of a worker process: tasks until the pipe ends. Signals are for the supervisor to answer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def send(kind: str, value: Any = None) -> None:
        pipe.send((kind, value))

    def should_stop() -> bool:
        return pipe.poll()

    try:
        worker = opener()
        send("ready")
        while (argument := pipe.recv()) != _STOP:
            worker(argument, tell=lambda event: send("event", event), should_stop=should_stop)
            send("done")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:  # raised again where the engine was started
        with contextlib.suppress(OSError):
            send("error", _that_travels(error))


def _that_travels(error: Exception) -> Exception:
    """The error, or one that tells of it where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's own pickling raises
        return WorkbenchError(f"{type(error).__name__} in a worker: {error}")
    return error
