"""The command line in this process, as a terminal calls it."""

import sys

import pytest

from workbench.cli.main import main


@pytest.fixture
def command(monkeypatch, capsys):
    """The exit code, stdout and stderr of a command; anything else than an exit is a traceback."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["workbench", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call
