"""What lies beside an exported file, and how it is asked: without torch, and with one clear line if it is not whole."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distill.deploy import conversion
from distill.deploy.card import (
    SUFFIXES,
    VERSION,
    ExportCard,
    Port,
    card_path,
    files_of,
    read_export,
    sealed,
    write_card,
)
from distill.deploy.recogniser import Recogniser, as_numbers, as_pixels, as_type
from distill.deploy.sessions import NEEDED, open_session
from distill.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
ODD: list[Any] = [None, 7, -1.5, "odd", [], ["odd"], {}, {"odd": 1}, [[]], [{}], [{"name": "odd"}], True]
CLIP, LOGITS = Port("clip", (1, 4, 8, 8, 3), "int8", 1.0, -128), Port("logits", (1, 2), "float32")


def a_card(format: str = "litert", **changes: Any) -> ExportCard:
    card = ExportCard(
        form="whole",
        format=format,
        precision="int8",
        student="tsn",
        classes=["left", "right"],
        frames=4,
        size=8,
        seconds=1.5,
        inputs=[CLIP],
        outputs=[LOGITS],
        origin={"run": "runs/it", "torch": "2.14.1"},
        verified={"clips": 8, "agreement": 1.0, "max_error": 0.25},
    )
    return replace(card, **changes)


def an_export(folder: Path, format: str = "litert", **changes: Any) -> Path:
    """Nothing that its runtime could open, but sealed."""
    file = folder / f"whole-int8{SUFFIXES[format]}"
    for each in files_of(file):
        each.write_bytes(b"a few bytes of " + each.name.encode())
    write_card(file, a_card(format, **{**sealed(files_of(file)), **changes}))
    return file


def refused(file: Path, *parts: str) -> str:
    with pytest.raises(UserError) as caught:
        read_export(file)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_card_says_again_what_it_was_told(format: str, tmp_path: Path) -> None:
    file = an_export(tmp_path, format)
    assert read_export(file) == a_card(format, **sealed(files_of(file)))
    ports = [Port("frame", (1, 8, 8, 3), "uint8"), Port("state0", (1, 2, 3), "float32")]
    other = a_card(format, form="stream", inputs=ports, outputs=[LOGITS, ports[1]], **sealed(files_of(file)))
    write_card(file, other)
    assert read_export(file) == other


@pytest.mark.parametrize("form", ["whole", "encoder"])
def test_a_card_of_several_clips(form: str, tmp_path: Path) -> None:
    file = an_export(tmp_path)
    ports = replace(CLIP, shape=(5, *CLIP.shape[1:])), replace(LOGITS, shape=(5, 2))
    write_card(file, replace(read_export(file), form=form, inputs=[ports[0]], outputs=[ports[1]]))
    card = read_export(file)
    assert (card.batch, card.file_name) == (5, f"{form}-int8-batch5.tflite")


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_file_that_is_not_what_was_sealed(format: str, tmp_path: Path) -> None:
    for number in range(len(files_of(tmp_path / f"x{SUFFIXES[format]}"))):
        for spoil in (lambda path: path.write_bytes(path.read_bytes()[:-3]), lambda path: path.write_bytes(b"")):
            file = an_export(tmp_path, format)
            spoil(files_of(file)[number])
            refused(file, str(file), "is damaged", "export the student again")
        file = an_export(tmp_path, format)
        content = bytearray(files_of(file)[number].read_bytes())
        content[5] ^= 1
        files_of(file)[number].write_bytes(content)
        refused(file, "is damaged")
        files_of(file)[number].unlink()
        refused(file, f"{files_of(file)[number]} is missing", "distill export")
    file = an_export(tmp_path, format)
    card_path(file).unlink()
    refused(file, f"{card_path(file)} is missing")


def test_a_card_of_another_version(tmp_path: Path) -> None:
    """Even one that says more than is known here."""
    file = an_export(tmp_path)
    found = json.loads(card_path(file).read_text())
    card_path(file).write_text(json.dumps({**found, "version": VERSION + 1, "voice": "loud"}))
    refused(file, f"is of version {VERSION + 1}, not {VERSION}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", "[" * 100_000, '{"version": 1}', "\x00"])
def test_what_is_no_card(text: str, tmp_path: Path) -> None:
    file = an_export(tmp_path)
    card_path(file).write_text(text)
    refused(file, "does not describe an exported student", "export it again")
    card_path(file).write_bytes(b"\xff\xfe\xfa" + text.encode())
    refused(file, "does not describe an exported student")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("key", list(a_card().__dataclass_fields__))
def test_a_card_that_was_edited_is_refused_or_can_be_used(key: str, value: Any, tmp_path: Path) -> None:
    file = an_export(tmp_path)
    found = json.loads(card_path(file).read_text())
    for changed in ({**found, key: value}, {name: each for name, each in found.items() if name != key}):
        card_path(file).write_text(json.dumps(changed))
        with suppress(UserError):
            card = read_export(file)
            for name, each in vars(a_card()).items():
                assert isinstance(getattr(card, name), type(each) if name != "seconds" else int | float)


@pytest.mark.parametrize(
    "port",
    [
        {"dtype": "object"},
        {"dtype": "float99"},
        {"dtype": ["int8"]},
        {"shape": "wide"},
        {"shape": 3},
        {"scale": "half"},
        {"zero": []},
        {"more": 1},
    ],
)
def test_a_port_that_was_edited(port: dict[str, Any], tmp_path: Path) -> None:
    file = an_export(tmp_path)
    found = json.loads(card_path(file).read_text())
    found["inputs"][0] |= port
    card_path(file).write_text(json.dumps(found))
    refused(file, "does not describe an exported student")


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"frames": 9},
        {"frames": True},
        {"size": -8},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"classes": []},
        {"classes": ["left"]},
        {"classes": ["left", 7]},
        {"form": "stream"},
        {"inputs": [replace(CLIP, shape=(-1, 4, 8, 8, 3))]},
        {"inputs": [replace(CLIP, shape=(1, 8, 8, 3))]},
        {"inputs": [replace(CLIP, shape=())]},
        {"inputs": [replace(CLIP, shape=(5, 4, 8, 8, 3))]},
        {"outputs": [replace(LOGITS, shape=(5, 2))]},
        {"form": "encoder", "outputs": [replace(LOGITS, shape=(5, 2))]},
        {"outputs": [replace(LOGITS, shape=(1, 3))]},
        {"outputs": [replace(LOGITS, scale=float("nan"))]},
        {"verified": {"top1": "all"}},
        {"verified": {"top1": float("nan")}},
    ],
)
def test_a_card_that_contradicts_itself(change: dict[str, Any], tmp_path: Path) -> None:
    file = an_export(tmp_path)
    write_card(file, replace(read_export(file), **change))
    refused(file, "does not describe an exported student")


@pytest.mark.parametrize(
    "change", [{"form": "song"}, {"format": "torch"}, {"precision": "int4"}, {"form": "stream", "outputs": []}]
)
def test_a_form_that_is_unknown(change: dict[str, Any], tmp_path: Path) -> None:
    file = an_export(tmp_path)
    write_card(file, replace(read_export(file), **change))
    refused(file, "are unknown here")


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_runtime_that_is_not_installed(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, package = NEEDED[format]
    monkeypatch.setitem(sys.modules, module, None)
    file = an_export(tmp_path, format)
    with pytest.raises(UserError, match=f"needs {package}, which is not installed: pip install {package}"):
        Recogniser.open(file)


@pytest.mark.parametrize("format", [name for name in SUFFIXES if name != "executorch"])  # its import takes a minute
def test_a_sealed_file_that_its_runtime_cannot_open(format: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDED[format][0])
    file = an_export(tmp_path, format)
    with pytest.raises(UserError, match=f"cannot be opened by {NEEDED[format][1]}") as caught:
        open_session(file, read_export(file), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format", "module"),
    [("litert", "litert_torch"), ("onnx", "onnxscript"), ("openvino", "nncf"), ("executorch", "executorch")],
)
def test_a_converter_that_is_not_installed(format: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"distill.deploy.convert_{format}", raising=False)
    with pytest.raises(UserError) as caught:
        conversion.converter(format)
    told = f"to={format} needs {module}, which is not installed: pip install 'distill[{format}]'"
    assert str(caught.value) == told


def test_a_box_in_the_field_needs_no_torch() -> None:
    script = "import sys, distill.deploy.card, distill.deploy.sessions, distill.deploy.recogniser; "
    script += "print(sorted({'torch', 'torchvision', 'omegaconf', 'av'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- numbers

PORTS = st.builds(
    Port,
    st.just("it"),
    st.just((4,)),
    st.sampled_from(["int8", "uint8"]),
    st.floats(2**-12, 64, width=32),
    st.integers(0, 127),
)


@given(PORTS, arrays.arrays(np.int16, 64, elements=st.integers(0, 255)))
def test_whole_numbers_come_back(port: Port, codes: np.ndarray) -> None:
    held = (codes + np.iinfo(port.dtype).min).astype(port.dtype)
    again = as_type(as_numbers(held, port), port)
    assert again.dtype == held.dtype
    assert np.array_equal(again, held)


@given(PORTS, arrays.arrays(np.float32, 16, elements=st.floats(-1, 1, width=32)))
def test_numbers_come_back_within_half_a_step(port: Port, shares: np.ndarray) -> None:
    """Inside of the range; outside they end at its edge."""
    least, most = ((limit - port.zero) * port.scale for limit in (np.iinfo(port.dtype).min, np.iinfo(port.dtype).max))
    numbers = (shares * 2 * max(abs(least), abs(most))).astype(np.float32)
    again = as_numbers(as_type(numbers, port), port)
    assert np.abs(again - numbers.clip(least, most)).max() <= port.scale * (0.5 + 1e-4)


@given(arrays.arrays(np.float32, 8, elements=st.floats(-1e6, 1e6, width=32)))
def test_numbers_without_a_scale_stay(numbers: np.ndarray) -> None:
    assert np.array_equal(as_numbers(as_type(numbers, LOGITS), LOGITS), numbers)


@pytest.mark.parametrize(
    "port", [CLIP, Port("clip", CLIP.shape, "uint8"), Port("clip", CLIP.shape, "float32")], ids=lambda port: port.dtype
)
def test_pixels_mean_what_they_were(port: Port) -> None:
    """However they lie in memory."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for frames in (every, every.T, every[::2, ::-1]):
        asked = as_pixels(frames, port)
        assert asked.dtype == port.dtype
        assert np.array_equal(as_numbers(asked, port), frames)


def test_a_stream_carries_its_state_and_forgets_it() -> None:
    """State that leaves with another scale than it comes with means the same; the first is zero."""
    card = a_card(
        form="stream",
        inputs=[Port("frame", (1, 1, 1, 3), "uint8"), Port("state0", (1, 2), "int8", 0.5, 3)],
        outputs=[Port("logits", (1, 2), "float32"), Port("next_state0", (1, 2), "int8", 0.25, -7)],
    )
    seen = []

    def session(given: Any) -> list[np.ndarray]:
        frame, state = given
        before = as_numbers(state, card.inputs[1])
        seen.append(before)
        after = as_type(before + frame.mean(), card.outputs[1])
        return [before, after]

    recogniser = Recogniser(card, session)
    frames = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, 3)
    said = [recogniser.frame(frame).tolist() for frame in frames]
    assert said == [[0, 0], [0, 0], [1, 1], [3, 3], [6, 6]]
    recogniser.forget()
    assert recogniser.frame(frames[4]).tolist() == [0, 0]
