"""The service: what comes in, who may, what goes out. `make_app` gives it to any ASGI server."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import msgspec
import sqlalchemy as sa
from fastapi import FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from threadpoolctl import threadpool_limits

from distill.live import wire
from distill.live.cloud import described, reading
from distill.live.cloud.access import Doorman, Holder, Pace
from distill.live.cloud.classifying import Classifier, open_classifier
from distill.live.cloud.dashboard import page
from distill.live.cloud.database import open_database, upsert, writing
from distill.live.cloud.described import Bounded, Instant, Label, Named
from distill.live.cloud.forgetting import Forgetting
from distill.live.cloud.intake import Arrival, FullError, Intake, LatentError
from distill.live.cloud.meters import Meters
from distill.live.cloud.request import Options
from distill.live.cloud.streaming import FULL_SECONDS, Hub, heeding_signals
from distill.live.cloud.surface import Refusal, Surface, answered, bearer, read_body, shrunk
from distill.live.cloud.tables import DEVICE, VIEWER, cameras, devices

OPTIONS = "DISTILL_CLOUD_OPTIONS"  # the environment variable through which workers are told them
HOUR, MINUTE = 3600.0, 60.0
LOOK_SECONDS = 1.0  # between two looks at whether the database takes clips
BUSY_SECONDS = 1  # after which to come again, where there is no room now
Message = TypeVar("Message")


def from_environment() -> FastAPI:
    """For the workers of a server that starts them itself."""
    return make_app(msgspec.json.decode(os.environ[OPTIONS], type=Options))


def make_app(options: Options) -> FastAPI:
    return app_with(options, open_classifier(options.classifier, options.encoder))


def app_with(options: Options, classifier: Classifier) -> FastAPI:
    engine = open_database(options.url)
    cloud = Cloud(options, engine, classifier)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        cloud.hub = Hub(engine, options.streams)
        with (
            threadpool_limits(1),
            Intake(engine, classifier, options, cloud.meters, cloud.hub.tell) as cloud.intake,
            Forgetting(engine, options),
            heeding_signals(cloud.hub.close),
        ):
            yield
            cloud.hub.close()
        engine.dispose()

    app = FastAPI(
        title="distill cloud",
        version=described.version(),
        lifespan=running,
        docs_url=None,  # those pages take their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for name, refuse in described.REFUSALS.items():
        app.add_exception_handler(name, refuse)
    cloud.routes(app)
    described.complete(app)
    app.add_middleware(Surface, meters=cloud.meters)
    return app


class Cloud:
    """One worker."""

    intake: Intake
    hub: Hub

    def __init__(self, options: Options, engine: sa.Engine, classifier: Classifier) -> None:
        self.options, self.engine, self.classifier = options, engine, classifier
        self.meters, self.doorman = Meters(), Doorman(engine)
        self.paces: dict[int, Pace] = {}
        self.named: dict[int, set[str]] = {}  # cameras of which a device has sent clips here
        self.readiness, self.looked, self.looking = answered({"status": "ok"}), -math.inf, asyncio.Lock()
        self.see = upsert(engine, cameras, ("status",))
        self.page, self.policy = page()

    def routes(self, app: FastAPI) -> None:
        app.post("/v1/latents", **described.LATENTS)(self.latents)
        app.post("/v1/status", **described.STATUS)(self.status)
        for path, function, about in (
            ("/v1/classifier", self.about, described.CLASSIFIER),
            ("/v1/predictions", self.predictions, described.PREDICTIONS),
            ("/v1/cameras", self.cameras, described.CAMERAS),
            ("/v1/summary", self.summary, described.SUMMARY),
            ("/v1/export", self.export, described.EXPORT),
            ("/v1/stream", self.stream, described.STREAM),
            ("/health/live", self.live, described.LIVE),
            ("/health/ready", self.ready, described.READY),
            ("/metrics", self.metrics, described.METRICS),
        ):
            app.get(path, **about)(function)
        app.get("/", include_in_schema=False)(self.dashboard)

    # ------------------------------------------------------------ who

    async def device(self, request: Request) -> Holder:
        return await self._holder(request, DEVICE)

    async def reader(self, request: Request) -> None:
        if self.options.readers != "anyone":
            await self._holder(request, VIEWER)

    async def _may_read(self, request: Request) -> bool:
        """Still, for keys get void; while the database is away they are as they were."""
        try:
            await self.reader(request)
        except Refusal:
            return False
        except sa.exc.SQLAlchemyError:
            pass
        return True

    async def _holder(self, request: Request, role: str) -> Holder:
        key = bearer(request)
        known, holder = self.doorman.remembered(key)
        if not known and key:
            holder = await run_in_threadpool(self.doorman.look_up, key)
        if holder is None:
            why = "this key is not known here, or void" if key else "a key is missing: Authorization: Bearer KEY"
            raise Refusal(401, why, {"WWW-Authenticate": "Bearer"})
        if holder.role != role:
            raise Refusal(403, f"this is a {holder.role}'s key, and a {role}'s is needed")
        return holder

    # ------------------------------------------------------------ in

    async def latents(self, request: Request) -> Response:
        started, received = time.perf_counter(), time.time()
        device = await self.device(request)
        media, post = await self._read(request, wire.Post)
        self._check(post, device)
        try:
            latents = wire.unpack([clip.latent for clip in post.clips], self.classifier.width)
        except wire.WidthError as error:  # whoever sends is right, and keeps them until the right classifier is here
            raise Refusal(409, str(error)) from error
        except wire.WireError as error:
            raise Refusal(422, str(error)) from error
        try:
            stored = self.intake.put(Arrival(device, post, latents, received))
        except FullError as error:
            raise Refusal(503, "too many clips are waiting", {"Retry-After": str(BUSY_SECONDS)}) from error
        try:
            results = await asyncio.wrap_future(stored)
        except asyncio.CancelledError as error:  # the server has waited long enough for us
            raise Refusal(503, "the service is ending", {"Retry-After": str(BUSY_SECONDS)}) from error
        except LatentError as error:
            raise Refusal(422, "the classifier makes nothing of these latents: numbers are too large") from error
        took = time.perf_counter() - started
        self.meters.seconds.labels("/v1/latents").observe(took)
        return Response(wire.dump(wire.Answer(results, 1e3 * took), media), media_type=media)

    def _check(self, post: wire.Post, device: Holder) -> None:
        if len(post.clips) > self.options.clips_per_message:
            raise Refusal(413, f"{len(post.clips)} clips; one message has {self.options.clips_per_message} at most")
        if post.encoder != self.classifier.encoder:
            theirs, ours = post.encoder[:16], self.classifier.encoder[:16]
            raise Refusal(409, f"these are latents of encoder {theirs}..., and the classifier knows those of {ours}...")
        named = self.named.setdefault(device.id, set())
        named |= {clip.camera for clip in post.clips} if len(named) < wire.MOST_CAMERAS else set()
        if any(clip.camera not in named for clip in post.clips):
            raise Refusal(403, f"{device.name} has sent clips of {len(named)} cameras, and that is the most")
        if self.options.rate:
            wait = self.paces.setdefault(device.id, Pace(self.options.rate)).take(len(post.clips))
            if wait:
                why = f"{device.name} sends more than {self.options.rate:g} clips a second"
                raise Refusal(429, why, {"Retry-After": str(math.ceil(wait))})

    async def status(self, request: Request) -> Response:
        received, device = time.time(), await self.device(request)
        _, state = await self._read(request, wire.EdgeState)
        await run_in_threadpool(self._keep, device, state, received)
        return Response(status_code=204)

    def _keep(self, device: Holder, state: wire.EdgeState, received: float) -> None:
        own = {name: getattr(state, name) for name in state.__struct_fields__ if name != "cameras"}
        rows = [
            {"device_id": device.id, "name": name, "status": msgspec.json.encode(camera).decode()}
            for name, camera in sorted({camera.name: camera for camera in state.cameras}.items())
        ]
        seen = {"seen": received, "skew": received - state.sent, "status": msgspec.json.encode(own).decode()}
        gone = (cameras.c.device_id == device.id) & cameras.c.name.not_in([row["name"] for row in rows])
        with writing(self.engine) as connection:
            connection.execute(sa.update(devices).where(devices.c.id == device.id).values(**seen))
            if rows:
                connection.execute(self.see, rows)
            connection.execute(sa.update(cameras).where(gone).values(status=None))
            connection.execute(sa.delete(cameras).where(gone, cameras.c.seen.is_(None)))

    async def _read(self, request: Request, kind: type[Message]) -> tuple[str, Message]:
        media, body = await read_body(request, self.options.body_mb)
        try:
            return media, wire.load(body, media, kind)
        except wire.WireError as error:
            raise Refusal(422, str(error)) from error

    # ------------------------------------------------------------ out

    async def about(self, request: Request) -> Response:
        await self.reader(request)
        own = self.classifier
        return answered(
            {
                "classes": own.classes, "latent": own.width, "encoder": own.encoder, "kind": own.kind,
                "calibrated": own.calibrated, "version": described.version(),
                "keep_days": self.options.keep_days, "latents": self.options.latents,
            }
        )  # fmt: skip

    async def predictions(
        self,
        request: Request,
        which: Annotated[described.Which, Query()],
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        order: described.Order = "newest",
        after: Bounded = None,
        before: Bounded = None,
    ) -> Response:
        await self.reader(request)
        rows = await run_in_threadpool(
            reading.page, self.engine, which.filter(), limit, order == "newest", after, before
        )
        more = rows[-1]["id"] if len(rows) == limit else None
        return await shrunk(request, answered({"predictions": reading.spoken(rows), "next": more}))

    async def cameras(self, request: Request) -> Response:
        await self.reader(request)
        return await shrunk(request, answered(await run_in_threadpool(reading.health, self.engine)))

    async def summary(
        self,
        request: Request,
        since: Instant = None,
        until: Instant = None,
        bucket: Annotated[float, Query(gt=0, le=wire.LATEST, allow_inf_nan=False)] = MINUTE,
        device: Named = None,
        camera: Named = None,
        label: Label = None,
    ) -> Response:
        await self.reader(request)
        end = time.time() if until is None else until
        start = end - HOUR if since is None else since
        if start >= end:
            raise Refusal(422, f"since ({start:g}) is not before until ({end:g})")
        if (end - start) / bucket > reading.MOST_BUCKETS:
            raise Refusal(422, f"that is more than {reading.MOST_BUCKETS} buckets; take a larger bucket")
        which = reading.Filter(device, camera, label, None, start, end)
        found = await run_in_threadpool(reading.summary, self.engine, which, bucket)
        return await shrunk(request, answered(found))

    async def export(
        self, request: Request, which: Annotated[described.Which, Query()], format: described.Format = "csv"
    ) -> Response:
        await self.reader(request)
        write, media = reading.FILES[format]
        newest = await run_in_threadpool(reading.newest_id, self.engine)  # now, while there can be a refusal
        name = f'attachment; filename="predictions.{format}"'
        return StreamingResponse(
            write(self.engine, which.filter(), newest), media_type=media, headers={"Content-Disposition": name}
        )

    async def stream(self, request: Request, after: Bounded = None) -> Response:
        await self.reader(request)
        if self.hub.full:
            raise Refusal(503, "too many pages are listening", {"Retry-After": str(FULL_SECONDS)})
        told = request.headers.get("last-event-id", "")
        place = int(told) if told.isascii() and told.isdigit() and len(told) < 19 else after
        newest = await run_in_threadpool(reading.newest_id, self.engine)  # now, while there can be a refusal

        async def over() -> bool:
            return await request.is_disconnected() or not await self._may_read(request)

        return StreamingResponse(
            self.hub.events(newest if place is None else place, over),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def live(self) -> Response:
        return answered({"status": "ok"})

    async def ready(self) -> Response:
        """Whether clips would be stored: the classifier is there by now, and the database takes what is written.

        However many ask, the database is asked once a second: who asks needs no key, and writers wait for each other.
        """
        async with self.looking:
            if time.monotonic() > self.looked + LOOK_SECONDS:
                why = await run_in_threadpool(self._lacks)
                said = {"status": "not ready", "why": why} if why else {"status": "ok"}
                self.readiness, self.looked = answered(said, 503 if why else 200), time.monotonic()
            return self.readiness

    def _lacks(self) -> str:
        try:
            self._try_writing()
        except sa.exc.SQLAlchemyError as error:
            return type(error).__name__
        return "" if self.intake.well else "intake"

    def _try_writing(self) -> None:
        with writing(self.engine) as connection:
            connection.execute(sa.update(devices).where(sa.false()).values(seen=None))

    async def metrics(self, request: Request) -> Response:
        await self.reader(request)
        return Response(await run_in_threadpool(self.meters.text), media_type="text/plain; version=0.0.4")

    async def dashboard(self) -> Response:
        return Response(self.page, media_type="text/html", headers={"Content-Security-Policy": self.policy})
