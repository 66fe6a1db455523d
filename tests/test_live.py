"""`distill live` as a person meets it: a video goes in, an annotated one and a table of predictions come out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from scipy.special import softmax
from test_live_feed import Scripted, gives
from test_live_parts import FakeCv2, with_cv2
from videos import pictures, write

from distill.clips import motion
from distill.clips.decode import read_frames
from distill.clips.frames import DecodedFrames
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.views import PLAIN, ViewOptions, cut
from distill.command import dispatch
from distill.deploy.recogniser import Recogniser, open_any
from distill.hub import DistilledStudent
from distill.live import showing
from distill.live.feed import Feed
from distill.live.request import Options
from distill.live.sight import ClipSight, FrameSight
from distill.live.sources import open_source
from distill.outputs import ClipSpec

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["left", "right", "up"]
STREAM = {"name": "tsn", "backbone": "test_resnet", "frames": 8, "size": 32, "shift": "online"}


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that can go frame by frame, with chance weights."""
    folder = tmp_path_factory.mktemp("streaming")
    DistilledStudent(STREAM, CLASSES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 3 seconds, 10 frames a second."""
    path = tmp_path_factory.mktemp("drawn") / "drawn.mp4"
    motion.encode(motion.draw(motion.Drawing(frames=30, speed=0.9, drift=0.15), "drawn", "left", "test"), path)
    return path


def seen(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def live(model: Path, source: Path | str, out: Path, *more: str) -> list[dict[str, Any]]:
    """Run it headless; the predictions."""
    assert dispatch(["live", f"model={model}", f"source={source}", "headless=true", f"out={out}", *more]) == 0
    return seen(out)


def test_end_to_end(
    tmp_path: Path, drawn: Path, tiny_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_run("tiny")
    rows = live(model, drawn, tmp_path / "out", "seconds=1.2", "every=0.3", "smoothing=0.7", "top=9")
    printed = capsys.readouterr().out
    assert f"{model} (tinyact, torch fp32, 2 classes, 8 frames of 1.2 s) looks at {drawn}" in printed
    for figure in ("frames ", "predictions", "frames_per_second", "latency_ms.p90", "dropped", "reconnects"):
        assert figure in printed

    with av.open(str(tmp_path / "out" / "live.mp4")) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == 30
    assert (shown[0].width, shown[0].height) == (384, 384)  # 48 x 8
    assert [frame.time for frame in shown] == pytest.approx([number / 10 for number in range(30)], abs=1e-4)
    original = read_frames(drawn)[20]
    corner = np.array(shown[20].to_ndarray(format="rgb24")[100:200, 300:], float).mean((0, 1))
    assert corner == pytest.approx(original[12:25, 37:].mean((0, 1)), abs=12)  # the picture itself, where no panel is

    assert [row["frame"] for row in rows] == [11, 14, 17, 20, 23, 26, 29]
    assert [row["seconds"] for row in rows] == pytest.approx([row["frame"] / 10 for row in rows])
    recogniser = open_any(model)
    frames = read_frames(drawn)
    answers = []
    for row in rows:
        window = frames[row["frame"] - 11 : row["frame"] + 1]
        clip = cut(PLAIN, [window[int((i + 0.5) * 12 / 8)] for i in range(8)], recogniser.card.size)
        answers.append(softmax(recogniser.clip(np.ascontiguousarray(clip.transpose(0, 2, 3, 1)))))
    for count, row in enumerate(rows, start=1):
        past = np.exp(-(row["seconds"] - np.array([other["seconds"] for other in rows[:count]])) / 0.7)
        expected = np.diff(past, prepend=0) @ np.array(answers[:count])
        found = {item["class"]: item["probability"] for item in row["top"]}
        assert [found[name] for name in recogniser.card.classes] == pytest.approx(expected, abs=2e-6)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert row["source"] == str(drawn)
        assert row["dropped"] == 0
        assert row["latency_ms"] >= row["inference_ms"] > 0


KINDS = [("a.mp4", 20, 48, 64, "libx264"), ("a.mkv", 31, 64, 48, "libx264"), ("a.avi", 7, 40, 40, "mpeg4"),
         ("a.webm", 50, 36, 64, "libvpx-vp9")]  # fmt: skip


@pytest.mark.parametrize(("name", "count", "height", "width", "codec"), KINDS)
def test_it_sees_what_evaluation_sees(
    name: str, count: int, height: int, width: int, codec: str, tmp_path: Path, streaming: Path
) -> None:
    """The whole of a file, as a clip and frame by frame, against the clip set's view 0: the same pixels, so the same
    logits."""
    path = write(tmp_path / name, pictures(count, width, height), codec=codec)
    clip = Clip(id="a", path=str(path), label=0, split="test", facts=look(path))
    decoded = DecodedFrames(Manifest((clip,), ("a", "b")), ViewOptions(), ClipSpec(8, 32))
    plain = decoded.get(0, [0])[0].transpose(0, 2, 3, 1)
    whole, stream = ClipSight(8, 32, count / 25, 0.0), FrameSight(8, 32, count / 25)
    source = open_source(Options(source=str(path)), CLASSES, pytest.fail)
    with Feed(source, waits=True, pace=False, silence=9, reconnect=0, tell=pytest.fail) as feed:
        asked, fed = [], []
        while not feed.over:
            if (frame := feed.get(1)) is not None:
                asked += whole.see(frame, busy=False)
                fed += stream.see(frame, busy=False)
    (question,) = asked
    assert (question.pixels == plain).all()
    assert (np.stack([step.pixels for step in fed]) == plain).all()
    clipwise, framewise = open_any(streaming), open_any(streaming, "stream")
    logits = clipwise.clip(question.pixels)
    assert (logits == clipwise.clip(np.ascontiguousarray(plain))).all()
    assert [framewise.frame(step.pixels) for step in fed][-1] == pytest.approx(logits, abs=1e-4)


def test_frame_by_frame(tmp_path: Path, drawn: Path, streaming: Path) -> None:
    """At the trained rate; each file of a folder starts anew."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(drawn.read_bytes())
    rows = live(streaming, folder, tmp_path / "out", "form=stream", "seconds=3", "smoothing=0")
    assert [row["source"] for row in rows] == ["a.mp4"] * 8 + ["b.mp4"] * 8
    assert [row["frame"] for row in rows[:8]] == [1, 5, 9, 13, 16, 20, 24, 28]
    assert [row["seconds"] for row in rows[8:]] == pytest.approx([3 + row["seconds"] for row in rows[:8]])
    assert [row["top"] for row in rows[8:]] == [row["top"] for row in rows[:8]]


def test_a_short_video_is_recognised_at_its_end(tmp_path: Path, drawn: Path, streaming: Path) -> None:
    (row,) = live(streaming, drawn, tmp_path / "out", "seconds=60")
    assert row["frame"] == 29


def test_it_stops_when_it_has_seen_enough(tmp_path: Path, streaming: Path) -> None:
    rows = live(streaming, "demo", tmp_path / "a", "most_frames=25", "every=0")
    assert [row["frame"] for row in rows] == [19, 20, 21, 22, 23, 24]
    rows = live(streaming, "demo", tmp_path / "b", "most_seconds=2.2", "every=0")
    assert [row["frame"] for row in rows] == [19, 20, 21]
    assert {row["source"] for row in rows} == {"left"}


def test_a_window_shows_it_in_time(
    monkeypatch: pytest.MonkeyPatch, drawn: Path, streaming: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the model in a thread of its own, until a key is pressed; nothing is written."""
    fake = with_cv2(monkeypatch, FakeCv2([-1] * 60 + [ord("q")]))
    assert dispatch(["live", f"model={streaming}", f"source={drawn}", "seconds=1", "form=stream"]) == 0
    assert 1 <= len(fake.shown) <= 30
    assert fake.shown[0].shape == (384, 384, 3)
    assert "written" not in capsys.readouterr().out
    assert fake.calls[-1] == ("close",)


def test_a_window_lives_while_its_camera_is_lost(monkeypatch: pytest.MonkeyPatch, streaming: Path) -> None:
    """The last picture stays, and says what is wrong, until somebody has had enough."""
    fake = with_cv2(monkeypatch, FakeCv2([-1] * 6 + [27]))
    camera = Scripted(gives(3, "broke off"))
    monkeypatch.setattr(showing, "open_source", lambda *_: camera)
    assert dispatch(["live", f"model={streaming}", "source=0"]) == 0
    assert len(fake.shown) > 3
    assert (fake.shown[0][60:] == fake.shown[-1][60:]).all()
    assert not (fake.shown[0][:60] == fake.shown[-1][:60]).all()


def test_a_file_passes_as_it_was_filmed(tmp_path: Path, drawn: Path, streaming: Path) -> None:
    """With the model in its thread: what is too much is dropped, and counted."""
    options = Options(str(streaming), str(drawn), headless=True, out=str(tmp_path / "out"), realtime=True, seconds=1)
    figures = showing.live(options)
    assert figures["frames"] + figures["dropped"] == 30
    rows = seen(tmp_path / "out")
    assert len(rows) == figures["predictions"] >= 1
    times = [row["seconds"] for row in rows]
    assert times == sorted(set(times))
    assert figures["frames_per_second"] < 11


def test_a_model_that_fails_in_its_thread_is_no_silence(
    tmp_path: Path, drawn: Path, streaming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = open_any(streaming).card
    monkeypatch.setattr(showing, "open_any", lambda *_: Recogniser(card, lambda given: [1 / 0]))
    options = Options(str(streaming), str(drawn), headless=True, out=str(tmp_path), realtime=True, seconds=60)
    with pytest.raises(ZeroDivisionError):
        showing.live(options)
    assert (tmp_path / "live.mp4").exists()


WRONG = {
    "source=nowhere.mp4": "source=nowhere.mp4: there is no such file or folder",
    f"source={__file__}": "test_live.py is not a video that can be opened",
    "source=97": "webcam 97 cannot be opened; is it there",
    "source=http://127.0.0.1:9/a": "http://127.0.0.1:9/a cannot be opened (Connection refused)",
    "source=demo evry=3": "there is no key 'evry'; did you mean 'every'?",
    "source=demo top=0": "top is 0; it is at least 1",
    "source=demo every=nan": "every is nan; it is at least 0",
    "source=demo silence=0": "silence is 0.0; it is above 0",
    "source=demo form=encoder": "form is 'encoder'; it is whole or stream",
    "source=0 realtime=false": "realtime=false is for files",
    "source=demo out=''": "say where the answers go: out=FOLDER",
    "form=whole": "source= is missing",
    "source=demo loud": "'loud' is not key=value",
    "source=demo model=nowhere": "model=nowhere: there is no such file or folder",
    "source=demo model=.": "holds no finished student",
}


@pytest.mark.parametrize("given", WRONG)
def test_what_is_wrong_is_one_line(
    given: str, tmp_path: Path, streaming: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dispatch(["live", f"model={streaming}", "headless=true", "out=out", *given.split()]) == 2
    error = capsys.readouterr().err
    assert WRONG[given] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, streaming: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live(streaming, "demo", tmp_path, "most_frames=3")
    before = (tmp_path / "predictions.jsonl").read_bytes()
    given = ["live", f"model={streaming}", "source=demo", "headless=true", f"out={tmp_path}"]
    assert dispatch(given) == 2
    assert "live.mp4 is there already; choose another out=" in capsys.readouterr().err
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_exports_are_taken_as_they_are(
    streaming: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder knows no classes, and a file keeps the form it was exported in."""
    whole = open_any(streaming)

    def exported(form: str) -> None:
        card = replace(whole.card, form=form)
        monkeypatch.setattr(showing, "open_any", lambda *_: Recogniser(card, whole.session))

    for form, asked, told in (
        ("encoder", "", "is an encoder, which gives latents and no classes; export the student with form=whole"),
        ("whole", "form=stream", "was exported with form=whole; leave form= away"),
    ):
        exported(form)
        given = ["live", f"model={streaming}", "source=demo", "headless=true", "out=nowhere", asked]
        assert dispatch([argument for argument in given if argument]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path, streaming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 frames as they are shown would be 180 MB."""
    resident: list[int] = []

    class Watched(showing.Meter):
        def frame(self) -> None:
            super().frame()
            if self.frames % 100 == 0:
                resident.append(psutil.Process().memory_info().rss)

    monkeypatch.setattr(showing, "Meter", Watched)
    live(streaming, "demo", tmp_path / "out", "most_frames=700", "every=0")
    assert len(resident) == 7
    assert max(resident[3:]) - resident[2] < 30e6


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_session_that_is_stopped(sent: signal.Signals, tmp_path: Path, streaming: Path) -> None:
    """Ctrl-C is how it ends; a kill loses the last line and the last seconds."""
    out = tmp_path / "out"
    given = [f"model={streaming}", "source=demo", "headless=true", f"out={out}", "every=0", "realtime=false"]
    command = [sys.executable, "-m", "distill.live", *given]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as session:
        until = time.monotonic() + 120
        while not (out / "predictions.jsonl").exists() or (out / "predictions.jsonl").read_bytes().count(b"\n") < 60:
            assert session.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(session.pid, sent)
        said, _ = session.communicate(timeout=60)
    kept = "live.mp4" if sent == signal.SIGINT else ".live.mp4.part"
    assert {path.name for path in out.iterdir()} == {"predictions.jsonl", kept}
    with av.open(str(out / kept), format="mp4") as container:
        frames = sum(1 for _ in container.decode(video=0))
    lines = (out / "predictions.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert [row["frame"] for row in rows] == list(range(19, 19 + len(rows)))
    if sent == signal.SIGINT:
        assert session.returncode == 0, said
        assert "Traceback" not in said
        assert "written" in said
        assert frames == 19 + len(rows)
    else:
        assert frames > 30
