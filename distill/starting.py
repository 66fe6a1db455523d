"""Starting weights for a student: from a run, from a folder that holds a student, or from a file of weights.

What fits by name and shape is taken. Names may need a change: an official file's `layer1.0.conv1.weight` belongs to
`backbone.layer1.0.conv1.weight`, or the other way round. The change is the one under which most tensors fit.

The rule about what may be left over is about the encoder, the part that makes the latent, because starting well is
its business; a classifier or a decoder that the file lacks starts from chance. So that no file of something else slips
in, three quarters of the encoder's tensors have to be there: that is more than a network shares with its deeper
relatives (a ResNet-18 with a ResNet-34: 55 %), and less than what a picture's network has of a video's that
adds a few layers. A tensor of another shape is an error, except in a classifier of another number of classes; so
are whole or complex numbers where the student has real ones, and numbers that are not finite.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.checkpoint import student_folder
from distill.errors import UserError
from distill.hub import WEIGHTS, some
from distill.measure import imagined
from distill.outputs import Student
from distill.weights import read_weights

ENOUGH = 0.75  # of the encoder's tensors
COUNTER = "num_batches_tracked"  # files from before these existed lack them; they decide nothing
Tensors = Mapping[str, Tensor]


def start_from(student: Student, where: str) -> str:
    """Put the weights of `where` into the student; says in one line which, and which were left as they were."""
    try:
        found = read_weights(student_folder(Path(where)) / WEIGHTS if Path(where).is_dir() else Path(where))
    except ValueError as error:
        raise UserError(f"init: {error}") from error
    own = student.state_dict()
    cut, put = _best_change(own, found)
    named = {put + name.removeprefix(cut): value for name, value in found.items() if name.startswith(cut)}
    fits = {name: value for name, value in named.items() if name in own and value.shape == own[name].shape}
    resized = [name for name in own if name in named and name not in fits]
    _check_enough(student, own, named, found, where)
    _check_shapes(student, own, named, resized, where)
    _check_numbers(own, fits, where)
    student.load_state_dict(fits, strict=False)
    unused = [name for name in found if not name.startswith(cut) or put + name.removeprefix(cut) not in own]
    change = f" ({cut}* is {put}* here)" if put or cut else ""
    return _told(own, fits, resized, unused, f"{where}{change}")


def hold_zeros(student: Student, names: Sequence[str]) -> None:
    """Training leaves these tensors' zeros as they are: no optimiser moves them without a gradient, nor by decay."""
    parameters = dict(student.named_parameters())
    for name in names:
        if name not in parameters:
            raise UserError(f"init: the student has no tensor {name!r} that could be sparse")
        if parameters[name].requires_grad:
            _hold_zeros(parameters[name])


def _hold_zeros(parameter: nn.Parameter) -> None:
    parameter.register_hook(lambda gradient: gradient.masked_fill(parameter == 0, 0.0))  # type: ignore[no-untyped-call]


def _best_change(own: Tensors, found: Tensors) -> tuple[str, str]:
    """The prefix to cut from the file's names and the one to put there under which most tensors fit.

    Where nothing fits, most names; no change where that is as good.
    """
    places: dict[str, list[str]] = defaultdict(list)  # the end of a name -> what stands before it in the student
    for name in own:
        for put in _prefixes(name):
            places[name.removeprefix(put)].append(put)
    names: Counter[tuple[str, str]] = Counter({("", ""): 0})
    fits: Counter[tuple[str, str]] = Counter()
    for cut in _prefixes(next(iter(found))):
        if not all(name.startswith(cut) for name in found):
            break
        for name, value in found.items():
            end = name.removeprefix(cut)
            names.update((cut, put) for put in places[end])
            fits.update((cut, put) for put in places[end] if own[put + end].shape == value.shape)
    return min(names, key=lambda change: (-fits[change], -names[change], sum(map(len, change))))


def _prefixes(name: str) -> Iterator[str]:
    """Of a.b.c: nothing, a. and a.b."""
    parts = name.split(".")
    return ("".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts)))


def _check_enough(student: Student, own: Tensors, named: Tensors, found: Tensors, where: str) -> None:
    encoder = tuple(f"{name}." for name in student.encoder)
    needed = [name for name in own if name.startswith(encoder) and not name.endswith(COUNTER)]
    there = sum(name in named for name in needed)
    if there < ENOUGH * len(needed):
        raise UserError(
            f"init: {where} is of another network: {there} of the {len(needed)} tensors of this student's encoder are "
            f"in it; it has {some(list(found))}, where the encoder has {some(needed)}"
        )


def _check_shapes(student: Student, own: Tensors, named: Tensors, resized: Sequence[str], where: str) -> None:
    """Another shape is an error, except that of a classifier with a row for each of other classes."""
    if not resized:
        return
    classes, encoder = imagined(student).logits.shape[1], tuple(f"{name}." for name in student.encoder)
    wrong = [
        f"{name} {list(named[name].shape)} for {list(own[name].shape)}"
        for name in resized
        if name.startswith(encoder) or own[name].shape[:1] != (classes,) or own[name].shape[1:] != named[name].shape[1:]
    ]
    if wrong:
        raise UserError(f"init: {where} does not fit this student; it has {some(wrong)}")


def _check_numbers(own: Tensors, fits: Tensors, where: str) -> None:
    for name, value in fits.items():
        kind = own[name].dtype
        if value.is_complex() or (kind.is_floating_point and not value.is_floating_point()):
            raise UserError(f"init: {where} does not fit this student; {name} is {value.dtype} for {kind}")
        # Float64 would be finite where the student's own type overflows.
        if not torch.isfinite(value.to(kind) if kind.is_floating_point else value.double()).all():
            raise UserError(f"init: {where} does not fit this student; {name} has numbers that are not finite")


def _told(own: Tensors, fits: Tensors, resized: Sequence[str], unused: Sequence[str], origin: str) -> str:
    lacking = [name for name in own if name not in fits and name not in resized and not name.endswith(COUNTER)]
    left = [f"{some(names)} ({why})" for names, why in ((resized, "other shape"), (lacking, "not there")) if names]
    whole = sum(not name.endswith(COUNTER) for name in own)
    said = [f"{sum(not name.endswith(COUNTER) for name in fits)} of {whole} tensors from {origin}"]
    said += [f"left as they were: {', '.join(left)}"] * bool(left)
    said += [f"not used: {some(unused)}"] * bool(unused)
    return "; ".join(said)
