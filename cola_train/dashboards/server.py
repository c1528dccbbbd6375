"""The page on this machine's own address, for a browser that asks again while training runs."""

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from cola_train.dashboards.page import Page, as_json
from cola_train.errors import UserError

LOOPBACK = "127.0.0.1"
# What a browser may call this server: a name of another site that is made to lead here is refused.
NAMES = (LOOPBACK, "localhost")


class Server(ThreadingHTTPServer):
    """Serves `page` at `/` and its data at `/data.json`; `url` is where. port 0: a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, page: Page, port: int) -> None:
        self.page = page
        self.reading = threading.Lock()  # the views are read by one at a time
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as error:
            raise UserError(
                f"port: {port} cannot be listened on ({error.strerror}); take another, or port=0 "
                "for a free one"
            ) from error
        self.url = f"http://{LOOPBACK}:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """GET alone."""

    server: Server

    def do_GET(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        path = urlsplit(self.path).path
        if host not in NAMES:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path not in ("/", "/data.json"):
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            try:
                self._answer(path)
            except UserError as error:  # the folder is gone, say; it may come back
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            except ConnectionError:
                pass  # the browser is gone

    def _answer(self, path: str) -> None:
        page = self.server.page
        with self.server.reading:
            data = page.data()
        if path == "/":
            return self._send("text/html", page.html(data))
        # what tells whether there is anything new
        known = as_json({key: value for key, value in data.items() if key != "made"})
        tag = f'"{hashlib.sha256(known.encode()).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.end_headers()
            return None
        return self._send("application/json", as_json(data), tag)

    def _send(self, kind: str, text: str, tag: str = "") -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing of each request."""
