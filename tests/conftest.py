"""What several test folders share: a real demo, made once for all processes that run tests side by side."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import chromium, tab, window
from tests.hub.hub_client import hub
from tests.made_once import for_all_processes, made_once
from tests.preloaded import begin_as_forks
from tests.quick_demo import make_interrupted_demo
from tests.type_checks import check_again, sample_calls

__all__ = ["chromium", "demo", "demo_runs", "for_all_processes", "hub", "tab", "window"]

# Compiling tests and instrumented modules anew, where the environment forbids to keep that, is half of collecting them.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Read once, when Triton is imported, and transformers imports it while other folders' tests are collected.
os.environ["TRITON_INTERPRET"] = "1"
# No test asks a hub but its own (`hub`), whatever ids it names.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # processes side by side share the cores; before any library counts them
    begin_as_forks()

gc.disable()  # until all tests are collected: nearly all that is made until then stays
sample_calls()  # before any module of the workbench is imported

# A busy machine is slow; no test is about time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser):
    parser.addoption("--soak", type=int, default=0, metavar="N", help="rounds of the kill loops; default: a few")


# Files of few and long tests, whose place at the end would leave one process working alone. The first makes the demo,
# the second does not need it.
LONG = ["test_demo.py", "scanning/test_execution.py", "app/test_browser.py", "pretrain/test_training.py"]
LONG += ["experiments/test_conversion.py", "test_examples.py", "test_doc_blocks.py", "app/test_browser_pages.py"]
LONG += ["probes/test_tasks.py", "report/test_report.py", "runs/test_run.py"]


def pytest_collection(session):
    """Of two processes that collect all tests of a fresh clone, each compiles the half that the other one reads."""
    if os.environ.get("PYTEST_XDIST_WORKER") != "gw1" or session.config.option.file_or_dir:
        return
    here = Path(__file__).parent
    for path in sorted(here.rglob("test_*.py"), reverse=True):
        with suppress(Exception, pytest.skip.Exception):  # collecting says what is wrong
            import_module(".".join(["tests", *path.relative_to(here).with_suffix("").parts]))


def pytest_collection_modifyitems(items):
    """Long files first; a stable sort leaves the others as they are."""
    order = {Path(__file__).parent / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))


def pytest_collection_finish():
    """What was imported stays: the garbage collector does not look at it again and again."""
    gc.freeze()
    gc.enable()


_numbers = itertools.count(1)


def pytest_runtest_setup():
    """Annotations are checked again and again."""
    check_again(next(_numbers))


def pytest_unconfigure():
    """Libraries that complain at the end of what is not collected see all collected."""
    gc.unfreeze()


def pytest_configure(config):
    """Processes side by side take files in the order that `LONG` gives them."""
    config.option.loadscopereorder = False


@pytest.fixture(scope="session")
def demo():
    """The quick demo, really pretrained and scanned: its folder, with checkpoints/ and runs/.

    One process makes it for all, by two commands: the first is interrupted, the second goes on.
    """
    return made_once("demo", make_interrupted_demo)


@pytest.fixture(scope="session")
def demo_runs(demo):
    """The run folders of the quick demo."""
    return sorted((demo / "runs").iterdir())


# Whose subject is what a disk keeps or refuses.
DISK = ["faults", "files", "store"]


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk(request):
    """Files are put in place as ever, and not synced: no test of what is computed loses power."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(Path(__file__).parent).parts[0] not in DISK:
            patch.setattr("os.fsync", lambda _: None)
        yield
