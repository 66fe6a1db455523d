"""The clips job: looks once at every file, makes copies, goes on after a kill, and says what a person can act on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from videos import cut_without_decoding, pictures, turn, write, write_sound

from distill import command, plugins
from distill.clips import survey
from distill.clips.clipset import ClipOptions, file_index, list_clips, open_clips, open_manifest, with_facts
from distill.clips.decode import read_frames
from distill.clips.facts import Facts, stamp
from distill.clips.index import Index
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.prepare import Copies, fitted
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.recipe import Recipe, read_recipe

FRAMES = pictures(40, 96, 64)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of seven clips; some of them awkward."""
    folder = tmp_path / "data"
    for label, name in enumerate(("clap", "wave")):
        (folder / name).mkdir(parents=True)
        for take in range(7):
            write(folder / name / f"{take}.mp4", pictures(40, 96, 64, seed=10 * label + take))
    return folder


def arguments(data: Path, *more: str) -> list[str]:
    out = [f"out={data.parent / 'run'}", f"cache.folder={data.parent / 'cache'}"]
    return ["recipe=videos", f"clips.source.folder={data}", *out, "clips.workers=2", *more]


def recipe(data: Path, *more: str) -> Recipe:
    return read_recipe(arguments(data, *more))


def open_for(made: Recipe) -> Manifest:
    return open_manifest(made.clips, Path(made.cache.folder), made.seed)


def run(data: Path, *more: str) -> None:
    assert command.run("clips", arguments(data, *more)) == 0


# ---------------------------------------------------------------- looking


def test_training_needs_the_look_and_says_which_command_makes_it(data: Path, capsys: Capture) -> None:
    assert command.run("train", arguments(data)) == 2
    assert "14 of 14 clips have not been looked at yet; run: distill clips with the same" in capsys.readouterr().err
    run(data)
    assert all(clip.facts and clip.facts.frames == 40 for clip in open_for(recipe(data)).clips)


def test_files_are_looked_at_once_and_again_when_they_change(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(survey, "look", lambda path: (looked.append(path), look(path))[1])
    run(data, "clips.workers=0")
    assert len(looked) == 14
    before = open_for(recipe(data)).keys.tolist()
    run(data, "clips.workers=0")
    assert len(looked) == 14
    write(data / "clap" / "3.mp4", FRAMES[:30])
    write(data / "clap" / "new.mp4", FRAMES[:20])
    run(data, "clips.workers=0")
    assert [Path(path).name for path in looked[14:]] == ["3.mp4", "new.mp4"]
    found = {clip.id: clip for clip in open_for(recipe(data)).clips}
    assert found["clap/3.mp4"].span == range(30)
    assert open_for(recipe(data)).keys.tolist() != before


def test_the_content_of_a_file_is_part_of_the_manifest_s_name(data: Path) -> None:
    """Caches hang on it: the same names with other pictures are other clips."""
    run(data)
    before = open_for(recipe(data)).keys.tolist()
    os.utime(data / "clap" / "3.mp4", (1, 1))
    run(data)
    assert open_for(recipe(data)).keys.tolist() == before  # touched, not changed
    write(data / "clap" / "3.mp4", FRAMES)
    run(data)
    assert open_for(recipe(data)).keys.tolist() != before


def test_the_summary_names_what_to_do(data: Path, capsys: Capture) -> None:
    (data / "clap" / "1.mp4").write_bytes(b"")
    write_sound(data / "wave" / "2.mp4")
    write(data / "wave" / "big.mp4", pictures(8, 640, 480))
    run(data, "clips.workers=1")
    said = capsys.readouterr().out
    assert "folder: 15 clips of 2 classes" in said
    assert "broken: 2" in said
    assert f"{data}/clap/1.mp4  is empty" in said
    assert f"{data}/wave/2.mp4  holds no video stream" in said
    assert "1 of 13 files are larger than 256 pixels need" in said
    assert "prepare=true makes the copies" in said
    assert str(data.parent / "cache" / "index" / "folder.jsonl") in said


def test_a_file_that_hangs_its_reader_is_broken_and_the_rest_goes_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: str) -> Facts:
        while path.endswith("wave/4.mp4"):
            time.sleep(0.1)
        if path.endswith("clap/6.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return look(path)

    monkeypatch.setattr(survey, "look", hang)
    run(data, "clips.timeout=6")
    facts = {clip.id: clip.facts for clip in with_facts(*listed(recipe(data))).clips}
    broken = {name: fact.trouble for name, fact in facts.items() if fact and fact.trouble}
    assert broken == {
        "wave/4.mp4": "hangs or kills its reader (nothing came for 6 s)",
        "clap/6.mp4": "hangs or kills its reader (a worker died)",
    }
    assert sum(fact is not None for fact in facts.values()) == 14


def listed(made: Recipe) -> tuple[Manifest, Index]:
    return list_clips(made.clips), file_index(Path(made.cache.folder), made.clips)


def test_a_killed_look_goes_on_where_it_was(data: Path) -> None:
    """kill -9 at moments of its own choosing: what was written stays, and a cut line counts as not written."""
    chance = np.random.default_rng(0)
    index = file_index(data.parent / "cache", recipe(data).clips)
    for _ in range(4):
        job = subprocess.Popen(
            [sys.executable, "-m", "distill.cli", "clips", *arguments(data)], stdout=subprocess.DEVNULL
        )
        time.sleep(3 + 2 * chance.random())
        job.send_signal(signal.SIGKILL)
        job.wait()
        if index.path.exists():
            text = index.path.read_text()
            index.path.write_text(text[: max(0, len(text) - int(chance.integers(40)))])
        before = index.read()
        assert all(facts.frames == 40 for facts in before.values())
    run(data)
    assert len(index.read()) == 14
    assert all(clip.facts and clip.facts.frames == 40 for clip in open_for(recipe(data)).clips)


def test_the_index_keeps_everything(tmp_path: Path) -> None:
    index = Index(tmp_path / "sub" / "index.jsonl")
    assert index.read() == {}
    facts = Facts(frames=3, fps=29.97, avoid={"decord": "is slow"}, times=(0.0, 0.5, 0.6), trouble='odd "quotes", ž')
    with index.adding() as add:
        add("/x/a", Facts())
        add("/x/a", facts)
    with index.path.open("ab") as stream:
        stream.write(b'\xff\xfe\x00 noise\n{"path": "/x')
    with index.adding() as add:
        add("c\udce9", Facts(frames=1))
    assert set(index.read()) == {"/x/a", "c\udce9"}
    assert index.read()["/x/a"] == facts


def test_the_state_of_files_and_folders(tmp_path: Path) -> None:
    assert stamp(str(tmp_path / "missing")) == ""
    (tmp_path / "a").write_text("a")
    first = stamp(str(tmp_path)), stamp(str(tmp_path / "a"))
    (tmp_path / "a").write_text("b")  # in place: the folder itself does not change
    os.utime(tmp_path / "a", (5e9, 5e9))
    assert stamp(str(tmp_path)) != first[0]
    assert stamp(str(tmp_path / "a")) != first[1]


# ---------------------------------------------------------------- copies


def test_copies_are_small_quick_and_the_same_clip(data: Path) -> None:
    write(data / "clap" / "0.mp4", pictures(40, 640, 480))
    write_sound(data / "wave" / "6.mp4")
    turn(write(data / "wave" / "turned.mp4", pictures(20, 320, 200)), 1)
    run(data, "prepare=true", "short_side=128")
    made = recipe(data, "clips.prepare=true", "clips.short_side=128", "clips.failing=1")
    plain, copies = open_for(recipe(data)), open_for(made)
    assert [clip.id for clip in plain.clips] == [clip.id for clip in copies.clips]
    assert plain.keys.tolist() != copies.keys.tolist()
    for before, after in zip(plain.clips, copies.clips, strict=True):
        if before.broken:
            assert after == before
            continue
        assert before.facts
        assert after.facts
        assert after.path.startswith(str(data.parent / "cache" / "prepared" / "video-128-1"))
        assert after.facts.frames == before.facts.frames
        assert min(after.facts.width, after.facts.height) <= 128
        assert after.facts.rotation == 0
        assert after.facts.skips
        here, there = read_frames(before.path, [7]), read_frames(after.path, [7], facts=after.facts)
        assert (there.shape[1] > there.shape[2]) == (here.shape[1] > here.shape[2])
        if here.shape == there.shape:
            assert np.abs(here.astype(int) - there).mean() < 12
        with av.open(after.path) as container:
            (stream,) = container.streams  # no sound
            assert not stream.codec_context.has_b_frames
            keys = [place for place, packet in enumerate(container.demux()) if packet.size and packet.is_keyframe]
        assert max(np.diff([*keys, after.facts.frames])) <= 16


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_copies_of_pictures(data: Path, form: str) -> None:
    run(data, "prepare=true", f"frames={form}", "short_side=32")
    made = recipe(data, "clips.prepare=true", f"clips.frames={form}", "clips.short_side=32")
    plain, copies = open_for(recipe(data)), open_for(made)
    for before, after in zip(plain.clips, copies.clips, strict=True):
        frames = read_frames(after.path, [0, 39], facts=after.facts)
        assert frames.shape == (2, 32, 48, 3)
        whole = read_frames(before.path, [0, 39]).reshape(2, 32, 2, 48, 2, 3).mean((2, 4))
        assert np.abs(frames - whole).mean() < 20


def test_a_copy_holds_its_clip_s_span_only(tmp_path: Path) -> None:
    path = cut_without_decoding(write(tmp_path / "whole.mp4", FRAMES, options={"g": "9"}), tmp_path / "cut.mp4", 4)
    clip = Clip("a/../b", str(path), 0, "train", start=0.4, end=1.0, facts=look(path))
    copies = Copies(tmp_path, "raw", 64)
    facts = copies.make(clip)
    path_of_copy = copies.folder / copies.name(clip)
    assert ".." not in str(path_of_copy)
    assert facts.frames == len(clip.span) == 15
    assert np.array_equal(read_frames(path_of_copy), read_frames(path, clip.span))


def test_copies_are_made_once_and_again_when_the_file_changes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = Copies.make
    monkeypatch.setattr(Copies, "make", lambda copies, clip: (made.append(clip.id), make(copies, clip))[1])
    run(data, "prepare=true", "clips.workers=0")
    assert len(made) == 14
    run(data, "prepare=true", "clips.workers=0")
    assert len(made) == 14
    write(data / "clap" / "3.mp4", FRAMES)
    run(data, "clips.workers=0")
    with pytest.raises(UserError, match=r"1 of 14 clips have no copy in .*; run: distill clips .* prepare=true"):
        open_for(recipe(data, "clips.prepare=true"))
    run(data, "prepare=true", "clips.workers=0")
    assert made[14:] == ["clap/3.mp4"]
    open_for(recipe(data, "clips.prepare=true"))


def test_copies_that_were_deleted_are_made_again(data: Path) -> None:
    run(data, "prepare=true", "clips.workers=0")
    made = recipe(data, "clips.prepare=true")
    gone = [Path(clip.path) for clip in open_for(made).clips[:3]]
    for path in gone:
        path.unlink()
    run(data, "prepare=true", "clips.workers=0")
    assert all(path.exists() for path in gone)


def test_clips_of_one_name_have_copies_of_their_own(tmp_path: Path) -> None:
    """Of one data set and of two: `..` is written otherwise, and another folder may have the same names."""
    copies, made = Copies(tmp_path, "raw", 32), set()
    for number, name in enumerate(("a..b", "a__b", "a..b")):
        path = write(tmp_path / f"{number}.mp4", pictures(4, seed=number))
        clip = Clip(name, str(path), 0, "train", facts=look(path))
        assert copies.make(clip).frames == 4
        made.add(copies.name(clip))
    assert len(made) == 3
    assert all((copies.folder / name).exists() for name in made)


def test_a_full_disk_stops_the_job_and_condemns_no_clip(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Copies, "_write", full)
    assert command.run("clips", arguments(data, "prepare=true", "clips.workers=0")) == 2
    monkeypatch.undo()
    run(data, "prepare=true", "clips.workers=0")
    assert not any(clip.broken for clip in open_for(recipe(data, "clips.prepare=true")).clips)


def test_a_disk_that_failed_is_asked_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.clips import looking

    def fails(path: object) -> Facts:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(looking, "_look", fails)
    run(data, "clips.workers=0")
    assert all(clip.broken for clip in with_facts(*listed(recipe(data))).clips)
    monkeypatch.undo()
    run(data, "clips.workers=0")
    assert not any(clip.broken for clip in open_for(recipe(data)).clips)


def test_sizes_of_copies() -> None:
    assert fitted(340, 256, 128) == (170, 128)
    assert fitted(1280, 720, 256) == (456, 256)
    assert fitted(720, 1280, 256) == (256, 456)
    assert fitted(100, 51, 256) == (100, 52)
    assert fitted(1, 1, 256) == (2, 2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("clips.frames=png", "clips.frames is 'png'; known: video, jpeg, raw"),
        ("clips.short_side=3", "clips.short_side is 3"),
        ("clips.decoder=opencv", "clips.decoder is 'opencv'"),
        ("clips.timeout=0", "clips.timeout is 0"),
        ("clips.failing=2", "clips.failing is 2"),
        ("clips.missing=-1", "clips.missing is -1"),
        ("clips.validation=1", "clips.validation is 1"),
        ("clips.per_class.train=9", "clips.per_class.train is 9, but class 'clap' has only"),
        ("clips.views.sampler=all", "clips.views.sampler is 'all'"),
    ],
)
def test_impossible_options_are_refused(data: Path, wrong: str, told: str, capsys: Capture) -> None:
    run(data)
    copies = "frames" in wrong or "short_side" in wrong
    assert command.run("train", arguments(data, f"clips.prepare={copies}", wrong)) == 2
    assert told in capsys.readouterr().err


# ---------------------------------------------------------------- choosing clips


def test_the_same_number_of_every_class(data: Path) -> None:
    run(data)
    chosen = open_for(recipe(data, "clips.per_class.train=3", "clips.per_class.test=1"))
    for split, each in (("train", 3), ("test", 1)):
        labels = [chosen.clips[i].label for i in chosen.of(split)]
        assert sorted(labels) == sorted([0, 1] * each)
    more = open_for(recipe(data, "clips.per_class.train=4", "clips.per_class.test=1"))
    assert {clip.id for clip in chosen.clips} < {clip.id for clip in more.clips}


def test_validation_takes_whole_recordings() -> None:
    clips = tuple(
        Clip(f"{label}/{group}/{take}", "", label, "train", group=f"{label}/{group}")
        for label in range(2)
        for group in range(10)
        for take in range(3)
    )
    held = Manifest(clips, ("a", "b")).hold_out(0.2)
    sides = {split: {held.clips[i].group for i in held.of(split)} for split in ("train", "val")}
    assert not sides["train"] & sides["val"]
    assert len(sides["val"]) == 4
    assert len(held.of("val")) == 12


def test_flips_need_a_counterpart_for_every_side(tmp_path: Path) -> None:
    sided = ["recipe=tiny", f"out={tmp_path}", "clips.views.flip=true", "clips.source.classes=[left,up]"]
    with pytest.raises(
        UserError, match=r"clips\.views\.flip would turn class 'left' into one that the data set has not"
    ):
        open_for(read_recipe(sided))
    open_for(read_recipe([*sided[:-1], "clips.source.classes=[left,right]"]))


def test_too_many_missing_files(data: Path) -> None:
    lines = [f"{data}/clap/{take}.mp4 0" for take in range(10)] + [f"{data}/wave/{take}.mp4 1" for take in range(7)]
    (data / "list.txt").write_text("\n".join(lines))
    source = plugins.schema("source", "csv")(train=str(data / "list.txt"), folder=str(data))
    found = list_clips(ClipOptions(source=source, missing=0.2))
    assert found.missing == {"train": 3}
    with pytest.raises(UserError, match=r"3 of the 17 train clips that csv lists have no file; .*clips\.missing"):
        list_clips(ClipOptions(source=source, missing=0.1))


def test_a_run_from_videos_to_report(data: Path) -> None:
    """Copies, several test views, a broken test clip, and a broken training clip, all in one run."""
    made = recipe(data)
    tests = [clip for clip in list_clips(made.clips).clips if clip.split == "test"]
    Path(tests[0].path).write_bytes(b"nothing")
    changes = ["clips.prepare=true", "clips.short_side=64", "clips.views.test_clips=2", "clips.views.test_crops=3"]
    small = ["train.steps=2", "train.batch=4", "student.size=16", "student.frames=4"]
    run(data, *changes)
    assert command.run("train", arguments(data, *changes, *small)) == 0
    summary = json.loads((data.parent / "run" / "summary.json").read_text())
    assert summary["unreadable"] == [tests[0].id]
    assert summary["test"]["top1"] <= (len(tests) - 1) / len(tests)
    assert tests[0].id not in (data.parent / "run" / "report.html").read_text()


def test_a_test_split_that_cannot_be_read_is_refused_before_the_first_step(data: Path, capsys: Capture) -> None:
    for clip in list_clips(recipe(data).clips).clips:
        if clip.split == "test":
            Path(clip.path).write_bytes(b"nothing")
    run(data)
    assert command.run("train", arguments(data)) == 2
    assert "none of the test clips can be read" in capsys.readouterr().err


def test_a_file_that_goes_bad_after_the_look_is_replaced_and_told(data: Path, capsys: Capture) -> None:
    run(data)
    train = [clip for clip in open_for(recipe(data)).clips if clip.split == "train"]
    Path(train[2].path).write_bytes(b"nothing")
    small = ["train.steps=6", "train.batch=4", "student.size=16", "student.frames=4", "clips.failing=0.2"]
    assert command.run("cache", arguments(data, *small, "cache.frames=true")) == 0
    said = capsys.readouterr().err
    assert said.count(f"{train[2].path} changed since distill clips looked at it; its record says so") == 1
    assert "1 clips gave no record" in said
    kept = ["cache.frames=true", f"out={data.parent / 'kept'}"]
    assert command.run("train", [*arguments(data, *small), *kept]) == 0
    assert json.loads((data.parent / "kept" / "summary.json").read_text())["replaced"] == [train[2].id]
    assert "could not be read when frames were cached; another clip takes its place" in capsys.readouterr().err
    assert command.run("train", arguments(data, *small)) == 0
    summary = json.loads((data.parent / "run" / "summary.json").read_text())
    assert summary["replaced"] == [train[2].id]
    said = capsys.readouterr().err
    assert said.count("another clip takes its place") == 1
    assert f"clip {train[2].id}: {train[2].path} changed since distill clips looked at it" in said


def test_facts_survive_without_the_file(data: Path) -> None:
    """A manifest is opened from lists and index alone: no video is touched before its first frame is needed."""
    run(data)
    opened: list[str] = []
    original = av.open
    try:
        av.open = lambda *given, **more: (opened.append(given[0]), original(*given, **more))[1]
        made = recipe(data)
        clips = open_clips(open_for(made), replace(made.clips, workers=0), ClipSpec(4, 32), None)
        assert not opened
        clips.frames.get(0, [0])
        assert len(opened) == 1
    finally:
        av.open = original
