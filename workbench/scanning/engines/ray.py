"""The engine `ray`: a Ray cluster that exists, or one of this machine that lives as long as the scan.

Ray repeats a task when its process or its node dies. A cluster of this machine ends with the process that started it,
so workers write their own results. Four settings differ from Ray's defaults: authentication is on in every process,
usage is not reported, a local cluster does not look up its address outside, and a task that raises is not repeated.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
from collections.abc import Generator, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.heads import WorkbenchError
from workbench.scanning.engines.tasks import (
    RETRIES,
    Channel,
    Opener,
    Outcome,
    Task,
    Tasks,
    Worker,
    environment,
    supply_of,
)

_POLL_S = 0.5


def run_ray(
    opener: Opener,
    tasks: Tasks,
    channel: Channel,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_task: float = 0,
) -> Iterator[Outcome]:
    """See `Engine`: on the cluster at `address`; None: on one of this machine, started and ended here.

    After a stop request the current units are dropped; committed parts stay.

    Args:
        workers: the largest number of tasks at a time; None: as many as the cluster has room for.

    Raises:
        WorkbenchError: if Ray is not installed, there is no cluster at the address, or it has no token.
    """
    with _cluster(address, workers) as ray:
        events = _EventQueue.on_this_node(ray)
        remote = ray.remote(num_cpus=1, num_gpus=gpus_per_task, max_retries=RETRIES, retry_exceptions=False)(_work)
        packed = ray.put(pickle.dumps(opener))
        supply, running = supply_of(tasks), dict[Any, Task]()
        try:
            while supply.remaining() or running:
                if channel.should_stop():
                    return
                while (workers is None or len(running) < workers) and (task := supply.take()) is not None:
                    running[remote.options(name=task.name).remote(packed, task.argument, events.actor)] = task
                if not running:
                    supply.wait(_POLL_S)
                    continue
                ended, _ = ray.wait(list(running), timeout=_POLL_S)
                events.forward(channel)
                for reference in ended:
                    task = running.pop(reference)
                    is_done = _is_done(ray, reference)
                    events.forward(channel)
                    yield Outcome(task, is_done=is_done, deaths=0 if is_done else RETRIES + 1)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _work(packed: bytes, argument: Any, events: Any) -> None:
    """Do one task in a process of the cluster."""
    # `add` is not awaited: events only show progress.
    channel = Channel(lambda event: events.add.remote(event) and None, lambda: False)
    _opened(packed)(argument, channel)


@lru_cache(maxsize=1)
def _opened(packed: bytes) -> Worker:
    """The worker of this process; it is opened once."""
    opener: Opener = pickle.loads(packed)
    return opener()


def _is_done(ray: Any, reference: Any) -> bool:
    """Whether the worker returned; False if the process died on every attempt.

    Raises:
        Exception: the exception of the worker.
    """
    try:
        ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
        return False
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    return True


class _EventQueue:
    """Events of all workers, held by an actor of the cluster until they are forwarded."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self.actor = ray, actor

    @classmethod
    def on_this_node(cls, ray: Any) -> _EventQueue:
        # On the node of the process that started the scan, so that the loss of another node does not end it.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        return cls(ray, ray.remote(num_cpus=0, scheduling_strategy=here)(_EventList).remote())

    def forward(self, channel: Channel) -> None:
        for event in self._ray.get(self.actor.take.remote()):
            channel.send(event)


class _EventList:
    """The actor's state."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def add(self, event: Any) -> None:
        self._events.append(event)

    def take(self) -> list[Any]:
        events, self._events = self._events, []
        return events


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Generator[Any]:
    """Yield the module `ray`, connected to a cluster inside the block. A connection that exists already stays."""
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
    """Environment variables of every process: usage statistics off, and a token, new for a cluster of this machine.

    Raises:
        WorkbenchError: for a cluster that exists, if no token is set.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    if address is None:
        return {**variables, "RAY_AUTH_TOKEN": _token()}
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not has_token and not (Path.home() / ".ray" / "auth_token").is_file():
        raise WorkbenchError(
            f"the Ray cluster at {address} is joined with a token, and none is given; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE both here and where `ray start` is called"
        )
    return variables


def _own_address(address: str) -> dict[str, str]:
    """This machine's address on the route to the cluster; Ray itself would look it up outside."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return {}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((host, int(port)))  # a datagram socket sends nothing here
        return {"_node_ip_address": route.getsockname()[0]}
    return {}


@lru_cache(maxsize=1)
def _token() -> str:
    """The token of this process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def _installed() -> Any:
    """Import the module. The token's variables must be set before: Ray reads them only at import."""
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError("engine 'ray' needs Ray: pip install 'attention-workbench[ray]'") from error
    return ray


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
