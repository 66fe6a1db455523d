"""The right frames of every kind of file, by every decoder; and a clear word about files that have none."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from videos import cut_without_decoding, flip_bits, pictures, turn, write, write_sound

from distill.clips import decoders, looking, sampling
from distill.clips.decode import count_frames, read_frames
from distill.clips.decode import pictures as one_by_one
from distill.clips.facts import Facts
from distill.clips.looking import look
from distill.clips.pictures import pack
from distill.clips.video import BrokenFileError, Film
from distill.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared"
N = 60
FRAMES = pictures(N)
X264 = {"g": "20"}
Made = Callable[[str], Path]

KINDS: dict[str, Callable[[Path], Path]] = {
    "b_frames.mp4": lambda path: write(path, FRAMES, options=X264),
    "long_gop.mkv": lambda path: write(path, FRAMES),
    "open_gop.mp4": lambda path: write(
        path, FRAMES, options={"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
    ),
    "intra_refresh.mp4": lambda path: write(path, FRAMES, options={"x264-params": "intra-refresh=1:keyint=20"}),
    "edit_list.mp4": lambda path: cut_without_decoding(
        write(path.with_name("whole.mp4"), FRAMES, options=X264), path, 7
    ),
    "packed_b.avi": lambda path: write(path, FRAMES, "mpeg4", {"bf": "2"}),
    "h264.avi": lambda path: write(path, FRAMES),
    "transport.ts": lambda path: write(path, FRAMES),
    "vp9.webm": lambda path: write(path, FRAMES, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "hevc.mp4": lambda path: write(path, FRAMES, "libx265", {"x265-params": "log-level=none"}),
    "av1.mkv": lambda path: write(path, FRAMES, "libsvtav1", {"preset": "10", "svtav1-params": "lp=1"}),
    "ten_bit.mp4": lambda path: write(path, FRAMES, pix_fmt="yuv420p10le"),
    "variable_rate.mp4": lambda path: write(path, FRAMES, times=[n + n // 3 + n // 7 for n in range(N)]),
    "two_streams.mp4": lambda path: write(path, FRAMES, streams=2),
    "turned.mp4": lambda path: turn(write(path, FRAMES[:9]), 1),
    "one_frame.mp4": lambda path: write(path, FRAMES[:1]),
    "three_frames.mkv": lambda path: write(path, FRAMES[:3]),
}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, done = tmp_path_factory.mktemp("videos"), dict[str, Path]()

    def make(kind: str) -> Path:
        if kind not in done:
            done[kind] = KINDS[kind](folder / kind)
        return done[kind]

    return make


def in_order(path: Path) -> np.ndarray:
    """Every frame, as PyAV's plain loop gives them: the reference."""
    with av.open(str(path)) as container:
        frames = [(frame.to_ndarray(format="rgb24"), frame.rotation) for frame in container.decode(video=0)]
    return np.stack([np.rot90(frame, rotation // 90) for frame, rotation in frames])


def patterns(count: int) -> list[list[int]]:
    """What samplers ask for: all over, windows at both ends and inside, single frames, repeats, any order."""
    middle = count // 2
    return [
        sampling.uniform(0, count, 16, count).tolist(),
        list(range(middle, min(count, middle + 16))),
        list(range(max(0, count - 5), count)),
        [0],
        [count - 1],
        [count - 1, 0, middle, 0],
        list(range(0, count, 2)),
        list(range(count)),
    ]


# ---------------------------------------------------------------- the right frames


@EVERY_KIND
def test_frames_are_those_of_the_plain_loop_with_and_without_facts(kind: str, made: Made) -> None:
    path = made(kind)
    reference, facts = in_order(path), look(path)
    assert np.array_equal(read_frames(path), reference)
    assert count_frames(path) == len(reference) == facts.frames
    assert (facts.height, facts.width) == reference.shape[1:3]
    for wanted in patterns(len(reference)):
        assert np.array_equal(read_frames(path, wanted), reference[wanted]), wanted
        assert np.array_equal(read_frames(path, wanted, facts=facts), reference[wanted]), wanted


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, N - 1), min_size=1, max_size=20))
def test_any_frames_in_any_order(made: Made, kind: str, wanted: list[int]) -> None:
    path, facts = made(kind), look(made(kind))
    wanted = [number % facts.frames for number in wanted]
    assert np.array_equal(read_frames(path, wanted, facts=facts), in_order(path)[wanted])


@EVERY_KIND
@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_give_the_same_frames_or_step_aside(kind: str, decoder: str, made: Made) -> None:
    if importlib.util.find_spec(decoder) is None:
        pytest.skip(f"{decoder} is not installed")
    path = made(kind)
    reference, facts = in_order(path), look(path)
    for known in (facts, None):
        for wanted in patterns(len(reference)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                found = read_frames(path, wanted, decoder, known)
            error = np.abs(found.astype(int) - reference[wanted]).mean()
            # Another FFmpeg inside rounds ten bits to eight differently.
            assert error < {"ten_bit.mp4": 8}.get(kind, 1e-9), wanted


def test_skipping_is_used_where_it_is_safe_and_nowhere_else(made: Made) -> None:
    skips = {kind for kind in KINDS if look(made(kind)).skips}
    assert {"b_frames.mp4", "long_gop.mkv", "edit_list.mp4", "vp9.webm", "variable_rate.mp4"} <= skips
    assert not skips & {"packed_b.avi", "h264.avi", "hevc.mp4", "av1.mkv", "intra_refresh.mp4"}


def test_skipping_leaves_packets_undecoded(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made("b_frames.mp4")
    facts, fed = look(path), []
    decode = Film.decode
    monkeypatch.setattr(Film, "decode", lambda film, packet: (fed.append(packet), decode(film, packet))[1])
    read_frames(path, [45], facts=facts)
    assert len([packet for packet in fed if packet is not None]) <= 20  # one stretch between two keyframes
    fed.clear()
    read_frames(path, [45])
    assert len(fed) > 45


def test_frames_one_by_one_are_the_same(made: Made) -> None:
    for kind in ("b_frames.mp4", "packed_b.avi", "turned.mp4"):
        facts, reference = look(made(kind)), in_order(made(kind))
        span = range(2, len(reference) - 1)
        assert np.array_equal(np.stack(list(one_by_one(made(kind), span, facts))), reference[span.start : span.stop])


def test_a_file_that_changed_since_it_was_looked_at_is_refused(made: Made, tmp_path: Path) -> None:
    facts = look(made("b_frames.mp4"))
    shorter = write(tmp_path / "shorter.mp4", FRAMES[:50], options=X264)
    with pytest.raises(BrokenFileError, match="50 frames where there were 60"):
        read_frames(shorter, [3], facts=facts)


@pytest.mark.parametrize("wanted", [[], [-1], [0, -2]])
def test_impossible_frame_numbers_are_refused(wanted: list[int], made: Made) -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        read_frames(made("one_frame.mp4"), wanted)


def test_a_frame_behind_the_end_is_refused(made: Made) -> None:
    with pytest.raises(BrokenFileError, match="has no frame 60"):
        read_frames(made("b_frames.mp4"), [3, 60])


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path: Path) -> None:
    whole = tmp_path / "both.h264"
    halves = [write(tmp_path / f"{side}.h264", pictures(20, side, 48), options={"bf": "0"}) for side in (64, 96)]
    whole.write_bytes(b"".join(half.read_bytes() for half in halves))
    path = tmp_path / "resized.mkv"
    with av.open(str(whole)) as given, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream, packet.time_base = copy, Fraction(1, 25)
            packet.pts, packet.dts, packet.duration = number, number, 1
            out.mux(packet)
    facts, frames = look(path), read_frames(path)
    assert frames.shape == (40, 48, 64, 3)
    assert facts.timestamps
    for wanted in ([30], [3, 30], [39, 0]):
        assert np.array_equal(read_frames(path, wanted, facts=facts), frames[wanted])
        assert np.array_equal(read_frames(path, wanted, "decord", facts), frames[wanted])


def test_seconds_of_a_file_whose_rate_varies(tmp_path: Path) -> None:
    """Ten frames a second for two seconds, then twenty-five."""
    times = [5 * n // 2 for n in range(20)] + [50 + n for n in range(40)]
    facts = look(write(tmp_path / "varies.mp4", FRAMES, times=times))
    assert len(facts.times) == 60
    assert facts.span(2, None) == range(20, 60)
    assert facts.span(0, 2) == range(20)
    assert facts.span(2.4, 2.8) == range(30, 40)
    assert look(write(tmp_path / "even.mp4", FRAMES)).times == ()


def test_a_palette_is_no_picture() -> None:
    """Its plane has no lines; a look must not stumble over it."""
    assert isinstance(looking._sum(av.VideoFrame(8, 8, "pal8")), int)


def test_clips_that_are_in_one_stream_of_two(made: Made) -> None:
    path = made("two_streams.mp4")
    assert count_frames(path) == N  # the other stream has one frame less
    assert {"decord", "torchcodec"} <= set(look(path).avoid)


# ---------------------------------------------------------------- pictures instead of videos


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "00042"
    folder.mkdir()
    for number, frame in enumerate(FRAMES[:12], 1):
        Image.fromarray(frame).save(folder / f"{number:05d}.jpg", quality=95)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures_is_a_clip(picture_folder: Path) -> None:
    assert count_frames(picture_folder) == 12
    frames = read_frames(picture_folder, [11, 0, 3])
    assert np.abs(frames.astype(int) - FRAMES[[11, 0, 3]]).mean() < 15  # JPEG
    facts = look(picture_folder)
    assert (facts.frames, facts.width, facts.height, facts.status) == (12, 64, 48, "ok")


def test_pictures_are_counted_as_numbers_are(tmp_path: Path) -> None:
    from PIL import Image

    for number in (10, 9, 100, 2):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"img{number}.png")
    assert read_frames(tmp_path)[:, 0, 0, 0].tolist() == [2, 9, 10, 100]


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_packed_files(form: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    pack(iter(FRAMES[:12]), form, path)
    assert count_frames(path) == 12
    frames = read_frames(path, [11, 0, 0])
    if form == "raw":
        assert np.array_equal(frames, FRAMES[[11, 0, 0]])
    assert np.abs(frames.astype(int) - FRAMES[[11, 0, 0]]).mean() < 15
    assert look(path).frames == 12
    with pytest.raises(BrokenFileError, match="no frame 12"):
        read_frames(path, [12])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BrokenFileError, match="packed"):
        read_frames(path, [0])


# ---------------------------------------------------------------- files that are not what they should be


def html(path: Path) -> None:
    path.write_text("<html><body>404 not found</body></html>" * 50)


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/video.ts\n")


def without_index(path: Path) -> None:
    data = write(path, FRAMES).read_bytes()
    path.write_bytes(data[: data.index(b"moov")])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("hello\n" * 100), "is not a video that can be opened"),
    "html": (html, "is not a video that can be opened"),
    "playlist": (playlist, "is not a video that can be opened"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "is not a video"),
    "no index": (without_index, "is not a video that can be opened"),
    "sound only": (write_sound, "holds no video stream"),
    "folder": (lambda path: path.mkdir(), "is a folder without pictures"),
    "not there": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_says_why_in_one_line(name: str, tmp_path: Path) -> None:
    spoil, why = BROKEN[name]
    path = tmp_path / "clip.mp4"
    spoil(path)
    facts = look(path)
    assert facts.status == "broken"
    assert facts.frames == 0
    assert why in facts.trouble
    assert "\n" not in facts.trouble
    with pytest.raises((BrokenFileError, FileNotFoundError)):
        read_frames(path, [0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", FRAMES[:3])
    path.chmod(0)
    assert look(path).trouble == "Permission denied"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["long_gop.mkv", "packed_b.avi", "transport.ts", "vp9.webm"])
def test_a_file_that_was_cut_gives_what_is_left(kind: str, share: float, made: Made, tmp_path: Path) -> None:
    data, path = made(kind).read_bytes(), tmp_path / kind
    path.write_bytes(data[: int(share * len(data))])
    facts, reference = look(path), in_order(made(kind))
    if facts.status == "broken":
        assert share == 0.1
        return
    found = read_frames(path, facts=facts)
    assert len(found) == facts.frames == count_frames(path)
    assert facts.frames <= N
    whole = max(1, facts.frames - 4)  # the last frames may be smeared
    assert np.array_equal(found[:whole], reference[:whole]) or facts.frames < 6


def test_a_cut_mp4_whose_index_is_in_front_is_damaged_not_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", FRAMES)
    fast = tmp_path / "fast.mp4"
    with av.open(str(path)) as given, av.open(str(fast), "w", options={"movflags": "faststart"}) as out:
        copy = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size * 2 // 3])
    facts = look(fast)
    assert facts.status == "damaged"
    assert 0 < facts.frames < N
    assert facts.lost >= N - facts.frames - 1
    assert len(read_frames(fast, facts=facts)) == facts.frames


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=40), st.booleans())
def test_flipped_bits_never_hang_crash_or_disagree(
    made: Made, tmp_path: Path, kind: str, places: list[int], spare_header: bool
) -> None:
    """Whatever comes out of a spoilt file comes out again: what the index says is what training gets."""
    path = tmp_path / f"spoilt{Path(kind).suffix}"
    path.write_bytes(flip_bits(made(kind).read_bytes(), places, 400 if spare_header else 0))
    facts = look(path)
    if facts.trouble:
        assert "\n" not in facts.trouble
        with pytest.raises((BrokenFileError, OSError)):
            read_frames(path)
        return
    found = read_frames(path)
    assert len(found) == facts.frames
    assert np.array_equal(read_frames(path, [0, facts.frames - 1], facts=facts), found[[0, facts.frames - 1]])


@pytest.mark.parametrize(
    "name",
    ["-starts.mp4", "a name with spaces.mp4", "a#b[c]{d}%20?.mp4", "žluťoučký 視頻.mp4", "concat:x.mp4", "a:b.mp4"],
)
def test_awkward_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "plain.mp4", FRAMES[:4]).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name), name):
        assert look(path).frames == 4, path
        assert read_frames(path, [3]).shape[0] == 1


# ---------------------------------------------------------------- choosing a decoder


def test_a_decoder_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"clips\.decoder is 'opencv'; known: pyav, decord, torchcodec"):
        decoders.check("opencv")


def test_a_decoder_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'torchcodec'")

    monkeypatch.setattr(decoders, "_module", missing)
    with pytest.raises(UserError, match=r"pip install torchcodec, or say clips\.decoder=pyav"):
        decoders.check("torchcodec")


def test_decord_and_decord2_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_installed", lambda package: True)
    with pytest.raises(UserError, match="decord and decord2 are both installed"):
        decoders.check("decord")


def test_the_warning_comes_once_and_says_why(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_warned", set())
    path = made("transport.ts")
    with pytest.warns(RuntimeWarning, match=r"decord never returns from MPEG transport streams; PyAV reads .*\.ts"):
        assert decoders.choose("decord", path, look(path)) == "pyav"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoders.choose("decord", path, look(path)) == "pyav"
    assert decoders.choose("decord", made("vp9.webm"), look(made("vp9.webm"))) == "decord"


def test_damaged_files_are_left_to_pyav() -> None:
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert decoders.choose("torchcodec", "x.mp4", Facts(frames=4, lost=1)) == "pyav"


# ---------------------------------------------------------------- clips from the world, where they are at hand


@pytest.mark.skipif(not SHARED.exists(), reason="the sample clips are not part of the repository")
def test_real_clips_are_the_reference_sequence() -> None:
    """MD5 of every decoded picture as the ffmpeg command line gives it."""
    for name, golden in json.loads((SHARED / "golden" / "video_frames.json").read_text())["files"].items():
        path = SHARED / "clips" / name
        with Film(path) as film:
            frames = list(film.frames())
            sums = [hashlib.md5(b"".join(plane_bytes(frame))).hexdigest() for frame in frames]
        assert len(sums) == len(golden["md5"]), name
        # What a decoder paints where a packet is missing depends on its number of threads.
        sound = 29 if name == "decord_corrupted.mp4" else len(sums)
        assert sums[:sound] == golden["md5"][:sound], name
        reference, facts = in_order(path) if name != "decord_corrupted.mp4" else read_frames(path), look(path)
        assert facts.frames == golden["frames"] == len(reference)
        for wanted in patterns(facts.frames):
            assert np.array_equal(read_frames(path, wanted, facts=facts), reference[wanted]), (name, wanted)


def plane_bytes(frame: av.VideoFrame) -> list[bytes]:
    """The planes of a frame without the padding of their lines."""
    found = []
    for plane in frame.planes:
        wide = plane.width * -(-frame.format.components[0].bits // 8)
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        found.append(lines[:, :wide].tobytes())
    return found


def test_the_reference_command_agrees(made: Made, tmp_path: Path) -> None:
    """Where ffmpeg is installed, its own decoding of the generated files."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed")
    for kind in KINDS:
        command = [ffmpeg, "-v", "error", "-noautorotate", "-threads", "1", "-i", str(made(kind)), "-map", "0:v:0"]
        done = subprocess.run(
            [*command, "-fps_mode", "passthrough", "-f", "framemd5", "-"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            continue  # this build of ffmpeg lacks the codec
        sums = [line.split(",")[-1].strip() for line in done.stdout.splitlines() if not line.startswith("#")]
        with Film(made(kind)) as film:
            ours = [hashlib.md5(b"".join(plane_bytes(frame))).hexdigest() for frame in film.frames()]
        assert ours == sums, kind
