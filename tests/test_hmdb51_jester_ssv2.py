"""HMDB51, Jester and Something-Something v2: official ids, labels and splits, and the traps in lists and names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from examples import EXAMPLES, HMDB51, JESTER, SSV2, bare, build, ids, refused, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.clips.manifest import Clip, Manifest
from distill.clips.sources import hmdb51

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
NAME = st.text(st.characters(exclude_characters="/\ufeff", exclude_categories=["Cc", "Cs", "Z"]), min_size=1)


def made(name: str, folder: Path) -> tuple[Path, Manifest]:
    return folder, build(name, **EXAMPLES[name](folder))


# ---------------------------------------------------------------- hmdb51


def hmdb51_lists(folder: Path, **lines: list[str]) -> dict[str, str]:
    """One list per class; a file for every line."""
    for name, rows in lines.items():
        write(folder / "lists" / f"{name}_test_split1.txt", rows)
        bare(folder / "videos", *(f"{name}/{row.rsplit(maxsplit=1)[0]}" for row in rows))
    return {"folder": str(bare(folder / "videos")), "lists": str(bare(folder / "lists"))}


def test_hmdb51_ids_labels_groups_and_splits(tmp_path: Path) -> None:
    folder, manifest = made("hmdb51", tmp_path)
    assert manifest.classes == HMDB51
    assert dict(manifest.missing) == {"train": 1}
    assert {split: len(manifest.of(split)) for split in ("train", "val", "test")} == {"train": 12, "val": 0, "test": 6}
    file = "[x]#1_climb_f_cm_np1_ba_med_2"
    path = str(folder / "videos" / "climb" / f"{file}.avi")
    assert manifest.clips[2] == Clip(f"climb/{file}", path, 0, "train", group="climb/[x]#1")
    assert not any("_6" in clip.id for clip in manifest.clips), "the one that is marked 0"


def test_hmdb51_trailing_spaces_and_crlf(tmp_path: Path) -> None:
    options = hmdb51_lists(tmp_path, climb=["a.avi 1 ", "b.avi 2 \r", "c.avi 0 ", "d.avi 1"])
    assert [(clip.id, clip.split) for clip in build("hmdb51", **options).clips] == [
        ("climb/a", "train"), ("climb/b", "test"), ("climb/d", "train"),
    ]  # fmt: skip


def test_hmdb51_a_class_is_matched_by_its_exact_name(tmp_path: Path) -> None:
    lists = {"climb": ["1.avi 1"], "climb_stairs": ["1.avi 1"], "sword": ["1.avi 2"], "sword_exercise": ["1.avi 1"]}
    manifest = build("hmdb51", **hmdb51_lists(tmp_path, **lists))
    assert [clip.id for clip in manifest.clips] == [f"{name}/1" for name in lists]
    assert [clip.label for clip in manifest.clips] == [0, 1, 2, 3]
    assert [clip.path.rsplit("/", 2)[1] for clip in manifest.clips] == list(lists)


@pytest.mark.parametrize("odd", list("-!()#[]&+;~@"))
def test_hmdb51_file_names_may_hold_any_character(odd: str, tmp_path: Path) -> None:
    (clip,) = build("hmdb51", **hmdb51_lists(tmp_path, climb=[f"{odd}a{odd}_b.avi 1 "])).clips
    assert clip.id == f"climb/{odd}a{odd}_b"
    assert Path(clip.path).is_file()


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("Rock_climb_and_climb_f_cm_np1_ba_med_0", "climb/Rock_climb_and"),
        ("Rock_climb_stairs_f_cm_np1_ba_med_0", ""),
        ("climb_f_cm_np1_ba_med_0", ""),
        ("Rock_climb", ""),
    ],
)
def test_hmdb51_a_group_is_what_stands_before_the_class_if_the_name_is_an_official_one(file: str, group: str) -> None:
    assert hmdb51.recording(file, "climb") == group


@pytest.mark.parametrize("line", ["a.avi 3", "a.avi", "a 1", "1"])
def test_hmdb51_a_malformed_line_is_named(line: str, tmp_path: Path) -> None:
    refused("hmdb51", "climb_test_split1.txt, line 2", "0, 1 or 2", **hmdb51_lists(tmp_path, climb=["a.avi 1 ", line]))


@given(NAME, st.sampled_from(["1", "2"]))
@IN_ONE_FOLDER
def test_hmdb51_any_line_gives_back_its_parts(tmp_path: Path, name: str, use: str) -> None:
    write(tmp_path / "list.txt", [f"{name}.avi {use} ", f"{name}.avi 0 "])
    assert list(hmdb51.read(tmp_path / "list.txt")) == [(name, {"1": "train", "2": "test"}[use])]


# ---------------------------------------------------------------- jester


def test_jester_ids_labels_and_splits(tmp_path: Path) -> None:
    folder, manifest = made("jester", tmp_path)
    assert manifest.classes == JESTER, "the order of the labels' file, which is not sorted"
    assert dict(manifest.missing) == {"train": 1}
    assert manifest.clips[0] == Clip("9000", str(folder / "20bn-jester-v1" / "9000"), 0, "train")
    assert ids(manifest, "test") == ["9004", "9005", "8004", "8005", "6004", "6005"]


def test_jester_a_mirror_swaps_left_and_right_and_the_turns(tmp_path: Path) -> None:
    names = [
        "Swiping Left", "Swiping Right", "Swiping Down", "Sliding Two Fingers Left", "Sliding Two Fingers Right",
        "Turning Hand Counterclockwise", "Turning Hand Clockwise", "Rolling Hand Forward",
    ]  # fmt: skip
    assert build("jester", **jester_lists(tmp_path, *names)).mirrored == {0: 1, 1: 0, 3: 4, 4: 3, 5: 6, 6: 5}
    assert build("jester", **jester_lists(tmp_path, *names[1:4])).mirrored == {0: -1, 2: -1}, "into nothing"


def jester_lists(folder: Path, *labels: str, train: Iterable[str] = ("7;Swiping Right",)) -> dict[str, str]:
    for name, rows in (("labels", labels), ("train", train), ("validation", ())):
        write(folder / "lists" / f"jester-v1-{name}.csv", rows)
    return {"folder": str(bare(folder / "videos", "7/00001.jpg").absolute()), "lists": str(folder / "lists")}


@pytest.mark.parametrize(("line", "what"), [("8", "'id;label'"), (";Swiping Right", "'id;label'"), ("8;Nod", "'Nod'")])
def test_jester_a_malformed_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    options = jester_lists(tmp_path, "Swiping Right", train=["7;Swiping Right", line])
    refused("jester", "jester-v1-train.csv, line 2", what, **options)


# ---------------------------------------------------------------- ssv2


def ssv2_lists(folder: Path, train: Any, labels: Any, names: str = "something-something-v2-{}.json") -> dict[str, str]:
    for name, content in (("labels", labels), ("train", train), ("validation", [])):
        write(folder / "lists" / names.format(name), [json.dumps(content)])
    return {"folder": str(bare(folder / "videos", "7.webm", "8.mp4")), "lists": str(folder / "lists")}


def test_ssv2_ids_labels_and_splits(tmp_path: Path) -> None:
    folder, manifest = made("ssv2", tmp_path)
    assert manifest.classes == SSV2
    assert dict(manifest.missing) == {"train": 1}
    path = str(folder / "20bn-something-something-v2" / "100.webm")
    assert manifest.clips[0] == Clip("100", path, 0, "train")
    assert [clip.label for clip in manifest.clips if clip.split == "test"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("names", ["something-something-v2-{}.json", "{}.json", "labels/{}.json"])
def test_ssv2_class_numbers_are_those_of_the_labels_file_and_brackets_do_not_count(names: str, tmp_path: Path) -> None:
    train = [
        {"id": "7", "template": "Moving [something], then [another]"},
        {"id": 8, "template": "Closing [something]"},
    ]
    labels = {"Closing something": "1", "Moving something, then another": "0"}
    manifest = build("ssv2", **ssv2_lists(tmp_path, train, labels, names))
    assert manifest.classes == ("Moving something, then another", "Closing something")
    assert [(clip.id, clip.label, clip.path[-6:]) for clip in manifest.clips] == [
        ("7", 0, "7.webm"), ("8", 1, "/8.mp4"),
    ]  # fmt: skip


def test_ssv2_a_mirror_swaps_six_classes(tmp_path: Path) -> None:
    names = [
        "Pulling something from left to right", "Pulling something from right to left",
        "Pushing something from left to right", "Pushing something from right to left", "Throwing something",
        "Turning the camera left while filming something", "Turning the camera right while filming something",
        "Turning the camera upwards while filming something",
    ]  # fmt: skip
    train = [{"id": "7", "template": "Throwing [something]"}]
    labels = {name: str(label) for label, name in enumerate(names)}
    options = ssv2_lists(tmp_path, train, labels)
    assert build("ssv2", **options).mirrored == {0: 1, 1: 0, 2: 3, 3: 2, 5: 6, 6: 5}


@pytest.mark.parametrize("entry", [{"id": "8", "template": "Folding [something]"}, {"id": "8"}, "8", {"template": "A"}])
def test_ssv2_an_entry_that_makes_no_sense_is_named(entry: Any, tmp_path: Path) -> None:
    options = ssv2_lists(tmp_path, [{"id": "7", "template": "[A]"}, entry], {"A": "0"})
    refused("ssv2", "something-something-v2-train.json, entry 2", **options)


@pytest.mark.parametrize("labels", [{"A": "1"}, {"A": "0", "B": "0"}, {"A": "x"}, ["A"]])
def test_ssv2_labels_that_leave_out_a_number_are_refused(labels: Any, tmp_path: Path) -> None:
    refused("ssv2", "something-something-v2-labels.json", **ssv2_lists(tmp_path, [], labels))


def test_ssv2_a_list_that_is_no_json_is_refused(tmp_path: Path) -> None:
    options = ssv2_lists(tmp_path, {"7": "A"}, {"A": "0"})
    refused("ssv2", "train.json is no list", **options)
    write(tmp_path / "lists" / "something-something-v2-train.json", ["[", '{"id": 7', "]"])
    refused("ssv2", "train.json, line 3: is not JSON", **options)
