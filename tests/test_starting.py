"""Starting weights: from runs, from folders, from official files; and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from student_examples.tinyact import SMALL
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

from distill import plugins
from distill.checkpoint import StudentCard, build_student, save_student
from distill.errors import UserError
from distill.hub import DistilledStudent
from distill.outputs import ClipSpec, Student, StudentOutput
from distill.starting import start_from

COUNTER = "num_batches_tracked"


def tinyact(classes: int = 5, seed: int = 0, **changes: object) -> Student:
    torch.manual_seed(seed)
    return build_student(plugins.schema("student", "tinyact")(**{**SMALL, **changes}), classes)


def kept(folder: Path, student: Student, classes: int = 5, **changes: object) -> Path:
    """A run that this student is kept in."""
    options = {"name": "tinyact", **SMALL, **changes}
    save_student(folder, student, StudentCard(options, [f"class {i}" for i in range(classes)], student.spec))
    return folder


class PictureStudent(Student):
    """A picture network, frame by frame, and a linear layer on the mean."""

    encoder = ("backbone",)
    feature_names = ()

    def __init__(self, network: Callable[[], nn.Module], classes: int = 5) -> None:
        super().__init__()
        self.backbone: Any = network()
        self.backbone.fc = nn.Identity()
        self.head = nn.Linear(512, classes)
        self.spec = ClipSpec(2, 32)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        latent = self.backbone(frames.flatten(0, 1) / 255).unflatten(0, (len(frames), -1)).mean(1)
        return StudentOutput(self.head(latent), latent)


def frames(student: Student) -> Tensor:
    shape = (2, student.spec.frames, 3, student.spec.size, student.spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def moved(network: nn.Module) -> nn.Module:
    """With running statistics that are not those of a fresh network."""
    for name, buffer in network.named_buffers():
        if not name.endswith(COUNTER):
            buffer.add_(torch.rand_like(buffer))
    return network


def test_a_run_starts_the_same_student(tmp_path: Path) -> None:
    first, second = tinyact(), tinyact(seed=1)
    run = kept(tmp_path, first)
    numbers = torch.random.get_rng_state()
    assert start_from(second, str(run)) == f"{count(first)} of {count(first)} tensors from {run}"
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert second.training
    assert torch.equal(second.eval()(frames(first)).logits, first.eval()(frames(first)).logits)


def count(student: nn.Module) -> int:
    return sum(not name.endswith(COUNTER) for name in student.state_dict())


def test_a_folder_and_a_file_do_as_well_as_a_run(tmp_path: Path) -> None:
    first = tinyact()
    saved = kept(tmp_path / "run", first) / "student"
    DistilledStudent.from_pretrained(saved).save_pretrained(tmp_path / "copy")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in first.state_dict().items()}}, tmp_path / "a.pth"
    )
    for where in (saved, tmp_path / "copy", saved / "model.safetensors", tmp_path / "a.pth"):
        second = tinyact(seed=1)
        start_from(second, str(where))
        assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())


def test_a_classifier_of_other_classes_is_left_as_it_was(tmp_path: Path) -> None:
    first, second = tinyact(), tinyact(classes=7, seed=1)
    run, before = kept(tmp_path, first), second.classifier.head.weight.clone()
    said = start_from(second, str(run))
    left = "left as they were: classifier.head.weight, classifier.head.bias (other shape)"
    assert said == f"{count(first) - 2} of {count(first)} tensors from {run}; {left}"
    assert torch.equal(second.classifier.head.weight, before)
    assert torch.equal(second.eval()(frames(first)).latent, first.eval()(frames(first)).latent)


def test_a_decoder_may_be_missing_or_too_many(tmp_path: Path) -> None:
    bare, whole = tinyact(decoder=False), tinyact(seed=1)
    decoders = [name for name in whole.state_dict() if ".decoder." in name and not name.endswith(COUNTER)]
    run, before = kept(tmp_path / "bare", bare, decoder=False), whole.state_dict()[decoders[0]].clone()
    said = start_from(whole, str(run))
    assert f"; left as they were: {', '.join(decoders[:3])} and {len(decoders) - 3} more (not there)" in said
    assert torch.equal(whole.state_dict()[decoders[0]], before)
    run = kept(tmp_path / "whole", whole)
    assert f"{count(bare)} of {count(bare)} tensors from {run}; not used: autoencoder.decoder." in start_from(
        bare, str(run)
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_official_file_goes_into_the_backbone(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    official, student, file = moved(resnet18()), PictureStudent(resnet18), tmp_path / f"official.{suffix}"
    weights = {name: value for name, value in official.state_dict().items() if not name.endswith(COUNTER)}
    (save_file if suffix == "safetensors" else torch.save)(weights, file)
    unused = "fc.bias, fc.weight" if suffix == "safetensors" else "fc.weight, fc.bias"  # one sorts them
    said = start_from(student, str(file))
    assert said == (
        f"100 of 102 tensors from {file} (* is backbone.* here); "
        f"left as they were: head.weight, head.bias (not there); not used: {unused}"
    )
    official.fc = nn.Identity()
    pictures = torch.rand(2, 3, 32, 32)
    assert torch.equal(student.backbone.eval()(pictures), official.eval()(pictures))


@pytest.mark.parametrize(
    ("cut", "name"),
    [("encoder.net.", "(encoder.net.* is backbone.* here)"), ("backbone.", "wrapped.safetensors; left")],
)
def test_a_prefix_that_all_names_share_can_go(tmp_path: Path, cut: str, name: str) -> None:
    torch.manual_seed(0)
    official, student, file = moved(resnet18()), PictureStudent(resnet18), tmp_path / "wrapped.safetensors"
    save_file({f"{cut}{name}": value for name, value in official.state_dict().items()}, file)
    assert name in start_from(student, str(file))
    assert torch.equal(student.backbone.layer4[1].bn2.running_var, official.layer4[1].bn2.running_var)


def test_half_precision_becomes_the_student_s_own(tmp_path: Path) -> None:
    first, second = tinyact(), tinyact(seed=1)
    save_file(
        {name: value.half().contiguous() for name, value in first.state_dict().items()}, tmp_path / "a.safetensors"
    )
    start_from(second, str(tmp_path / "a.safetensors"))
    for name, value in second.state_dict().items():
        assert value.dtype == first.state_dict()[name].dtype
        torch.testing.assert_close(value, first.state_dict()[name], rtol=1e-3, atol=1e-5)


def refused(student: Student, where: Path) -> str:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UserError) as error:
        start_from(student, str(where))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_smaller_relative_is_refused(tmp_path: Path) -> None:
    """More than half of a ResNet-34's tensors are in a ResNet-18, and fit."""
    save_file(resnet18().state_dict(), tmp_path / "small.safetensors")
    said = refused(PictureStudent(resnet34), tmp_path / "small.safetensors")
    assert "small.safetensors is of another network: 100 of the 180 tensors of this student's encoder are in it" in said


def test_something_else_is_refused_with_names_of_both(tmp_path: Path) -> None:
    save_file({f"blocks.{i}.weight": torch.ones(3) for i in range(5)}, tmp_path / "other.safetensors")
    assert refused(tinyact(), tmp_path / "other.safetensors").endswith(
        "0 of the 17 tensors of this student's encoder are in it; it has blocks.0.weight, blocks.1.weight, "
        "blocks.2.weight and 2 more, where the encoder has autoencoder.encoder.0.0.weight, "
        "autoencoder.encoder.0.1.weight, autoencoder.encoder.0.1.bias and 14 more"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"widths": [8, 16, 24]}, "has autoencoder.encoder.2.0.weight [24, 16, 3, 3, 3] for [16, 16, 3, 3, 3]"),
        ({"hidden": 24}, "has classifier.project.weight [24, 16] for [16, 16]"),
        ({"size": 64}, "has autoencoder.decoder.0.weight [512, 16] for [128, 16]"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    run = kept(tmp_path, tinyact(**changes), **changes)
    assert told in refused(tinyact(seed=1), run)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: value * torch.nan, "has numbers that are not finite"),
        (lambda value: value.double().fill_(1e300), "has numbers that are not finite"),  # in the student's float32
        (lambda value: value.long(), "is torch.int64 for torch.float32"),
        (lambda value: value > 0, "is torch.bool for torch.float32"),
        (lambda value: value.to(torch.complex64), "is torch.complex64 for torch.float32"),
    ],
    ids=["nan", "overflow", "int", "bool", "complex"],
)
@pytest.mark.parametrize("name", ["autoencoder.to_latent.weight", "classifier.head.bias"])
def test_numbers_that_no_student_can_have_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], told: str, name: str
) -> None:
    weights = tinyact().state_dict()
    torch.save({**weights, name: change(weights[name])}, tmp_path / "odd.pth")
    said = refused(tinyact(seed=1), tmp_path / "odd.pth")
    assert said == f"init: {tmp_path / 'odd.pth'} does not fit this student; {name} {told}"


def test_a_counter_that_is_complex_or_not_finite_is_refused(tmp_path: Path) -> None:
    weights = tinyact().state_dict()
    name = next(name for name in weights if name.endswith(COUNTER))
    for value, told in ((torch.tensor(1j), "is torch.complex64 for torch.int64"), (torch.tensor(torch.inf), "finite")):
        torch.save({**weights, name: value}, tmp_path / "odd.pth")
        assert told in refused(tinyact(seed=1), tmp_path / "odd.pth")


def test_files_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    student = tinyact()
    assert refused(student, tmp_path / "nothing.pth") == f"init: {tmp_path / 'nothing.pth'} is not there"
    assert f"init: {tmp_path} holds no finished student" in refused(student, tmp_path)
    (tmp_path / "short.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert "not a whole safetensors file" in refused(student, tmp_path / "short.safetensors")
    torch.save({"weights": tinyact}, tmp_path / "code.pth")
    assert "wants to run code" in refused(student, tmp_path / "code.pth")
