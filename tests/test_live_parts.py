"""The parts of `distill live`: what is chosen, kept, smoothed, drawn and written, each by itself."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill import plugins
from distill.checkpoint import build_student
from distill.clips import sampling
from distill.errors import UserError
from distill.live import panel, window
from distill.live.asking import Prediction, Smoothing, softmax
from distill.live.buffer import Buffer
from distill.live.feed import Frame, pause
from distill.live.meter import Meter
from distill.live.panel import LARGEST, Panel, enlarged
from distill.live.recording import Lines, Recording, Records
from distill.live.sight import MOST, SETTLED, ClipSight, FrameSight, chosen
from distill.live.webcam import Webcam

RATES = (5.0, 10.0, 12.5, 24.0, 25.0, 30000 / 1001, 30.0, 50.0)


def frames(count: int, fps: float, start: float = 0.0, stream: int = 1) -> list[Frame]:
    """Frames whose colour is their number."""
    pictures = (np.full((8, 8, 3), number % 256, np.uint8) for number in range(count))
    return [
        Frame(picture, number, start + number / fps, 1 / fps, stream, "", 0.0)
        for number, picture in enumerate(pictures)
    ]


# ---------------------------------------------------------------- buffer


def test_a_full_buffer_keeps_the_latest() -> None:
    buffer = Buffer[int](2)
    for item in range(5):
        buffer.put(item)
    assert buffer.dropped == 3
    buffer.close()
    buffer.put(9)
    assert not buffer.over
    assert [buffer.get(), buffer.get(), buffer.get()] == [3, 4, None]
    assert buffer.over
    assert Buffer[int](1).get(timeout=0.01) is None


def test_a_buffer_that_waits_loses_nothing() -> None:
    buffer = Buffer[int](2, waits=True)

    def make() -> None:
        for item in range(100):
            buffer.put(item)
        buffer.close()

    maker = threading.Thread(target=make)
    maker.start()
    found = []
    while (item := buffer.get()) is not None:
        found.append(item)
    maker.join()
    assert found == list(range(100))
    assert buffer.dropped == 0


def test_closing_lets_a_waiting_maker_go() -> None:
    buffer = Buffer[int](1, waits=True)
    buffer.put(0)
    maker = threading.Thread(target=buffer.put, args=(1,))
    maker.start()
    buffer.close()
    maker.join(10)
    assert not maker.is_alive()


# ---------------------------------------------------------------- what the model sees


@given(st.integers(1, 300), st.integers(1, 32), st.sampled_from(RATES), st.floats(0, 1e5))
def test_even_frames_are_chosen_as_the_plain_view_chooses(count: int, wanted: int, fps: float, start: float) -> None:
    """Whatever the time: also with those rounded to milliseconds, as some containers have them."""
    times = start + np.arange(count) / fps
    expected = sampling.uniform(0, count, wanted, count)
    assert (chosen(times, start + count / fps, count / fps, wanted) == expected).all()
    rounded = np.round(times, 3)
    assert (chosen(rounded, rounded[0] + count / fps, count / fps, wanted) == expected).mean() > 0.8


@given(st.integers(1, 200), st.integers(1, 16), st.sampled_from(RATES), st.floats(0, 1e5))
def test_a_stream_is_shown_the_frames_of_the_plain_view(count: int, wanted: int, fps: float, start: float) -> None:
    sight = FrameSight(wanted, 8, count / fps)
    shown = [question.frame.number for frame in frames(count, fps, start) for question in sight.see(frame, False)]
    assert shown == sampling.uniform(0, count, wanted, count).tolist()


@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=50))
def test_a_stream_keeps_its_rate_and_makes_up_for_nothing_twice(gaps: list[float]) -> None:
    """Frames that were dropped: their successor stands in once, and the rate is never above the trained one."""
    sight, seconds, shown = FrameSight(4, 8, 1.0), 0.0, 0
    for number, gap in enumerate(gaps):
        frame = Frame(np.zeros((8, 8, 3), np.uint8), number, seconds, 0.01, 1, "", 0.0)
        times = len(sight.see(frame, False))
        shown += times
        assert times <= 1
        assert shown <= math.ceil((seconds + 0.01) / 0.25)
        seconds += gap


@pytest.mark.parametrize("lasts", [1.0, 36000.0, 1e300])
def test_a_frame_that_lasts_is_not_shown_for_ever(lasts: float) -> None:
    sight = FrameSight(4, 8, 1.0)
    frame = Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, lasts, 1, "", 0.0)
    assert len(sight.see(frame, False)) == min(4 * lasts, SETTLED * 4)


def test_to_a_stream_a_frame_that_was_seen_so_often_is_nothing_new() -> None:
    torch.manual_seed(0)
    options = {"backbone": "mnasnet0_5", "frames": 4, "size": 32, "shift": "online"}
    student: Any = build_student(plugins.schema("student", "tsn")(**options), 3).eval()
    frame, state, said = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), student.initial_state(1), []
    with torch.no_grad():
        for _ in range(2 * SETTLED * 4):
            answer, state = student.step(frame, state)
            said.append(answer.logits)
    assert torch.equal(said[SETTLED * 4 - 1], said[-1])


def test_a_stream_of_a_moment_is_asked_about_at_its_end() -> None:
    sight = FrameSight(4, 8, 10.0)
    assert [question for frame in frames(3, 10.0) for question in sight.see(frame, False)] == []
    (question,) = sight.rest()
    assert question.frame.number == 2
    sight = FrameSight(4, 8, 0.4)
    assert [question for frame in frames(3, 10.0) for question in sight.see(frame, False)]
    assert sight.rest() == []


def test_a_clip_model_is_asked_every_so_often_about_the_latest_seconds() -> None:
    sight = ClipSight(count=4, size=8, seconds=2.0, every=0.5)
    asked = [question for frame in frames(50, 10.0) for question in sight.see(frame, False)]
    assert [question.frame.number for question in asked] == [19, 24, 29, 34, 39, 44, 49]
    assert asked[2].pixels[:, 0, 0, 0].tolist() == [12, 17, 22, 27]  # of the frames 10 to 29
    assert sight.rest() == []
    busy = ClipSight(count=4, size=8, seconds=2.0, every=0.5)
    late = [question for frame in frames(50, 10.0) for question in busy.see(frame, frame.number < 33)]
    assert [question.frame.number for question in late] == [33, 38, 43, 48]


def test_a_stream_too_short_for_a_clip_is_asked_about_at_its_end() -> None:
    sight = ClipSight(count=8, size=8, seconds=2.0, every=0.5)
    assert [question for frame in frames(5, 10.0) for question in sight.see(frame, False)] == []
    (question,) = sight.rest()
    assert question.pixels[:, 0, 0, 0].tolist() == sampling.uniform(0, 5, 8, 5).tolist()


def test_what_is_kept_for_a_clip_is_bounded() -> None:
    sight = ClipSight(count=4, size=8, seconds=10.0, every=0.0)
    for frame in frames(3000, 100.0):
        sight.see(frame, busy=True)
        assert len(sight.kept) <= MOST
    gaps = np.diff([frame.seconds for frame, _ in sight.kept])
    assert gaps.max() < 3 * 10 / MOST  # evenly spread, as far as that goes
    assert all(frame.picture.size == 0 for frame, _ in sight.kept)


# ---------------------------------------------------------------- smoothing


@given(st.lists(st.tuples(st.floats(0.001, 5), st.integers(0, 2)), min_size=1, max_size=20), st.floats(0.05, 5))
def test_smoothing_is_an_exponential_mean_over_time(steps: list[tuple[float, int]], constant: float) -> None:
    """Against the sum written out: an answer counts from its moment back to that of the answer before."""
    times = np.cumsum([gap for gap, _ in steps])
    answers = np.eye(3)[[place for _, place in steps]]
    smoothing = Smoothing(constant)
    for answer, seconds in zip(answers, times, strict=True):
        mean = smoothing.take(answer, seconds)
    past = np.exp((times - times[-1]) / constant)
    weights = np.diff(past, prepend=0)
    assert np.allclose(mean, weights @ answers, atol=1e-12)
    assert mean.sum() == pytest.approx(1)


def test_without_smoothing_the_latest_answer_counts() -> None:
    smoothing = Smoothing(0.0)
    smoothing.take(np.array([1.0, 0.0]), 1.0)
    assert smoothing.take(np.array([0.25, 0.75]), 1.1).tolist() == [0.25, 0.75]


def test_softmax_of_large_numbers() -> None:
    assert softmax(np.array([1e4, 1e4, -1e4], np.float32)).tolist() == [0.5, 0.5, 0.0]


def test_the_best_are_in_order() -> None:
    prediction = Prediction(np.array([0.1, 0.6, 0.3]), 0, 0.0, 1, "", 1.0, 1.0)
    assert prediction.best(2) == [(1, 0.6), (2, 0.3)]
    assert len(prediction.best(9)) == 3


@given(st.integers(1, 10_000))
def test_pauses_double_up_to_half_a_minute(tried: int) -> None:
    assert 0.5 * min(30, 2.0 ** min(tried - 1, 20)) <= pause(tried) <= min(30, 2.0 ** min(tried - 1, 20))


# ---------------------------------------------------------------- the picture


@pytest.mark.parametrize(("height", "width"), [(48, 48), (35, 33), (240, 320), (1080, 1920), (640, 361), (100, 900)])
@pytest.mark.parametrize("ground", [0, 255])
def test_the_panel_can_be_read_on_any_picture(height: int, width: int, ground: int) -> None:
    picture = enlarged(np.full((height, width, 3), ground, np.uint8))
    assert min(picture.shape[:2]) >= min(360, 2 * (min(height, width) // 2))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    rows = [("a name that is far too long to fit on any panel of this width " * 3, 0.75), ("b", 0.25), ("c", 0.0)]
    shown = Panel().on(picture, rows, "29.8 frames/s")
    assert (picture == ground).all()
    changed = np.argwhere((shown != picture).any(-1))
    assert (changed.min(0) >= 8).all()  # a margin all around
    assert (changed.max(0) < np.array(picture.shape[:2]) - 8).all()
    filled = (np.abs(shown.astype(int) - panel.FIRST[:3]).max(-1) < 12).sum(1).max()  # pixels of the first bar
    assert filled > 0.05 * width
    light = shown.astype(float).mean(-1)
    assert light.max() > 250  # letters
    own = light[(light > 17) & (light < 90)]  # the panel's own ground is dark, whatever is behind it
    assert len(own) > 500


def test_a_bar_is_as_long_as_its_share() -> None:
    def length(share: float) -> int:
        shown = Panel().on(np.zeros((400, 600, 3), np.uint8), [("", share)], "")
        return int((np.abs(shown.astype(int) - panel.FIRST[:3]).max(-1) < 12).sum(1).max())

    assert length(0.5) == pytest.approx(length(1.0) / 2, abs=2)
    assert length(0.0) == 0


def test_a_panel_that_does_not_change_is_not_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    board, picture = Panel(), np.zeros((400, 600, 3), np.uint8)
    first = board.on(picture, [("a", 0.5)], "x")
    monkeypatch.setattr(panel, "_patches", lambda *_: pytest.fail("drawn anew"))
    assert (board.on(picture, [("a", 0.5)], "x") == first).all()


# ---------------------------------------------------------------- the file


def test_a_recording_keeps_times_and_takes_pictures_of_other_sizes(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.04, 0.5, 3.25]
    recording = Recording(tmp_path)
    for number, seconds in enumerate(times):
        recording.add(np.full((64, 96, 3) if number % 2 else (64, 64, 3), 200, np.uint8), seconds)
    assert not (tmp_path / "live.mp4").exists()
    recording.close()
    assert [path.name for path in tmp_path.iterdir()] == ["live.mp4"]
    with av.open(str(tmp_path / "live.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        found = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in found] == [(64, 64)] * 5
    assert [frame.time for frame in found] == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(100, 17000), (2, 400), (400, 2), (1, 1), (9000, 9000)])
def test_pictures_of_every_size_can_be_recorded(height: int, width: int, tmp_path: Path) -> None:
    picture = enlarged(np.full((height, width, 3), 90, np.uint8))
    assert max(picture.shape) <= LARGEST
    shown = Panel().on(picture, [("left", 0.7), ("right", 0.3)], "25 frames/s")
    recording = Recording(tmp_path)
    recording.add(shown, 0.0)
    recording.close()
    with av.open(str(tmp_path / "live.mp4")) as container:
        (frame,) = container.decode(video=0)
        assert (frame.height, frame.width) == picture.shape[:2]


def test_what_h264_cannot_hold_is_one_line(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    with pytest.raises(UserError, match=r"live\.mp4: H\.264 cannot be made of pictures of 20000 x 2 pixels"):
        recording.add(np.zeros((2, 20000, 3), np.uint8), 0.0)
    recording.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_named_and_the_video_is_finished(tmp_path: Path) -> None:
    records = Records(str(tmp_path / "out"), ["left"], 1)
    prediction = Prediction(np.ones(1), 0, 0.0, 1, "", 1.0, 1.0)

    def fill() -> None:
        with records:
            records.begin()
            assert isinstance(records.lines, Lines)
            records.picture(np.zeros((64, 64, 3), np.uint8), 0.0)
            records.lines.stream = Path("/dev/full").open("w")  # noqa: SIM115 (closed by the records)
            records.prediction(prediction, 0)

    with pytest.raises(OSError, match="No space left") as found:
        fill()
    assert found.value.filename == str(tmp_path / "out" / "predictions.jsonl")
    assert (tmp_path / "out" / "live.mp4").exists()


def test_a_recording_of_nothing_is_no_file(tmp_path: Path) -> None:
    Recording(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_figures() -> None:
    meter = Meter()
    assert meter.figures(0)["frames_per_second"] == 0
    for number in range(11):
        meter.frame()
        meter.prediction(Prediction(np.ones(1), number, 0.0, 1, "", 1.0, float(number)))
    figures = meter.figures(reconnects=2)
    assert figures["latency_ms"] == {"median": 5.0, "p90": 9.0}
    assert (figures["frames"], figures["predictions"], figures["reconnects"]) == (11, 11, 2)
    assert figures["frames_per_second"] > 0


# ---------------------------------------------------------------- OpenCV


class FakeCv2:
    """A screen with a person at the keys, and a camera that gives three pictures."""

    WINDOW_NORMAL, WINDOW_KEEPRATIO, WND_PROP_VISIBLE, CAP_PROP_BUFFERSIZE, CAP_PROP_FPS = range(5)
    error = RuntimeError
    utils = SimpleNamespace(logging=SimpleNamespace(LOG_LEVEL_SILENT=0, setLogLevel=lambda level: None))

    def __init__(self, keys: list[int] | None = None, closed_after: int = 99) -> None:
        self.keys, self.closed_after = list(keys or []), closed_after
        self.shown: list[np.ndarray] = []
        self.calls: list[Any] = []
        self.left = 3

    def namedWindow(self, *given: Any) -> None:  # noqa: N802
        self.calls.append(("open", *given))

    def resizeWindow(self, title: str, width: int, height: int) -> None:  # noqa: N802
        self.calls.append(("resize", width, height))

    def imshow(self, title: str, picture: np.ndarray) -> None:
        self.shown.append(picture)

    def waitKey(self, milliseconds: int) -> int:  # noqa: N802
        return self.keys.pop(0) if self.keys else -1

    def getWindowProperty(self, title: str, which: int) -> float:  # noqa: N802
        return 1.0 if len(self.shown) < self.closed_after else 0.0

    def destroyAllWindows(self) -> None:  # noqa: N802
        self.calls.append(("close",))

    def VideoCapture(self, number: int) -> FakeCv2:  # noqa: N802
        self.calls.append(("camera", number))
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.left > 0

    def set(self, *_: Any) -> None: ...

    def get(self, which: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return self.left >= 0, np.array([[[1, 2, 3]]], np.uint8) if self.left >= 0 else None

    def release(self) -> None:
        self.calls.append(("release",))


def with_cv2(monkeypatch: pytest.MonkeyPatch, fake: FakeCv2) -> FakeCv2:
    monkeypatch.setitem(sys.modules, "cv2", fake)
    monkeypatch.setenv("DISPLAY", ":0")
    return fake


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_a_key_ends_the_window(monkeypatch: pytest.MonkeyPatch, key: int) -> None:
    fake = with_cv2(monkeypatch, FakeCv2([-1, ord("x"), key]))
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 255  # red
    with window.Window() as screen:
        assert [screen.show(picture) for _ in range(3)] == [True, True, False]
    assert fake.shown[0][0, 0].tolist() == [0, 0, 255]  # OpenCV has blue first
    assert fake.calls[1:] == [("resize", 6, 4), ("close",)]


def test_a_closed_window_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cv2(monkeypatch, FakeCv2(closed_after=2))
    with window.Window() as screen:
        assert screen.stays()  # nothing was shown yet, so nothing was closed
        assert [screen.show(np.zeros((4, 6, 3), np.uint8)) for _ in range(2)] == [True, False]


def test_what_windows_and_webcams_need_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = with_cv2(monkeypatch, FakeCv2())
    monkeypatch.setattr(fake, "namedWindow", lambda *_: (_ for _ in ()).throw(RuntimeError("not implemented")))
    with pytest.raises(UserError, match=r"this OpenCV has no windows.*headless=true"):
        window.Window()
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(window.sys, "platform", "linux")
    with pytest.raises(UserError, match="no screen here"):
        window.Window()

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"webcam 0 needs OpenCV.*pip install 'distill\[live\]'"):
        Webcam(0)


def test_a_webcam_gives_red_first_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = with_cv2(monkeypatch, FakeCv2())
    shots, found = Webcam(2).shots(), []
    with pytest.raises(ValueError, match="gives no more pictures"):
        found.extend(shots)
    assert [shot.picture[0, 0].tolist() for shot in found] == [[3, 2, 1]] * 3
    assert found[0].seconds < found[1].seconds < found[2].seconds
    assert fake.calls[-1] == ("release",)
    fake.left = 0
    with pytest.raises(ValueError, match="cannot be opened"):
        next(Webcam(2).shots())
