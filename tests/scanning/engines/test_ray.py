"""Ray, where it is installed: tasks outlive their processes, a poison is given up, the cluster has a token."""

import gc
import os
import warnings
from functools import partial

import pytest

from tests.scanning.engines.test_local import tasks
from tests.scanning.engines.workers import open_worker
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.scanning.engines import Channel, run_ray


@pytest.fixture(scope="module")
def ray():
    """The module; it is imported by the engine, which sets its environment first."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'attention-workbench[ray]'")
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about processes that Ray itself does not wait for
        gc.collect()


def run(folder, listed, **options):
    events = []
    channel = Channel(events.append, lambda: False)
    outcomes = run_ray(partial(open_worker, folder), listed, channel, **options)
    return {o.task.name: o for o in outcomes}, events


@pytest.mark.filterwarnings("ignore")
def test_tasks_are_done_again_when_their_process_dies_and_a_poison_is_given_up(ray, tmp_path):
    listed = tasks(a="do", b="die-once", poison="die", c="do")
    outcomes, events = run(tmp_path, listed, workers=2)
    assert {n: o.is_done for n, o in outcomes.items()} == {"a": True, "b": True, "poison": False, "c": True}
    assert sorted(name for name, _ in events) == ["a", "b", "c"]
    assert len((tmp_path / "poison.tries").read_text().split()) == 3
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_lets_out_is_raised_and_not_tried_again(ray, tmp_path):
    with pytest.raises(StoreNotWritable, match="a has no room"):
        run(tmp_path, tasks(a="fail"), workers=1)
    assert len((tmp_path / "a.tries").read_text().split()) == 1


def test_a_cluster_is_not_joined_without_a_token(ray, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WorkbenchError, match="joined with a token"):
        run(tmp_path, tasks(a="do"), address="auto")


def test_without_ray_the_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(WorkbenchError, match=r"attention-workbench\[ray\]"):
        run(tmp_path, tasks(a="do"))
