"""The exporting job: convert a run's student, ask the files about real clips, and keep those that say what it says."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from distill.checkpoint import fingerprint_student, student_folder
from distill.clips.clipset import ClipSet
from distill.deploy.card import SECONDS, ExportCard, card_path, files_of, sealed, write_card
from distill.deploy.conversion import Conversion, converter
from distill.deploy.export_request import Options, Request
from distill.deploy.forms import Form, TorchSession, make_card, make_form
from distill.deploy.quiet import quiet
from distill.deploy.real_clips import RealClips, plain_clips, take
from distill.deploy.recogniser import Recogniser, groups
from distill.deploy.sessions import first_line, open_session
from distill.deploy.verify import Reference, ask_student, compare, complaint
from distill.errors import UserError
from distill.files import make_folder, publish
from distill.hub import DistilledStudent
from distill.run_log import Talk, percent

MADE_BY = {
    "litert": ("torch", "litert-torch", "ai-edge-quantizer"),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "executorch": ("torch", "executorch", "torchao"),
    "openvino": ("torch", "openvino", "nncf"),
}


def export(request: Request) -> dict[str, Any]:
    """Export a run's student as it will run: to LiteRT (TFLite), ONNX, ExecuTorch or OpenVINO, in float32 or INT8.

    distill export run=runs/quickstart/distilled to=litert,onnx precision=fp32,int8
    distill export run=runs/tsm to=litert form=stream

    INT8 is calibrated with the run's training clips. Every file is opened in its own runtime and compared with the
    student in torch on clips of the split; one that says something else too often is refused, with the figures.
    Leaves RUN/export/FORM-PRECISION.SUFFIX, or with batch=5, of files that take so many clips at once,
    FORM-PRECISION-batch5.SUFFIX; and beside it the same with .json: classes, what goes in and comes out, the clip that
    the student wants, versions, and the comparison. The file's own metadata says so too.
    """
    talk, options = Talk(), request.options
    for name in options.to:
        with quiet():
            converter(name)  # what is not installed is missed now
    refused, rows, shown = [], [], Shown(request, DistilledStudent.from_pretrained(student_folder(request.run)))
    for form in options.form:
        try:
            source = _open(shown, form)
        except UserError as error:  # other forms may do
            refused.append(str(error))
            continue
        for name in options.to:
            for precision in options.precision:
                clips = len(source.reference.clips)
                talk.say(f"{form} {name} {precision}: converting, then comparing about {clips} clips")
                started = time.monotonic()
                try:
                    card, why = _make(source, name, precision, Path(request.out), options)
                except UserError as error:  # the others may do
                    refused.append(str(error))
                    continue
                rows.append(_row(card, why, time.monotonic() - started))
                refused += [f"{form} {name} {precision} was refused: {why}"] if why else []
    if rows:
        talk.table(request.out, ("", "MB", "agreement", "top-1", "student", "largest error", "seconds"), rows)
    if refused:
        raise UserError("; ".join(dict.fromkeys(refused)))
    return {}


@dataclass(frozen=True)
class Source:
    """A student in a form, real clips for it, and what it says of them."""

    form: Form
    card: ExportCard
    samples: Sequence[Sequence[np.ndarray]]
    reference: Reference


@dataclass(frozen=True)
class Shown:
    """A student, and the real clips that serve all its forms."""

    request: Request
    loaded: DistilledStudent

    @cached_property
    def clips(self) -> ClipSet:
        clips = plain_clips(self.request.recipe, self.loaded.spec)
        if list(clips.manifest.classes) != self.loaded.classes:
            raise UserError(f"the classes of the clips are not those of the student of {self.request.run}")
        return clips

    @cached_property
    def compared(self) -> RealClips:
        options = self.request.options
        return self._take(options.split, options.clips, "the comparison with the student")

    @cached_property
    def calibration(self) -> RealClips:
        return self._take("train", self.request.options.calibration, "the calibration of int8")

    def _take(self, split: str, count: int, purpose: str) -> RealClips:
        return take(self.clips, split, count, self.request.recipe.seed, purpose)


def _open(shown: Shown, name: str) -> Source:
    run, loaded = shown.request.run, shown.loaded
    form = make_form(name, loaded.student, shown.request.options.batch)
    card = make_card(run, name, form, loaded, shown.clips.seconds or SECONDS)
    reference = ask_student(loaded.student, shown.compared, name)
    samples = _samples(form, card, shown.calibration) if "int8" in shown.request.options.precision else []
    origin = {**card.origin, "student": fingerprint_student(run), "distill": version("distill")}
    return Source(form, replace(card, origin=origin), samples, reference)


def _samples(form: Form, card: ExportCard, clips: RealClips) -> list[list[np.ndarray]]:
    """What the form is given when it is shown these clips; of a stream, one frame of each clip and its first one."""
    if card.form != "stream":
        return [[np.array(some)] for some in groups(clips.frames, card.batch)]
    session, found = TorchSession(form), []
    blank = [value.numpy() for value in form.example()[1:]]
    for place, clip in enumerate(clips.frames):
        state = blank
        for number, frame in enumerate(clip):
            if number in (0, place % len(clip)):
                found.append([np.array(frame[None]), *state])
            state = session([frame[None].astype(np.float32), *state])[1:]
    return found


def _make(source: Source, name: str, precision: str, folder: Path, options: Options) -> tuple[ExportCard, str]:
    """The file in its place, if it is good enough; what is known of it, and why it is not there."""
    file = folder / replace(source.card, format=name, precision=precision).file_name
    make_folder(folder)
    with TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        part = Path(scratch, file.name)
        card = _convert(source, name, precision, part)
        found = _verify(part, card, source.reference)
        card, why = replace(card, verified=found, **sealed(files_of(part))), complaint(found, precision, options)
        if not why:
            _publish(part, file, card)
    return card, why


def _convert(source: Source, name: str, precision: str, part: Path) -> ExportCard:
    made = converter(name)
    try:
        with quiet():
            own = source.card.inputs, source.card.outputs
            inputs, outputs = made.convert(Conversion(source.form, own, precision, source.samples), part)
            origin = source.card.origin | {package: version(package) for package in MADE_BY[name]}
            card = replace(source.card, format=name, precision=precision, inputs=inputs, outputs=outputs, origin=origin)
            told = {key: value for key, value in asdict(card).items() if key not in ("bytes", "sha256", "verified")}
            made.put_metadata(part, json.dumps(told))
    except Exception as error:  # each converter has its own
        what = f"{source.card.student} as form={source.card.form} precision={precision}"
        raise UserError(f"to={name} cannot take {what}: {first_line(error)}") from error
    return card


def _verify(part: Path, card: ExportCard, reference: Reference) -> dict[str, float]:
    try:
        with quiet():
            return compare(Recogniser(card, open_session(part, card, 1)), reference)
    except Exception as error:  # each runtime has its own
        what = f"{card.student} as form={card.form} precision={card.precision}"
        raise UserError(f"to={card.format} made a file of {what} that does not run: {first_line(error)}") from error


def _publish(part: Path, file: Path, card: ExportCard) -> None:
    """The files, then their card: what a crash leaves behind is found out by the hash."""
    card_path(file).unlink(missing_ok=True)
    for made, place in zip(files_of(part), files_of(file), strict=True):
        publish(place, lambda new, made=made: shutil.copyfile(made, new))  # type: ignore[misc]
    write_card(file, card)


def _row(card: ExportCard, why: str, seconds: float) -> list[str]:
    found = card.verified
    agreement = percent(found["agreement"]) if "agreement" in found else f"cosine {found['cosine']:.4f}"
    tops = [percent(found[key]) if key in found else "" for key in ("top1", "student_top1")]
    shown = f"{card.file_name} refused" if why else card.file_name
    return [shown, f"{card.bytes / 1e6:.2f}", agreement, *tops, f"{found['max_error']:.2g}", f"{seconds:.0f}"]
