"""What is to be exported: a run's student, in some forms, formats and precisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.clips.manifest import SPLITS
from distill.deploy.card import EXPORTS, FORMS, PRECISIONS, SUFFIXES
from distill.errors import UserError
from distill.keys import pair, read_group, whole_list
from distill.recipe import Recipe, read_run

USAGE = "say run=DIR to=litert,onnx precision=int8"
LISTS = {"to": tuple(SUFFIXES), "precision": PRECISIONS, "form": FORMS}


@dataclass
class Options:
    run: str = ""
    """Folder of the run whose student is exported."""
    to: list[str] = field(default_factory=lambda: ["litert"])
    """Formats: litert (.tflite), onnx, executorch (.pte), openvino (.xml and .bin)."""
    precision: list[str] = field(default_factory=lambda: ["int8"])
    """fp32, or int8: weights and activations in 8 bits."""
    form: list[str] = field(default_factory=lambda: ["whole"])
    """whole: clip to logits; encoder: clip to latent; stream: frame and state to logits and the next state."""
    batch: int = 1
    """Clips that a file takes in one call; a stream takes one frame."""
    calibration: int = 256
    """Training clips whose activations set the ranges of int8."""
    split: str = "val"
    """Clips that an exported file is compared with the student on."""
    clips: int = 200
    """How many of them; 0 = all."""
    agreement: float = 0.98
    """Smallest share of clips of which file and student say the same action; below it the file is refused."""
    cosine: float = 0.99
    """Smallest mean cosine between the latents of file and student, for form=encoder."""
    out: str = ""
    """Folder for the exported files; empty: RUN/export."""


@dataclass(frozen=True)
class Request:
    run: Path
    out: str
    options: Options
    recipe: Recipe


def read(arguments: Sequence[str]) -> Request:
    """`run=DIR key=value ...`; keys of the recipe may be changed too, to say where its clips are."""
    own, changes = list[str](), list[str]()
    for argument in arguments:
        key, _ = pair(argument, USAGE)
        (changes if "." in key else own).append(whole_list(argument, LISTS))
    options = read_group(Options, own)
    _check(options)
    recipe = read_run(options.run, [f"out={options.run}", *changes], USAGE)
    return Request(Path(options.run), options.out or f"{options.run}/{EXPORTS}", options, recipe)


def _check(options: Options) -> None:
    if not options.run:
        raise UserError(f"run= is missing; {USAGE}")
    for key, known in LISTS.items():
        values = getattr(options, key)
        for value in values:
            if value not in known:
                raise UserError(f"there is no {key}={value}; known: {', '.join(known)}")
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}= names {', '.join(values) or 'nothing'}; each of {', '.join(known)} at most once")
    if options.split not in SPLITS:
        raise UserError(f"there is no split={options.split}; known: {', '.join(SPLITS)}")
    for key, least in (("batch", 1), ("calibration", 1), ("clips", 0)):
        if getattr(options, key) < least:
            raise UserError(f"{key} is {getattr(options, key)}; it is at least {least}")
    if options.batch > 1 and "stream" in options.form:
        raise UserError(f"batch={options.batch} is of clips, and form=stream takes frame by frame; export it by itself")
    for key in ("agreement", "cosine"):
        if not 0 <= getattr(options, key) <= 1:
            raise UserError(f"{key} is {getattr(options, key)}; it is between 0 and 1")
