"""Picture networks as backbones, against what was published about them and against the libraries' own networks.

Shapes: N pictures, C channels, h and w the sides of a map.
"""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from timm.models import nasnet as timm_nasnet
from timm.models import pnasnet as timm_pnasnet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from students._backbones import IMAGENET, OWN, backbone, names
from students._nasnet import NASNET_HALVING, NASNET_NORMAL, PNASNET, Cell, Halve, pointwise

PUBLISHED = {  # millions of parameters with 1000 classes, and of multiply-adds for a picture of 224x224 pixels
    "mnasnet1_0": (4.383, 315),
    "mobilenetv1_100": (4.232, 569),
    "mobilenetv2_100": (3.505, 300),
    "mobilenetv2_140": (6.11, 582),
    "nasnet_a_mobile": (5.289978, 564),
    "pnasnet_5_mobile": (5.1, 588),
    "bn_inception": (11.29524, 2000),
    "thinet_tiny": (1.32, 1005),
    "resnet34": (21.8, 3660),
    "resnet50": (25.56, 4090),
}
KNOWN_TO_THE_LAST = {"nasnet_a_mobile": 5_289_978, "mobilenetv2_100": 3_504_872}


def noise(count: int, side: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def settle(network: nn.Module, pictures: Tensor) -> None:
    """Statistics as if the network had seen these pictures for long: a fresh one may answer nearly nothing."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(pictures)
    network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    network = backbone(name).eval()
    head = nn.Linear(network.width, 1000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(network(torch.empty(1, 3, 224, 224)).mean((2, 3)))
    parameters, multiply_adds = PUBLISHED[name]
    count = sum(parameter.numel() for parameter in [*network.parameters(), *head.parameters()])
    assert count / 1e6 == pytest.approx(parameters, rel=0.02)
    assert counter.get_total_flops() / 2e6 == pytest.approx(multiply_adds, rel=0.02)
    assert count == KNOWN_TO_THE_LAST.get(name, count)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("side", [32, 50])
def test_our_own_take_pictures_of_any_size(name: str, side: int) -> None:
    network = backbone(name).eval()
    with torch.no_grad():
        maps = network(noise(2, side))
    shrunk = 16 if name == "thinet_tiny" else 32
    assert maps.shape[1:] == network.try_on(side).shape[1:]
    assert maps.shape[:2] == (2, network.width)
    assert side // shrunk <= maps.shape[2] == maps.shape[3] <= side // shrunk + 1
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "regnet_x_400mf", "mnasnet0_5", "mobilenet_v3_small"]
)
def test_a_backbone_is_torchvision_s_network_up_to_where_it_averages(name: str) -> None:
    pictures = noise(4, 64)
    whole = models.get_model(name)
    settle(whole, pictures)
    network = backbone(name).eval()
    network.network.load_state_dict(whole.state_dict(), strict=False)
    assert_same_average(network, whole, pictures)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "timm/mnasnet_small", "lcnet_035"])
def test_a_backbone_is_timm_s_network_up_to_where_it_averages(name: str) -> None:
    pictures = noise(4, 64)
    whole = timm.create_model(name.removeprefix("timm/"))
    settle(whole, pictures)
    network = backbone(name).eval()
    network.network.load_state_dict(whole.state_dict(), strict=False)
    assert_same_average(network, whole, pictures)


def assert_same_average(network: nn.Module, whole: nn.Module, pictures: Tensor) -> None:
    averages: list[Tensor] = []
    for part in whole.modules():
        if isinstance(part, nn.AdaptiveAvgPool2d):
            part.register_forward_hook(lambda part, given, answer: averages.append(answer))
    first = next(part for part in whole.modules() if isinstance(part, nn.Linear))
    first.register_forward_pre_hook(lambda part, given: averages.append(given[0]))
    with torch.no_grad():
        whole(pictures)
        ours = network(pictures).mean((2, 3))
    # The last average before the head, or what the head reads where the network averages by itself.
    same = [average for average in averages if average.flatten(1).shape == ours.shape]
    torch.testing.assert_close(ours, same[-1].flatten(1), rtol=1e-4, atol=1e-5)
    assert ours.abs().mean() > 0.01


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "timm/mnasnet_small", "mnasnet0_5", "lcnet_035"])
def test_nothing_of_the_head_is_left_to_train(name: str) -> None:
    network = backbone(name).train()
    network(noise(2, 64)).square().mean().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_name_of_two_libraries_is_torchvision_s_unless_timm_is_named() -> None:
    with torch.device("meta"):
        plain, torchvision_s, timm_s = (
            backbone(name) for name in ("resnet18", "torchvision/resnet18", "timm/resnet18")
        )
    assert isinstance(plain.network, nn.Sequential)
    assert isinstance(torchvision_s.network, nn.Sequential)
    assert isinstance(timm_s.network, timm.models.resnet.ResNet)
    assert (plain.width, plain.mean, plain.std) == (512, *IMAGENET)
    assert {"resnet18", "mobilenetv1_100", *OWN} <= set(names())


def test_pictures_are_normalised_as_the_weights_were_trained() -> None:
    with torch.device("meta"):
        assert backbone("timm/inception_v3").mean == (0.5, 0.5, 0.5)
        assert backbone("googlenet").std == (0.5, 0.5, 0.5)
        assert (backbone("mobilenetv2_100").mean, backbone("mobilenetv2_100").std) == IMAGENET


@pytest.mark.parametrize("name", ["resnet_18", "timm/mnasnet1_0", "keras/resnet18", ""])
def test_an_unknown_name_is_told_with_names_like_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no backbone={name}; there are .*(resnet|mnasnet)"):
        backbone(name)


@pytest.mark.parametrize("name", ["vit_b_16", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_without_a_map_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"{name} does not turn a picture .* into a map \("):
        backbone(name)


@pytest.mark.parametrize("name", ["regnet_x_400mf", "test_resnet", "thinet_tiny", "mobilenet_v3_small"])
def test_a_backbone_can_be_built_without_memory(name: str) -> None:
    with torch.device("meta"):
        network = backbone(name)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert backbone(name).width == network.width


def test_looking_at_shapes_leaves_a_backbone_as_it_was() -> None:
    network = backbone("test_resnet").train()
    network.network.layer1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    network.try_on(64)
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---------------------------------------------------------------- published weights


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121", "googlenet"])
def test_weights_that_torchvision_publishes_are_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    whole = models.get_model(name, **({"aux_logits": True, "init_weights": False} if name == "googlenet" else {}))
    weights = whole.state_dict()
    for key in list(weights):  # densenet's files still have the names of long ago
        weights[re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", key)] = weights.pop(key)
    file = tmp_path / "hub" / "checkpoints" / models.get_model_weights(name)["DEFAULT"].url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    network, plain = backbone(name, pretrained=True).network, whole.state_dict()
    assert [key for key, value in network.state_dict().items() if not torch.equal(value, plain[key])] == []


@pytest.mark.parametrize("name", ["mnasnet0_5", "mobilenetv1_100", "bn_inception", "test_byobnet"])
def test_weights_that_cannot_be_had_are_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no way there")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pretrained=false starts from random weights, init=FILE") as refused:
        backbone(name, pretrained=True)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- cells, against timm's of the large networks


def weights_in_order(network: nn.Module, prefixes: list[str]) -> list[Tensor]:
    """Parameters of these parts, part after part."""
    return [value for prefix in prefixes for key, value in network.state_dict().items() if key.startswith(prefix)]


def give(ours: nn.Module, own: list[str], theirs: nn.Module, their: list[str]) -> None:
    """All of their weights to our cell; the parts correspond in this order."""
    pairs = list(zip(weights_in_order(ours, own), weights_in_order(theirs, their), strict=True))
    assert len(pairs) == len(ours.state_dict()) == len(theirs.state_dict())
    for mine, value in pairs:
        mine.copy_(value)


def combinations(count: int = 5) -> tuple[list[str], list[str]]:
    """The names of the pairs' operations, ours and theirs."""
    ours = [f"pairs.{i}.{side}." for i in range(count) for side in (0, 1)]
    return ours, [f"comb_iter_{i}_{side}." for i in range(count) for side in ("left", "right")]


def randomised(cell: nn.Module) -> nn.Module:
    for part in cell.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return cell.eval()


@torch.no_grad()
def test_a_normal_nasnet_cell_is_timm_s() -> None:
    theirs = randomised(timm_nasnet.NormalCell(12, 8, 20, 8))
    ours = Cell(NASNET_NORMAL, pointwise(12, 8), (12, 20), 8, 1).eval()
    own, their = combinations()
    give(ours, ["before.", "now.", *own], theirs, ["conv_prev_1x1.", "conv_1x1.", *their])
    before, now = noise(2, 14, 12), noise(2, 14, 20)
    torch.testing.assert_close(ours(before, now), theirs(now, before))


@torch.no_grad()
def test_a_nasnet_cell_after_a_halving_one_is_timm_s() -> None:
    theirs = randomised(timm_nasnet.FirstCell(12, 4, 20, 8))
    ours = Cell(NASNET_NORMAL, Halve(12, 8), (12, 20), 8, 1).eval()
    own, their = combinations()
    halving = ["path_1.", "path_2.", "final_path_bn."]
    give(ours, ["before.", "now.", *own], theirs, [*halving, "conv_1x1.", *their])
    before, now = noise(2, 27, 12), noise(2, 14, 20)
    torch.testing.assert_close(ours(before, now), theirs(now, before))


@torch.no_grad()
def test_a_halving_nasnet_cell_is_timm_s() -> None:
    theirs = randomised(timm_nasnet.ReductionCell0(12, 8, 20, 8, pad_type=""))
    ours = Cell(NASNET_HALVING, pointwise(12, 8), (12, 20), 8, 2).eval()
    own, their = combinations()
    give(ours, ["before.", "now.", *own], theirs, ["conv_prev_1x1.", "conv_1x1.", *their])
    before, now = noise(2, 15, 12), noise(2, 15, 20)
    torch.testing.assert_close(ours(before, now), theirs(now, before))


@torch.no_grad()
def test_the_first_nasnet_cell_is_timm_s() -> None:
    theirs = randomised(timm_nasnet.CellStem0(6, 8))
    ours = Cell(NASNET_HALVING, nn.Identity(), (6, 6), 8, 2).eval()
    own, their = combinations()
    give(ours, ["now.", *own], theirs, ["conv_1x1.", *their])
    maps = noise(2, 15, 6)
    torch.testing.assert_close(ours(maps, maps), theirs(maps))


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("halved", [False, True])
def test_a_pnasnet_cell_is_timm_s(stride: int, halved: bool) -> None:
    theirs = randomised(timm_pnasnet.Cell(12, 8, 20, 8, is_reduction=stride == 2, match_prev_layer_dims=halved))
    ours = Cell(PNASNET, Halve(12, 8) if halved else pointwise(12, 8), (12, 20), 8, stride).eval()
    own, their = combinations()
    give(ours, ["before.", "now.", *own], theirs, ["conv_prev_1x1.", "conv_1x1.", *their])
    before, now = noise(2, 27 if halved else 14, 12), noise(2, 14, 20)
    torch.testing.assert_close(ours(before, now), theirs(before, now))


@torch.no_grad()
def test_the_first_pnasnet_cell_is_timm_s() -> None:
    theirs = randomised(timm_pnasnet.CellStem0(6, 8, 6, 8))
    ours = Cell(PNASNET, nn.Identity(), (6, 6), 8, 2).eval()
    own, their = combinations()
    give(ours, ["now.", *own], theirs, ["conv_1x1.", *their])
    maps = noise(2, 15, 6)
    torch.testing.assert_close(ours(maps, maps), theirs(maps))
