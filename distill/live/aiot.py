"""The job `demo-aiot`: cloud, edge and cameras on one machine, each a process as it would be in the field."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.clips import motion
from distill.errors import UserError
from distill.files import make_folder, publish
from distill.live.aiot_request import Options
from distill.live.cloud import access
from distill.live.cloud.database import using
from distill.live.cloud.tables import DEVICE, VIEWER
from distill.live.edge.request import KEY
from distill.live.listening import taken
from distill.live.showing import stopping
from distill.run_log import Talk

HOST, BOX, WATCHER = "127.0.0.1", "box1", "demo"
QUICKSTART = Path("runs/quickstart/distilled")
SMALL = ("student.widths=[16,32,64,128]", "student.latent=128", "student.hidden=128", "train.steps=400")
SHOWN = 12  # motions of one camera's video, which then begins again
PATIENCE = 60.0  # seconds until the service answers
FAREWELL = 15.0  # seconds that a process is given to end
PR_SET_PDEATHSIG = 1
END_WITH_US: Callable[[], object] | None = (  # even if we are killed, and can tell nobody to end
    partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if sys.platform == "linux" else None
)


def demo_aiot(options: Options) -> dict[str, Any]:
    """Cameras, an edge and a cloud on this machine: the whole way from pictures to a page, in one command.

    Simulated cameras play generated videos; the edge encodes their clips into latents with a student's encoder and
    sends those; the cloud classifies them with the same student's classifier, keeps who saw what when, and shows it.
    All of it on loopback, each part the very process that runs in the field. Ctrl-C ends everything.

    distill demo-aiot
    distill demo-aiot model=runs/quickstart/distilled cameras=8 every=1
    """
    talk, out = Talk(), Path(options.out)
    for port in (options.port, options.port + 1):
        taken(HOST, port).close()
    make_folder(out)
    model = Path(options.model) if options.model else _student(out, talk)
    videos = _videos(out / "cameras", options.cameras, talk)
    keys = _keys(f"sqlite:///{out / 'cloud' / 'cloud.sqlite'}")
    page = f"http://{HOST}:{options.port}"
    cloud = ("cloud", f"classifier={model}", f"out={out / 'cloud'}", f"host={HOST}", f"port={options.port}")
    edge = (
        "edge", f"model={model}", f"out={out / 'edge'}", f"cloud={page}", f"every={options.every}", "repeat=true",
        f"host={HOST}", f"port={options.port + 1}", *(f"cameras.{path.stem}={path}" for path in videos),
    )  # fmt: skip
    with stopping() as stop, ExitStack() as running:
        service = running.enter_context(_started(cloud, out / "cloud.log", {}))
        _wait_for(f"{page}/health/ready", service, out / "cloud.log")
        box = running.enter_context(_started(edge, out / "edge.log", {KEY: keys[DEVICE]}))
        talk.say(f"{len(videos)} cameras -> edge -> cloud; a clip of each every {options.every:g} s; logs: {out}/*.log")
        talk.say(f"cloud: {page}/#key={keys[VIEWER]}")
        talk.say(f"edge:  http://{HOST}:{options.port + 1}")
        talk.say("Ctrl-C ends it")
        until = time.monotonic() + (options.most_seconds or float("inf"))
        while not stop.wait(0.2) and time.monotonic() < until:
            for process, log in ((service, out / "cloud.log"), (box, out / "edge.log")):
                if process.poll() is not None:
                    raise UserError(f"the {log.stem} has ended: {_last_line(log)}")
    return {}


def _student(out: Path, talk: Talk) -> Path:
    """The quickstart's student, or one that is trained for this."""
    for run in (QUICKSTART, out / "student"):
        if (run / "student" / "config.json").exists():
            return run
    talk.say("there is no student yet: training a small one first, two to five minutes")
    from distill.recipe import read_recipe
    from distill.training import train

    run = out / "student"
    resume = (run / "recipe.yaml").exists()
    changes = (f"out={run}", "cache.frames=false", f"resume={str(resume).lower()}")
    train(read_recipe(["recipe=quickstart_teacher", *SMALL, *changes]))
    return run


def _videos(folder: Path, count: int, talk: Talk) -> list[Path]:
    """One for each camera, each with other motions in another order."""
    found = [folder / f"camera{number + 1}.mp4" for number in range(count)]
    missing = [path for path in found if not path.exists()]
    if missing:
        talk.say(f"drawing {len(missing)} videos")
    for path in missing:
        drawn = _drawn(int(path.stem.removeprefix("camera")))
        publish(path, lambda part, drawn=drawn: motion.encode(drawn, part))  # type: ignore[misc]
    return found


def _drawn(number: int) -> np.ndarray:
    """Frames of motions that last for two clips each."""
    usual = motion.Drawing()
    longer = motion.Drawing(frames=2 * usual.frames, speed=2 * usual.speed, drift=2 * usual.drift)
    names = np.random.default_rng(number).permutation(motion.DEFAULT_CLASSES)[:SHOWN]
    return np.concatenate(
        [motion.draw(longer, f"aiot/{number}/{place}", str(name), "test") for place, name in enumerate(names)]
    )


def _keys(url: str) -> dict[str, str]:
    """New ones at every start: nobody has kept the old ones."""
    with using(url) as engine:
        known = {name for name, _, _ in access.holders(engine)}
        return {
            role: access.rotate(engine, name, 0.0) if name in known else access.add(engine, name, role)
            for name, role in ((BOX, DEVICE), (WATCHER, VIEWER))
        }


@contextmanager
def _started(arguments: Sequence[str], log: Path, more: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A job of its own, which Ctrl-C at this terminal does not reach: it is told when it is its turn to end."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "distill.cli", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more, "NO_PROXY": HOST, "no_proxy": HOST},  # all of it is on this machine
            start_new_session=True,
            preexec_fn=END_WITH_US,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until, opener = time.monotonic() + PATIENCE, urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until and process.poll() is None:
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UserError(f"the {log.stem} did not start: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} ({log})" if lines else f"see {log}"
