"""Fixtures of the app's tests: runs, and an app served over them in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.children import child, first_line, output_of
from tests.preloaded import PreloadedReading
from tests.synthetic_run import DEMO, write_run


@pytest.fixture(scope="session")
def synthetic_runs(tmp_path_factory):
    """The folders of four finished runs: full, hybrid, linear, sliding."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / name, DEMO[name]) for name in sorted(DEMO)]


@pytest.fixture(scope="session")
def served():
    """Serve the app over some runs in a process of its own: `with served(paths) as address`.

    `access`: arguments of `Access`; `packages`: a folder of further packages.
    """

    @contextlib.contextmanager
    def serving(paths, access="", packages=""):
        code = (
            "from workbench.app import Access, serve; "
            f"serve({[str(path) for path in paths]}, port=0, access=Access({access}))"
        )
        path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        with child(command, start=PreloadedReading, stderr=subprocess.PIPE, text=True, env=environment) as server:
            told = first_line(server, server.stderr)
            try:
                if (address := re.search(r"http://\S+", told)) is None:
                    server.kill()
                    pytest.fail(f"the app did not start.\n{told}{output_of(server)[1]}")
                yield address[0].rstrip("/")
            finally:
                server.send_signal(signal.SIGINT)
                errors = output_of(server, 60)[1]
        assert server.returncode == 0, errors
        assert errors == "", errors

    return serving
