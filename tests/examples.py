"""A small example of every data set, in that data set's exact layout, with the oddities of the real one.

EXAMPLES[source](folder) writes lists, and clips of a moving square, below the folder, and gives the options for the
source. At least two classes have four training clips and two test clips or more; one training clip has no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from distill import plugins
from distill.clips import motion as drawing
from distill.clips.manifest import Manifest
from distill.errors import UserError
from distill.randomness import generator

FRAMES, SIDE = 12, 32
CODECS = {".avi": ("mpeg4", {}), ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})}
Options = dict[str, Any]


# ---------------------------------------------------------------- clips


def film(name: str, label: int) -> np.ndarray:
    """A square that moves in a direction of its class's own, uint8 [FRAMES,SIDE,SIDE,3]; each name gives another."""
    rng = generator("example", name)
    frames = np.full((FRAMES, SIDE, SIDE, 3), rng.integers(20, 90), np.uint8)
    row, column = rng.integers(0, SIDE, 2)
    down, right = ((0, 2), (2, 0), (0, -2), (-2, 0))[label % 4]
    for time, frame in enumerate(frames):
        rows = np.arange(row + down * time, row + down * time + 8) % SIDE
        columns = np.arange(column + right * time, column + right * time + 8) % SIDE
        frame[np.ix_(rows, columns)] = 220
    return frames


def clip(path: Path, label: int) -> None:
    """Write a video, or a folder of JPEG pictures where the path is not that of a video."""
    frames = film(path.name, label)
    if path.suffix in (".mp4", *CODECS):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.encode(frames, path) if path.suffix == ".mp4" else encode(frames, path)
        return
    path.mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(path / f"{number:05d}.jpg")


def encode(frames: np.ndarray, path: Path) -> None:
    codec, options = CODECS[path.suffix]
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(12), options=options)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def build(name: str, **options: Any) -> Manifest:
    """As a recipe builds it."""
    tree = OmegaConf.merge(OmegaConf.structured(plugins.schema("source", name)), options)
    found: Manifest = plugins.build("source", OmegaConf.to_object(tree))
    return found


def bare(folder: Path, *files: str) -> Path:
    """A folder of empty files: sources go by names alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def ids(manifest: Manifest, split: str) -> list[str]:
    return [manifest.clips[index].id for index in manifest.of(split)]


def refused(name: str, *parts: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        build(name, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- data sets

KINETICS = ("massaging person's head", "skiing (not slalom or crosscountry)", "skiing crosscountry")


def kinetics(folder: Path) -> Options:
    """Raw, underscored and sanitised class folders; ids that begin with - and _; a replacement; one missing file."""
    train, val, test = [], [], []
    for label, name in enumerate(KINETICS):
        spelt = (name, name.replace(" ", "_"), name.translate(str.maketrans("", "", "'()")))[label]
        for take in range(5):
            youtube = f"{'-_aB0'[take]}x_{label}-train{take}"[:11]
            train.append(f'"{name}",{youtube},{7 * take},{7 * take + 10},train,0')
            where = (
                folder / "videos" / ("replacement/replacement_for_corrupted_k400" if take == 3 else f"train/{spelt}")
            )
            if (label, take) != (0, 4):
                clip(where / f"{youtube}_{7 * take:06d}_{7 * take + 10:06d}.mp4", label)
        for take in range(2):
            val.append(f"{name},{'_-'[take]}val{label}_{take}abcd,100,110,val,1")
            clip(folder / "videos" / "val" / f"{'_-'[take]}val{label}_{take}abcd_000100_000110.mp4", label)
        test.append(f"--test{label}abcd,1234,1244,test")
        clip(folder / "videos" / f"--test{label}abcd_001234_001244.mp4", label)
    header = "youtube_id,time_start,time_end,split"
    write(folder / "lists" / "train.csv", [f"label,{header},is_cc", *train])
    write(folder / "lists" / "validate.csv", [f"label,{header},is_cc", *val])
    write(folder / "lists" / "test.csv", [header, *test])
    return {"folder": str(folder / "videos"), "lists": str(folder / "lists")}


UCF101 = ("Hammering", "HammerThrow", "HandstandPushups", "JumpingJack", "JumpRope")  # the order of classInd.txt


def ucf101(folder: Path) -> Options:
    """CRLF, numbers from 1, the class HandstandPushups with its files v_HandStandPushups, one missing file."""
    lists = folder / "ucfTrainTestlist"
    train, test = [], []
    for label, name in enumerate(UCF101[:3]):
        file = name.replace("Handstand", "HandStand")
        for group in (8, 9):
            train += [f"{name}/v_{file}_g{group:02d}_c{take:02d}.avi {label + 1}" for take in (1, 2)]
        test += [f"{name}/v_{file}_g01_c{take:02d}.avi" for take in (1, 2)]
        for line in train[-4:] + test[-2:]:
            clip(folder / "UCF-101" / line.split()[0], label)
    train.append("JumpRope/v_JumpRope_g08_c01.avi 5")
    write(lists / "classInd.txt", [f"{number} {name}" for number, name in enumerate(UCF101, start=1)], "\r\n")
    write(lists / "trainlist01.txt", train, "\r\n")
    write(lists / "testlist01.txt", test, "\r\n")
    return {"folder": str(folder / "UCF-101"), "lists": str(lists)}


HMDB51 = ("climb", "climb_stairs", "sword")
ODD = ("(HQ)_Rock_-_Free", "A&B+C;d~@!", "[x]#1", "Ali-G_4")


def hmdb51(folder: Path) -> Options:
    """Trailing spaces, 0 1 2, odd file names, a class whose name begins another's, one missing file."""
    for label, name in enumerate(HMDB51):
        takes = [f"{ODD[take % 4]}_{name}_f_cm_np1_ba_med_{take}.avi" for take in range(7)]
        uses = [1, 1, 1, 1, 2, 2, 0]
        for take in takes[:6]:
            clip(folder / "videos" / name / take, label)
        if label == 0:
            takes, uses = [*takes, "gone_climb_u_nm_np1_fr_goo_0.avi"], [*uses, 1]
        lines = [f"{take} {use} " for take, use in zip(takes, uses, strict=True)]
        write(folder / "lists" / f"{name}_test_split1.txt", lines)
    return {"folder": str(folder / "videos"), "lists": str(folder / "lists")}


JESTER = ("Swiping Left", "Swiping Right", "Turning Hand Clockwise", "Doing other things")


def jester(folder: Path) -> Options:
    """Folders of JPEG pictures from 00001.jpg on; numbers are the order of the labels' file; one missing folder."""
    lists: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for label in (0, 1, 3):
        for take, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"]):
            clip_id = str(1000 * (9 - label) + take)
            lists[split].append(clip_id if split == "test" else f"{clip_id};{JESTER[label]}")
            clip(folder / "20bn-jester-v1" / clip_id, label)
    lists["train"].append("77;Turning Hand Clockwise")
    for split, lines in {**lists, "labels": list(JESTER)}.items():
        write(folder / "lists" / f"jester-v1-{split}.csv", lines)
    return {"folder": str(folder / "20bn-jester-v1"), "lists": str(folder / "lists")}


SSV2 = (
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Tipping something with something in it over, so something in it falls out",
    "Turning the camera left while filming something",
)


def ssv2(folder: Path) -> Options:
    """Numbers as text, templates with brackets in the lists and without in the labels, commas, one missing file."""
    lists: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for label, name in enumerate(SSV2[:3]):
        template = name.replace("something", "[something]").replace("[something] in it", "[something in it]")
        for take, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"]):
            entry = {"id": str(100 * (label + 1) + take)}
            clip(folder / "20bn-something-something-v2" / f"{entry['id']}.webm", label)
            more = {"label": name.replace("something", "a cup"), "template": template, "placeholders": ["a cup"]}
            lists[split].append(entry if split == "test" else {**entry, **more})
    lists["train"].append({"id": "9", "label": "", "template": SSV2[3], "placeholders": []})
    labels = {name: str(label) for label, name in enumerate(SSV2)}
    for name, content in {**lists, "labels": labels}.items():
        write(folder / "lists" / f"something-something-v2-{name}.json", [json.dumps(content, indent=1)])
    return {"folder": str(folder / "20bn-something-something-v2"), "lists": str(folder / "lists")}


def folder(folder: Path) -> Options:
    """Class folders of videos and one of picture folders; ten clips each, drawn into splits."""
    for label, name in enumerate(("clap hands", "wave #1")):
        for take in range(10):
            clip(folder / name / f"take {take} [a].mp4", label)
    for take in range(10):
        clip(folder / "point" / f"{take}", 2)
    return {"folder": str(folder)}


def csv(folder: Path) -> Options:
    """One list per split, paths with spaces, a file of class names, one missing file."""
    plan = {"train": 5, "val": 1, "test": 2}
    for split, takes in plan.items():
        lines = []
        for label in range(2):
            for take in range(takes):
                path = f"videos/{split} {label}/{take} 1.mp4"
                clip(folder / path, label)
                lines.append(f"{path} {label}")
        write(folder / f"{split}.txt", [*lines, "videos/gone.mp4 1"] if split == "train" else lines)
    write(folder / "classes.txt", ["move right", "move down"])
    return {name: str(folder / f"{name}.txt") for name in (*plan, "classes")}


def motion(folder: Path) -> Options:
    small = {"train": 4, "val": 1, "test": 2, "size": SIDE, "frames": FRAMES}
    return {"folder": str(folder), "classes": ["left", "right", "up"], **small}


EXAMPLES: dict[str, Callable[[Path], Options]] = {
    "folder": folder,
    "hmdb51": hmdb51,
    "jester": jester,
    "kinetics": kinetics,
    "csv": csv,
    "motion": motion,
    "ssv2": ssv2,
    "ucf101": ucf101,
}
