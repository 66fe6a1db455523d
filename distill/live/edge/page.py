"""The edge's own page: how its cameras are, and what the cloud said last. No picture of a camera is ever shown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from distill.live.edge.health import Exporter, Watch

HERE = Path(__file__).parent
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
PATIENCE = 3.0  # seconds that the page is given to close


def application(watch: Watch) -> Starlette:
    registry = CollectorRegistry()
    registry.register(Exporter(watch))

    def status(_: Request) -> Response:
        return Response(msgspec.json.encode(watch.health()), media_type="application/json", headers=HEADERS)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers=HEADERS)

    shown = [Route(path, _file(HERE / name)) for path, name in FILES.items()]
    return Starlette(routes=[*shown, Route("/status", status), Route("/metrics", metrics)])


def _file(path: Path) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        return FileResponse(path, headers=HEADERS)

    return answer


@contextmanager
def served(watch: Watch, where: socket.socket) -> Iterator[None]:
    """The page, as long as this lasts."""
    config = uvicorn.Config(application(watch), log_config=None, access_log=False, lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([where],), daemon=True, name="distill edge: page")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE)
        where.close()
