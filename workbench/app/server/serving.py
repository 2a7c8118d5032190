"""Serving the app: to this machine alone, or with a token to others; known host names only, no debugger."""

from __future__ import annotations

import errno
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dash import Dash, html, set_props
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from workbench.app import exports
from workbench.app.callbacks import read_ahead, register
from workbench.app.document import document, page_styles
from workbench.app.ids import STATUS
from workbench.app.registry import pages
from workbench.app.server.compression import compress
from workbench.app.server.guard import LOOPBACK, Guard
from workbench.app.state.content import Content
from workbench.app.state.live_runs import live_runs
from workbench.app.state.plan_mask import find_plans
from workbench.heads import WorkbenchError

# What Dash loads only when a figure is laid out.
_LATE_SCRIPTS = ("plotly/package_data/plotly.min.js", "dash/dcc/async-graph.js")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may reach the app, and under which address.

    `hosts`: names besides this machine's own that it answers to. `token`: what others must show; "" asks for none.
    `prefix`: the path that a proxy serves the app under.
    """

    hosts: tuple[str, ...] = ()
    token: str = ""
    prefix: str = "/"


def build_app(runs: Sequence[str | Path], *, plans: Sequence[str | Path] = (), access: Access | None = None) -> Dash:
    """The app over these run folders and the plans beside them, ready to be served.

    Raises:
        WorkbenchError: if a folder holds no run, or a file no plan.
    """
    return app_of(opened(runs, plans), access or Access())


def opened(runs: Sequence[str | Path], plans: Sequence[str | Path]) -> Content:
    """These runs, and these plans and those beside the runs.

    Raises:
        WorkbenchError: if a folder holds no run, or a file no plan.
    """
    shown = live_runs(runs)
    return Content(shown, find_plans([run.path for run in shown.values()], plans))


def app_of(content: Content, access: Access) -> Dash:
    """The app over what was opened."""
    app = Dash(
        "workbench.app",  # whose assets/ it serves
        title="attention workbench",
        update_title="",
        enable_mcp=False,
        serve_locally=True,
        suppress_callback_exceptions=False,
        requests_pathname_prefix=_prefix(access.prefix),
        routes_pathname_prefix="/",
        on_error=_say,
    )
    app.index_string = _index(app.index_string, _prefix(access.prefix))
    names = [page.name for page in pages()]
    app.layout = document(content, laid_out=names[:1])
    app.validation_layout = document(content, laid_out=names)
    register(app, content)
    exports.register(app, content)
    compress(app.server)
    Guard(LOOPBACK | set(access.hosts), access.token, _prefix(access.prefix)).protect(app.server)
    app.server.wsgi_app = _Stripped(app.server.wsgi_app, _prefix(access.prefix).rstrip("/"))
    return app


def serve(
    runs: Sequence[str | Path],
    *,
    plans: Sequence[str | Path] = (),
    host: str = "127.0.0.1",
    port: int = 8050,
    access: Access | None = None,
    open_browser: bool = False,
) -> None:
    """Serve the app until interrupted; port 0 takes a free one.

    A host that others can reach needs a token: `access.token`, or one made up and printed.

    Raises:
        WorkbenchError: if a folder holds no run, a file no plan, or the port is taken.
    """
    access = access or Access()
    if host not in LOOPBACK:
        names = {host, socket.gethostname(), socket.getfqdn()} - {"0.0.0.0", "::"}
        token = access.token or secrets.token_urlsafe(18)
        access = Access((*access.hosts, *sorted(names)), token, access.prefix)
    content = opened(runs, plans)
    app = app_of(content, access)
    _require_free(host, port)
    server = Server(host, port, app.server, handler=_Quiet)
    address = _address(host, server.server_port, access)
    print(f"workbench app at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    threading.Thread(target=read_ahead, args=(content,), daemon=True).start()
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


def _index(html_page: str, prefix: str) -> str:
    """The HTML page with the styles of the registered pages; it loads plotly at once, not with the first figure."""
    links = (f'<link rel="preload" as="script" href="{prefix}_dash-component-suites/{name}">' for name in _LATE_SCRIPTS)
    return html_page.replace("{%metas%}", "{%metas%}" + "".join(links) + page_styles())


def _say(error: Exception) -> Any:
    """Show what the reader can mend in the header, and leave the rest of the page as it is."""
    if not isinstance(error, WorkbenchError):
        raise error
    set_props(STATUS, {"children": html.Span(str(error), className="failed")})
    return None


def _prefix(given: str) -> str:
    """As Dash wants it: with a slash at both ends."""
    middle = given.strip("/")
    return f"/{middle}/" if middle else "/"


def _address(host: str, port: int, access: Access) -> str:
    """What to open; where the app listens on every address, by the name of this machine."""
    name = socket.gethostname() if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host
    token = f"?token={access.token}" if access.token else ""
    return f"http://{name}:{port}{_prefix(access.prefix)}{token}"


class _Stripped:
    """Takes a proxy's prefix off paths, for proxies that pass it on; others have taken it off themselves."""

    def __init__(self, inner: Callable[..., Iterable[bytes]], prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        if self._prefix and (path == self._prefix or path.startswith(f"{self._prefix}/")):
            environ = {**environ, "PATH_INFO": path[len(self._prefix) :] or "/"}
        return self._inner(environ, start)


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
