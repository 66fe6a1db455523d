"""A cloud that behaves as it is told, on a real socket: it stores what it accepts, and remembers what it was sent."""

from __future__ import annotations

import http.server
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distill.live import wire

KEY = "good-key"
Act = Callable[["Talking", wire.Post], bool]  # whether the message is to be treated as usual all the same


@dataclass
class Cloud:
    """What the test looks at."""

    url: str = ""
    script: list[Act] = field(default_factory=list)  # for the messages to come, one each
    always: Act | None = None  # for messages beyond the script
    stored: dict[tuple[str, str, int], wire.Clip] = field(default_factory=dict)
    order: list[tuple[str, str, int]] = field(default_factory=list)  # as first stored
    posts: list[wire.Post] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    states: list[wire.EdgeState] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    twice: int = 0

    def store(self, post: wire.Post) -> wire.Answer:
        results = []
        for clip in post.clips:
            key = (clip.camera, clip.boot, clip.seq)
            known = key in self.stored
            self.twice += known
            if not known:
                self.stored[key] = clip
                self.order.append(key)
            results.append(wire.Verdict(*key, label="wave", confidence=0.75, known=known))
        return wire.Answer(results, took_ms=0.0)


class Talking(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    cloud: Cloud

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        media = self.headers["content-type"]
        self.cloud.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/v1/status":
            self.cloud.states.append(wire.load(body, media, wire.EdgeState))
            self.say(204)
            return
        assert self.path == "/v1/latents", self.path
        post = wire.load(body, media, wire.Post)
        self.cloud.posts.append(post)
        self.cloud.times.append(time.monotonic())
        act = self.cloud.script.pop(0) if self.cloud.script else self.cloud.always
        if act is None or act(self, post):
            self.say(200, wire.dump(self.cloud.store(post), media), {"content-type": media})

    def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        """At once, with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


def says(status: int, detail: str = "", **headers: str) -> Act:
    """Refuses with this status; header names have _ for -."""

    def act(talking: Talking, _: wire.Post) -> bool:
        body = b'{"detail": "%s"}' % detail.encode() if detail else b"<html>no</html>"
        talking.say(status, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return False

    return act


def stores_and_drops(talking: Talking, post: wire.Post) -> bool:
    """The answer is lost."""
    talking.cloud.store(post)
    talking.hang_up()
    return False


def drops(talking: Talking, _: wire.Post) -> bool:
    talking.hang_up()
    return False


def hangs(seconds: float) -> Act:
    def act(talking: Talking, _: wire.Post) -> bool:
        time.sleep(seconds)
        talking.hang_up()
        return False

    return act


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # who hangs up is part of the test


@contextmanager
def running(port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[Cloud]:
    cloud = Cloud()
    handler = type("Handler", (Talking,), {"cloud": cloud})
    server = _Server(("127.0.0.1", port), handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    cloud.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
