"""The embedded data: real files, the same for everybody, and motion is the only thing that tells the classes apart."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distill.clips import motion
from distill.clips.decode import count_frames, read_frames
from distill.clips.manifest import SPLITS
from distill.clips.sources import motion as source
from distill.errors import UserError

SMALL = motion.Drawing(train=2, val=1, test=1, size=32, frames=10)


def test_files_are_h264_and_read_back_as_drawn(tmp_path: Path) -> None:
    import av

    folder = motion.render(SMALL, tmp_path)
    clip_id, name, split = motion.clip_names(SMALL)[0]
    path = folder / f"{clip_id}.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert count_frames(path) == SMALL.frames
    drawn = motion.draw(SMALL, clip_id, name, split)
    assert np.abs(read_frames(path).astype(int) - drawn).mean() < 12  # the codec halves the colour resolution
    assert np.array_equal(read_frames(path, [7, 0, 7]), read_frames(path)[[7, 0, 7]])


def test_every_known_class_can_be_drawn() -> None:
    assert len(motion.DEFAULT_CLASSES) >= 12
    for name in motion.CLASSES:
        assert motion.draw(SMALL, "clip", name, "train").shape == (10, 32, 32, 3)


def test_two_processes_render_the_same_bytes(tmp_path: Path) -> None:
    """Both at once into one folder, against one alone in another."""
    code = (
        "import sys; from pathlib import Path; from distill.clips import motion;"
        "print(motion.render(motion.Drawing(train=2, val=1, test=1, size=32, frames=10), Path(sys.argv[1])))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "shared")]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    alone = motion.render(SMALL, tmp_path / "alone")
    shared = motion.folder(SMALL, tmp_path / "shared")
    digests = [
        {file.relative_to(root): hashlib.sha256(file.read_bytes()).hexdigest() for file in root.rglob("*.mp4")}
        for root in (alone, shared)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == len(motion.clip_names(SMALL))
    assert not list(shared.rglob("*.part"))


def test_options_change_the_files_and_the_folder(tmp_path: Path) -> None:
    assert motion.folder(SMALL, tmp_path) != motion.folder(replace(SMALL, seed=1), tmp_path)
    first, other = (motion.draw(replace(SMALL, seed=seed), "clip", "left", "train") for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_splits_share_no_digit() -> None:
    used = [set(motion.digit_numbers(split)) for split in SPLITS]
    assert sum(map(len, used)) == len(set().union(*used)) == 1797


def test_cache_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    small = {"train": 1, "val": 1, "test": 1, "size": 16, "frames": 2, "classes": ["left", "right"]}
    manifest = source.build(source.Options(**small))
    assert all(Path(clip.path).is_relative_to(tmp_path / "xdg" / "distill") for clip in manifest.clips)
    elsewhere = source.build(source.Options(**small, folder=str(tmp_path / "mine")))
    assert all(Path(clip.path).is_relative_to(tmp_path / "mine") for clip in elsewhere.clips)
    assert manifest.keys.tolist() == elsewhere.keys.tolist()


@pytest.mark.parametrize("wrong", [{"classes": ["left", "sideways"]}, {"classes": ["left"]}, {"size": 15}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"clips\.source"):
        source.build(source.Options(**wrong))  # type: ignore[arg-type]


def gradients(video: np.ndarray) -> np.ndarray:
    """How brightness changes with time against how it changes over the picture: crude, but it sees motion."""
    grey = video.astype(float).mean(-1)
    time = np.diff(grey, axis=0)[:, :-1, :-1]
    down, right = np.diff(grey, axis=1)[:-1, :, :-1], np.diff(grey, axis=2)[:-1, :-1, :]
    scale = (down**2 + right**2).mean()
    return np.array([(time * down).mean(), (time * right).mean()]) / scale


def test_one_frame_cannot_tell_the_class_but_a_clip_can(tmp_path: Path) -> None:
    drawing = motion.Drawing(train=40, val=0, test=25, size=32, frames=10)
    folder = motion.render(drawing, tmp_path)
    names = motion.clip_names(drawing)
    videos = [read_frames(folder / f"{clip_id}.mp4") for clip_id, _, _ in names]
    label = np.array([name for _, name, _ in names])
    train = np.array([split == "train" for _, _, split in names])

    frames = np.stack([video[place % drawing.frames, ::2, ::2].ravel() for place, video in enumerate(videos)])
    forest = RandomForestClassifier(200, random_state=0, n_jobs=-1).fit(frames[train], label[train])
    on_frames = forest.score(frames[~train], label[~train])
    chance = 1 / len(drawing.classes)
    sigma = (chance * (1 - chance) / (~train).sum()) ** 0.5
    assert on_frames < chance + 4 * sigma

    straight = np.isin(label, ["left", "right", "up", "down"])
    flow = np.stack([gradients(video) for video in videos])
    seeing = make_pipeline(StandardScaler(), LogisticRegression())
    seeing.fit(flow[train & straight], label[train & straight])
    assert seeing.score(flow[~train & straight], label[~train & straight]) > 0.7  # chance is 0.25


def test_clips_can_be_labelled_by_the_digit_that_every_frame_shows(tmp_path: Path) -> None:
    by_motion = source.build(source.Options(train=2, val=1, test=1, size=32, frames=10, folder=str(tmp_path)))
    by_digit = source.build(
        source.Options(train=2, val=1, test=1, size=32, frames=10, folder=str(tmp_path), label="digit")
    )
    assert by_digit.classes == tuple("0123456789")
    assert [clip.path for clip in by_digit.clips] == [clip.path for clip in by_motion.clips]  # the same files
    assert not by_digit.mirrored
    assert len({clip.label for clip in by_digit.clips}) > 5


def test_the_digit_that_a_clip_is_labelled_by_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pictures of fives full of ink, and all others without any, ink is where the label says five."""
    pictures, targets = motion._digits()
    inked = np.where((targets == 5)[:, None, None], 1.0, 0.0) * np.ones_like(pictures)
    plain = motion.Drawing(train=10, val=1, test=1, size=32, frames=10, noise=0, texture=0, drift=0)
    monkeypatch.setattr(motion, "_digits", lambda: (inked, targets))
    fives = 0
    for clip_id, name, split in motion.clip_names(plain):
        is_five = motion.digit(plain, clip_id, split) == 5
        assert (motion.draw(plain, clip_id, name, split).std((1, 2)) > 1).any() == is_five
        fives += is_five
    assert fives > 3


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"clips\.source\.label is 'speed'; it is motion or digit"):
        source.build(source.Options(label="speed"))
