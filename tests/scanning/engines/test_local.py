"""Worker processes: every task is done once, whoever dies; what cannot be done is named; nothing is left running."""

import os
import signal
import sys
from functools import partial

import pytest

from tests.children import child, is_running, until
from tests.scanning.engines.workers import open_badly, open_nothing, open_worker
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.scanning.engines import Channel, Task, run_inline, run_local

TWO = [{"CUDA_VISIBLE_DEVICES": str(i), "OMP_NUM_THREADS": "1"} for i in range(2)]


def tasks(**verbs):
    return [Task(name, (verb, name)) for name, verb in verbs.items()]


def run(folder, listed, *, should_stop=lambda: False, environments=TWO, opener=None):
    events = []
    opener = opener or partial(open_worker, folder)
    outcomes = run_local(opener, listed, Channel(events.append, should_stop), environments=environments)
    return {o.task.name: o for o in outcomes}, events


def test_every_task_is_done_once_in_processes_that_see_their_own_gpu(tmp_path):
    names = [f"t{i}" for i in range(6)]
    outcomes, events = run(tmp_path, tasks(**dict.fromkeys(names, "do")))
    assert sorted(outcomes) == names
    assert all(o.is_done and o.deaths == 0 for o in outcomes.values())
    assert sorted(name for name, _ in events) == names
    assert {seen["OMP_NUM_THREADS"] for _, seen in events} == {"1"}
    assert {seen["CUDA_VISIBLE_DEVICES"] for _, seen in events} <= {"0", "1"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert all(len((tmp_path / f"{n}.tries").read_text().split()) == 1 for n in names)


class Trickle:
    """A supply that has a task at every third look."""

    def __init__(self, listed):
        self.listed, self.looks, self.waits = list(listed), 0, 0

    def take(self):
        self.looks += 1
        return self.listed.pop(0) if self.listed and self.looks % 3 == 0 else None

    def remaining(self):
        return len(self.listed)

    def wait(self, seconds):
        self.waits += 1


def test_tasks_that_cannot_be_begun_yet_are_waited_for(tmp_path):
    supply = Trickle(tasks(a="do", b="do"))
    outcomes, _ = run(tmp_path, supply, environments=TWO[:1])
    assert sorted(outcomes) == ["a", "b"]
    supply = Trickle(tasks(a="do", b="do"))
    done = run_inline(lambda: lambda *_: None, supply, Channel(lambda _: None, lambda: False))
    assert [o.task.name for o in done] == ["a", "b"]
    assert supply.waits == 4


def test_a_task_whose_process_is_killed_is_done_by_another_and_only_it_is_done_again(tmp_path):
    outcomes, _ = run(tmp_path, tasks(a="do", b="die-once", c="do", d="do"))
    assert {n: (o.is_done, o.deaths) for n, o in outcomes.items()} == {
        "a": (True, 0),
        "b": (True, 1),
        "c": (True, 0),
        "d": (True, 0),
    }
    assert {n: len((tmp_path / f"{n}.tries").read_text().split()) for n in "abcd"} == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_a_task_that_every_process_dies_of_is_given_up_and_the_others_are_done(tmp_path):
    outcomes, _ = run(tmp_path, tasks(a="do", poison="die", b="do"), environments=TWO[:1])
    assert (outcomes["poison"].is_done, outcomes["poison"].deaths) == (False, 3)
    assert outcomes["a"].is_done
    assert outcomes["b"].is_done
    assert len((tmp_path / "poison.tries").read_text().split()) == 3


def test_what_a_worker_lets_out_ends_the_engine_and_is_raised_as_it_was(tmp_path):
    with pytest.raises(StoreNotWritable, match="a has no room") as refused:
        run(tmp_path, tasks(a="fail", b="wait"))
    assert refused.value.exit_code == 5
    pids = [int(p) for path in tmp_path.glob("*.tries") for p in path.read_text().split()]
    assert not any(map(is_running, pids))


def test_a_worker_that_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(StoreNotWritable, match="no such detector"):
        run(tmp_path, tasks(a="do"), opener=open_badly)


def test_processes_that_end_before_they_begin_are_told_from_bad_tasks(tmp_path):
    with pytest.raises(WorkbenchError, match=r"exit code 7.*__main__"):
        run(tmp_path, tasks(a="do"), opener=open_nothing, environments=TWO[:1])


def test_asked_to_stop_it_lets_the_units_at_hand_finish_and_begins_no_other(tmp_path):
    def both_are_at_work():
        return len(list(tmp_path.glob("*.tries"))) == 2

    outcomes, _ = run(tmp_path, tasks(a="wait", b="wait", c="do"), should_stop=both_are_at_work)
    assert sorted(outcomes) == ["a", "b"]
    assert sorted(p.stem for p in tmp_path.glob("*.done")) == ["a", "b"]


def test_workers_end_by_themselves_when_their_supervisor_is_killed(tmp_path):
    code = (
        "import sys\nfrom tests.scanning.engines.test_local import run, tasks\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    run(Path(sys.argv[1]), tasks(a='wait', b='wait'))\n"
    )
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with child([sys.executable, tmp_path / "main.py", tmp_path], env=environment) as supervisor:
        until(lambda: len(list(tmp_path.glob("*.tries"))) == 2, 60)
        supervisor.send_signal(signal.SIGKILL)
    pids = [int((tmp_path / f"{n}.tries").read_text()) for n in "ab"]
    until(lambda: not any(map(is_running, pids)), 60)
