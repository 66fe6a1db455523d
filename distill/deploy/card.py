"""What lies beside an exported file: FILE.json says what the file takes and gives, and how that was verified.

This file, sessions.py and recogniser.py are all that a box in the field needs besides its runtime: no torch.
"""

from __future__ import annotations

import json
import math
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
TORCH = "torch"  # the format of a student that was not exported
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
    """Of an exported student. The first input is the video, RGB [N,T,H,W,3], so many clips at once as the file takes
    (of a stream one frame, [1,H,W,3]), with pixels of 0 to 255, which the file normalises itself; the first output is
    the answer. A stream's other inputs are its state, at first zeros, and its other outputs, in the same order, are the
    state before the next frame."""

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

    @property
    def batch(self) -> int:
        """Clips, or frames, of one call."""
        return self.inputs[0].shape[0]

    @property
    def file_name(self) -> str:
        batch = f"-batch{self.batch}" if self.batch > 1 else ""
        return f"{self.form}-{self.precision}{batch}{SUFFIXES[self.format]}"


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
        if not isinstance(value := getattr(card, name), kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    _check_numbers(card)
    _check_shapes(card)
    return card


def _check_numbers(card: ExportCard) -> None:
    if min(card.frames, card.size) < 1 or not 0 < card.seconds < math.inf:
        raise ValueError(f"{card.frames} frames of {card.size} pixels in {card.seconds} seconds are no clip")
    for name, value in card.verified.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"verified.{name} is {value!r}")


def _check_shapes(card: ExportCard) -> None:
    """What goes in and comes out is what the rest of the card speaks of."""
    picture, answers, batch = (card.size, card.size, 3), len(card.classes), card.inputs[0].shape[:1]
    wanted = (1, *picture) if card.form == "stream" else (*batch, card.frames, *picture)
    if card.inputs[0].shape != wanted:
        raise ValueError(f"{card.inputs[0].name} is {card.inputs[0].shape}, not {wanted}")
    if not answers or not all(isinstance(name, str) for name in card.classes):
        raise ValueError("classes are not names")
    given = card.outputs[0].shape
    if given != (*batch, answers) and (card.form != "encoder" or len(given) != 2 or given[:1] != batch):
        raise ValueError(f"{card.outputs[0].name} is {given}, which does not fit {answers} classes")


def _port(found: Mapping[str, Any]) -> Port:
    port = Port(**{**found, "shape": tuple(map(int, found["shape"]))})
    if port.dtype not in DTYPES:
        raise ValueError(f"a port of {port.dtype!r} is unknown here")
    if min(port.shape, default=1) < 1 or not 0 <= port.scale < math.inf:
        raise ValueError(f"a port of {port.shape} in steps of {port.scale} cannot be")
    return Port(str(port.name), port.shape, port.dtype, float(port.scale), int(port.zero))
