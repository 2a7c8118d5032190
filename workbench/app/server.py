"""Serving the app to this machine alone: loopback only, known host names only, no debugger."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import flask
from dash import Dash, html, set_props
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from workbench.app.callbacks import register
from workbench.app.live import live_runs
from workbench.app.pages import document
from workbench.app.parts import STATUS, Content
from workbench.heads import WorkbenchError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def build_app(runs: Sequence[str | Path]) -> Dash:
    """The app over these run folders, ready to be served.

    Raises:
        WorkbenchError: if a folder holds no run.
    """
    shown = live_runs(runs)
    app = Dash(
        __name__,
        title="attention workbench",
        update_title="",
        enable_mcp=False,
        serve_locally=True,
        suppress_callback_exceptions=False,
        on_error=_say,
    )
    content = Content(shown)
    app.layout = document(content)
    register(app, content)
    _guard(app.server)
    return app


def serve(runs: Sequence[str | Path], *, host: str = "127.0.0.1", port: int = 8050, open_browser: bool = False) -> None:
    """Serve the app until interrupted; port 0 takes a free one.

    Raises:
        WorkbenchError: if a folder holds no run, the host is not this machine, or the port is taken.
    """
    if host not in LOOPBACK:
        raise WorkbenchError(
            f"host {host!r} is not this machine: the app has no password; keep 127.0.0.1 and reach it from "
            "elsewhere with `ssh -L 8050:127.0.0.1:8050 THIS_MACHINE`"
        )
    app = build_app(runs)
    _require_free(host, port)
    server = Server(host, port, app.server, handler=_Quiet)
    address = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/"
    print(f"workbench app at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if open_browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def show(run: Any, *, height: int = 900) -> None:
    """The app inside a notebook, below the cell, over a run (or its folder, or several)."""
    several: Sequence[Any] = run if isinstance(run, list | tuple) else [run]
    app = build_app([getattr(one, "path", one) for one in several])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.run(host="127.0.0.1", port=port, debug=False, jupyter_mode="inline", jupyter_height=height)


def _say(error: Exception) -> Any:
    """Show what the reader can mend in the header, and leave the rest of the page as it is."""
    if not isinstance(error, WorkbenchError):
        raise error
    set_props(STATUS, {"children": html.Span(str(error), className="failed")})
    return None


def _guard(server: Any) -> None:
    """Refuse what a page elsewhere could send through the reader's browser (DNS rebinding, foreign origins)."""

    def refuse_strangers() -> None:
        if _name(f"//{flask.request.host}") not in LOOPBACK:
            flask.abort(421)
        origin = flask.request.headers.get("Origin")
        if origin is not None and _name(origin) not in LOOPBACK:
            flask.abort(403)

    def add_headers(response: flask.Response) -> flask.Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Content-Security-Policy"] = "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
        return response

    server.before_request(refuse_strangers)
    server.after_request(add_headers)


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            raise WorkbenchError(
                f"port {port} is taken or reserved; pass another --port, or --port 0 for a free one"
            ) from error


class Server(ThreadedWSGIServer):
    """Browsers hang up in the middle of an answer, and Ctrl-C cuts answers off: neither is worth a traceback."""

    closed = False

    def server_close(self) -> None:
        """Let go of the port; what is still being answered is cut off."""
        self.closed = True
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong outside the app's own answer, unless the browser or the end broke it off."""
        if not (self.closed or isinstance(sys.exception(), ConnectionError | TimeoutError)):
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    """One line a request would bury what the app has to say."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""
