"""What every request and answer goes through: keys, bodies within bounds, refusals, counting."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distill.live import wire
from distill.live.cloud.meters import Meters

MEGABYTE = 1_000_000
LARGE = 50_000  # bytes of an answer that is worth compressing
TAKES_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)
QUICK = 3  # of gzip's levels 1 to 9
SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
ALIASES = {"application/x-msgpack": wire.MSGPACK, "application/vnd.msgpack": wire.MSGPACK}


class Refusal(HTTPException):
    """Said to whoever asked, in one sentence."""


def answered(value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    fresh = {"Cache-Control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), code, fresh, wire.JSON)


async def shrunk(request: Request, answer: Response) -> Response:
    """A large answer, compressed for who takes it so; and beside the loop, which has clips to take."""
    if len(answer.body) >= LARGE and TAKES_GZIP.search(request.headers.get("accept-encoding", "")):
        answer.body = await run_in_threadpool(gzip.compress, answer.body, QUICK, mtime=0)
        answer.headers.update({"Content-Encoding": "gzip", "Content-Length": str(len(answer.body))})
    answer.headers["Vary"] = "Accept-Encoding"
    return answer


def bearer(request: Request) -> str:
    """The key that came along, or nothing."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")


async def read_body(request: Request, megabytes: float) -> tuple[str, bytes]:
    """Its type and its bytes, not read any further than they are allowed to be."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    media = ALIASES.get(given, given)
    if media not in wire.FORMATS:
        raise Refusal(415, f"messages are {' or '.join(wire.FORMATS)}, not {given[:80]!r}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "messages come as they are: latents do not get smaller by compression")
    most, parts, size = int(megabytes * MEGABYTE), list[bytes](), 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise Refusal(413, f"a message has {megabytes:g} MB at most", {"Connection": "close"})
    return media, b"".join(parts)


class Surface:
    """Counts answers by route and code, and puts on each what browsers should know."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def count(code: int) -> None:
            self.meters.requests.labels(getattr(scope.get("route"), "path", "other"), str(code)).inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
                message["headers"] = [*message["headers"], *SAFE]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:  # what answers it stands outside
            count(500)
            raise
