"""A process that begins with its imports done is in all else an ordinary one, and so are its workers."""

import os
import signal
import subprocess
import sys

import pytest

from tests.children import child, descendants, first_line, is_running, output_of, run_child, until
from tests.forking import WORKER
from tests.preloaded import Preloaded, PreloadedReading

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
SAYS = """
import os, signal, sys
print(sys.argv, os.environ["SAID"], os.getcwd(), os.getppid(), os.getsid(0) == os.getpid(), __name__)
print([signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGINT, signal.SIGTERM)], sys.stdin.read())
sys.exit(3)
"""
WORKERS = """
import multiprocessing, sys, time
def work():
    print("at work", "workbench.hooks" in sys.modules, flush=True)
    time.sleep(600)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        context.Process(target=work).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("has_own_session", [False, True])
@pytest.mark.parametrize("form", ["-c", "script"])
def test_arguments_environment_folder_files_signals_parent_and_exit_code_are_those_of_any_process(
    tmp_path, form, has_own_session
):
    (tmp_path / "says.py").write_text(SAYS)
    command = [sys.executable, *(["-c", SAYS] if form == "-c" else [tmp_path / "says.py"]), "a", "b c"]
    options = {"env": {**os.environ, "SAID": "x y"}, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
    options |= {"start_new_session": has_own_session, **PIPES}
    ended = []
    for start in (subprocess.Popen, PreloadedReading):
        with child(command, start=start, ignores_interrupts=True, **options) as process:
            if has_own_session:
                assert os.getpgid(process.pid) == process.pid
            ended.append((output_of(process, 60), process.returncode))
    assert ended[0] == ended[1]
    assert ended[0][1] == 3
    assert f" {os.getpid()} " in ended[0][0][0]


def test_an_error_and_an_interrupt_end_it_as_they_end_any_process():
    failed = run_child([sys.executable, "-c", "1 / 0"], start=PreloadedReading, **PIPES)
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    code = "import time; print('begun', flush=True); time.sleep(600)"
    with child([sys.executable, "-c", code], start=PreloadedReading, **PIPES) as process:
        assert first_line(process, process.stdout) == "begun\n"
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in output_of(process, 60)[1]
    assert process.returncode == -signal.SIGINT


def test_one_that_reads_has_no_torch():
    code = "import sys; print([name in sys.modules for name in ('workbench.app', 'torch', 'transformers')])"
    read = run_child([sys.executable, "-c", code], start=PreloadedReading, **PIPES)
    assert read.stdout == "[True, False, False]\n"


def test_its_workers_are_its_children_and_a_kill_of_their_group_leaves_none(tmp_path):
    (tmp_path / "works.py").write_text(WORKERS)

    def start(*arguments, **options):
        return Preloaded(*arguments, has_workers=True, **options)

    with child([sys.executable, tmp_path / "works.py"], start=start, start_new_session=True, **PIPES) as process:
        assert [first_line(process, process.stdout) for _ in range(2)] == ["at work True\n"] * 2
        started = descendants(process.pid)
        assert sum(WORKER in line for line in started.values()) == 2
    assert process.returncode == -signal.SIGKILL
    until(lambda: not any(map(is_running, started)), 60)
