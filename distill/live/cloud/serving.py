"""The jobs: `cloud` serves, `cloud devices` says who may, `cloud forget` lets go of what is old."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any

import msgspec
import uvicorn

from distill.live.cloud import access, device_request
from distill.live.cloud.classifying import Classifier, open_classifier
from distill.live.cloud.database import shown, using
from distill.live.cloud.forgetting import forget_old
from distill.live.cloud.meters import FOLDER
from distill.live.cloud.request import Options
from distill.live.cloud.tables import DEVICE, VIEWER
from distill.live.listening import address, taken
from distill.run_log import Talk

FAREWELL_SECONDS = 3  # that pages which listen are given at the end


def cloud(options: Options) -> dict[str, Any]:
    """Take latents from edges, classify and keep them, and show who saw what when.

    distill cloud recipe=cloud
    distill cloud classifier=runs/tinyact/probe/svm.safetensors database=postgresql://me@db/actions workers=4
    distill cloud devices recipe=cloud add=box1         the key of a box that may send, printed once
    distill cloud forget recipe=cloud                   remove what is older than keep_days; the service does so itself

    Serves a page at /, and for programs POST /v1/latents, GET /v1/predictions, /v1/cameras, /v1/summary, /v1/export,
    /v1/stream, /health/live, /health/ready, /metrics, /openapi.json. At the first start a viewer's key is printed.
    Ctrl-C ends it: what was taken is stored first.
    """
    talk = Talk()
    with using(options.url) as engine:
        classifier = open_classifier(options.classifier, options.encoder)
        with taken(options.host, options.port) as found:
            options = replace(options, port=int(found.getsockname()[1]))
        key = access.first_viewer(engine) if options.readers == "key" else ""
    talk.say(
        f"{classifier.kind} knows {len(classifier.classes)} classes of latents of {classifier.width} numbers; "
        f"{shown(options.url)} keeps what is seen"
    )
    talk.say(f"page: {address(options.host, options.port)}/{f'#key={key}' if key else ''}")
    if key:
        talk.say("the viewer's key is in that address, and told this once; distill cloud devices makes others")
    serve(options, classifier)
    return {}


def serve(options: Options, classifier: Classifier) -> None:
    """Until it is told to stop. Several workers open a classifier each; a single one takes this."""
    from distill.live.cloud.service import OPTIONS, app_with  # FastAPI, which the other jobs here do without

    several = options.workers > 1
    os.environ[OPTIONS] = msgspec.json.encode(options).decode()
    with tempfile.TemporaryDirectory(prefix="distill-cloud-") as folder:
        if several:
            os.environ[FOLDER] = folder
        uvicorn.run(
            "distill.live.cloud.service:from_environment" if several else app_with(options, classifier),
            factory=several,
            host=options.host,
            port=options.port,
            workers=options.workers,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
        )


def devices(options: device_request.Options) -> dict[str, Any]:
    """Say who may send latents and who may read predictions, and show who may.

    distill cloud devices recipe=cloud
    distill cloud devices recipe=cloud add=box1
    distill cloud devices recipe=cloud viewer=ann
    distill cloud devices recipe=cloud rotate=box1 grace_hours=1
    distill cloud devices recipe=cloud revoke=box1

    Keys are printed once; the database knows their hashes only. A running service heeds all of it within seconds.
    """
    talk, made = Talk(), ""
    with using(options.url) as engine:
        if options.add or options.viewer:
            name, role = (options.add, DEVICE) if options.add else (options.viewer, VIEWER)
            made, why = access.add(engine, name, role), f"{role} {name}"
        elif options.rotate:
            made, why = access.rotate(engine, options.rotate, 3600 * options.grace_hours), options.rotate
        elif options.revoke:
            access.revoke(engine, options.revoke)
        if made:
            talk.say(f"key of {why}, told this once: {made}")
        may = {DEVICE: "send", VIEWER: "read"}
        rows = [(name, may[role], str(count)) for name, role, count in access.holders(engine)]
    talk.table(shown(options.url), ("", "may", "good keys"), rows)
    return {}


def forget(options: Options) -> dict[str, Any]:
    """Remove predictions older than keep_days, and latents older than latent_days.

    distill cloud forget recipe=cloud keep_days=7
    """
    with using(options.url) as engine:
        return {"forgotten": forget_old(engine, options)}
