"""A server of the S3 protocol on the loopback interface, and a proxy in front of it that fails as asked."""

import contextlib
import http.client
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

BUCKET = "labs"
Fault = Callable[[str, str, int], str]
"""(method, path, how often it was asked for before) -> ``""``, ``reset``, ``slow``, ``503`` or ``truncate``."""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run the server with an empty bucket `BUCKET`; yields its endpoint."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection = http.client.HTTPConnection(host, port)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    connection.close()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """What a client needs to know."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Proxy:
    """Passes requests on to `endpoint`, except those that `fault` names; counts what it did."""

    def __init__(self, endpoint: str, fault: Fault, slow_s: float = 0.2) -> None:
        self.done: dict[str, int] = {}
        asked: dict[tuple[str, str], int] = {}
        lock = threading.Lock()
        host, port = endpoint.removeprefix("http://").split(":")
        done = self.done

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with lock:
                    key = (self.command, self.path)
                    asked[key] = asked.get(key, 0) + 1
                    what = fault(self.command, self.path, asked[key] - 1)
                    done[what] = done.get(what, 0) + 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if what == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                if what == "503":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if what == "slow":
                    time.sleep(slow_s)
                self.forward(body, cut=what == "truncate")

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def forward(self, body: bytes, cut: bool) -> None:
                upstream = http.client.HTTPConnection(host, int(port))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in (
                        "connection",
                        "transfer-encoding",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(key, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True
                upstream.close()

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
