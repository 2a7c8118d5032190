"""Child processes of tests: SIGINT ends them whatever this process ignores, waits have an end, and nothing is left."""

import signal
import subprocess
import sys

import pytest

from tests.children import child, descendants, first_line, is_running, output_of, run_child, until

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
WAITING = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
# Ignores all that can be ignored, and has a child that holds its pipes open.
STUBBORN = [
    *(sys.executable, "-c"),
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print('begun', flush=True); time.sleep(600)",
]


@pytest.fixture(params=[signal.SIG_IGN, signal.default_int_handler], ids=["ignored", "default"])
def interrupts(request):
    """What this process does on SIGINT."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_a_child_whatever_this_process_ignores():
    before = signal.getsignal(signal.SIGINT)
    with child(WAITING, **PIPES) as process:
        assert signal.getsignal(signal.SIGINT) == before
        assert first_line(process, process.stdout) == "begun\n"
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in output_of(process, 60)[1]


@pytest.mark.usefixtures("interrupts")
def test_a_child_that_is_to_ignore_interrupts_does():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('still here')"
    with child([sys.executable, "-c", code], ignores_interrupts=True, **PIPES) as process:
        assert output_of(process, 60) == ("still here\n", "")


def test_a_test_that_fails_leaves_no_child_and_none_of_its_group():
    started = []

    def fail():
        with child(STUBBORN, start_new_session=True, **PIPES) as process:
            assert first_line(process, process.stdout) == "begun\n"
            started.extend([process.pid, *descendants(process.pid)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(started) == 2
    until(lambda: not any(map(is_running, started)), 60)


def test_a_child_that_does_not_end_is_killed_and_the_test_fails_with_its_output():
    with child(WAITING, **PIPES) as process, pytest.raises(pytest.fail.Exception, match=r"(?s)not end in 2 s.*begun"):
        output_of(process, 2)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(pytest.fail.Exception, match=r"(?s)not end in 2 s.*begun"):
        run_child(WAITING, timeout=2, **PIPES)


def test_a_child_that_says_nothing_is_killed():
    with child([sys.executable, "-c", "import time; time.sleep(600)"], **PIPES) as process:
        assert first_line(process, process.stdout, 0.5) == ""
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_what_does_not_come_to_hold_fails_and_says_why():
    with pytest.raises(AssertionError, match=r"not so in 0\.05 s\. the log"):
        until(lambda: False, 0.05, failing=lambda: "the log")
