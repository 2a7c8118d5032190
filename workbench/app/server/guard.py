"""Answer requests to known host names from known origins only, require a token if one is set, and send the policy."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode, urlsplit

import flask

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_COOKIE = "workbench_token"
_YEAR_S = 31_536_000


class Guard:
    """Refuses requests that another site could send through the reader's browser (DNS rebinding, foreign origins).

    With a token, every request must carry it: first in the address (`?token=...`), then in a cookie that scripts cannot
    read. `policy`: the content policy of a path's answer.
    """

    def __init__(self, hosts: Iterable[str], token: str, prefix: str, policy: Callable[[str], str]) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self._token = token
        self._prefix = prefix
        self._policy = policy
        self._process = secrets.token_hex(8)  # a page of another process is laid out for its runs

    def protect(self, server: Any) -> None:
        """Check every request of a flask server before it is answered."""
        server.before_request(self._check_request)
        server.after_request(self._add_headers)

    def _check_request(self) -> flask.Response | None:
        if _name(f"//{flask.request.host}") not in self.hosts:
            flask.abort(421)
        origin = flask.request.headers.get("Origin")
        if origin is not None and _name(origin) not in self.hosts:
            flask.abort(403)
        return self._check_token() if self._token else None

    def _check_token(self) -> flask.Response | None:
        in_address = flask.request.args.get("token")
        if in_address is not None and self._is_token(in_address):
            return self._store_token()
        if self._is_token(flask.request.cookies.get(_COOKIE, "")):
            return None
        message = "This app asks for a token: open the address with ?token=... that `workbench app` printed.\n"
        return flask.Response(message, status=401, mimetype="text/plain")

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _store_token(self) -> flask.Response:
        """Store the token in a cookie, and remove it from the address, where it could be seen or shared."""
        rest = [(name, value) for name, value in flask.request.args.items(multi=True) if name != "token"]
        address = self._prefix + flask.request.path.lstrip("/") + (f"?{urlencode(rest)}" if rest else "")
        answer = flask.Response(status=302, headers={"Location": address})
        answer.set_cookie(_COOKIE, self._token, max_age=_YEAR_S, httponly=True, samesite="Strict", path=self._prefix)
        return answer

    def _add_headers(self, response: flask.Response) -> flask.Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        response.headers["X-Workbench-Process"] = self._process
        response.headers["Content-Security-Policy"] = self._policy(flask.request.path)
        return response


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
