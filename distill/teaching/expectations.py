"""What a caching job will cost, said before it starts; and whether this machine's teacher is the one that began."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distill.clips.frames import ClipError, Frames, unseen
from distill.errors import UserError
from distill.files import publish
from distill.outputs import Clips, ClipSpec, TeacherOutput
from distill.randomness import number
from distill.run_log import Talk, percent
from distill.shards import files
from distill.shards.grid import Shards
from distill.surroundings import cores
from distill.teaching.asking import Asking

BEGINNING = "beginning.safetensors"
CLIPS = 2  # of noise that every job puts before the teacher
NOTABLE, TOO_FAR = 1e-3, 0.05  # differences of answers, as shares of their spread
QUICK = 0.5  # seconds: a teacher that is faster is timed on a whole batch


def compare_with_beginning(shards: Shards, asking: Asking, talk: Talk) -> None:
    """Keep what the teacher says about some noise when a store is begun, and compare whenever a job goes on with it.

    The same weights may answer differently on another GPU, or with other versions of libraries.
    """
    path, about = shards.folder / BEGINNING, {"store": shards.folder.name}
    answer = asking.teacher(noise(asking.teacher.spec).to(asking.device)).float()
    found = {"logits": answer.dense.cpu().numpy()}
    found |= {} if answer.feature is None else {"feature": answer.feature.cpu().numpy()}
    if not all(np.isfinite(rows).all() for rows in found.values()):
        raise UserError("the teacher's answer to plain noise is not a number; are its weights whole?")
    publish(path, lambda part: part.write_bytes(files.encode(found, about)), once=True)
    began = files.read(path, about)
    share = max(furthest(found[name], began[name]) for name in found)
    if share > TOO_FAR:
        raise UserError(
            f"{shards.folder} was begun by a teacher whose answers to the same frames are {percent(share)} of their "
            "spread away from those here; go on where it was begun, or take another cache.folder"
        )
    if share > NOTABLE:
        talk.warn(f"the teacher answers differently from when this cache began: by {percent(share)} of the spread")


def furthest(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference between two answers, as a share of their spread."""
    return float(np.abs(one - other).max() / max(float(other.std()), 1e-12))


def noise(spec: ClipSpec) -> Clips:
    """The same clips on every machine, and with every version of every library."""
    shape = (CLIPS, spec.frames, 3, spec.size, spec.size)
    words = np.random.Philox(key=number("beginning", *shape)).random_raw(-(-int(np.prod(shape)) // 8))
    frames = words.astype("<u8").view(np.uint8)[: int(np.prod(shape))].reshape(shape)
    place = torch.arange(CLIPS)
    return Clips(frames=torch.from_numpy(frames), label=torch.full((CLIPS,), -1), index=place, view=place)


def expect(asking: Asking, frames: Frames, numbers: list[int], todo: int, workers: int, world: int) -> str:
    """The size of what will be kept, and the time it will take, as measured on one clip in the views of a record."""
    for clip in range(len(asking.clips.manifest.clips)):
        try:
            reading, views = _timed(frames.get, clip, numbers)
            break
        except ClipError:
            continue
    else:
        return "none of the clips can be read"
    shown = [torch.from_numpy(view) for view in views[:1]]
    asking.ask(shown)
    teaching, answer = _timed(asking.ask, shown)
    if teaching < QUICK:
        seconds, _ = _timed(asking.ask, shown * asking.batch)
        teaching = seconds / asking.batch
    each = sum(rows.nbytes for rows in asking.pack(answer, unseen(1)).values())
    looks = len(numbers) if asking.options.test_clips else 1
    teaching *= looks
    reading *= looks / len(numbers) / max(1, min(workers, cores()))
    # On a CPU readers and teacher take turns on the same cores; beside a GPU they work at once.
    record = teaching + reading if asking.device.type == "cpu" else max(teaching, reading)
    line = (
        f"{each:,} bytes each, {size(each * todo)}; about {duration(todo * record / world)} "
        f"(answering {1 / teaching:.3g} a second, reading {1 / reading:.3g} a second"
        + (f", {world} processes)" if world > 1 else ")")
    )
    return line + _effect(asking, shown, answer)


def _effect(asking: Asking, shown: list[torch.Tensor], answer: TeacherOutput) -> str:
    """What autocast does to the logits."""
    teacher = asking.teacher
    if teacher.autocast is None:
        return ""
    rough, teacher.autocast = teacher.autocast, None
    exact = asking.ask(shown)
    teacher.autocast = rough
    one, other = answer.dense.float().cpu().numpy(), exact.dense.cpu().numpy()
    same = "same" if one.argmax() == other.argmax() else "another"
    return (
        f"; {str(rough).removeprefix('torch.')} moves a logit by at most {np.abs(one - other).max():.2g} "
        f"({percent(furthest(one, other))} of their spread, {same} top-1)"
    )


def _timed(work: Callable[..., Any], *given: object) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, done


def size(count: float) -> str:
    """So many bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.2g} seconds"
