"""Puts clips before a live teacher and packs what it says."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import log

import numpy as np
import torch

from distill.clips.batches import Heed, ignore
from distill.clips.clipset import ClipSet
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, TeacherOutput
from distill.run_log import percent
from distill.teaching.filling import Looked, Records
from distill.teaching.store import CacheOptions, pack
from distill.teaching.teacher import LiveTeacher

PIXELS = 4_000_000  # of frames that a teacher sees at once on a CPU, unless told otherwise
MOST_CLIPS = 32


class Asking:
    """Puts clips before the teacher, in batches that depend on nothing but the shard, and packs its answers."""

    def __init__(
        self, teacher: LiveTeacher, options: CacheOptions, clips: ClipSet, device: torch.device, heed: Heed = ignore
    ) -> None:
        """`heed` is told of clips about which the teacher's answer is no number."""
        self.teacher, self.options, self.clips, self.device, self.heed = teacher, options, clips, device, heed
        self.batch = options.batch or batch_for(clips.spec, device)
        self.right = self.asked = 0
        self.largest = options.largest(len(clips.manifest.classes))
        if options.compile:
            teacher.compile()

    def make(self, looked: Iterator[Looked], numbers: list[int]) -> Iterator[tuple[int, Records]]:
        """A shard's records, view by view."""
        parts: dict[int, list[Records]] = defaultdict(list)
        while chunk := tuple(itertools.islice(looked, self.batch)):
            for place, view in enumerate(numbers):
                parts[view].append(self._records(chunk, place))
        for view, records in parts.items():
            yield view, {name: np.concatenate([part[name] for part in records]) for name in records[0]}

    def _records(self, chunk: tuple[Looked, ...], place: int) -> Records:
        seen = np.stack([clip.seen[place].numpy() for clip in chunk])
        answer = self.soft_label(chunk) if self.options.test_clips else self.ask([clip.frames[place] for clip in chunk])
        self._count(answer, [clip.index for clip in chunk])
        fields = self.pack(answer, seen)
        self._sort_out(answer, fields, chunk)
        seen = fields["seen"]
        for rows in fields.values():
            rows[~seen.any(1)] = 0
        return fields

    def _sort_out(self, answer: TeacherOutput, fields: Records, chunk: tuple[Looked, ...]) -> None:
        """Mark records that are not finite as failed; numbers that only the storage is too small for are an error."""
        for name, rows in fields.items():
            if rows.dtype.kind != "f":
                continue
            for at in np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(1)).tolist():
                clip = self.clips.name(chunk[at].index)
                if all(bool(value[at].isfinite().all()) for value in values_of(answer)):
                    raise UserError(f"{clip}: its {name} are too large for {rows.dtype}; say cache.precision=float32")
                if fields["seen"][at].any():
                    self.heed({chunk[at].index: f"{clip}: the teacher's answer is not a number"})
                fields["seen"][at] = 0

    def pack(self, answer: TeacherOutput, seen: np.ndarray) -> Records:
        return pack(answer, seen, self.options.precision, self.largest)

    def soft_label(self, chunk: tuple[Looked, ...]) -> TeacherOutput:
        """The mean over all test views: of probabilities, of features, of maps."""
        answers = [self.ask([clip.frames[place] for clip in chunk]) for place in range(len(chunk[0].frames))]
        for answer in answers:
            answer.logits = answer.dense.float().log_softmax(-1)
        found = _merged(answers, lambda values: torch.stack(values).mean(0))
        return replace(found, logits=torch.logsumexp(torch.stack([a.dense for a in answers]), 0) - log(len(answers)))

    def ask(self, frames: list[torch.Tensor]) -> TeacherOutput:
        """About one view of some clips; in halves where the GPU's memory is too small for all of them."""
        number = torch.zeros(len(frames), dtype=torch.int64)
        clips = Clips(frames=torch.stack(frames), label=number - 1, index=number, view=number)
        try:
            answer: TeacherOutput = self.teacher(clips.to(self.device))
            return answer
        except torch.OutOfMemoryError:
            if len(frames) == 1:
                raise
        torch.cuda.empty_cache()
        self.batch = half = -(-len(frames) // 2)
        return _merged([self.ask(frames[:half]), self.ask(frames[half:])], torch.cat)

    def _count(self, answer: TeacherOutput, index: list[int]) -> None:
        label = np.array([self.clips.manifest.clips[i].label for i in index])
        self.asked += int((label >= 0).sum())
        self.right += int((answer.dense.argmax(-1).cpu().numpy() == label).sum())

    def news(self) -> str:
        return f"top-1 {percent(self.right / self.asked)}" if self.asked else ""


def values_of(answer: TeacherOutput) -> list[torch.Tensor]:
    return [answer.dense, *([] if answer.feature is None else [answer.feature]), *answer.maps.values()]


def _merged(answers: list[TeacherOutput], merge: Callable[[list[torch.Tensor]], torch.Tensor]) -> TeacherOutput:
    features = [answer.feature for answer in answers if answer.feature is not None]
    return TeacherOutput(
        logits=merge([answer.dense for answer in answers]),
        feature=merge(features) if features else None,
        maps={name: merge([answer.maps[name] for answer in answers]) for name in answers[0].maps},
    )


def batch_for(spec: ClipSpec, device: torch.device) -> int:
    """Clips that fit a laptop's memory; a GPU has room for more."""
    fit = PIXELS * (1 if device.type == "cpu" else 8) // (spec.frames * spec.size**2)
    return max(1, min(MOST_CLIPS, fit))
