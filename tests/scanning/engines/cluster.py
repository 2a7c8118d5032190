"""A Ray cluster of two nodes on one machine: each in a network namespace of its own, a cable between them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.children import run_child

HEAD, OTHER = "10.99.17.1", "10.99.17.2"
ADDRESS = f"{HEAD}:6399"
# A node is declared dead after ten seconds of silence, by default after half a minute.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "10",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A network namespace with an end of the cable, and the environment of every process in it."""

    name: str
    cable: str
    address: str
    environment: dict[str, str]

    def run(self, *command: object) -> None:
        """A command inside, to its end."""
        done = run_child(self._inside(command), env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *command: object, log: Path) -> subprocess.Popen[bytes]:
        """A command inside, left running, that says what it has to say to `log`."""
        with log.open("wb") as file:
            return subprocess.Popen(self._inside(command), env=self.environment, stdout=file, stderr=file)

    def processes(self) -> dict[int, str]:
        """The command line of each process inside, by its number."""
        found: dict[int, str] = {}
        listed = run_child(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        for pid in map(int, listed.split()):
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def at_work(self) -> dict[int, str]:
        """The checkpoint that each worker inside has at hand."""
        titles = {pid: line.split()[0] for pid, line in self.processes().items() if line.startswith("ray::checkpoint-")}
        return {pid: title.removeprefix("ray::") for pid, title in titles.items()}

    def kill_raylet(self) -> None:
        """What holds the node together is gone, and its workers with it."""
        (raylet,) = [pid for pid, line in self.processes().items() if "raylet/raylet" in line.split()[0]]
        os.kill(raylet, signal.SIGKILL)

    def cut_cable(self) -> None:
        """Nothing comes in or goes out; the processes inside run on, and the disk is there."""
        _ip("-n", self.name, "link", "set", self.cable, "down")

    def _inside(self, command: tuple[object, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, command)]


@contextlib.contextmanager
def two_nodes() -> Generator[tuple[Node, Node]]:
    """The head and the other node, one task at a time on each; skips where namespaces are not permitted."""
    mark = secrets.token_hex(3)
    folder = Path(tempfile.mkdtemp(prefix="wbr", dir="/tmp"))  # sockets lie in it: their paths are short
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        **_HEALTH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.getcwd(),
    }
    nodes = tuple(
        Node(f"wb{end}{mark}", f"wb{end}{mark}", address, environment) for end, address in (("a", HEAD), ("b", OTHER))
    )
    try:
        _lay_cable(*nodes)
        ray = [str(Path(sys.executable).with_name("ray")), "start"]
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        head = [f"--port={ADDRESS.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}"]
        nodes[0].run(*ray, "--head", f"--node-ip-address={HEAD}", *head, *common)
        nodes[1].run(*ray, f"--address={ADDRESS}", f"--node-ip-address={OTHER}", *common)
        yield nodes
    finally:
        for node in nodes:
            _clear(node)
        shutil.rmtree(folder, ignore_errors=True)


def _lay_cable(a: Node, b: Node) -> None:
    made = run_child(["ip", "netns", "add", a.name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip()}")
    _ip("netns", "add", b.name)
    _ip("link", "add", a.cable, "type", "veth", "peer", "name", b.cable)
    for node in (a, b):
        _ip("link", "set", node.cable, "netns", node.name)
        _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.cable)
        for device in ("lo", node.cable):
            _ip("-n", node.name, "link", "set", device, "up")


def _clear(node: Node) -> None:
    """End what runs inside and take the namespace down; the cable goes with it."""
    if run_child(["ip", "netns", "pids", node.name], capture_output=True).returncode:
        return
    deadline = time.monotonic() + 30
    while (left := node.processes()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _ip("netns", "del", node.name)


def _ip(*arguments: str) -> None:
    run_child(["ip", *arguments], check=True, capture_output=True)
