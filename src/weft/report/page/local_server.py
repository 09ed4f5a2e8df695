"""The page of a run over HTTP, for browsers on this machine: two addresses, nothing of the disk, and nobody from elsewhere."""

from __future__ import annotations

import errno
import json
import os
import re
import socketserver
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from weft.errors import UserError
from weft.report.page.followed import Followed

HOST = "127.0.0.1"
OURS = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.ASCII | re.IGNORECASE)
"""A Host header of a page of ours, be it through a tunnel with another port. A name that a stranger's site has let point to this
machine (DNS rebinding) is refused, or that site could read what is served here."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # which a page can't say of itself; its own policy says the rest
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Content = tuple[str, bytes]
"""Type and body."""


class LocalServer(socketserver.ThreadingTCPServer):
    """Answers until it is shut down; http.server's own class would first look up this machine's name, which can take long.

    Raises:
        UserError: the port can't be had.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would give a port to two

    def __init__(self, followed: Followed, port: int):
        self.contents: dict[str, Callable[[], Content]] = {
            "/": lambda: ("text/html; charset=utf-8", followed.page().html),
            "/state": lambda: ("application/json", json.dumps(followed.state()).encode()),
        }
        try:
            super().__init__((HOST, port), Answer)
        except OSError as e:
            why = "is in use" if e.errno == errno.EADDRINUSE else f"can't be had ({(e.strerror or str(e)).lower()})"
            raise UserError(f"port {port} {why}: give another --port, or leave it out for one that is free.") from e

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    """One request. Methods other than these two are refused by the base class."""

    server: LocalServer
    server_version, sys_version = "weft", ""
    timeout = 30
    """Seconds after which a connection that says nothing is closed."""

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        content = self.server.contents.get(self.path)
        if len(hosts) != 1 or OURS.fullmatch(hosts[0]) is None:
            self._send(HTTPStatus.FORBIDDEN, ("text/plain", b"This is served for browsers on this machine alone.\n"))
        elif content is None:
            self._send(HTTPStatus.NOT_FOUND, ("text/plain", b"There is nothing here; the page is at /.\n"))
        else:
            self._send(HTTPStatus.OK, content())

    do_HEAD = do_GET

    def _send(self, status: HTTPStatus, content: Content) -> None:
        kind, body = content
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are nothing that a terminal should show."""
