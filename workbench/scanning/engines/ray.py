"""The machines of a Ray cluster, or a cluster of this machine for the length of a scan.

Ray runs a task again when its process or its node dies. It does not survive the process that started it, so workers
write their own results. Known traps are closed here: authentication is on in every process of the cluster, usage is not
reported, a local cluster does not look outside for its own address, and errors of a task are not tried again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.heads import WorkbenchError
from workbench.scanning.engines.environment import environment
from workbench.scanning.engines.tasks import RETRIES, Opener, Outcome, ShouldStop, Task, Tell, Worker

_POLL_S = 0.5


def run_ray(
    opener: Opener,
    tasks: Sequence[Task],
    *,
    tell: Tell,
    should_stop: ShouldStop,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_task: float = 0,
    cpus_per_task: int = 1,
) -> Iterator[Outcome]:
    """See `Engine`: on the cluster at `address`; None: on one of this machine, started and ended here.

    Asked to stop, it drops the units at hand: what is committed stays.

    Args:
        workers: at most so many tasks at a time; None: as many as there is room for.

    Raises:
        WorkbenchError: if Ray is not installed, there is no cluster at the address, or it has no token.
    """
    with _cluster(address, workers) as ray:
        told = _Told.of(ray)
        remote = ray.remote(
            num_cpus=cpus_per_task, num_gpus=gpus_per_task, max_retries=RETRIES, retry_exceptions=False
        )(_work)
        packed = ray.put(pickle.dumps(opener))
        waiting, running = list(reversed(tasks)), dict[Any, Task]()
        try:
            while waiting or running:
                if should_stop():
                    return
                while waiting and (workers is None or len(running) < workers):
                    task = waiting.pop()
                    running[remote.options(name=task.name).remote(packed, task.argument, told.actor)] = task
                ended, _ = ray.wait(list(running), timeout=_POLL_S)
                told.pass_on(tell)
                for reference in ended:
                    task = running.pop(reference)
                    is_done = _is_done(ray, reference)
                    told.pass_on(tell)
                    yield Outcome(task, is_done=is_done, deaths=0 if is_done else RETRIES + 1)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _work(packed: bytes, argument: Any, told: Any) -> None:
    """One task in a process of the cluster."""
    # Without an answer asked for: events are for a person to look at.
    _opened(packed)(argument, tell=lambda event: told.add.remote(event) and None, should_stop=lambda: False)


@lru_cache(maxsize=1)
def _opened(packed: bytes) -> Worker:
    """The worker of this process, opened once for all its tasks."""
    opener: Opener = pickle.loads(packed)
    return opener()


def _is_done(ray: Any, reference: Any) -> bool:
    """Whether the task came back; False where its process died as often as it may.

    Raises:
        Exception: what the worker let out.
    """
    try:
        ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
        return False
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    return True


class _Told:
    """Events of all workers, kept in the cluster until the next look."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self.actor = ray, actor

    @classmethod
    def of(cls, ray: Any) -> _Told:
        # Beside the process that started the scan: the loss of any other node must not take it along.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        return cls(ray, ray.remote(num_cpus=0, scheduling_strategy=here)(_Events).remote())

    def pass_on(self, tell: Tell) -> None:
        for event in self._ray.get(self.actor.take.remote()):
            tell(event)


class _Events:
    def __init__(self) -> None:
        self._kept: list[Any] = []

    def add(self, event: Any) -> None:
        self._kept.append(event)

    def take(self) -> list[Any]:
        taken, self._kept = self._kept, []
        return taken


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Generator[Any]:
    """The module `ray`, connected to a cluster inside the block; left as it was found."""
    with environment(_security(address)):
        ray = _installed()
        if ray.is_initialized():
            yield ray
            return
        try:
            if address is None:
                ray.init(
                    num_cpus=workers or os.cpu_count() or 1,
                    include_dashboard=False,
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=address, log_to_driver=False, **_own_address(address))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise WorkbenchError(
                f"no Ray cluster at {address or 'this machine'}: {_first_line(error)}; start one with "
                "`ray start --head` and pass its --address, or leave --address out for one of this machine; where Ray "
                "is imported before the scan, set RAY_AUTH_MODE=token before that"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _security(address: str | None) -> Mapping[str, str]:
    """Environment of every process: no usage statistics, and a token, made here for a cluster of this machine.

    Raises:
        WorkbenchError: if a cluster is to be joined and no token is given.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    if address is None:
        return {**variables, "RAY_AUTH_TOKEN": _token()}
    is_given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not is_given and not (Path.home() / ".ray" / "auth_token").is_file():
        raise WorkbenchError(
            f"the Ray cluster at {address} is joined with a token, and none is given; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE both here and where `ray start` is called"
        )
    return variables


def _own_address(address: str) -> dict[str, str]:
    """What this machine is called on the way to the cluster; Ray itself would look for the way outside."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return {}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, int(port)))  # sends nothing
        return {"_node_ip_address": way.getsockname()[0]}
    return {}


@lru_cache(maxsize=1)
def _token() -> str:
    """One for the life of this process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _installed() -> Any:
    """The module, imported with the token's environment in place: it looks at it then and never again."""
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError("engine 'ray' needs Ray: pip install 'attention-workbench[ray]'") from error
    return ray


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
