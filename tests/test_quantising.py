"""Training as if quantised: the rounding is the exporters', weights stay float, and the run is an ordinary one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from student_examples.tinyact import SMALL
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill import plugins
from distill.checkpoint import build_student, load_student
from distill.errors import UserError
from distill.evaluate import collect, evaluate
from distill.outputs import Student
from distill.parts import layers
from distill.quantising import quantise, rounded, rounded_weight
from distill.recipe import read_recipe
from distill.training import look, start, train


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return build_student(plugins.schema("student", "tinyact")(**SMALL), 3).eval()


def test_weights_are_rounded_as_torch_quantises_them() -> None:
    weight = torch.randn(6, 4, 3, 3)
    weight[2] = 0
    step = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-8)
    wanted = torch.quantize_per_channel(weight, step, torch.zeros(6), 0, torch.qint8).dequantize()
    assert torch.allclose(rounded_weight(weight), wanted, atol=1e-7)


def test_what_is_read_is_rounded_to_256_steps_and_keeps_its_zeros() -> None:
    value = torch.cat([torch.linspace(-1, 3, 1001), torch.zeros(3)])
    found = rounded(value)
    assert (found - value).abs().max() <= 4 / 255 * (0.5 + 1e-3)
    assert len(found.unique()) <= 256
    assert found[-1] == 0
    assert torch.equal(rounded(torch.zeros(5)), torch.zeros(5))


def test_to_round_before_folding_is_to_round_after() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False).eval(), nn.BatchNorm2d(5).eval()
    for value in (norm.weight, norm.running_var):
        nn.init.uniform_(value, 0.1, 3)
    folded = fuse_conv_bn_eval(conv, norm)
    folded.weight.data = rounded_weight(folded.weight.data)
    conv.weight.data = rounded_weight(conv.weight.data)
    pictures = torch.randn(2, 3, 8, 8)
    assert torch.allclose(folded(pictures), norm(conv(pictures)), atol=1e-5)


def test_hooks_round_and_leave_the_weights_alone(student: Student) -> None:
    """The same as layers whose weights are rounded by hand, of convolutions what they read too; gradients reach the
    float weights."""
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    by_hand, before, weighing = copy.deepcopy(student), copy.deepcopy(student.state_dict()), layers(student, ())
    for part in layers(by_hand, ()).values():
        part.weight.data = rounded_weight(part.weight.data)
        if not isinstance(part, nn.Linear):
            part.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
    quantise(student)
    answers = [whole(frames).logits for whole in (student, copy.deepcopy(student), by_hand)]
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[0], answers[1])
    answers[0].sum().backward()
    assert all(part.weight.grad is not None and part.weight.grad.any() for part in weighing.values())
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_failing_layer_gets_its_weights_back(student: Student) -> None:
    quantise(student)
    before = dict(student.named_parameters())
    with pytest.raises(RuntimeError):
        student(torch.zeros(1, 4, 5, 32, 32, dtype=torch.uint8))  # of five colours
    after = dict(student.named_parameters())
    assert all(after[name] is value for name, value in before.items())


def test_a_quantised_run_leaves_an_ordinary_student(tmp_path: Path) -> None:
    """It is judged as it will run: what the summary says is what the loaded student does once rounded again."""
    first = ["recipe=tiny", f"out={tmp_path / 'first'}"]
    train(read_recipe(first))
    changes = [f"init={tmp_path / 'first'}", "train.quantise=int8", "train.ema=0.5", "train.steps=4"]
    recipe = read_recipe(["recipe=tiny", f"out={tmp_path / 'second'}", *changes])
    train(recipe)
    loaded = load_student(tmp_path / "second")
    assert not any(part._forward_pre_hooks for part in loaded.modules())
    accelerator = start(recipe)
    clips = look(recipe, accelerator)
    quantise(loaded)
    found = evaluate(collect(loaded, clips, clips.manifest.of("test"), 16, accelerator))
    assert found == pytest.approx(json.loads((tmp_path / "second" / "summary.json").read_text())["test"])


def test_an_unknown_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.quantise is 'int4'; known: int8"):
        train(read_recipe(["recipe=tiny", f"out={tmp_path}", "train.quantise=int4"]))
