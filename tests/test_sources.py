"""Data sources: the official ids, labels and splits, and every trap that the lists and the file names hold."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from examples import EXAMPLES, FRAMES, KINETICS, UCF101, bare, build, ids, refused, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import plugins
from distill.clips.manifest import Clip, Manifest
from distill.clips.sources import ucf101

Built = Callable[[str], tuple[Path, dict[str, Any], Manifest]]
EVERY = pytest.mark.parametrize("name", sorted(EXAMPLES))
LISTED = pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"folder", "csv", "motion"}))
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root, made = tmp_path_factory.mktemp("examples"), dict[str, tuple[Path, dict[str, Any], Manifest]]()

    def of(name: str) -> tuple[Path, dict[str, Any], Manifest]:
        if name not in made:
            options = EXAMPLES[name](root / name)
            made[name] = root / name, options, build(name, **options)
        return made[name]

    return of


# ---------------------------------------------------------------- every source


def test_every_source_has_an_example() -> None:
    assert sorted(EXAMPLES) == plugins.names("source")


@EVERY
def test_an_example_can_be_trained_on(name: str, example: Built) -> None:
    _, _, manifest = example(name)
    counts = Counter((clip.label, clip.split) for clip in manifest.clips)
    labels = {clip.label for clip in manifest.clips}
    assert len(labels) >= 2
    assert all(counts[label, "train"] >= 4 and counts[label, "test"] >= 2 for label in labels)
    assert all(Path(clip.path).is_absolute() and Path(clip.path).exists() for clip in manifest.clips)
    for clip in manifest.clips[:: len(manifest.clips) - 1]:
        if Path(clip.path).is_dir():
            assert sorted(path.name for path in Path(clip.path).iterdir())[0] == "00001.jpg"
        else:
            with av.open(f"file:{clip.path}") as container:
                assert len(list(container.decode(video=0))) == FRAMES


@EVERY
def test_ids_do_not_depend_on_where_the_data_lies(name: str, example: Built, tmp_path: Path) -> None:
    folder, options, here = example(name)
    shutil.copytree(folder, tmp_path / "moved")
    moved = {key: value.replace(str(folder), str(tmp_path / "moved")) if isinstance(value, str) else value
             for key, value in options.items()}  # fmt: skip
    there = build(name, **moved)
    assert [(clip.id, clip.label, clip.split, clip.group) for clip in there.clips] == [
        (clip.id, clip.label, clip.split, clip.group) for clip in here.clips
    ]
    assert all(clip.path.startswith(str(tmp_path / "moved")) for clip in there.clips)
    assert str(tmp_path) not in "".join(clip.id for clip in there.clips)


class Entry:
    """Stands for os.DirEntry, and does not let anybody ask the disk about a video or a picture."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.entry, self.name = entry, entry.name

    def is_dir(self) -> bool:
        assert not self.name.endswith((".mp4", ".avi", ".webm", ".jpg")), "one question to the disk per file"
        return self.entry.is_dir()


@EVERY
def test_order_is_the_same_whatever_the_disk_lists_first_and_no_file_is_looked_at(
    name: str, example: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, options, usual = example(name)
    scandir = os.scandir

    @contextmanager
    def backwards(path: str) -> Iterator[list[Entry]]:
        with scandir(path) as found:
            yield [Entry(entry) for entry in sorted(found, key=lambda entry: entry.name, reverse=True)]

    monkeypatch.setattr(os, "scandir", backwards)
    assert build(name, **options) == usual


@LISTED
def test_a_missing_file_is_counted_and_a_missing_list_or_folder_is_an_error(name: str, example: Built) -> None:
    folder, options, manifest = example(name)
    assert sum(manifest.missing.values()) == 1
    refused(name, "clips.source.folder", "/nowhere", **{**options, "folder": "/nowhere"})
    refused(name, "clips.source.lists", "/nowhere", **{**options, "lists": "/nowhere"})
    wanted = {"hmdb51": "_test_split1.txt", "ssv2": "labels.json", "jester": "-train.csv"}.get(name, "train")
    refused(name, str(folder), wanted, **{**options, "lists": options["folder"]})


@LISTED
def test_nothing_found_shows_what_was_looked_for_and_where(name: str, example: Built, tmp_path: Path) -> None:
    _, options, manifest = example(name)
    refused(name, "e.g. no ", manifest.clips[0].id, str(tmp_path), "folder", **{**options, "folder": str(tmp_path)})


@pytest.mark.parametrize("name", ["kinetics", "jester", "ssv2"])
def test_the_official_test_list_is_used_when_asked_for(name: str, example: Built) -> None:
    _, options, usual = example(name)
    with_test = build(name, **options, test="test")
    assert ids(with_test, "train") == ids(usual, "train")
    assert ids(with_test, "val") == ids(usual, "test")
    assert ids(usual, "val") == []
    assert {with_test.clips[index].label for index in with_test.of("test")} == {-1}
    assert len(with_test.of("test")) == 3
    refused(name, "clips.source.test", "'dev'", **options, test="dev")


# ---------------------------------------------------------------- kinetics

HEADER = "label,youtube_id,time_start,time_end,split"


def kinetics_lists(folder: Path, *rows: str, header: str = HEADER, end: str = "\n") -> dict[str, str]:
    """Train rows; every one but the last has a file. Each class also has a clip in the validation list."""
    write(folder / "lists" / "train.csv", [header, *rows], end)
    write(folder / "lists" / "val.csv", [HEADER, "a,valvalvalva,0,10,val"])
    bare(folder / "videos", "valvalvalva_000000_000010.mp4")
    return {"folder": str(folder / "videos"), "lists": str(folder / "lists")}


def test_kinetics_ids_labels_groups_and_splits(example: Built) -> None:
    folder, _, manifest = example("kinetics")
    assert manifest.classes == KINETICS
    assert dict(manifest.missing) == {"train": 1}
    first, second = manifest.clips[:2]
    place = folder / "videos" / "train" / KINETICS[0] / "-x_0-train0_000000_000010.mp4"
    assert first == Clip(place.stem, str(place), 0, "train", group="-x_0-train0")
    assert (second.id, second.group) == ("_x_0-train1_000007_000017", "_x_0-train1")
    assert ids(manifest, "test")[:2] == ["_val0_0abcd_000100_000110", "-val0_1abcd_000100_000110"]
    assert [manifest.clips[index].label for index in manifest.of("test")] == [0, 0, 1, 1, 2, 2]


def test_kinetics_class_numbers_follow_the_raw_labels_not_the_sanitised_folders(tmp_path: Path) -> None:
    names = ["skiing crosscountry", "skiing (not slalom or crosscountry)", "ski jumping", "skiing slalom"]
    options = kinetics_lists(tmp_path, *(f"{name},abcdefghij{i},0,10,train" for i, name in enumerate(names)))
    bare(tmp_path / "videos", "skiing not slalom or crosscountry/abcdefghij1_000000_000010.mp4")
    manifest = build("kinetics", **options)
    assert manifest.classes[2:4] == ("skiing (not slalom or crosscountry)", "skiing crosscountry")
    sanitised = sorted(re.sub("['()]", "", name) for name in manifest.classes)
    assert sanitised.index("skiing crosscountry") < sanitised.index("skiing not slalom or crosscountry")
    assert manifest.clips[0].label == 2


@pytest.mark.parametrize(
    "place",
    [
        "", "train/", "val_256/", "passing American football (in game)/", "passing_American_football_(in_game)/",
        "train/passing American football in game/", "train/passing_American_football_in_game/", "replacement/x/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_kinetics_finds_a_file_in_any_folder(place: str, ending: str, tmp_path: Path) -> None:
    options = kinetics_lists(tmp_path, '"passing American football (in game)",-_b-d_f-h_j,7,17,train')
    bare(tmp_path / "videos", f"{place}-_b-d_f-h_j_000007_000017{ending}")
    assert build("kinetics", **options).clips[0].path.endswith(f"/{place}-_b-d_f-h_j_000007_000017{ending}")


def test_kinetics_replacements_go_before_the_corrupted_files(tmp_path: Path) -> None:
    options = kinetics_lists(tmp_path, "a,abcdefghijk,0,10,train")
    bare(tmp_path / "videos", *(f"{x}/abcdefghijk_000000_000010.mp4" for x in ("a", "replacement_for_corrupted_k400")))
    assert "replacement_for_corrupted_k400" in build("kinetics", **options).clips[0].path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("more", ["", ",is_cc"])
@pytest.mark.parametrize("label", ["massaging person's head", '"massaging person\'s head"'])
def test_kinetics_labels_may_be_quoted_and_is_cc_may_be_there(label: str, more: str, end: str, tmp_path: Path) -> None:
    row = f"{label},abcdefghijk,0,10,train" + more.replace("is_cc", "0")
    options = kinetics_lists(tmp_path, row, header=HEADER + more, end=end)
    assert build("kinetics", **options).classes == ("a", "massaging person's head")


def test_kinetics_a_quoted_label_may_have_a_comma(tmp_path: Path) -> None:
    assert "b, c" in build("kinetics", **kinetics_lists(tmp_path, '"b, c",abcdefghijk,0,10,train')).classes


def test_kinetics_the_same_seconds_with_two_labels_are_two_clips(tmp_path: Path) -> None:
    options = kinetics_lists(tmp_path, "a,abcdefghijk,0,10,train", "b,abcdefghijk,0,10,train")
    bare(tmp_path / "videos", "abcdefghijk_000000_000010.mp4")
    first, second, _ = build("kinetics", **options).clips
    assert (first.id, first.label) == ("abcdefghijk_000000_000010", 0)
    assert (second.id, second.label) == ("abcdefghijk_000000_000010+2", 1)
    assert first.path == second.path


def test_kinetics_a_test_list_may_have_labels(tmp_path: Path) -> None:
    options = {**kinetics_lists(tmp_path, "b,abcdefghijk,0,10,train"), "test": "test"}
    bare(tmp_path / "videos", "testtesttes_000000_000010.mp4")
    write(tmp_path / "lists" / "test.csv", [HEADER, "b,testtesttes,0,10,test"])
    assert build("kinetics", **options).clips[-1].label == 1
    write(tmp_path / "lists" / "test.csv", [HEADER, "c,testtesttes,0,10,test"])
    refused("kinetics", "test.csv, line 2", "'c'", **options)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a,abcdefghijk,zero,10,train", "whole seconds"),
        ("a,abcdefghijk,0,10", "has 4 cells, the header has 5"),
        ("b, c,abcdefghijk,0,10,train", "a comma in it needs quotes"),
        (",abcdefghijk,0,10,train", "label"),
        ("a,,0,10,train", "YouTube id"),
    ],
)
def test_kinetics_a_malformed_line_is_named(row: str, what: str, tmp_path: Path) -> None:
    refused("kinetics", "train.csv, line 3", what, **kinetics_lists(tmp_path, "a,abcdefghijk,0,10,train", row))


def test_kinetics_a_list_without_header_is_refused(tmp_path: Path) -> None:
    refused("kinetics", "train.csv, line 1", "'label'", **kinetics_lists(tmp_path, header="a,abcdefghijk,0,10,train"))
    write(tmp_path / "lists" / "train.csv", [])
    refused("kinetics", "train.csv is empty", **kinetics_lists(tmp_path, header=""))


# ---------------------------------------------------------------- ucf101


def ucf101_lists(folder: Path, *train: str, classes: Iterable[str] = UCF101) -> dict[str, str]:
    write(folder / "lists" / "classInd.txt", [f"{i} {name}" for i, name in enumerate(classes, start=1)], "\r\n")
    write(folder / "lists" / "trainlist02.txt", train, "\r\n")
    write(folder / "lists" / "testlist02.txt", [], "\r\n")
    bare(folder / "videos")
    return {"folder": str(folder / "videos"), "lists": str(folder / "lists"), "fold": 2}  # type: ignore[dict-item]


def test_ucf101_ids_labels_groups_and_splits(example: Built) -> None:
    folder, _, manifest = example("ucf101")
    assert manifest.classes == UCF101
    assert dict(manifest.missing) == {"train": 1}
    assert {split: len(manifest.of(split)) for split in ("train", "val", "test")} == {"train": 12, "val": 0, "test": 6}
    path = str(folder / "UCF-101" / "Hammering" / "v_Hammering_g08_c01.avi")
    assert manifest.clips[0] == Clip("Hammering/v_Hammering_g08_c01", path, 0, "train", group="Hammering_g08")
    groups = [{manifest.clips[index].group for index in manifest.of(split)} for split in ("train", "test")]
    assert not groups[0] & groups[1]


def test_ucf101_class_numbers_are_those_of_class_ind_not_of_sorted_folders(example: Built) -> None:
    classes = list(example("ucf101")[2].classes)
    assert classes.index("Hammering") < classes.index("HammerThrow")
    assert sorted(classes).index("Hammering") > sorted(classes).index("HammerThrow")
    assert classes.index("JumpingJack") < classes.index("JumpRope")
    assert sorted(classes).index("JumpingJack") > sorted(classes).index("JumpRope")


@pytest.mark.parametrize("on_disk", ["HandStandPushups", "HandstandPushups"])
def test_ucf101_handstand_pushups_come_from_the_folder_whatever_the_file_is_called(
    on_disk: str, tmp_path: Path
) -> None:
    options = ucf101_lists(tmp_path, "HandstandPushups/v_HandStandPushups_g08_c01.avi 3")
    bare(tmp_path / "videos", f"HandstandPushups/v_{on_disk}_g08_c01.avi")
    (clip,) = build("ucf101", **options).clips
    assert (clip.id, clip.label) == ("HandstandPushups/v_HandStandPushups_g08_c01", 2)
    assert (clip.group, Path(clip.path).stem) == ("HandstandPushups_g08", f"v_{on_disk}_g08_c01")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("Hammering/v_Hammering_g01_c01.avi 0", "class 1 in classInd.txt, not 0"),
        ("Juggling/v_Juggling_g01_c01.avi 1", "no class 'Juggling'"),
        ("v_Hammering_g01_c01.avi 1", "Class/v_Class_g01_c01.avi"),
        ("Hammering/v_Hammering.avi 1", "Class/v_Class_g01_c01.avi"),
    ],
)
def test_ucf101_a_malformed_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    options = ucf101_lists(tmp_path, "Hammering/v_Hammering_g01_c02.avi 1", line)
    refused("ucf101", "trainlist02.txt, line 2", what, **options)


def test_ucf101_classes_are_counted_from_one_without_gaps(tmp_path: Path) -> None:
    options = ucf101_lists(tmp_path, classes=["Hammering", "Jump Rope"])
    refused("ucf101", "classInd.txt, line 2", "'2 ClassName'", **options)
    write(tmp_path / "lists" / "classInd.txt", ["0 Hammering"])
    refused("ucf101", "classInd.txt, line 1", "'1 ClassName'", **options)
    refused("ucf101", "trainlist03.txt", **{**options, "fold": 3})


NAME = st.text(
    st.characters(exclude_characters="/\ufeff", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1
)


@given(NAME, NAME, st.integers(0, 99), st.integers(0, 99))
@IN_ONE_FOLDER
def test_ucf101_any_line_gives_back_its_parts(tmp_path: Path, name: str, take: str, group: int, part: int) -> None:
    write(tmp_path / "list.txt", [f"{name}/{take}_g{group:02d}_c{part:02d}.avi 1"], "\r\n")
    found = ucf101.read(tmp_path / "list.txt", {name: 0})
    assert found == [(name, f"{take}_g{group:02d}_c{part:02d}", f"g{group:02d}")]
