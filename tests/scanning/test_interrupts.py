"""Signals during a scan."""

import os
import signal

import pytest

from workbench.scanning.interrupts import Interrupts


@pytest.fixture
def handlers():
    """SIGINT and SIGTERM as a terminal gives them, whatever the tests were started under; restored afterwards."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_the_process_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interrupts.is_noted
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.is_noted
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is handlers[signal.SIGTERM]


def test_the_first_signal_is_noted_and_the_second_interrupts(handlers):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.is_noted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
