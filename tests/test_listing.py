"""What the sources share, and the ones for data of one's own: class folders, list files; and the embedded data."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import bare, build, ids, refused, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.clips import listing, motion
from distill.clips.manifest import Clip, Manifest
from distill.clips.sources import csv as csv_source
from distill.clips.sources.motion import MIRRORED
from distill.errors import UserError

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# ---------------------------------------------------------------- lists and files


def test_a_link_that_leads_back_up_ends_the_search(tmp_path: Path) -> None:
    bare(tmp_path, "a/1.mp4", "b/2.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert listing.videos(tmp_path) == ["a/1.mp4", "b/2.mp4", "c/2.mp4"]


def test_hidden_and_half_written_files_are_no_clips(tmp_path: Path) -> None:
    assert listing.videos(bare(tmp_path, "._a.mp4", ".cache/b.mp4", "c.mp4.part", "d.txt", "e.MP4")) == ["e.MP4"]


def test_names_that_are_not_utf_8_and_closed_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        listing.videos(bare(tmp_path, os.fsdecode(b"\xe9.mp4")))
    write(tmp_path / "list.txt", ["ok"])
    (tmp_path / "list.txt").write_bytes(b"\xe9.mp4 1\n")
    with pytest.raises(UserError, match=r"list\.txt is not UTF-8"):
        list(listing.lines(tmp_path / "list.txt"))


TEXT = st.text(st.characters(exclude_characters="\r\n\ufeff", codec="utf-8")).map(str.strip)


@given(st.lists(TEXT), st.sampled_from(["", "\ufeff"]), st.sampled_from(["\n", "\r\n", " \t\r\n", "\n\n"]))
@IN_ONE_FOLDER
def test_lines_are_the_same_with_any_ending_and_a_byte_order_mark(
    tmp_path: Path, wanted: list[str], mark: str, end: str
) -> None:
    (tmp_path / "list.txt").write_bytes((mark + "".join(line + end for line in wanted)).encode())
    assert [line for _, line in listing.lines(tmp_path / "list.txt")] == [line for line in wanted if line]


CELL = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff")).map(str.strip)


@given(st.lists(st.tuples(CELL.filter(bool), CELL)))
@IN_ONE_FOLDER
def test_a_table_gives_back_what_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *rows])
    found = [(cells["path"], cells["label"]) for _, cells in listing.table(tmp_path / "table.csv", ("path",))]
    assert found == rows


# ---------------------------------------------------------------- folder


def class_folders(folder: Path) -> Path:
    return bare(folder, *(f"{name}/{take}.mp4" for name in ("b c", "[a] #1") for take in range(20)))


def test_folder_classes_are_sorted_names_and_splits_are_shares_of_each_class(tmp_path: Path) -> None:
    manifest = build("folder", folder=str(class_folders(tmp_path)))
    assert manifest.classes == ("[a] #1", "b c")
    counts = Counter((clip.label, clip.split) for clip in manifest.clips)
    assert counts == {(label, split): n for label in (0, 1) for split, n in (("train", 14), ("val", 2), ("test", 4))}
    none = build("folder", folder=str(tmp_path), test=0.0, val=0.0)
    assert len(none.of("train")) == 40


def test_folder_splits_hang_on_ids_and_not_on_an_order_or_on_other_classes(tmp_path: Path) -> None:
    first = build("folder", folder=str(class_folders(tmp_path)))
    again = build("folder", folder=str(bare(tmp_path, "a first class/1.mp4")))
    splits = {clip.id: clip.split for clip in again.clips}
    assert all(splits[clip.id] == clip.split for clip in first.clips)
    assert ids(first, "test") != [clip.id for clip in first.clips if clip.label == 0][:4]


def test_folder_with_split_folders(tmp_path: Path) -> None:
    bare(tmp_path, "train/b/1.avi", "train/a/1.avi", "validation/b/deep/2.webm", "test/c/3.MOV", ".git/x.mp4")
    manifest = build("folder", folder=str(tmp_path))
    assert manifest.classes == ("a", "b", "c")
    assert [(clip.id, clip.label, clip.split) for clip in manifest.clips] == [
        ("test/c/3.MOV", 2, "test"),
        ("train/a/1.avi", 0, "train"),
        ("train/b/1.avi", 1, "train"),
        ("validation/b/deep/2.webm", 1, "val"),
    ]


def test_folder_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert build("folder", folder=str(bare(tmp_path, "train/1.mp4", "plane/1.mp4"))).classes == ("plane", "train")


def test_folder_clips_may_be_folders_of_pictures(tmp_path: Path) -> None:
    bare(tmp_path, "a/1/00001.jpg", "a/1/00002.jpg", "a/2/x/1.PNG", "b/1.mp4", "b/thumbnail.jpg")
    clips = build("folder", folder=str(tmp_path)).clips
    assert [clip.id for clip in clips] == ["a/1", "a/2/x", "b/1.mp4"]
    assert Path(clips[0].path).is_dir()


def test_folder_refuses_what_it_cannot_divide(tmp_path: Path) -> None:
    refused("folder", "no video", str(tmp_path), folder=str(tmp_path))
    refused("folder", "clips.source.folder", "/nowhere", folder="/nowhere")
    for name, file in (("video", "1.mp4"), ("pictures", "a/1.jpg"), ("split", "train/1.mp4")):
        folder = bare(tmp_path / name, file, *(["test/a/1.mp4"] if name == "split" else ["b/1.mp4"]))
        refused("folder", "no class's folder", str(folder), folder=str(folder))
    for shares in ({"test": -0.1}, {"val": -0.3}, {"test": 0.6, "val": 0.4}, {"test": math.nan}):
        refused("folder", "clips.source.test", folder=str(tmp_path / "split"), **shares)


# ---------------------------------------------------------------- list files


def listed(here: Path, *lines: str, end: str = "\n", files: bool = True, **options: Any) -> Manifest:
    """One list with these lines; a file or folder for every clip of it."""
    write(here / "list.txt", lines, end)
    if files:
        bare(here, "some videos/a b.mp4", "c,d.mp4", "frames/7/img_00001.jpg", "frames/a 8/img_00001.jpg", "e.mp4")
    return build("csv", list=str(here / "list.txt"), **options)


def told(manifest: Manifest) -> list[tuple[str, int]]:
    return [(clip.id, clip.label) for clip in manifest.clips]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("space", [" ", "\t", ",", ", ", "  "])
def test_list_path_label_with_any_separator(space: str, mark: str, end: str, tmp_path: Path) -> None:
    lines = [f"{mark}some videos/a b.mp4{space}1", f"c,d.mp4{space}0", f'"e.mp4"{space}-1']
    manifest = listed(tmp_path, *lines, end=end)
    assert told(manifest) == [("some videos/a b.mp4", 1), ("c,d.mp4", 0), ("e.mp4", -1)]
    assert manifest.classes == ("0", "1")
    assert {clip.split for clip in manifest.clips} == {"train"}
    assert manifest.clips[0].path == str(tmp_path / "some videos" / "a b.mp4")


@pytest.mark.parametrize("more", [("29 1", "120 0"), ("0 29 1", "0 120 0")])
def test_list_raw_frames_are_folders(more: tuple[str, str], tmp_path: Path) -> None:
    manifest = listed(tmp_path, f"frames/7 {more[0]}", f"frames/a 8 {more[1]}")
    assert told(manifest) == [("frames/7", 1), ("frames/a 8", 0)]
    assert Path(manifest.clips[0].path).is_dir()


def test_list_layout_can_be_said_where_looking_is_not_enough(tmp_path: Path) -> None:
    assert told(listed(bare(tmp_path, "a 8/1.jpg"), "a 8 1", files=False, layout="video")) == [("a 8", 1)]
    refused("csv", "list.txt, line 1", "number of pictures", list=_list(tmp_path, "a 5"), layout="rawframes")
    refused("csv", "clips.source.layout", "'csv'", list=_list(tmp_path, "a 5"), layout="csv")


def _list(folder: Path, *lines: str) -> str:
    write(folder / "list.txt", lines)
    return str(folder / "list.txt")


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (("a.mp4 1", "b.mp4 1 2"), "several labels"),
        (("a.mp4 1", "b.mp4 1,2,3"), "several labels"),
        (("a.mp4 1", "b.mp4"), "not a path and a label number"),
        (("a.mp4 1", "b.mp4 jump"), "not a path and a label number"),
        (("a.mp4 1", "b.mp4 -2"), "no class -2"),
        (("a.mp4 1", "a.mp4 1"), "line 1 of"),
        (("a.mp4 1", "./x/../a.mp4 2"), "line 1 of"),
        (("a.mp4 1", "/elsewhere/b.mp4 2"), "clips.source.folder"),
        (("dir 0 9 1", "dir 5 9 1"), "starts at picture 5"),
        (("path,label", "a.mp4"), "has 1 cells"),
        (("path,label", "a.mp4,run, jump"), "needs quotes"),
        (("path,label", ",1"), "no path"),
        (("a.mp4 1", '"" 1'), "no path"),
        (("path,label,start", "a.mp4,1,soon"), "'soon' is no time"),
        (("path,label,start", "a.mp4,1,-1"), "'-1' is no time"),
        (("path,label,start,end", "a.mp4,1,3,2.5"), "ends at 2.5 s"),
        (("path,label,split", "a.mp4,1,dev"), "'dev'"),
        (("path,label", '"a.mp4,1', ""), "line 3"),
    ],
)
def test_list_a_malformed_line_is_named(lines: tuple[str, ...], what: str, tmp_path: Path) -> None:
    refused("csv", "list.txt, line ", what, list=_list(tmp_path, *lines))


def test_list_absolute_paths_are_told_by_the_folder_that_they_are_below(tmp_path: Path) -> None:
    line = f"{tmp_path}/some videos/a b.mp4 0"
    assert told(listed(tmp_path, line)) == [("some videos/a b.mp4", 0)]
    assert told(listed(tmp_path, line, folder=str(tmp_path / "some videos"))) == [("a b.mp4", 0)]
    assert told(listed(tmp_path, line, folder="/")) == [(f"{tmp_path}/some videos/a b.mp4"[1:], 0)]


def test_list_paths_may_lead_up_and_start_in_another_folder(tmp_path: Path) -> None:
    bare(tmp_path, "videos/a.mp4")
    manifest = listed(tmp_path / "lists", "../videos/a.mp4 0")
    assert told(manifest) == [("../videos/a.mp4", 0)]
    assert manifest.clips[0].path == str(tmp_path / "videos" / "a.mp4")
    assert told(listed(tmp_path / "lists", "a.mp4 0", files=False, folder=str(tmp_path / "videos"))) == [("a.mp4", 0)]


def test_list_one_per_split_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    bare(tmp_path, "x/a.mp4", "y/a.mp4")
    lists = {
        split: _list(tmp_path / place, "a.mp4 0", "gone.mp4 1") for split, place in (("train", "x"), ("test", "y"))
    }
    manifest = build("csv", **lists)
    assert [(clip.id, clip.split) for clip in manifest.clips] == [("x/a.mp4", "train"), ("y/a.mp4", "test")]
    assert dict(manifest.missing) == {"train": 1, "test": 1}
    refused("csv", "list, or train", **lists, list=lists["train"])
    refused("csv", "list, or train")
    refused("csv", "clips.source.val", "/nowhere", **lists, val="/nowhere")
    refused("csv", "none of the 1 clips", "no gone.mp4", str(tmp_path), list=_list(tmp_path, "gone.mp4 1"))
    refused("csv", "list.txt is empty", list=_list(tmp_path, ""))


@pytest.mark.parametrize("mark", [",", "\t"])
def test_list_with_header_has_names_spans_splits_and_groups(mark: str, tmp_path: Path) -> None:
    rows = [
        "Path,label,START,end,split,group", '"c,d.mp4","run, jump",,,train,g1', "e.mp4,sit,1.5,4,validation,",
        "e.mp4,sit,4,,test,", "e.mp4,,0,1.5,,",
    ]  # fmt: skip
    lines = [row if mark == "," else "\t".join(next(csv.reader([row]))) for row in rows]
    manifest = listed(tmp_path, *lines)
    assert manifest.classes == ("run, jump", "sit")
    folder = str(tmp_path)
    assert manifest.clips == (
        Clip("c,d.mp4", f"{folder}/c,d.mp4", 0, "train", group="g1"),
        Clip("e.mp4@1.5-4", f"{folder}/e.mp4", 1, "val", 1.5, 4.0),
        Clip("e.mp4@4-", f"{folder}/e.mp4", 1, "test", 4.0),
        Clip("e.mp4@0-1.5", f"{folder}/e.mp4", -1, "train", 0.0, 1.5),
    )


def test_list_the_option_says_the_split_if_there_is_one_list_per_split(tmp_path: Path) -> None:
    bare(tmp_path, "a.mp4")
    lists = {"test": _list(tmp_path, "path,label,split", "a.mp4,1,val")}
    assert [clip.split for clip in build("csv", **lists).clips] == ["test"]


def test_list_classes_are_named_by_a_file(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", ["sit down", "run, jump", "nap"], "\r\n")
    named: dict[str, Any] = {"classes": str(tmp_path / "classes.txt")}
    assert listed(tmp_path, "e.mp4 1", **named).classes == ("sit down", "run, jump", "nap")
    assert told(listed(tmp_path, "path,label", 'e.mp4,"run, jump"', **named)) == [("e.mp4", 1)]
    refused("csv", "line 1", "no class 3 among 3", list=_list(tmp_path, "e.mp4 3"), **named)
    refused("csv", "line 2", "no class swim", list=_list(tmp_path, "path,label", "e.mp4,swim"), **named)
    write(tmp_path / "classes.txt", ["a", "b", "a"])
    refused("csv", "classes.txt, line 3", "'a' is in line 1", list=_list(tmp_path, "e.mp4 1"), **named)
    refused("csv", "clips.source.classes", "/no", list=_list(tmp_path, "e.mp4 1"), classes="/no")
    mixed = _list(tmp_path, "path,label", "e.mp4,1", "f.mp4,swim")
    refused("csv", "line 3", "'swim' is a name", list=mixed)


INK = "ab1 ,-_.'()[]#&;~@é"
PATHS = st.text(INK, min_size=1).filter(lambda text: text == text.strip() and text[0] not in "/,")
SPACES = st.sampled_from([" ", "\t", ",", ", ", "  "])


@given(PATHS, SPACES, st.integers(-1, 999), st.sampled_from([".mp4", ".AVI", ".webm"]))
def test_list_any_video_line_gives_back_its_parts(path: str, space: str, label: int, ending: str) -> None:
    line = f"{path}{ending}{space}{label}"
    assert csv_source.look([line]) == 1
    assert csv_source.cut(Path("list.txt"), 1, line, 1) == (path + ending, str(label))


@given(PATHS.map(lambda path: path.rstrip(" ,") + "_x"), SPACES, st.integers(0, 10**4), st.integers(-1, 999))
def test_list_any_line_of_raw_frames_gives_back_its_parts(path: str, space: str, count: int, label: int) -> None:
    line = f"{path}{space}{count}{space}{label}"
    assert csv_source.look([line]) == 2
    assert csv_source.cut(Path("list.txt"), 1, line, 2) == (path, str(label))


# ---------------------------------------------------------------- motion


def test_motion_mirrors_into_nothing_where_the_counterpart_is_not_there(tmp_path: Path) -> None:
    small = {"folder": str(tmp_path), "train": 0, "val": 0, "test": 1, "size": 16, "frames": 2}
    manifest = build("motion", **small, classes=["up", "right", "spin_left", "left", "clockwise"])
    assert manifest.mirrored == {1: 3, 3: 1, 2: -1, 4: -1}


@pytest.mark.parametrize("name", motion.CLASSES)
def test_a_mirrored_motion_is_the_motion_of_the_other_class(name: str) -> None:
    """In a mirror x and the turn change their signs; a class without a partner is its own mirror image."""
    other = (dict(MIRRORED) | {b: a for a, b in MIRRORED}).get(name, name)
    drawing, start = motion.Drawing(frames=16), np.array([0.1, 0.2, 0.3, 0.4, 0.15])
    seen = motion._path(drawing, name, 0.6, start) * [-1, 1, 1, -1]
    there = start * [-1, 1, 1, -1, -1] + [0, 0, 0, 0, 0.5]  # an orbit's own angle is mirrored too
    found = motion._path(drawing, other, 0.6, there)
    if name == "zigzag":  # back and forth in one period: the way back is the mirror image
        found = motion._path(drawing, name, 0.6, start * [-1, 1, 1, -1, 1] + [0, 0, 0, 0, 0.5])
    assert np.abs((seen - found + 0.5) % 1 - 0.5).max() < 1e-9
