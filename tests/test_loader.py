"""From clips to batches: the same bytes whoever loads them, and a plain account of clips that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from videos import pictures, write

from distill.clips.batches import Failures, Plan, evaluation_batches, ignore, load, on_device, training_batches
from distill.clips.clipset import ClipOptions, ClipSet
from distill.clips.facts import Facts
from distill.clips.frames import ClipError, DecodedFrames
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.views import ViewOptions
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec

SPEC = ClipSpec(4, 32)
COUNT = 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("clips")
    clips = []
    for number in range(COUNT):
        path = write(folder / f"{number}.mp4", pictures(20 + number, seed=number), options={"g": "8"})
        split = "train" if number < 9 else "test"
        clips.append(Clip(f"clip/{number}", str(path), number % 3, split, facts=look(path)))
    return Manifest(tuple(clips), ("left", "right", "still"), mirrored={0: 1, 1: 0})


def clip_set(manifest: Manifest, workers: int = 0, **options: Any) -> ClipSet:
    chosen = ClipOptions(workers=workers, timeout=60, **options)
    return ClipSet(manifest, SPEC, chosen, DecodedFrames(manifest, chosen.views, SPEC))


def plan(clips: ClipSet, batch: int = 4, parts: int = 1) -> Plan:
    chosen = clips.training()
    labelled = [clips.manifest.clips[i].label >= 0 for i in chosen]
    return Plan(chosen, labelled, batch, parts, clips.options.views, seed=3)


def train(
    clips: ClipSet, steps: range = range(6), rank: int = 0, world: int = 1, said: list[str] | None = None
) -> list[Clips]:
    chosen = plan(clips, parts=world)
    most = clips.options.failing * len(chosen.indices) / world
    failures = Failures((said if said is not None else []).append, "another clip takes its place", most)
    return list(training_batches(clips, chosen, steps, rank, world, failures))


def same(one: Clips, other: Clips) -> bool:
    assert one.colour is other.colour is one.blend is other.blend is None
    names = vars(one).keys() - {"colour", "blend"}
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def spoil(manifest: Manifest, folder: Path, *numbers: int, known: bool = False) -> Manifest:
    """The manifest with clips whose files turn out to be no videos, or are known to be none."""
    nothing = folder / "nothing.mp4"
    nothing.write_bytes(b"this is no video")
    clips = list(manifest.clips)
    for number in numbers:
        facts = Facts(trouble="is no video") if known else replace(clips[number].facts, stamp="")
        clips[number] = replace(clips[number], path=str(nothing), facts=facts)
    return manifest.with_clips(clips)


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(manifest: Manifest, workers: int) -> None:
    options = {"views": ViewOptions(flip=True, saturation=0.2)}
    ours, theirs = train(clip_set(manifest, workers, **options)), train(clip_set(manifest, **options))
    assert len(ours) == 6
    assert all(map(same, ours, theirs))


def test_batches_do_not_depend_on_the_number_of_processes(manifest: Manifest) -> None:
    clips = clip_set(manifest)
    whole = train(clips)
    halves = [train(clips, rank=rank, world=2) for rank in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        for name in ("frames", "label", "index", "view", "label_weight"):
            assert torch.equal(getattr(one, name), torch.cat([getattr(first, name), getattr(second, name)])), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_all_processes_do_at_a_time_is_what_one_would_do_then(manifest: Manifest, accumulate: int) -> None:
    clips = clip_set(manifest)

    def indices(rank: int, world: int) -> list[list[int]]:
        chosen = plan(clips, batch=8, parts=world * accumulate)
        batches = training_batches(clips, chosen, range(2), rank, world, ignore)
        return [batch.index.tolist() for batch in batches]

    one, first, second = indices(0, 1), indices(0, 2), indices(1, 2)
    assert [len(part) for part in one] == [8 // accumulate] * 2 * accumulate
    assert one == [mine + yours for mine, yours in zip(first, second, strict=True)]


def test_a_run_may_be_taken_up_at_any_step(manifest: Manifest) -> None:
    clips = clip_set(manifest)
    assert all(map(same, train(clips)[4:], train(clips, range(4, 6))))


def test_every_epoch_shows_every_clip_once_in_another_order(manifest: Manifest) -> None:
    clips = clip_set(manifest)
    epochs = [[batch.index.tolist() for batch in train(clips, range(2 * e, 2 * e + 2))] for e in range(3)]
    seen = [[index for batch in epoch for index in batch] for epoch in epochs]
    assert all(len(set(order)) == 8 for order in seen)
    assert seen[0] != seen[1]


def test_frames_come_from_the_clip_s_span_of_its_file(manifest: Manifest) -> None:
    """Seconds 0.2 to 0.6 of a file of 25 frames a second: frames 5 to 14."""
    clip = replace(manifest.clips[0], start=0.2, end=0.6)
    assert clip.span == range(5, 15)
    part = DecodedFrames(manifest.with_clips([clip]), ViewOptions(), ClipSpec(10, 48)).get(0, [0])[0]
    whole = DecodedFrames(manifest, ViewOptions(), ClipSpec(20, 48)).get(0, [0])[0]
    assert np.array_equal(part, whole[5:15])


@given(st.integers(1, 500), st.floats(1, 60), st.floats(0, 100), st.floats(0.001, 100))
def test_a_span_is_never_empty_and_never_leaves_the_file(frames: int, fps: float, start: float, length: float) -> None:
    span = Facts(frames=frames, fps=fps).span(start, start + length)
    assert len(span) >= 1
    assert 0 <= span[0] <= span[-1] < frames
    assert Facts(frames=frames, fps=fps).span(0, None) == range(frames)


def test_one_decode_serves_teacher_and_student(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.clips import frames

    reads, read = [], frames.read_each
    monkeypatch.setattr(frames, "read_each", lambda *given: (reads.append(given), read(*given))[1])
    decoded = DecodedFrames(manifest, ViewOptions(), SPEC)
    teacher, student = decoded.render(1, [1, 2], [ClipSpec(16, 48), ClipSpec(8, 24)])
    assert len(reads) == 1
    assert (teacher.shape, student.shape) == ((2, 16, 3, 48, 48), (2, 8, 3, 24, 24))
    alone = DecodedFrames(manifest, ViewOptions(), ClipSpec(8, 24)).get(1, [1, 2])
    assert np.array_equal(student, alone)


def test_a_device_makes_the_same_colours(manifest: Manifest) -> None:
    options = ViewOptions(flip=True, light=0.3, saturation=0.5, hue=0.1)
    clips = clip_set(manifest, views=options)
    parts = [part for step in range(6) for part in plan(clips).step(step)]
    later = list(load(clips.uncoloured(), parts))
    for plain, left in zip(train(clips), later, strict=True):
        assert not torch.equal(plain.frames, replace(left, colour=None).frames)
        assert plain.seen is not None
        assert left.seen is not None
        assert torch.equal(left.seen[:, :16], plain.seen[:, :16])  # what was drawn
        assert not left.seen[:, 16:].any()  # no checksum of frames that are going to change
        assert same(plain, replace(on_device(left, torch.device("cpu")), seen=plain.seen))


# ---------------------------------------------------------------- labels with sides


def test_a_mirror_swaps_labels_that_have_a_side(manifest: Manifest) -> None:
    clips = clip_set(manifest, views=ViewOptions(flip=True))
    seen = {(int(i), int(v)): int(label) for batch in train(clips, range(16)) for i, v, label in columns(batch)}
    swapped = {key for key, label in seen.items() if label != manifest.clips[key[0]].label}
    from distill.clips.views import draw

    for key, label in seen.items():
        own = manifest.clips[key[0]].label
        flip = draw(clips.options.views, manifest.clips[key[0]].id, key[1]).flip
        assert label == (manifest.mirrored.get(own, own) if flip else own)
    assert swapped
    assert all(manifest.clips[index].label != 2 for index, _ in swapped)  # "still" has no side


def columns(batch: Clips) -> zip[tuple[Any, ...]]:
    return zip(batch.index, batch.view, batch.label, strict=True)


def test_without_flips_labels_stay(manifest: Manifest) -> None:
    for batch in train(clip_set(manifest), range(16)):
        assert batch.label.tolist() == [manifest.clips[i].label for i in batch.index]


# ---------------------------------------------------------------- clips that fail


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_another_clip_takes_its_place_and_is_told(manifest: Manifest, tmp_path: Path, workers: int) -> None:
    spoilt, said = spoil(manifest, tmp_path, 2, 5), list[str]()
    clips = clip_set(spoilt, workers, failing=0.5)
    batches = train(clips, said=said)
    assert all(len(batch) == 4 and not batch.failed.any() for batch in batches)
    seen = {int(index) for batch in batches for index in batch.index}
    assert not seen & {2, 5}
    assert len(said) == 2  # once each, though they were met in three epochs
    assert {line.split(":")[0] for line in said} == {"clip clip/2", "clip clip/5"}
    assert all("is not a video that can be opened" in line for line in said)
    assert all(map(same, batches, train(clip_set(spoilt, failing=0.5))))  # always the same substitutes


def test_a_substitute_has_a_label_where_the_failed_clip_had_one(manifest: Manifest, tmp_path: Path) -> None:
    clips = [replace(clip, label=-1) if number % 2 else clip for number, clip in enumerate(manifest.clips)]
    spoilt = spoil(manifest.with_clips(clips), tmp_path, 2, 5)
    for batch in train(clip_set(spoilt, failing=0.5), range(10)):
        assert torch.equal(batch.label >= 0, batch.label_weight > 0)


def test_too_many_failures_stop_the_run(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"[23] training clips cannot be read.*clips\.failing"):
        train(clip_set(spoil(manifest, tmp_path, 1, 2, 3), failing=0.2), range(20))
    with pytest.raises(UserError, match="no clip can be read in place of those that failed"):
        train(clip_set(spoil(manifest, tmp_path, *range(9)), failing=1.0))


def test_training_never_opens_a_clip_that_is_known_to_be_broken(manifest: Manifest, tmp_path: Path) -> None:
    clips = clip_set(spoil(manifest, tmp_path, 2, known=True), failing=0.2)
    assert 2 not in clips.training()
    assert all(2 not in batch.index for batch in train(clips))
    with pytest.raises(ClipError, match=r"clip clip/2: .* is no video"):
        clips.frames.get(2, [0])
    with pytest.raises(UserError, match=r"1 of 9 training clips cannot be read; run distill clips"):
        clip_set(spoil(manifest, tmp_path, 2, known=True), failing=0.1).training()


@pytest.mark.parametrize("known", [True, False])
def test_in_evaluation_a_failed_clip_is_marked_and_never_replaced(
    manifest: Manifest, tmp_path: Path, known: bool
) -> None:
    clips = clip_set(spoil(manifest, tmp_path, 10, known=known))
    (batch,) = evaluation_batches(clips, [9, 10, 11], 8)
    assert batch.index.tolist() == [9, 10, 11]
    assert batch.failed.tolist() == [False, True, False]
    assert not batch.frames[1].any()


def test_test_views_come_clip_by_clip(manifest: Manifest) -> None:
    clips = clip_set(manifest, views=ViewOptions(test_clips=2, test_crops=3))
    batches = list(evaluation_batches(clips, [9, 10, 11], 12))
    assert [batch.index.tolist() for batch in batches] == [[9] * 6 + [10] * 6, [11] * 6]
    assert batches[0].view.tolist() == [-1, -2, -3, -4, -5, -6] * 2
    assert len({batches[0].frames[i].numpy().tobytes() for i in range(6)}) == 6


# ---------------------------------------------------------------- hanging


def test_a_clip_that_hangs_its_worker_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from distill.clips import frames

    read: Callable[..., np.ndarray] = frames.read_each

    def hangs(path: str, *given: Any) -> np.ndarray:
        while path.endswith("/7.mp4"):
            time.sleep(0.1)
        return read(path, *given)

    monkeypatch.setattr(frames, "read_each", hangs)
    clips = clip_set(manifest, 2)
    clips.options.timeout = 5
    with pytest.raises(UserError, match=r"nothing came for 5 s while reading clip clip/7 \(.*7\.mp4\)"):
        train(clips, range(4))
