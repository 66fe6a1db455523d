"""A small stand-in for the cloud service, which keeps its contract in memory, for as long as there is none.

A latent is as wide as there are classes, and its softmax is what the classifier says.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from distill.live import wire
from distill.live.cloud.dashboard import page

COLUMNS = ("id", "device", "camera", "boot", "seq", "captured", "received", "label", "confidence")
STAGES = ("encode", "edge", "network", "cloud")
COLUMNS = (*COLUMNS, *(f"{stage}_ms" for stage in STAGES), "top")


class Memory:
    """What outlives a service that is stopped and started again."""

    def __init__(self, classes: Iterable[str], devices: dict[str, str], viewers: Iterable[str]) -> None:
        self.classes, self.devices, self.viewers = tuple(classes), devices, set(viewers)
        self.rows: list[dict[str, Any]] = []
        self.states: dict[str, wire.EdgeState] = {}
        self.seen: dict[str, float] = {}

    def add(self, device: str, **values: Any) -> None:
        now = time.time()
        row = {"id": len(self.rows) + 1, "device": device, "boot": "ab12", "seq": len(self.rows), "received": now}
        row |= {"captured": now, "encode_ms": 12.0, "edge_ms": 110.0, "network_ms": 3.0, "cloud_ms": 4.0}
        self.rows.append({**row, "top": [[values["label"], values["confidence"]]], **values})
        self.seen[device] = now


def app(memory: Memory) -> FastAPI:
    service = FastAPI(openapi_url=None)

    def key(request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def reading(request: Request) -> None:
        if key(request) in memory.devices.values():
            raise HTTPException(403, "this is a device's key, and reading needs a viewer's")
        if key(request) not in memory.viewers:
            raise HTTPException(401, "reading needs a viewer's key: Authorization: Bearer KEY")

    def sender(request: Request) -> str:
        for name, known in memory.devices.items():
            if known == key(request):
                return name
        raise HTTPException(401, "sending needs a device's key")

    @service.get("/")
    def dashboard() -> Response:
        body, policy = page()
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return Response(body, media_type="text/html; charset=utf-8", headers=headers)

    @service.post("/v1/latents")
    async def latents(request: Request) -> dict[str, Any]:
        device, post = sender(request), wire.load(await request.body(), wire.JSON, wire.Post)
        for clip, latent in zip(
            post.clips, wire.unpack([clip.latent for clip in post.clips], len(memory.classes)), strict=True
        ):
            scores = np.exp(latent - latent.max())
            scores /= scores.sum()
            best = np.argsort(-scores)[:5]
            top = [[memory.classes[place], float(scores[place])] for place in best]
            values = {"camera": clip.camera, "boot": clip.boot, "seq": clip.seq, "captured": clip.captured, "top": top}
            values |= {"encode_ms": clip.encode_ms, "edge_ms": 1000 * max(0, post.sent - clip.captured)}
            memory.add(device, **values, network_ms=post.network_ms, label=top[0][0], confidence=top[0][1])
        return {"results": [], "took_ms": 1.0}

    @service.post("/v1/status", status_code=204)
    async def status(request: Request) -> None:
        device = sender(request)
        memory.states[device] = wire.load(await request.body(), wire.JSON, wire.EdgeState)
        memory.seen[device] = time.time()

    @service.get("/v1/classifier")
    def classifier(request: Request) -> dict[str, Any]:
        reading(request)
        facts = {"encoder": "sha256:6f2c19ab", "kind": "LogisticProbe", "version": "0.1.0", "keep_days": 30.0}
        return {"classes": memory.classes, "latent": len(memory.classes), "latents": False, **facts}

    def chosen(request: Request) -> list[dict[str, Any]]:
        given = request.query_params
        equal = {name: given[name] for name in ("device", "camera", "label") if given.get(name)}
        since, until = float(given.get("since", 0)), float(given.get("until", "inf"))
        rows = (row for row in memory.rows if since <= row["captured"] < until)
        return [row for row in rows if all(row[name] == value for name, value in equal.items())]

    @service.get("/v1/predictions")
    def predictions(
        request: Request,
        limit: int = Query(100, ge=1, le=1000),
        order: str = "newest",
        before: int = 1 << 53,
        after: int = 0,
    ) -> dict[str, Any]:
        reading(request)
        rows = [row for row in chosen(request) if after < row["id"] < before]
        rows = rows[::-1] if order == "newest" else rows
        return {"predictions": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}

    @service.get("/v1/cameras")
    def cameras(request: Request) -> dict[str, Any]:
        reading(request)
        return {"devices": [device(memory, name) for name in memory.devices]}

    @service.get("/v1/summary")
    def summary(request: Request) -> dict[str, Any]:
        reading(request)
        given = request.query_params
        until = float(given.get("until", time.time()))
        since, bucket = float(given.get("since", until - 3600)), float(given.get("bucket", 60))
        if (until - since) / bucket > 2000:
            raise HTTPException(422, "at most 2000 buckets")
        rows = chosen(request)
        return {
            "since": since,
            "until": until,
            "bucket": bucket,
            "counts": counts(rows, since, bucket),
            "latency_ms": latency(rows),
        }

    @service.get("/v1/export")
    def export(request: Request) -> Response:
        reading(request)
        return exported(chosen(request), request.query_params["format"])

    @service.get("/v1/stream")
    async def stream(request: Request) -> StreamingResponse:
        reading(request)
        after = request.headers.get("last-event-id") or request.query_params.get("after") or len(memory.rows)
        return StreamingResponse(events(memory, int(after)), media_type="text/event-stream")

    @service.exception_handler(wire.WireError)
    def meaningless(_: Request, error: wire.WireError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    return service


def device(memory: Memory, name: str) -> dict[str, Any]:
    state, seen = memory.states.get(name), memory.seen.get(name)
    told = {} if state is None else {camera.name: json.loads(wire.dump(camera, wire.JSON)) for camera in state.cameras}
    newest = {row["camera"]: row for row in memory.rows if row["device"] == name}
    cameras = []
    for camera in sorted({*told, *newest}):
        row = newest.get(camera, {})
        last = {key: row.get(key) for key in ("label", "confidence", "captured")}
        cameras.append({"name": camera, "seen": row.get("received"), **last, "status": told.get(camera)})
    whole = None if state is None else json.loads(wire.dump(state, wire.JSON))
    if whole:
        del whole["cameras"]
    silent = None if seen is None else time.time() - seen
    return {
        "name": name,
        "seen": seen,
        "silent_seconds": silent,
        "skew_seconds": 0.04,
        "status": whole,
        "cameras": cameras,
    }


def counts(rows: list[dict[str, Any]], since: float, bucket: float) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        start = since + (row["captured"] - since) // bucket * bucket
        found[start, row["device"], row["camera"], row["label"]].append(row["confidence"])
    names = ("start", "device", "camera", "label")
    return [
        dict(zip(names, key, strict=True)) | {"count": len(sure), "confidence": sum(sure) / len(sure)}
        for key, sure in found.items()
    ]


def latency(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in STAGES:
        taken = [row[f"{stage}_ms"] for row in rows if row[f"{stage}_ms"] is not None]
        ranks = np.percentile(taken, (50, 90, 99)).tolist() if taken else [None] * 3
        found[stage] = dict(zip(("p50", "p90", "p99"), ranks, strict=True))
    return found


def exported(rows: list[dict[str, Any]], form: str) -> Response:
    table = [{**{name: row[name] for name in COLUMNS}, "top": json.dumps(row["top"])} for row in rows]
    headers = {"Content-Disposition": f'attachment; filename="predictions.{form}"'}
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(table), sink)
        return Response(sink.getvalue(), media_type="application/vnd.apache.parquet", headers=headers)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(table)
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


async def events(memory: Memory, last: int) -> AsyncIterator[str]:
    yield ": alive\n\n"
    quiet = 0.0
    while True:
        rows = memory.rows[last : last + 500]
        if rows:
            last, quiet = rows[-1]["id"], 0.0
            yield f"event: predictions\nid: {last}\ndata: {json.dumps(rows)}\n\n"
        elif quiet > 15:
            quiet = 0.0
            yield ": alive\n\n"
        await asyncio.sleep(0.05)
        quiet += 0.05
