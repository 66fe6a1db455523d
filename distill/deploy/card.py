"""What lies beside an exported file: FILE.json says what the file takes and gives, and how that was verified.

This file, sessions.py and recogniser.py are all that a box in the field needs besides its runtime: no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import digest, publish_text

VERSION = 1
FORMS = ("whole", "encoder", "stream")
PRECISIONS = ("fp32", "int8")
DTYPES = ("float32", "int8", "uint8")
KINDS = {
    "student": str,
    "classes": list,
    "frames": int,
    "size": int,
    "seconds": int | float,
    "origin": dict,
    "verified": dict,
}
EXPORTS = "export"  # folder of a run's exported files
SECONDS = 2.0  # that a clip spans, where nothing is known of its files
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "executorch": ".pte", "openvino": ".xml"}


@dataclass(frozen=True)
class Port:
    """A tensor that goes in or comes out. Whole numbers q with a scale mean scale * (q - zero)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero: int = 0


@dataclass(frozen=True)
class ExportCard:
    """Of an exported student. The first input is the video, RGB [1,T,H,W,3] (of a stream one frame, [1,H,W,3]) with
    pixels of 0 to 255, which the file normalises itself; the first output is the answer. A stream's other inputs are
    its state, at first zeros, and its other outputs, in the same order, are the state before the next frame."""

    form: str
    """whole: a clip's logits; encoder: its latent; stream: the logits of the latest frames, after each frame."""
    format: str
    precision: str
    student: str
    """Name of its plug-in."""
    classes: list[str]
    frames: int
    """Of a clip."""
    size: int
    """Side of a frame in pixels: its centre square, scaled."""
    seconds: float
    """Of video that a clip's frames are spread over evenly."""
    inputs: list[Port]
    outputs: list[Port]
    origin: dict[str, str] = field(default_factory=dict)
    """The run, the hash of its weights, and the versions of what made the file."""
    verified: dict[str, float] = field(default_factory=dict)
    """How far its answers are from the student's, on real clips."""
    bytes: int = 0
    """Size of the file, or the files."""
    sha256: str = ""
    version: int = VERSION


def card_path(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def files_of(file: Path) -> list[Path]:
    """An OpenVINO model is two files."""
    return [file, file.with_suffix(".bin")] if file.suffix == SUFFIXES["openvino"] else [file]


def sealed(files: Sequence[Path]) -> dict[str, Any]:
    """Size and hash of the files as they are."""
    return {"bytes": sum(file.stat().st_size for file in files), "sha256": ":".join(digest(file) for file in files)}


def write_card(file: Path, card: ExportCard) -> None:
    publish_text(card_path(file), json.dumps(asdict(card), indent=1) + "\n")


def read_export(file: Path) -> ExportCard:
    """The card of an exported file, which is there and whole; anything else is one clear line."""
    path = card_path(file)
    for needed in (*files_of(file), path):
        if not needed.is_file():
            raise UserError(f"{needed} is missing; distill export run=DIR makes exported files")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise UserError(f"{path} is of version {found['version']}, not {VERSION}; export the student again")
        card = _card(found)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} does not describe an exported student ({error}); export it again") from error
    if sealed(files_of(file)) != {"bytes": card.bytes, "sha256": card.sha256}:
        raise UserError(f"{file} is damaged: it is not the file that {path.name} describes; export the student again")
    return card


def _card(found: Mapping[str, Any]) -> ExportCard:
    ports = {side: [_port(port) for port in found[side]] for side in ("inputs", "outputs")}
    card = ExportCard(**{**found, **ports})
    known = card.form in FORMS and card.format in SUFFIXES and card.precision in PRECISIONS
    if not known or not card.inputs or len(card.outputs) != (len(card.inputs) if card.form == "stream" else 1):
        raise ValueError("its form, format, precision or ports are unknown here")
    for name, kind in KINDS.items():
        if not isinstance(getattr(card, name), kind):
            raise ValueError(f"{name} is {getattr(card, name)!r}")
    return card


def _port(found: Mapping[str, Any]) -> Port:
    port = Port(**{**found, "shape": tuple(map(int, found["shape"]))})
    if port.dtype not in DTYPES:
        raise ValueError(f"a port of {port.dtype!r} is unknown here")
    return Port(str(port.name), port.shape, port.dtype, float(port.scale), int(port.zero))
