"""The 3-D students: what was published about each network, torchvision's own as a reference, and mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models as library
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.outputs import ClipSpec
from students import video3d
from students.video3d import CLIPS, LEAST, Options, Video3D, build

# Billions of multiply-adds and millions of parameters, with the classes that they were counted with.
PUBLISHED = {
    "x3d_xs": (0.60, 3.76, 400),  # PySlowFast's model zoo for 4x160; parameters: the paper's table of X3D's sizes
    "x3d_s": (1.96, 3.76, 400),  # the same for 13x160
    "movinet_a0": (2.71, 3.1, 600),  # MoViNet paper, table of Kinetics-600, 50x172
}
TORCHVISION = [model for model in CLIPS if model not in PUBLISHED]
TINY = dict.fromkeys(CLIPS, ClipSpec(4, 32)) | {"movinet_a0": ClipSpec(4, 36), "s3d": LEAST["s3d"]}


def made(model: str, classes: int = 5, **options: Any) -> Video3D:
    torch.manual_seed(0)
    return build(Options(model, **{**vars(TINY[model]), **options}), classes)


def pictures(student: Video3D, batch: int = 2) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    shape = (batch, student.spec.frames, 3, student.spec.size, student.spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance)


# ---------------------------------------------------------------- what was published


def spent(student: Video3D, more: dict[Any, Any] | None = None) -> float:
    """Billions of multiply-adds for one clip; `more` says what other operations cost."""
    frames = torch.empty(1, student.spec.frames, 3, student.spec.size, student.spec.size, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as counter:
        student.eval()(frames.to("meta"))
    return float(counter.get_total_flops()) / 2e9


def on_paper(model: str, classes: int) -> Video3D:
    with torch.device("meta"):
        return build(Options(model), classes)


def millions(student: nn.Module) -> float:
    return sum(parameter.numel() for parameter in student.parameters()) / 1e6


@pytest.mark.parametrize("model", ["x3d_xs", "x3d_s"])
def test_x3d_costs_what_was_published(model: str) -> None:
    billions, parameters, classes = PUBLISHED[model]
    student = on_paper(model, classes)
    assert millions(student) == pytest.approx(parameters, rel=0.02)
    assert spent(student) == pytest.approx(billions, rel=0.02)


def test_movinet_costs_what_was_published() -> None:
    """Its authors counted normalisations, products and sums too, each operation as half a multiply-add."""
    billions, parameters, classes = PUBLISHED["movinet_a0"]
    student = on_paper("movinet_a0", classes)
    assert millions(student) == pytest.approx(parameters, rel=0.02)
    aten = torch.ops.aten
    more = {aten.mul: one_each, aten.add: one_each, aten._native_batch_norm_legit_no_training: two_each}
    assert spent(student, more) == pytest.approx(billions, rel=0.02)
    assert spent(student) == pytest.approx(billions, rel=0.03)


def one_each(*_: Any, out_shape: Iterable[int], **__: Any) -> int:
    return prod(out_shape)


def two_each(first: Iterable[int], *_: Any, **__: Any) -> int:
    return 2 * prod(first)


@pytest.mark.parametrize("model", TORCHVISION)
def test_torchvision_s_networks_cost_what_it_says(model: str) -> None:
    meta = library.get_model_weights(model)["DEFAULT"].meta
    student = on_paper(model, len(meta["categories"]))
    assert sum(parameter.numel() for parameter in student.parameters()) == meta["num_params"]
    assert spent(student) == pytest.approx(meta["_ops"], rel=1e-3)


# ---------------------------------------------------------------- what they answer


@pytest.mark.parametrize("model", TORCHVISION)
def test_torchvision_s_networks_answer_as_there(model: str) -> None:
    student = made(model).eval()
    network = library.get_model(model, num_classes=5).eval()
    network.load_state_dict(student.network.state_dict())  # strictly, so the names are torchvision's
    preset = library.get_model_weights(model)["DEFAULT"].transforms()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (preset.mean, preset.std))
    frames = pictures(student, batch=1)
    with torch.no_grad():
        wanted = network(((frames / 255 - mean) / std).transpose(1, 2))
        torch.testing.assert_close(student(frames).logits, wanted, rtol=1e-4, atol=1e-5)


CHANNELS = {
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (64, 128, 256, 512)),
    **dict.fromkeys(("x3d_xs", "x3d_s"), (24, 48, 96, 192)),
    "s3d": (192, 480, 832, 1024),
    "movinet_a0": (8, 32, 56, 56, 104),
}
WIDTHS = {"s3d": (1024, 1024), "x3d_xs": (432, 2048), "x3d_s": (432, 2048), "movinet_a0": (480, 2048)}


@pytest.mark.parametrize("model", CLIPS)
def test_blocks_are_maps_that_get_smaller_and_wider(model: str) -> None:
    student = on_paper(model, 5).eval()
    frames, size = student.spec.frames, student.spec.size
    asked = student.feature_names
    answer = student(torch.empty(2, frames, 3, size, size, dtype=torch.uint8, device="meta"), asked)
    assert list(answer.features) == list(asked)
    *blocks, embedding = answer.features.values()
    assert tuple(block.shape[1] for block in blocks) == CHANNELS[model]
    assert all(block.dim() == 5 and block.shape[3] == block.shape[4] for block in blocks)
    areas = [block.shape[3] for block in blocks]
    assert areas == sorted(areas, reverse=True)
    assert blocks[0].shape[2] == (frames // 2 if model == "s3d" else frames)
    assert (answer.latent.shape[1], embedding.shape[1]) == WIDTHS.get(model, (512, 512))


@pytest.mark.parametrize("model", ["x3d_xs", "movinet_a0", "mc3_18"])
def test_the_head_reads_the_embedding_and_the_latent_is_the_mean_of_the_last_map(model: str) -> None:
    student = made(model).eval()
    seen: list[Tensor] = []
    last = student.network.get_submodule(list(student.trunk)[-1])
    last.register_forward_hook(lambda _part, _given, answer: seen.append(answer))
    answer = student(pictures(student), ("embedding",))
    torch.testing.assert_close(answer.latent, seen[0].mean((2, 3, 4)))
    head = student.network.get_submodule(student.head)
    torch.testing.assert_close(head(answer.features["embedding"]), answer.logits)


@pytest.mark.parametrize("model", [model for model in CLIPS if model != "s3d"])
def test_the_order_of_frames_matters_from_the_start(model: str) -> None:
    student = made(model).eval()
    frames = pictures(student)
    assert not torch.allclose(student(frames).latent, student(frames.flip(1)).latent, rtol=1e-4, atol=1e-5)


def test_dropout_acts_on_the_head_alone() -> None:
    student = made("x3d_xs", dropout=0.9).train()
    student.network.eval()
    frames = pictures(student)
    one, other = student(frames), student(frames)
    assert torch.equal(one.latent, other.latent)
    assert not torch.equal(one.logits, other.logits)


def test_s3d_keeps_a_student_s_promises_too() -> None:
    """The contract tests try the others, as small as s3d cannot be."""
    student = made("s3d").eval()
    frames = pictures(student, batch=1)
    exported = torch.export.export(student, (frames,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(frames).logits, student(frames).logits)
    nn.functional.cross_entropy(student.train()(frames).logits, torch.tensor([1])).backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in student.named_parameters() if value.grad is None or not value.grad.any()] == []


# ---------------------------------------------------------------- weights from elsewhere, and mistakes


def test_published_weights_are_loaded_and_another_head_stays_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = library.get_model("mc3_18", num_classes=400).state_dict()
    place = tmp_path / "hub" / "checkpoints" / library.get_model_weights("mc3_18")["DEFAULT"].url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(published, place)
    for classes in (5, 400):
        network = made("mc3_18", classes, pretrained=True).network.state_dict()
        same = {name for name, value in network.items() if torch.equal(value, published[name])}
        assert set(network) - same == (set() if classes == 400 else {"fc.weight", "fc.bias"})
        assert network["fc.weight"].shape == (classes, 512)


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no way there")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(ValueError, match=r"https://.*r3d_18.* cannot be fetched .*no way there.*init=FILE"):
        made("r3d_18", pretrained=True)
    with pytest.raises(ValueError, match=r"torchvision has no weights of model=x3d_s; pretrained=false .*init=FILE"):
        made("x3d_s", pretrained=True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options("x3d_m"), r"there is no model=x3d_m; there are r3d_18, .*movinet_a0"),
        (Options(frames=-1), r"frames and size are 0"),
        (Options(dropout=1.0), r"dropout is from 0"),
        (
            Options("s3d", frames=12),
            r"frames=12 and size=224 are not enough: s3d needs at least frames=13 and size=209",
        ),
        (Options("s3d", size=208), r"frames=16 and size=208 are not enough"),
        (Options("movinet_a0", size=32), r"frames=50 and size=32 are not enough: movinet_a0 needs .* size=33"),
    ],
)
def test_mistakes(options: Options, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(options, 5)


@pytest.mark.parametrize(("model", "less"), [("s3d", "frames"), ("s3d", "size"), ("movinet_a0", "size")])
def test_the_least_that_is_enough_is_the_least(model: str, less: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = vars(LEAST[model])
    monkeypatch.setattr(video3d, "LEAST", {})
    student, smaller = made(model, **enough).eval(), made(model, **{**enough, less: enough[less] - 1}).eval()
    assert student(pictures(student, batch=1)).logits.shape == (1, 5)
    with pytest.raises(RuntimeError):
        smaller(pictures(smaller, batch=1))
