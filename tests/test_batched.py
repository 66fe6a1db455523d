"""Several clips in one call: each gets what it would get alone, however many a file takes at once."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from distill import command
from distill.clips import motion
from distill.deploy.card import SUFFIXES, ExportCard, Port
from distill.deploy.forms import open_run
from distill.deploy.recogniser import Recogniser
from distill.deploy.sessions import Arrays

BATCH = 3
FEW = ("clips=4", "calibration=8", "agreement=0", "cosine=0")
MAKERS = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
MAKERS |= {"litert": ("litert_torch", "ai_edge_quantizer"), "executorch": ("executorch", "torchao")}
SAME = 1e-5  # of the largest answer: how far apart what a file says alone and in company may be
OTHER = {"fp32": 5e-5, "int8": 0.1}  # and what two files say, which may round elsewhere


@pytest.fixture(scope="module")
def run(tiny_run: Callable[[str], Path]) -> Path:
    return tiny_run("tiny")


def clips(card: ExportCard, count: int) -> np.ndarray:
    drawing = motion.Drawing(size=card.size, frames=card.frames)
    names = motion.CLASSES
    return np.stack([motion.draw(drawing, f"films/{i}", names[i % len(names)], "test") for i in range(count)])


class Sums:
    """A session whose answers are the sum of each clip and its first pixel."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __call__(self, given: Arrays) -> list[np.ndarray]:
        (frames,) = given
        self.asked.append(frames)
        rows = frames.reshape(len(frames), -1)
        return [np.stack([rows.sum(1, np.float32), rows[:, 0]], 1).astype(np.float32)]


def summing(batch: int) -> tuple[Recogniser, Sums]:
    ports = Port("clip", (batch, 2, 4, 4, 3), "uint8"), Port("latent", (batch, 2), "float32")
    card = ExportCard("encoder", "onnx", "fp32", "tsn", ["a", "b"], 2, 4, 1.0, [ports[0]], [ports[1]])
    session = Sums()
    return Recogniser(card, session), session


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 10])
@pytest.mark.parametrize("batch", [1, 5])
def test_clips_go_through_in_groups(batch: int, count: int) -> None:
    recogniser, session = summing(batch)
    frames = np.random.default_rng(0).integers(0, 256, (count, 2, 4, 4, 3), np.uint8)
    found = recogniser.clips(frames)
    assert (found.shape, found.dtype) == ((count, 2), np.float32)
    assert found[:, 0].tolist() == frames.sum((1, 2, 3, 4)).tolist()
    assert [len(given) for given in session.asked] == [batch] * -(-count // batch)
    for at, given in enumerate(session.asked):
        places = np.minimum(np.arange(at * batch, (at + 1) * batch), count - 1)
        assert np.array_equal(given, frames[places])  # the last one stands in for those that lack


def test_one_clip_of_a_file_that_takes_more() -> None:
    recogniser, session = summing(5)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert recogniser.clip(frames).tolist() == [frames.sum(), frames.ravel()[0]]
    assert len(session.asked) == 1


@pytest.mark.parametrize("form", ["whole", "encoder"])
def test_a_student_in_torch_takes_any_number(form: str, run: Path) -> None:
    student = open_run(run, form)
    frames = clips(student.card, 7)
    alone = np.stack([student.clip(clip) for clip in frames])
    for count in (0, 1, 5, 7):
        assert student.clips(frames[:count]) == pytest.approx(alone[:count], abs=1e-5)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("form", ["whole", "encoder"])
@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        "openvino",
        pytest.param("litert", marks=pytest.mark.slow),
        pytest.param("executorch", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_takes_several_clips(name: str, form: str, run: Path, tmp_path: Path) -> None:
    """In a process of its own: the makers' and runtimes' libraries do not all get on with each other for long."""
    for module in MAKERS[name]:
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        apart.submit(several_are_as_one, name, form, run, tmp_path).result()


def several_are_as_one(name: str, form: str, run: Path, tmp_path: Path) -> None:
    asked = [f"run={run}", f"out={tmp_path}", f"to={name}", f"form={form}", "precision=fp32,int8", *FEW]
    assert command.run("export", [*asked, f"batch={BATCH}"]) == 0
    assert command.run("export", asked) == 0
    student = open_run(run, form)
    frames = clips(student.card, 2 * BATCH + 1)
    wanted = student.clips(frames)
    for precision, other in OTHER.items():
        single, several = (
            Recogniser.open(tmp_path / f"{form}-{precision}{batch}{SUFFIXES[name]}") for batch in ("", f"-batch{BATCH}")
        )
        assert (single.card.batch, several.card.batch) == (1, BATCH)
        assert several.card.verified["clips"] == single.card.verified["clips"]
        scale = float(np.abs(wanted).max())
        alone = np.stack([several.clip(clip) for clip in frames])
        assert np.abs(alone - wanted).max() <= {"fp32": 1e-4, "int8": 0.15}[precision] * scale
        assert np.abs(single.clips(frames) - alone).max() <= other * scale
        for count in (0, 1, BATCH, BATCH + 1, 2 * BATCH, len(frames)):
            assert np.abs(several.clips(frames[:count]) - alone[:count]).max(initial=0) <= SAME * scale


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["batch=0"], "batch is 0; it is at least 1"),
        (["batch=2", "form=whole,stream"], "batch=2 is of clips, and form=stream takes frame by frame"),
    ],
)
def test_a_batch_that_cannot_be(more: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run("export", [f"run={run}", *more]) == 2
    assert told in capsys.readouterr().err
