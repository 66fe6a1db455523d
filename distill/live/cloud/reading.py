"""What readers ask for: predictions by page, the cameras' health, counts over time, everything as a file."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from distill.live.cloud.tables import DEVICE, cameras, devices, predictions

PAGE = 5000  # rows that are read at once for a file
SAMPLE = 20_000  # latest rows of a span, of which latencies are told
MOST_BUCKETS = 2000
BLOCK = 1 << 16  # bytes
LATENCIES = ("encode", "edge", "network", "cloud")
POINTS = (50, 90, 99)
BINS = 10  # of confidence
COLUMNS = (
    "id", "device", "camera", "boot", "seq", "captured", "received", "label", "confidence",
    "encode_ms", "edge_ms", "network_ms", "cloud_ms", "top",
)  # fmt: skip
TIMES = ("captured", "received")


@dataclass(frozen=True)
class Filter:
    """Which predictions; times are about when a clip was captured."""

    device: str | None = None
    camera: str | None = None
    label: str | None = None
    min_confidence: float | None = None
    since: float | None = None
    until: float | None = None

    def of(self, query: sa.Select[Any]) -> sa.Select[Any]:
        table = predictions.c
        for column, value in ((devices.c.name, self.device), (table.camera, self.camera), (table.label, self.label)):
            query = query if value is None else query.where(column == value)
        if self.min_confidence is not None:
            query = query.where(table.confidence >= self.min_confidence)
        if self.since is not None:
            query = query.where(table.captured >= self.since)
        return query if self.until is None else query.where(table.captured < self.until)


def _rows() -> sa.Select[Any]:
    named = [devices.c.name.label("device") if name == "device" else predictions.c[name] for name in COLUMNS]
    return sa.select(*named).join_from(predictions, devices)


def page(
    engine: sa.Engine, which: Filter, limit: int, newest: bool, after: int | None = None, before: int | None = None
) -> list[dict[str, Any]]:
    """So many predictions, from the newest or from the oldest."""
    query = which.of(_rows()).limit(limit).order_by(predictions.c.id.desc() if newest else predictions.c.id)
    query = query if after is None else query.where(predictions.c.id > after)
    query = query if before is None else query.where(predictions.c.id < before)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def spoken(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As JSON says it; the classes are JSON already."""
    return [row | {"top": msgspec.Raw(row["top"].encode())} for row in rows]


def newest_id(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.max(predictions.c.id))) or 0)


def health(engine: sa.Engine) -> dict[str, Any]:
    """Every device and its cameras."""
    now, found = time.time(), dict[int, dict[str, Any]]()
    with engine.connect() as connection:
        for row in connection.execute(sa.select(devices).where(devices.c.role == DEVICE).order_by(devices.c.name)):
            found[row.id] = {
                "name": row.name,
                "seen": row.seen,
                "silent_seconds": None,
                "skew_seconds": row.skew,
                "status": _raw(row.status),
                "cameras": [],
            }
        for row in connection.execute(sa.select(cameras).order_by(cameras.c.name)):
            if row.device_id not in found:
                continue  # of a device that came in between
            found[row.device_id]["cameras"].append(
                {
                    "name": row.name,
                    "seen": row.seen,
                    "label": row.label,
                    "confidence": row.confidence,
                    "captured": row.captured,
                    "status": _raw(row.status),
                }
            )
    for device in found.values():  # clips are a sign of life too
        times = [each["seen"] for each in (device, *device["cameras"]) if each["seen"] is not None]
        device["seen"] = max(times, default=None)
        device["silent_seconds"] = max(0.0, now - device["seen"]) if times else None
    return {"devices": list(found.values())}


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def summary(engine: sa.Engine, which: Filter, bucket: float) -> dict[str, Any]:
    """Counts over time, the spread of confidence, and how long things take; `which` has both its times."""
    assert which.since is not None
    assert which.until is not None
    table, count = predictions.c, sa.func.count()
    slot = sa.func.floor((table.captured - which.since) / bucket).label("slot")
    names = (devices.c.name.label("device"), table.camera, table.label)
    counts = which.of(
        sa.select(slot, *names, count.label("count"), sa.func.avg(table.confidence).label("confidence"))
        .join_from(predictions, devices)
        .group_by(slot, *names)
        .order_by(slot, *names)
    )
    bins = sa.func.floor(table.confidence * BINS).label("bin")
    spread = which.of(sa.select(bins, count).join_from(predictions, devices).group_by(bins))
    times = which.of(sa.select(*(table[f"{name}_ms"] for name in LATENCIES)).join_from(predictions, devices))
    with engine.connect() as connection:
        rows = connection.execute(counts).all()
        found = np.zeros(BINS, int)
        for place, number in connection.execute(spread):
            found[min(max(int(place), 0), BINS - 1)] += number
        taken = connection.execute(times.order_by(table.id.desc()).limit(SAMPLE)).all()
    return {
        "since": which.since,
        "until": which.until,
        "bucket": bucket,
        "counts": [
            {"start": which.since + row.slot * bucket, "device": row.device, "camera": row.camera, "label": row.label,
             "count": row.count, "confidence": row.confidence}
            for row in rows
        ],
        "confidence": found.tolist(),
        "latency_ms": {name: _points([row[place] for row in taken]) for place, name in enumerate(LATENCIES)},
    }  # fmt: skip


def _points(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    found = np.percentile(known, POINTS).tolist() if known else [None] * len(POINTS)
    return {f"p{point}": value for point, value in zip(POINTS, found, strict=True)}


def _pages(engine: sa.Engine, which: Filter, newest: int) -> Iterator[list[dict[str, Any]]]:
    """Everything up to an id, from the oldest."""
    last = 0
    while rows := page(engine, which, PAGE, newest=False, after=last, before=newest + 1):
        last = rows[-1]["id"]
        yield rows


def as_csv(engine: sa.Engine, which: Filter, newest: int) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for rows in _pages(engine, which, newest):
        writer.writerows(
            row | {name: _utc(row[name]) for name in TIMES} | {"label": _tame(row["label"])} for row in rows
        )
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _utc(seconds: float) -> str:
    return str(np.datetime64(round(1e3 * seconds), "ms")) + "Z"


def _tame(label: str) -> str:
    """A spreadsheet takes what begins so for a formula."""
    return f"'{label}" if label[:1] in ("=", "+", "-", "@", "\t", "\r") else label


def as_parquet(engine: sa.Engine, which: Filter, newest: int) -> Iterator[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    moment, number, text = pa.timestamp("ms", "UTC"), pa.float64(), pa.string()
    special = {"id": pa.int64(), "seq": pa.int64(), **dict.fromkeys(TIMES, moment)}
    named = {name: number for name in COLUMNS if name.endswith("_ms") or name == "confidence"}
    schema = pa.schema([(name, {**named, **special}.get(name, text)) for name in COLUMNS])
    with tempfile.SpooledTemporaryFile(max_size=1 << 24) as file:
        with parquet.ParquetWriter(file, schema) as writer:
            for rows in _pages(engine, which, newest):
                whole = [row | {name: round(1e3 * row[name]) for name in TIMES} for row in rows]
                writer.write_table(pa.Table.from_pylist(whole, schema))
        file.seek(0)
        yield from iter(lambda: file.read(BLOCK), b"")


FILES = {"csv": (as_csv, "text/csv; charset=utf-8"), "parquet": (as_parquet, "application/vnd.apache.parquet")}
