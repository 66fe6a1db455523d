"""The service in words: types of what is asked and answered, for OpenAPI, and refusals that are one sentence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from distill.live import wire
from distill.live.cloud.reading import Filter
from distill.live.cloud.surface import answered

BIGGEST = 2**63 - 1
PLAIN = r"^[^\x00]*$"
Instant = Annotated[float | None, Query(ge=0, le=wire.LATEST, allow_inf_nan=False, description="seconds since 1970")]
Named = Annotated[str | None, Query(max_length=64, pattern=PLAIN)]
Label = Annotated[str | None, Query(max_length=400, pattern=PLAIN)]
Bounded = Annotated[int | None, Query(ge=0, le=BIGGEST, description="an id")]
Order = Literal["newest", "oldest"]
Format = Literal["csv", "parquet"]
AWAY_SECONDS = 2


class Which(BaseModel):
    """Which predictions; since and until are about when clips were captured."""

    model_config = ConfigDict(extra="ignore")
    device: Named = None
    camera: Named = None
    label: Label = None
    min_confidence: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    since: Instant = None
    until: Instant = None

    def filter(self) -> Filter:
        return Filter(**self.model_dump())


def version() -> str:
    return metadata.version("distill")


# ------------------------------------------------------------ refusals


async def _refused(_: Request, error: Any) -> Response:
    return answered({"detail": str(error.detail)}, error.status_code, error.headers)


async def _unread(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return answered({"detail": f"{where or 'the request'}: {first['msg']}"[:400]}, 422)


async def _away(_: Request, error: Any) -> Response:
    logging.getLogger("distill.cloud").warning("the database is away: %s", getattr(error, "orig", error))
    return answered({"detail": "the database is away"}, 503, {"Retry-After": str(AWAY_SECONDS)})


async def _beyond(_: Request, error: Any) -> Response:
    """Numbers that we let pass and the database does not, such as 1e-320 divided by 1e9."""
    return answered({"detail": f"the database cannot reckon with that: {error.orig}".splitlines()[0]}, 422)


async def _left(_: Request, error: Any) -> Response:
    return answered({"detail": "the message broke off"}, 400)  # for the meters: nobody hears it


async def _broken(_: Request, error: Any) -> Response:
    return answered({"detail": "something is wrong here; the service's log says more"}, 500)


REFUSALS: dict[Any, Any] = {
    HTTPException: _refused,
    RequestValidationError: _unread,
    sa.exc.OperationalError: _away,
    sa.exc.InterfaceError: _away,
    sa.exc.TimeoutError: _away,
    ClientDisconnect: _left,
    sa.exc.DataError: _beyond,
    Exception: _broken,
}

# ------------------------------------------------------------ OpenAPI

ERRORS = {
    401: "no good key", 403: "a key of the wrong kind", 409: "latents of another encoder or width",
    413: "too much at once", 415: "neither JSON nor msgpack", 422: "what is wrong with it",
    429: "too fast; see Retry-After", 503: "not now; see Retry-After",
}  # fmt: skip
READING = (401, 403, 422, 503)
SENDING = (401, 403, 413, 415, 422, 503)
KINDS = (wire.Post, wire.Answer, wire.EdgeState)


def _reference(kind: type[Any]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _content(kind: type[Any]) -> dict[str, Any]:
    return {media: {"schema": _reference(kind)} for media in wire.FORMATS}


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    body = {wire.JSON: {"schema": {"$ref": "#/components/schemas/Refused"}}}
    return {code: {"description": ERRORS[code], "content": body} for code in codes}


def _said(summary: str, *media: str) -> dict[str, Any]:
    return {"description": summary, "content": {each: {"schema": {}} for each in media or (wire.JSON,)}}


def _about(summary: str, *codes: int, media: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    responses = {200: _said(summary, *media), **_errors(*codes)}
    return {"summary": summary, "responses": responses, "response_model": None, "response_class": Response, **more}


LATENTS: dict[str, Any] = {
    "summary": "Clips' latents come in; answered once they are stored",
    "response_model": None,
    "responses": {200: {"description": "stored", "content": _content(wire.Answer)}, **_errors(*SENDING, 409, 429)},
    "openapi_extra": {"requestBody": {"required": True, "content": _content(wire.Post)}, "security": [{"key": []}]},
}
STATUS: dict[str, Any] = {
    "summary": "How an edge and its cameras are",
    "status_code": 204,
    "response_model": None,
    "responses": _errors(*SENDING),
    "openapi_extra": {
        "requestBody": {"required": True, "content": _content(wire.EdgeState)},
        "security": [{"key": []}],
    },
}
KEYED: dict[str, Any] = {"openapi_extra": {"security": [{"key": []}]}}
CLASSIFIER = _about("Who classifies here, and what", *READING, **KEYED)
PREDICTIONS = _about("Who saw what when, by page", *READING, **KEYED)
CAMERAS = _about("How devices and cameras are", *READING, **KEYED)
SUMMARY = _about("Counts over time, confidence, latencies", *READING, **KEYED)
EXPORT = _about(
    "Predictions as a file: CSV or Parquet", *READING, media=("text/csv", "application/vnd.apache.parquet"), **KEYED
)
STREAM = _about("New predictions as server-sent events", *READING, media=("text/event-stream",), **KEYED)
LIVE = _about("The process answers")
READY = _about("Clips would be stored")
READY["responses"][503] = _said("they would not, and why")
METRICS = _about("For Prometheus", *READING, media=("text/plain",), **KEYED)


def complete(app: FastAPI) -> None:
    """Give the description the types of the messages, which FastAPI knows nothing of."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, kinds = msgspec.json.schema_components(KINDS, ref_template="#/components/schemas/{name}")
            parts = found.setdefault("components", {})
            text = {"type": "string"}
            refused = {"type": "object", "required": ["detail"], "properties": {"detail": text}}
            parts["schemas"] = {**parts.get("schemas", {}), **kinds, "Refused": refused}
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
