"""Serve the app to this machine alone, or with a token to others; known host names only, no debugger.

A proxy's prefix is an option, never read from a request: werkzeug's `ProxyFix` would let whoever sends
`X-Forwarded-Host` choose the host name that `guard` checks.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dash import Dash
from flask_compress import Compress
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from workbench.app import exports
from workbench.app.callbacks import read_ahead, register
from workbench.app.document import LayoutOfPage, document, page_styles
from workbench.app.probe_processes import Probings
from workbench.app.registry import pages
from workbench.app.server.content_policy import NOTEBOOKS, checked_origin, content_policy
from workbench.app.server.failed_callbacks import answer_with_reason
from workbench.app.server.guard import LOOPBACK, Guard
from workbench.app.state.content import Content
from workbench.app.state.live_runs import live_runs
from workbench.app.state.opened_model import OpenedModel
from workbench.heads import WorkbenchError
from workbench.runs import Run
from workbench.runs.plans_of_runs import find_plans

# Below this path stand single cards, for pages that frame them.
EMBED = "/embed/"
# Scripts that Dash loads only when a figure is laid out.
_LATE_SCRIPTS = ("plotly/package_data/plotly.min.js", "dash/dcc/async-graph.js")
# Brotli's level 1 is smaller and faster than any level of gzip on scores and figures. Scripts are not compressed:
# browsers keep them, and to compress them for each would cost more than it saves.
_COMPRESSION = {
    "COMPRESS_ALGORITHM": ["br", "gzip"],
    "COMPRESS_BR_LEVEL": 1,
    "COMPRESS_LEVEL": 1,
    "COMPRESS_MIMETYPES": ["application/json", "application/octet-stream", "text/csv"],
    "COMPRESS_MIN_SIZE": 1024,
    "COMPRESS_STREAMS": False,
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may reach the app, and under which address.

    `hosts`: further host names, besides this machine's own. `token`: required of every request; "" requires none.
    `prefix`: the path under which a proxy serves the app. `embedders`: origins whose pages may frame single cards
    (`/embed/CARD`), as `https://notes.example.org`. `has_notebooks`: whether notebooks on this machine may frame pages.

    Raises:
        WorkbenchError: if an embedder is no origin.
    """

    hosts: tuple[str, ...] = ()
    token: str = ""
    prefix: str = "/"
    embedders: tuple[str, ...] = ()
    has_notebooks: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedders", tuple(map(checked_origin, self.embedders)))


def build_app(
    runs: Sequence[str | Path | Run], *, plans: Sequence[str | Path] = (), access: Access | None = None
) -> Dash:
    """The app over these run folders, or opened runs with their settings, and the plans beside them.

    Raises:
        WorkbenchError: if a folder holds no run, or a file no plan.
    """
    return app_of(open_content(runs, plans), access or Access())


def open_content(runs: Sequence[str | Path | Run], plans: Sequence[str | Path]) -> Content:
    """Open these runs, these plans, and the plans beside the runs.

    Raises:
        WorkbenchError: if a folder holds no run, or a file no plan.
    """
    open_runs = live_runs(runs)
    return Content(open_runs, find_plans([run.path for run in open_runs.values()], plans))


def app_of(content: Content, access: Access) -> Dash:
    """The app over opened runs and plans."""
    app = Dash(
        "workbench.app",  # the package whose assets/ are served
        title="attention workbench",
        update_title="",
        enable_mcp=False,
        serve_locally=True,
        suppress_callback_exceptions=False,
        requests_pathname_prefix=_prefix(access.prefix),
        routes_pathname_prefix="/",
        on_error=answer_with_reason,
    )
    app.index_string = _index(app.index_string, _prefix(access.prefix))
    app.validation_layout = document(content, laid_out=[page.name for page in pages()])
    app.layout = LayoutOfPage(content)
    register(app, content)
    exports.register(app, content)
    app.server.config.update(_COMPRESSION)
    Compress(app.server)
    prefix = _prefix(access.prefix)
    Guard(LOOPBACK | set(access.hosts), access.token, prefix, _policy(app, access)).protect(app.server)
    if prefix != "/":  # some proxies pass the prefix on, others strip it: both are answered
        wsgi_app = app.server.wsgi_app
        app.server.wsgi_app = DispatcherMiddleware(wsgi_app, {prefix.rstrip("/"): wsgi_app})
    return app


@dataclass(frozen=True, slots=True)
class Place:
    """Where the app listens, and who is told: `announce` is handed the address once the app answers there."""

    host: str = "127.0.0.1"
    port: int = 8050
    access: Access = Access()
    open_browser: bool = False
    announce: Callable[[str], None] | None = None


def serve(
    runs: Sequence[str | Path | Run],
    *,
    plans: Sequence[str | Path] = (),
    host: str = "127.0.0.1",
    port: int = 8050,
    access: Access | None = None,
    open_browser: bool = False,
) -> None:
    """Serve the app until interrupted, by Ctrl-C or SIGTERM; port 0 takes a free one.

    A host that others can reach needs a token: `access.token`, or a random one, which is printed.

    Raises:
        WorkbenchError: if a folder holds no run, a file no plan, or the port is taken.
    """
    serve_content(lambda: open_content(runs, plans), Place(host, port, access or Access(), open_browser))


def serve_model(model: OpenedModel, place: Place) -> None:
    """Serve the Probe page of a model that has no run until interrupted; it begins with the model's first probe.

    Raises:
        WorkbenchError: if the port is taken, or the model is no longer there.
    """

    def content() -> Content:
        probings = Probings()
        job = probings.start(model.source, probe=model.probe, tokenizer=model.tokenizer)
        return Content({}, probings=probings, model=model, first_job=job)

    serve_content(content, place)


def serve_content(open_content: Callable[[], Content], place: Place) -> None:
    """Serve what `open_content` gives until interrupted.

    Raises:
        WorkbenchError: as `serve`.
    """
    host, port, access = place.host, place.port, place.access
    if host not in LOOPBACK:
        names = {host, socket.gethostname(), socket.getfqdn()} - {"0.0.0.0", "::"}
        token = access.token or secrets.token_urlsafe(18)
        access = replace(access, hosts=(*access.hosts, *sorted(names)), token=token)
    _require_free(host, port)
    content = open_content()
    app = app_of(content, access)
    server = Server(host, port, app.server, handler=_Quiet)
    address = _address(host, server.server_port, access)
    try:
        with _interrupted_by_sigterm():
            print(f"workbench app at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            threading.Thread(target=read_ahead, args=(content,), daemon=True).start()
            if place.announce is not None:
                place.announce(address)
            if place.open_browser:
                threading.Timer(0.3, webbrowser.open, [address]).start()
            server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def show(run: Any, *, height: int = 900) -> None:
    """The app inside a notebook, below the cell, over a run (or its folder, or several)."""
    runs: Sequence[Any] = run if isinstance(run, list | tuple) else [run]
    app = build_app(runs, access=Access(has_notebooks=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app.run(host="127.0.0.1", port=port, debug=False, jupyter_mode="inline", jupyter_height=height)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Generator[None]:
    """Inside the block SIGTERM does what Ctrl-C does, which `nohup` ignores: the app ends its processes and files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _policy(app: Dash, access: Access) -> Callable[[str], str]:
    """The content policy of each path; callbacks must all be registered, as their scripts are named in it."""
    scripts = app.csp_hashes()
    notebooks = NOTEBOOKS if access.has_notebooks else ()
    of_page = content_policy(scripts, notebooks)
    of_card = content_policy(scripts, (*notebooks, *access.embedders))
    return lambda path: of_card if path.startswith(EMBED) else of_page


def _version() -> str:
    return version("attention-workbench")


def _index(html_page: str, prefix: str) -> str:
    """The HTML page with the styles of the registered pages; it loads plotly at once, not with the first figure."""
    links = (f'<link rel="preload" as="script" href="{prefix}_dash-component-suites/{name}">' for name in _LATE_SCRIPTS)
    html_page = html_page.replace("<html>", '<html lang="en">')
    html_page = html_page.replace("{%metas%}", f'{{%metas%}}<meta name="workbench-version" content="{_version()}">')
    return html_page.replace("{%metas%}", "{%metas%}" + "".join(links) + page_styles())


def _prefix(path: str) -> str:
    """The prefix with a slash at both ends, as Dash expects it."""
    middle = path.strip("/")
    return f"/{middle}/" if middle else "/"


def _address(host: str, port: int, access: Access) -> str:
    """The address to open; if the app listens on every address, that of this machine's name."""
    name = socket.gethostname() if host in {"0.0.0.0", "::"} else f"[{host}]" if ":" in host else host
    token = f"?token={access.token}" if access.token else ""
    return f"http://{name}:{port}{_prefix(access.prefix)}{token}"


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            raise WorkbenchError(
                f"port {port} is taken or reserved; pass another --port, or --port 0 for a free one"
            ) from error


class Server(ThreadedWSGIServer):
    """A server that prints no traceback for a browser that hangs up, or for answers that Ctrl-C cuts off."""

    closed = False

    def server_close(self) -> None:
        """Release the port; answers that are being sent are cut off."""
        self.closed = True
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error, unless the browser or the server's end broke the connection."""
        if not (self.closed or isinstance(sys.exception(), ConnectionError | TimeoutError)):
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    """A handler without one log line per request, which would hide the app's own lines."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing."""
