"""What a clip costs, from file to batch: CPU time of every way to read it, interleaved in one run.

    make bench-video                          a generated clip of Kinetics' size and length
    make bench-video VIDEOS="a.mp4 b.mp4"     videos of your own

The floor is the bare decoding of the frames up to the last one wanted, with no picture made of them. Times are those
of the processor (user and system, all threads), the least and the middle of the rounds; walls lie on shared machines.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

from distill.clips import views
from distill.clips.batches import Part, load
from distill.clips.clipset import ClipOptions, ClipSet
from distill.clips.decode import read_each, read_frames
from distill.clips.facts import Facts
from distill.clips.frames import DecodedFrames, Kept, StoredFrames, frame_shards
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.prepare import Copies
from distill.clips.sampling import uniform
from distill.clips.video import Film
from distill.clips.views import ViewOptions
from distill.outputs import ClipSpec
from distill.run_log import Talk

ROUNDS = 12
SPEC = ClipSpec(16, 224)
VIEWS = ViewOptions(flip=True, light=0.2, saturation=0.2)
LOADED = 160  # clips that each loader delivers
Row = tuple[str, Callable[[], object]]


def generate(path: Path) -> None:
    """Ten seconds of moving texture with a camera's noise, 340 x 256 at 28 frames a second, as x264 makes them."""
    chance = np.random.default_rng(0)
    ground = chance.integers(0, 256, (80, 100, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=28, options={"crf": "26", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for number in range(280):
            place = int(120 + 100 * np.sin(number / 40))
            picture = ground[place : place + 256, number : number + 340].astype(np.int16)
            picture += chance.integers(-5, 6, picture.shape, np.int16)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode_bare(path: str, last: int) -> None:
    """The floor: every frame up to the last one wanted, and nothing else."""
    with Film(path) as film:
        for number, _ in enumerate(film.frames()):
            if number == last:
                return


def measure(rows: list[Row]) -> dict[str, list[float]]:
    """CPU milliseconds of each, round by round."""
    found: dict[str, list[float]] = {name: [] for name, _ in rows}
    for _, work in rows:
        work()  # libraries load, files enter the disk's cache
    for _ in range(ROUNDS):
        for name, work in rows:
            start = time.process_time()
            work()
            clips = 8 if name.endswith("8 views") else 1
            found[name].append(1000 * (time.process_time() - start) / clips)
    return found


def clip_set(clip: Clip, workers: int = 0) -> ClipSet:
    manifest = Manifest((clip,), ("one", "other"))
    return ClipSet(manifest, SPEC, ClipOptions(views=VIEWS, workers=workers), DecodedFrames(manifest, VIEWS, SPEC))


def batch(clips: ClipSet, parts: int = 8) -> None:
    """Whole batches of one clip, each in another view: decode, crop, flip, colour, collate."""
    for _ in load(clips, [Part([0], [1 + number % 8], np.ones(1, np.float32)) for number in range(parts)]):
        pass


def decode_views(clip: Clip) -> None:
    """What `batch` decodes, and nothing else."""
    for number in range(1, 9):
        view, total = views.draw(VIEWS, clip.id, number), known(clip).frames
        read_each(clip.path, views.indices(view, VIEWS, total, SPEC.frames).tolist(), facts=known(clip))


def ways(clip: Clip, copies: dict[str, Clip], stored: StoredFrames) -> list[Row]:
    """Every way to 16 frames of a clip."""
    facts, path = known(clip), clip.path
    wanted = uniform(0, facts.frames, SPEC.frames, facts.frames).tolist()
    last = max(wanted)
    rows: list[Row] = [
        ("raw: floor", lambda: decode_bare(path, last)),
        ("raw: 16 frames", lambda: read_frames(path, wanted, facts=facts)),
        ("raw: 16 frames, one after the other", lambda: read_frames(path, wanted)),
    ]
    for decoder in ("decord", "torchcodec"):
        if importlib.util.find_spec(decoder) and decoder not in facts.avoid:
            rows.append((f"raw: 16 frames, {decoder}", lambda name=decoder: read_frames(path, wanted, name, facts)))  # type: ignore[misc]
    rows.append(("raw: whole path of 8 views", lambda: batch(clip_set(clip))))
    for form, copy in copies.items():
        if form == "video":
            rows += [
                ("copy: floor", lambda: decode_bare(copies["video"].path, last)),
                ("copy, video: frames of 8 views", lambda: decode_views(copies["video"])),
            ]
        rows += [
            (f"copy, {form}: 16 frames", lambda c=copy: read_frames(c.path, wanted, facts=known(c))),  # type: ignore[misc]
            (f"copy, {form}: whole path of 8 views", lambda c=copy: batch(clip_set(c))),  # type: ignore[misc]
        ]
    rows.append(("frame store: view", lambda: stored.get(0, [1])))
    return rows


def known(clip: Clip) -> Facts:
    assert clip.facts is not None
    return clip.facts


def compare(clip: Clip, folder: Path, talk: Talk) -> Clip:
    """Measure one video in every way; gives its copy."""
    facts = known(clip)
    copies = {}
    for form in ("video", "jpeg", "raw"):
        maker = Copies(folder, form, 224)
        copies[form] = replace(clip, path=str(maker.folder / maker.name(clip)), facts=maker.make(clip))
    clips = clip_set(clip)
    shards = frame_shards(Kept(folder), clips.manifest, VIEWS, SPEC)
    shards.enroll({1: np.array([0])})
    frames = clips.frames.get(0, [1])
    shards.commit(0, 1, {"frames": frames, "seen": clips.frames.seen(0, [1], frames)})
    found = measure(ways(clip, copies, StoredFrames(shards)))
    floor, least = found["raw: floor"], {name: min(times) for name, times in found.items()}
    rows = [
        (name, f"{least[name]:.2f}", f"{median(times):.2f}", f"{median(np.divide(times, floor)):.3f}")
        for name, times in found.items()
    ]
    title = f"{Path(clip.path).name}: {facts.codec} {facts.width}x{facts.height}, {facts.frames} frames; CPU ms a clip"
    talk.table(title, ("", "least", "middle", "of raw floor"), rows)

    def ratio(what: str, of: str) -> str:
        each = np.divide(found[what], found[of])
        return f"{median(each):.3f} (from {each.min():.3f} to {each.max():.3f})"

    talk.say(f"raw over its floor: {ratio('raw: 16 frames', 'raw: floor')}; goal at most 1.10")
    talk.say(f"raw over the frame store: {ratio('raw: 16 frames', 'frame store: view')}; goal at least 15")
    whole = ratio("copy, video: whole path of 8 views", "copy, video: frames of 8 views")
    talk.say(f"copy, whole path over decoding the same frames: {whole}; goal at most 1.25")
    return copies["video"]


def compare_workers(clip: Clip, what: str, talk: Talk) -> None:
    """Clips a second by the clock, one worker and two, taking turns."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(4):
        for workers, found in speeds.items():
            clips = clip_set(clip, workers)
            start = time.monotonic()
            batch(clips, LOADED)
            found.append(LOADED / (time.monotonic() - start))
    gains = np.divide(speeds[2], speeds[1])
    talk.say(
        f"{what}: {median(speeds[1]):.1f} clips/s from one worker, {median(speeds[2]):.1f} from two: "
        f"{median(gains):.2f} times (from {gains.min():.2f} to {gains.max():.2f}); goal at least 1.7 on two idle cores"
    )


def main() -> int:
    torch.set_num_threads(1)
    talk = Talk()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = [Path(argument) for argument in sys.argv[1:]] or [folder / "generated.mp4"]
        if not sys.argv[1:]:
            generate(videos[0])
        for number, path in enumerate(videos):
            clip = Clip(f"clip{number}", str(path.absolute()), 0, "train", facts=look(path))
            if clip.broken:
                talk.say(f"{path} {known(clip).trouble}")
                continue
            copy = compare(clip, folder / str(number), talk)
            if not number:
                talk.say(f"load before the workers' turn: {os.getloadavg()[0]:.2f}")
                compare_workers(clip, "raw", talk)
                compare_workers(copy, "copies", talk)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
