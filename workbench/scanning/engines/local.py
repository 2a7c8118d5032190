"""The engine `local`: processes of this machine under one supervisor.

The supervisor replaces a process that dies and gives its task to another. Each process has its own pipe: when one side
dies, the other reads the end of the pipe. The pools of the standard library and of joblib lose tasks, hang, or end
altogether when a process is killed.
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
from typing import Any

from workbench.heads import WorkbenchError
from workbench.scanning.engines.tasks import RETRIES, Channel, Opener, Outcome, Task, Tasks, environment, supply_of

_POLL_S = 0.2
_STOP = "stop"


@dataclass(slots=True)
class _Process:
    """A worker process. `slot` is the index of its environment; `is_ready`: its worker is open."""

    slot: int
    process: BaseProcess
    pipe: Connection
    is_ready: bool = False
    task: Task | None = None


def run_local(
    opener: Opener, tasks: Tasks, channel: Channel, *, environments: Sequence[Mapping[str, str]]
) -> Iterator[Outcome]:
    """See `Engine`: one process for each of `environments`, which is set before the process starts.

    Raises:
        WorkbenchError: if processes end before their workers are open.
    """
    supervisor = _Supervisor(opener, tasks, channel, environments)
    try:
        yield from supervisor.outcomes()
    finally:
        supervisor.end()


class _Supervisor:
    """The tasks, the processes, and the task of each."""

    def __init__(
        self, opener: Opener, tasks: Tasks, channel: Channel, environments: Sequence[Mapping[str, str]]
    ) -> None:
        self._opener, self._channel, self._environments = opener, channel, environments
        self._supply = supply_of(tasks)
        self._again = deque[Task]()  # tasks that a process died of
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._processes: dict[Connection, _Process] = {}
        self._is_stopping = False

    def outcomes(self) -> Iterator[Outcome]:
        while True:
            if self._channel.should_stop() and not self._is_stopping:
                self._stop()
            if not self._is_stopping:
                self._hand_out_tasks()
            busy = [p.pipe for p in self._processes.values() if p.task is not None or not p.is_ready]
            if self._is_stopping and not any(p.task for p in self._processes.values()):
                return
            if not busy:
                if self._is_stopping or not self._n_waiting:
                    return
                self._supply.wait(_POLL_S)
                continue
            for pipe in wait(busy, timeout=_POLL_S):
                outcome = self._receive(self._processes[pipe])  # type: ignore[index]
                if outcome is not None:
                    yield outcome

    def end(self) -> None:
        """End every process: those without a task end when their pipe closes, the others are killed."""
        for each in self._processes.values():
            each.pipe.close()
            if each.task is not None or not each.is_ready:
                each.process.kill()
        for each in self._processes.values():
            each.process.join(timeout=5)
            each.process.kill()
            each.process.join()

    def _hand_out_tasks(self) -> None:
        """Start processes in free slots as far as there are tasks, and give tasks to idle processes."""
        taken = {each.slot for each in self._processes.values()}
        free = [slot for slot in range(len(self._environments)) if slot not in taken]
        idle = [each for each in self._processes.values() if each.is_ready and each.task is None]
        n_starting = sum(not each.is_ready for each in self._processes.values())
        for slot in free[: max(0, self._n_waiting - len(idle) - n_starting)]:
            self._start(slot)
        for each in idle:
            each.task = self._again.popleft() if self._again else self._supply.take()
            if each.task is not None:
                with contextlib.suppress(OSError):  # the process died meanwhile; `_receive` will handle it
                    each.pipe.send(each.task.argument)

    @property
    def _n_waiting(self) -> int:
        """Tasks that no process has, whether they can be begun or not yet."""
        return len(self._again) + self._supply.remaining()

    def _start(self, slot: int) -> None:
        context = get_context("spawn")
        parent_end, child_end = context.Pipe()
        process = context.Process(
            target=_serve, args=(child_end, self._opener), name=f"workbench worker {slot}", daemon=True
        )
        with environment(self._environments[slot]):
            process.start()
        child_end.close()
        self._processes[parent_end] = _Process(slot, process, parent_end)

    def _receive(self, each: _Process) -> Outcome | None:
        """Handle one message of a process, or its death."""
        try:
            kind, value = each.pipe.recv()
        except (EOFError, OSError):
            return self._handle_death(each)
        if kind == "event":
            self._channel.send(value)
        elif kind == "ready":
            each.is_ready, self._failed_starts = True, 0
        elif kind == "error":
            raise value
        else:
            assert each.task is not None
            task, each.task = each.task, None
            return Outcome(task, is_done=True, deaths=self._deaths[task.name])
        return None

    def _handle_death(self, each: _Process) -> Outcome | None:
        del self._processes[each.pipe]
        each.pipe.close()
        each.process.join()
        if self._is_stopping:
            return None
        if each.task is None:
            self._failed_starts += 1
            if self._failed_starts > RETRIES:
                raise WorkbenchError(
                    f"worker processes end before they can begin (exit code {each.process.exitcode}); a script that "
                    "scans with engine='local' does so under `if __name__ == '__main__':`"
                )
            return None
        self._deaths[each.task.name] += 1
        if self._deaths[each.task.name] > RETRIES:
            return Outcome(each.task, is_done=False, deaths=self._deaths[each.task.name])
        self._again.append(each.task)
        return None

    def _stop(self) -> None:
        self._is_stopping = True
        self._again.clear()
        for each in self._processes.values():
            if each.task is not None:
                with contextlib.suppress(OSError):
                    each.pipe.send(_STOP)


def _serve(pipe: Connection, opener: Opener) -> None:
    """Run a worker process: do tasks until the pipe ends. Signals are ignored; the supervisor handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def send(kind: str, value: Any = None) -> None:
        pipe.send((kind, value))

    def should_stop() -> bool:
        return pipe.poll()

    channel = Channel(lambda event: send("event", event), should_stop)
    try:
        worker = opener()
        send("ready")
        while (argument := pipe.recv()) != _STOP:
            worker(argument, channel)
            send("done")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:  # raised again by the supervisor
        with contextlib.suppress(OSError):
            send("error", _picklable(error))


def _picklable(error: Exception) -> Exception:
    """The error itself, or a WorkbenchError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own pickling may raise anything
        return WorkbenchError(f"{type(error).__name__} in a worker: {error}")
    return error
