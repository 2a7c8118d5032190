"""Ray on two nodes, of which one is lost: every row is there, bit for bit, and only what was lost is done again.

A cut cable costs minutes: nothing ends the call to the worker behind it but Ray's own question, after five of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tests.children import run_child, until
from tests.scanning.engines.cluster import ADDRESS, Node, two_nodes
from tests.series import write_series
from workbench import open_run
from workbench.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'attention-workbench[ray]'"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="there is no `ip` to make network namespaces with"),
]
STEPS = tuple(range(12))
SCAN = [
    *(sys.executable, "-m", "workbench.cli", "scan"),
    *("--detector", "induction", "--detector", "sink", "--detector", "entropy"),
    *(word for n in (86, 88, 90) for word in ("--probe", f"repeats:n={n},n_sequences=300,name=n{n}")),
]
KEYS = ["ckpt", "detector", "probe", "layer", "head"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"), steps=STEPS)


@pytest.fixture(scope="module")
def whole(series, tmp_path_factory):
    """The scores of an undisturbed scan in one process."""
    out = tmp_path_factory.mktemp("runs") / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run_child([*SCAN, str(series), "--out", str(out)], env=environment, capture_output=True, check=True)
    return scores(out)


def scores(out):
    return open_run(out).scores().drop(columns="run").sort_values(KEYS).reset_index(drop=True)


def done(out):
    """What is in place: which file it is, and when it was written."""
    parts = [*out.glob("scores/*/*"), *out.glob("metrics/*/*"), *out.glob("maps/*/*")]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in parts}


def wait_for(holds, driver, log, seconds=400):
    deadline = time.monotonic() + seconds
    while not holds():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("loss", ["raylet", "cable"])
def test_a_killed_worker_and_a_lost_node_cost_what_was_at_hand_and_nothing_else(series, whole, tmp_path, loss):
    out, log = tmp_path / "run", tmp_path / "log"
    with two_nodes() as (head, other):
        command = [*SCAN, series, "--out", out, "--engine", "ray", "--address", ADDRESS]
        driver = head.start(*command, log=log)
        killed = kill_a_worker(head, out, driver, log)
        lost = lose_a_node(other, loss, out, driver, log)
        until(lambda: driver.poll() is not None, 1200, failing=log.read_text)
        assert driver.returncode == 0, log.read_text()
        run = open_run(out)
        pd.testing.assert_frame_equal(scores(out), whole, check_exact=True)
        assert run.status().is_complete
        assert run.failures().empty
        assert Store.open(out).check() == []
        now = done(out)
        for kept in (killed.kept, lost.kept):
            assert kept.items() <= now.items()
        twice = {ckpt for (ckpt, _, _), n in Counter(unit_of(t) for t in run.timings().each).items() if n > 1}
        assert twice <= killed.at_hand | lost.at_hand
        assert len(killed.at_hand | lost.at_hand) <= 2
        wrote_since = [
            t for t in run.timings().each if t.at > lost.at and int(t.worker.rpartition("-")[2]) in lost.pids
        ]
        print(
            f"{loss}: at hand {killed.at_hand | lost.at_hand}, done twice {sorted(twice)}; of the lost node since: "
            f"{len(wrote_since)}; parts kept {len(killed.kept)}, {len(lost.kept)} of {len(now)}"
        )
        if loss == "cable":  # nobody told its worker: it goes on, and what it writes is what the others write
            assert wrote_since


def unit_of(timing):
    return timing.ckpt, timing.probe, timing.what


class Lost:
    """What was in place at a moment of loss, the checkpoints at hand then, and the processes that had them."""

    def __init__(self, out: Path, node: Node):
        self.at_hand, self.pids = set(node.at_work().values()), set(node.at_work())
        self.kept = done(out)
        self.at = time.time()


def kill_a_worker(node, out, driver, log):
    """In the middle of a checkpoint, when some are done."""
    wait_for(lambda: len(done(out)) >= 20 and node.at_work(), driver, log)
    lost = Lost(out, node)
    for pid in lost.pids:
        os.kill(pid, signal.SIGKILL)
    return lost


def lose_a_node(node, loss, out, driver, log):
    """In the middle of a checkpoint, when about half are done."""
    wait_for(lambda: len(done(out)) >= 80 and node.at_work(), driver, log)
    lost = Lost(out, node)
    node.kill_raylet() if loss == "raylet" else node.cut_cable()
    return lost
