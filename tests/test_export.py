"""The job `export`: a run's student becomes files that say what it says, or one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import command
from distill.clips import motion
from distill.deploy import exporting
from distill.deploy.card import SUFFIXES, ExportCard, card_path, read_export
from distill.deploy.forms import Whole, open_run
from distill.deploy.recogniser import Recogniser, as_numbers
from distill.errors import UserError
from distill.recipe import read_recipe
from distill.training import train

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
FEW = ("clips=4", "calibration=8", "agreement=0", "cosine=0")  # what hardly anything was taught to may waver
CLOSE = {"fp32": 5e-5, "int8": 0.15}  # of the largest answer, for networks that were hardly taught anything
LIGHT = ("onnx", "openvino")  # formats whose makers are imported in seconds
STREAM = """# Frame by frame.
# command: distill train recipe=stream
clips:
  source: {name: motion, classes: [left, right], train: 8, val: 4, test: 2, size: 32, frames: 12}
  workers: 0
student: {name: tsn, backbone: test_resnet, frames: 4, size: 32, shift: SHIFT, dropout: 0}
objective: {cross_entropy: {weight: 1}}
optim: {lr: 5e-3, warmup_steps: 3}
train: {steps: 40, batch: 8, log_every: 20, evaluate_every: 0, checkpoint_every: 40}
"""


@pytest.fixture(scope="module")
def run(tiny_run: Callable[[str], Path]) -> Path:
    return tiny_run("tiny")


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of students that could go frame by frame, by their shift."""
    root = tmp_path_factory.mktemp("streams")

    def of(shift: str) -> Path:
        out = root / shift
        if not out.exists():
            recipe = root / f"{shift}.yaml"
            recipe.write_text(STREAM.replace("SHIFT", shift))
            train(read_recipe([f"recipe={recipe}", f"out={out}", f"cache.folder={root / 'cache'}"]))
        return out

    return of


def export(run: Path, out: Path, *more: str) -> int:
    return command.run("export", [f"run={run}", f"out={out}", *FEW, *more])


def needs(*formats: str) -> None:
    """What the tests below cannot do without."""
    makers = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
    makers |= {"litert": ("litert_torch", "ai_edge_quantizer"), "executorch": ("executorch", "torchao")}
    for name in formats:
        for module in makers[name]:
            pytest.importorskip(module)


def films(card: ExportCard, frames: int, seed: int = 0) -> np.ndarray:
    """Clips as in training, but none that was seen."""
    drawing = motion.Drawing(size=card.size, frames=frames)
    return motion.draw(drawing, f"films/{seed}", motion.CLASSES[seed], "test")


def metadata(file: Path) -> dict[str, Any]:
    """What the file itself says, by its format's own means."""
    text = SAID[file.suffix](file)
    found: dict[str, Any] = json.loads(text)
    return found


def _of_onnx(file: Path) -> str:
    import onnxruntime

    said: str = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map["distill"]
    return said


def _of_openvino(file: Path) -> str:
    import openvino

    said: str = openvino.Core().read_model(file).get_rt_info("distill").value
    return said


def _of_litert(file: Path) -> str:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    (buffer,) = (each.buffer for each in model.metadata if each.name in (b"distill", "distill"))
    return bytes(model.buffers[buffer].data).decode()


def _of_executorch(file: Path) -> str:
    from executorch.runtime import Runtime

    (said,) = Runtime.get().load_program(str(file)).load_method("distill").execute([])
    return str(said)


SAID = dict(zip(SUFFIXES.values(), (_of_litert, _of_onnx, _of_executorch, _of_openvino), strict=True))


def check(run: Path, out: Path, form: str, formats: Sequence[str]) -> None:
    """Every file is there, whole, described inside and beside, and as far from the student as its card says."""
    student = open_run(run, form)
    for name in formats:
        for precision in ("fp32", "int8"):
            file = out / f"{form}-{precision}{SUFFIXES[name]}"
            card = read_export(file)
            assert (card.form, card.format, card.precision) == (form, name, precision)
            assert (card.classes, card.frames, card.size) == (
                student.card.classes,
                student.card.frames,
                student.card.size,
            )
            told = metadata(file)
            beside = json.loads(card_path(file).read_text())
            assert told == {key: beside[key] for key in told}
            assert beside.keys() - told.keys() == {"bytes", "sha256", "verified"}
            assert 0 < card.verified["clips"] <= 4
            assert card.verified["relative_error"] <= CLOSE[precision]
            compare = frame_by_frame if form == "stream" else clip_by_clip
            assert (
                compare(student, Recogniser.open(file)) <= 2 * CLOSE[precision]
            )  # others than those that ranges are of
    leftovers = {path.name for path in out.iterdir()} - {
        f"{form}-{precision}{suffix}{more}"
        for precision in ("fp32", "int8")
        for suffix in (*SUFFIXES.values(), ".bin")
        for more in ("", ".json")
    }
    assert not leftovers


def clip_by_clip(student: Recogniser, file: Recogniser) -> float:
    """The largest difference, as a share of the largest answer."""
    clips = [films(student.card, student.card.frames, seed) for seed in range(2)]
    wanted, found = (np.stack([each.clip(clip) for clip in clips]) for each in (student, file))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def frame_by_frame(student: Recogniser, file: Recogniser, frames: int = 9) -> float:
    """The same of each frame of a stream, a second time from its beginning."""
    for each in (student, file):
        each.forget()
    wanted, found = (np.stack([each.frame(frame) for frame in films(student.card, frames)]) for each in (student, file))
    assert found.shape == wanted.shape == (frames, len(student.card.classes))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_a_clip_in_formats_and_precisions(run: Path, tmp_path: Path, capsys: Capture) -> None:
    needs(*LIGHT)
    assert export(run, tmp_path / "out", "to=onnx,openvino", "precision=fp32,int8") == 0
    check(run, tmp_path / "out", "whole", LIGHT)
    shown = capsys.readouterr().out
    for text in ("whole-int8.onnx", "whole-fp32.xml", "largest error"):
        assert text in shown
    assert export(run, tmp_path / "out", "to=onnx,openvino", "precision=fp32") == 0  # again, over what is there
    check(run, tmp_path / "out", "whole", LIGHT)


def test_a_stream_says_what_the_clip_gets(streams: Callable[[str], Path], tmp_path: Path) -> None:
    needs(*LIGHT)
    run = streams("online")
    assert export(run, tmp_path, "to=onnx,openvino", "form=stream", "precision=fp32,int8") == 0
    check(run, tmp_path, "stream", LIGHT)


@pytest.mark.slow
def test_an_encoder(run: Path, tmp_path: Path) -> None:
    needs(*LIGHT)
    assert export(run, tmp_path, "to=onnx,openvino", "form=encoder", "precision=fp32,int8", "cosine=0.9") == 0
    check(run, tmp_path, "encoder", LIGHT)


@pytest.mark.slow
def test_litert(run: Path, streams: Callable[[str], Path], tmp_path: Path) -> None:
    needs("litert")
    assert export(run, tmp_path / "clip", "to=litert", "precision=fp32,int8") == 0
    check(run, tmp_path / "clip", "whole", ["litert"])
    out, run = tmp_path / "stream", streams("online")
    assert export(run, out, "to=litert", "form=stream", "precision=fp32,int8") == 0
    check(run, out, "stream", ["litert"])
    whole, small = (Recogniser.open(out / f"stream-{precision}.tflite") for precision in ("fp32", "int8"))
    for blank, taken in zip(small.blank(), small.card.inputs[1:], strict=True):
        assert (taken.dtype, blank.dtype) == ("int8", np.int8)
        assert not as_numbers(blank, taken).any()  # a stream begins with true zeros
    early, late = (frame_by_frame(whole, small, frames) for frames in (20, 200))
    assert late <= max(2 * early, 2 * CLOSE["int8"])  # what is forgotten does not add up


@pytest.mark.slow
def test_executorch(run: Path, streams: Callable[[str], Path], tmp_path: Path) -> None:
    needs("executorch")
    assert export(run, tmp_path / "clip", "to=executorch", "precision=fp32,int8") == 0
    check(run, tmp_path / "clip", "whole", ["executorch"])
    run = streams("online")
    assert export(run, tmp_path / "stream", "to=executorch", "form=stream", "precision=fp32,int8") == 0
    check(run, tmp_path / "stream", "stream", ["executorch"])
    sizes = [(tmp_path / "stream" / f"stream-{precision}.pte").stat().st_size for precision in ("int8", "fp32")]
    assert sizes[0] < sizes[1] / 2


# ---------------------------------------------------------------- refusals


def complains(capsys: Capture, run: Path, out: Path, *more: str) -> str:
    """Exit code 2 and one line."""
    capsys.readouterr()
    assert export(run, out, *more) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "Warning" not in line and "CUDA runtime" not in line
    ]
    (said,) = lines
    assert said.startswith("error: ")
    return said


def test_a_file_that_says_something_else_is_refused(
    run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """And leaves nothing; the one that is as good as the student stays."""
    needs("onnx")
    honest = exporting._samples

    def spoiled(*given: Any) -> list[list[np.ndarray]]:
        return [[np.zeros_like(pixels) for pixels in sample] for sample in honest(*given)]

    monkeypatch.setattr(exporting, "_samples", spoiled)
    monkeypatch.setattr(exporting, "complaint", lambda *given: "it differs" if given[1] == "int8" else "")
    said = complains(capsys, run, tmp_path, "to=onnx", "precision=fp32,int8")
    assert "whole onnx int8 was refused: it differs" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole-fp32.onnx", "whole-fp32.onnx.json"]


def test_a_spoiled_calibration_is_noticed(run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    needs("onnx")
    monkeypatch.setattr(
        exporting, "_samples", lambda form, *_: [[np.zeros_like(x.numpy(), np.uint8) for x in form.example()]]
    )
    said = complains(capsys, run, tmp_path, "to=onnx", "form=encoder", "cosine=1")
    assert "encoder onnx int8 was refused: the cosine between its latents" in said
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_dies_leaves_no_file_that_looks_whole(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Also where a good one lay before."""
    needs("onnx")
    assert export(run, tmp_path, "to=onnx", "precision=fp32") == 0
    file = tmp_path / "whole-fp32.onnx"

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("write_card", "publish", "put_metadata"):
        with pytest.MonkeyPatch.context() as other:
            if name == "put_metadata":
                other.setattr(exporting.converter("onnx"), name, dies)
            else:
                other.setattr(exporting, name, dies)
            assert export(run, tmp_path, "to=onnx", "precision=fp32") == 130
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        if name != "put_metadata":
            with pytest.raises(UserError, match="is missing"):
                read_export(file)
            assert export(run, tmp_path, "to=onnx", "precision=fp32") == 0
        read_export(file)


def test_an_operator_that_no_converter_knows(run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    needs(*LIGHT)

    def odd(self: Whole, clip: Tensor) -> Tensor:
        logits: Tensor = self.student(clip.squeeze(0).permute(0, 3, 1, 2).unsqueeze(0)).logits
        return logits + torch.linalg.eigvals(clip[0, 0, :, :, 0] + torch.eye(clip.shape[2])).real.sum()

    monkeypatch.setattr(Whole, "forward", odd)
    said = complains(capsys, run, tmp_path, "to=onnx,openvino", "precision=fp32")
    for name in LIGHT:
        assert f"to={name} cannot take tinyact as form=whole precision=fp32: " in said
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_fails_while_it_runs(run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    needs("onnx")

    def session(*_: Any) -> Any:
        def fails(given: Any) -> Any:
            raise RuntimeError("error 0x1\nmore")

        return fails

    monkeypatch.setattr(exporting, "open_session", session)
    said = complains(capsys, run, tmp_path, "to=onnx", "precision=fp32")
    assert "to=onnx made a file of tinyact as form=whole precision=fp32 that does not run: error 0x1" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["to=coreml"], "there is no to=coreml; known: litert, onnx, executorch, openvino"),
        (["precision=int4"], "there is no precision=int4; known: fp32, int8"),
        (["form=head"], "there is no form=head; known: whole, encoder, stream"),
        (["to=onnx,onnx"], "at most once"),
        (["to="], "names nothing"),
        (["calibration=0"], "calibration is 0; it is at least 1"),
        (["agreement=2"], "agreement is 2"),
        (["split=all"], "there is no split=all"),
        (["to=onnx", "form=stream"], "form=stream is for students that go frame by frame; TinyAct does not"),
        (["onnx"], "'onnx' is not key=value; say run=DIR"),
        (["color=red"], "color"),
        (["clips.source.colour=red"], "colour"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_requests(run: Path, tmp_path: Path, capsys: Capture, more: list[str], told: str) -> None:
    needs("onnx")
    assert told in complains(capsys, run, tmp_path / "out", "to=onnx", *more) or more[0].startswith("to=")
    if more[0].startswith("to="):
        assert told in complains(capsys, run, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_no_such_run_and_one_that_was_not_finished(run: Path, tmp_path: Path, capsys: Capture) -> None:
    needs("onnx")
    assert "is no run folder" in complains(capsys, tmp_path / "none", tmp_path / "out", "to=onnx")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "recipe.yaml", tmp_path / "begun")
    assert str(tmp_path / "begun") in complains(capsys, tmp_path / "begun", tmp_path / "out", "to=onnx")
    assert command.run("export", ["to=onnx"]) == 2
    assert "run= is missing" in capsys.readouterr().err


def test_frames_that_see_those_after_them_are_no_stream(
    streams: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    needs("onnx")
    said = complains(capsys, streams("bidirectional"), tmp_path, "to=onnx", "form=stream")
    assert "form=stream: shift=bidirectional looks at the frame after" in said


def test_clips_elsewhere_and_clips_that_are_not_there(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """Keys of the recipe say where the clips are, and how many."""
    needs("onnx")
    moved = f"clips.source.folder={tmp_path / 'clips'}"
    assert export(run, tmp_path / "out", "to=onnx", "precision=fp32", moved) == 0
    assert list((tmp_path / "clips").rglob("*.mp4"))
    none = complains(capsys, run, tmp_path / "none", "to=onnx", moved, "clips.source.val=0")
    assert "the comparison with the student needs clips, and the split 'val' has none that can be read" in none
    none = complains(capsys, run, tmp_path / "none", "to=onnx", moved, "clips.source.train=0")
    assert "the calibration of int8 needs clips, and the split 'train' has none that can be read" in none
    other = complains(capsys, run, tmp_path / "none", "to=onnx", moved, "clips.source.classes=[up,down]")
    assert "the classes of the clips are not those of the student" in other
    assert not (tmp_path / "none").exists()
