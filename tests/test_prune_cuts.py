"""What pruning cuts, without training: how much, where, and that what is left answers as it should."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from hypothesis import given
from hypothesis import strategies as st
from student_examples import examples
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill import command, plugins
from distill.checkpoint import StudentCard, build_student, load_student, outline, read_card, save_student
from distill.deploy.channels import cut_channels, goal
from distill.deploy.magnitude import cut_weights, smallest
from distill.deploy.prune_request import Options, share
from distill.errors import UserError
from distill.measure import measure
from distill.outputs import Student
from distill.parts import layers
from distill.widths import narrow, narrowed, widths_of
from students import _shift

CLASSES = 5
FAMILIES = [(name, label) for name in plugins.names("student") for label in examples(name)]
EVERY = pytest.mark.parametrize(("name", "label"), FAMILIES, ids=[" ".join(family) for family in FAMILIES])
# What torch-pruning cannot follow: channels that meet a weight for all of them together; codes joined frame by frame.
STAY = {("lightweight", True): "over_time", ("tinyact_frames", True): "frame_encoder.to_code"}
OTHERS: list[tuple[str, dict[str, object]]] = [
    ("tsn", {"backbone": backbone, "frames": 2, "size": 64})
    for backbone in ("mnasnet1_0", "timm/semnasnet_100", "resnet18", "bn_inception")
]


def make(name: str, given: dict[str, Any], seed: int = 0) -> tuple[Student, StudentCard]:
    """A student whose normalisations are as if it had been trained."""
    options = plugins.schema("student", name)(**given)
    torch.manual_seed(seed)
    student = build_student(options, CLASSES).eval()
    for part in student.modules():
        if isinstance(part, _BatchNorm):
            for value in (part.weight, part.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (part.bias, part.running_mean):
                nn.init.normal_(value, std=0.2)
    return student, StudentCard(dict(vars(options)), [f"class {i}" for i in range(CLASSES)], student.spec)


def example(name: str, label: str) -> tuple[Student, StudentCard]:
    return make(name, examples(name)[label])


def halved(student: Student, card: StudentCard) -> tuple[Student, StudentCard]:
    return cut_channels(student, card, widths_of(student), 0.5, 4, ())


def frames_for(student: Student) -> Tensor:
    spec = student.spec
    return torch.randint(0, 256, (2, spec.frames, 3, spec.size, spec.size), dtype=torch.uint8)


def wanted(student: Student) -> tuple[str, ...]:
    return (*student.feature_names, "reconstruction")


def same(ours: Student, theirs: Student, tolerance: float = 0.0) -> bool:
    """Whether two students give the same answers, features and pictures apart, which may be narrower."""
    frames = frames_for(ours)
    with torch.no_grad():
        mine, other = ours(frames, want=("reconstruction",)), theirs(frames, want=("reconstruction",))
    pairs = [(mine.logits, other.logits)]
    if mine.reconstruction is not None:
        pairs.append((mine.reconstruction, other.reconstruction))
    scale = max(1.0, *(float(value.abs().max()) for value, _ in pairs))
    return all(torch.allclose(a, b, rtol=0, atol=tolerance * scale) for a, b in pairs)


@given(
    amount=st.floats(0.01, 0.99),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    scope=st.sampled_from(["layer", "global"]),
)
def test_the_smallest_weights_are_found(amount: float, sizes: list[int], seed: int, scope: str) -> None:
    """Exactly as many as asked for, and none that is larger than one that stays."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        str(i): (1 + 3 * i) * torch.randint(-4, 5, (size, 2), generator=generator).float()
        for i, size in enumerate(sizes)
    }
    gone = smallest(weights, amount, scope)
    groups = [[name] for name in weights] if scope == "layer" else [list(weights)]
    for group in groups:
        out = torch.cat([weights[name][gone[name]] for name in group]).abs()
        left = torch.cat([weights[name][~gone[name]] for name in group]).abs()
        assert len(out) == round(amount * (len(out) + len(left)))
        assert not len(out) or not len(left) or out.max() <= left.min()


def test_scopes_differ_as_they_should() -> None:
    weights = {"small": torch.tensor([1.0, 2.0, 3.0, 4.0]), "large": torch.tensor([-10.0, 20.0, -30.0, 40.0])}
    found = {scope: smallest(weights, 0.5, scope) for scope in ("global", "layer")}
    said = {scope: {name: value.tolist() for name, value in gone.items()} for scope, gone in found.items()}
    half = [True, True, False, False]
    assert said == {"global": {"small": [True] * 4, "large": [False] * 4}, "layer": {"small": half, "large": half}}


def test_the_share_grows_as_zhu_and_gupta_have_it() -> None:
    cubic = Options(amount=0.8, rounds=4)
    assert [share(cubic, number) for number in range(5)] == pytest.approx(
        [0.8 + (0.0 - 0.8) * (1 - number / 4) ** 3 for number in range(5)]
    )
    even = Options(amount=0.8, rounds=4, pace="even")
    assert [share(even, number) for number in range(5)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


@given(width=st.integers(1, 2000), amount=st.floats(0.01, 0.99), multiple=st.integers(1, 64))
def test_a_goal_is_a_multiple_near_the_share(width: int, amount: float, multiple: int) -> None:
    left = goal(width, amount, multiple)
    assert 1 <= left <= width
    assert left == width or left % multiple == 0
    assert abs(left - width * (1 - amount)) <= multiple / 2 + 1e-6 or left == min(multiple, width) or left == width


@EVERY
def test_zeros_of_every_family(name: str, label: str, tmp_path: Path) -> None:
    """As many as asked for among the weights that recognise; nothing else changes, and it comes back from the disk."""
    student, card = example(name, label)
    before = copy.deepcopy(student.state_dict())
    cut, card = cut_weights(student, card, 0.7, "global", ())
    weights = [f"{layer}.weight" for layer in layers(student, ())]
    assert card.sparse == sorted(weights)
    zeros = {key: int((value == 0).sum()) for key, value in cut.state_dict().items() if key in weights}
    assert sum(zeros.values()) == round(0.7 * sum(before[key].numel() for key in weights))
    for key, value in cut.state_dict().items():
        kept = value != 0 if key in weights else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], before[key][kept])
        assert torch.equal(student.state_dict()[key], before[key])
    save_student(tmp_path, cut, card)
    assert read_card(tmp_path) == card
    assert same(load_student(tmp_path), cut)


def test_no_decoder_is_sparse_and_what_is_kept_is_not() -> None:
    student, card = example("tinyact", "whole")
    cut, card = cut_weights(student, card, 0.5, "layer", ["classifier", "autoencoder.encoder.0"])
    assert set(card.sparse) == {
        "autoencoder.encoder.1.0.weight",
        "autoencoder.encoder.2.0.weight",
        "autoencoder.to_latent.weight",
    }
    for name, value in cut.state_dict().items():
        dense = student.state_dict()[name]
        gone = round(0.5 * value.numel()) if name in card.sparse else int((dense == 0).sum())
        assert int((value == 0).sum()) == gone, name


@EVERY
def test_channels_of_every_family(name: str, label: str, tmp_path: Path) -> None:
    """Every layer but the last has as many as it should; the student comes back from the disk, bit by bit."""
    student, card = example(name, label)
    whole = widths_of(student)
    cut, card = halved(student, card)
    now, head = widths_of(cut), list(layers(student, ()))[-1]
    for layer in layers(student, ()):
        which = "out_channels" if "out_channels" in whole[layer] else "out_features"
        width = whole[layer][which]
        stays = layer == head or layer.startswith(STAY.get((name, student.spec.frames > 1), "nothing"))
        assert now[layer][which] == (width if stays else goal(width, 0.5, 4)), layer
    assert measure(cut, 1)["gflops"] < measure(student, 1)["gflops"]
    save_student(tmp_path, cut, card)
    assert read_card(tmp_path) == card
    again = load_student(tmp_path)
    assert same(again, cut)
    assert [value.stride() for value in again.parameters()] == [value.stride() for value in cut.parameters()]
    with torch.no_grad():
        again(frames_for(again), want=wanted(again))
    if hasattr(again, "step") and getattr(again, "direction", "") != "bidirectional":
        again.step(torch.zeros(2, 3, again.spec.size, again.spec.size, dtype=torch.uint8), again.initial_state(2))


def is_exact(name: str, given: dict[str, Any]) -> bool:
    """A layer norm sees channels that are always 0, too, and of fewer channels the shift takes fewer."""
    return (name != "tinyact" or given.get("blocks") == 0) and "shift" not in given


EXACT = [
    *((name, examples(name)[label]) for name, label in FAMILIES if is_exact(name, examples(name)[label])),
    *OTHERS,
]


@pytest.mark.parametrize(("name", "given"), EXACT)
def test_who_reads_the_channels_that_go_reads_them_no_more(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last channels of all layers give 0 whatever they see, and just these go, nothing changes."""
    monkeypatch.setattr(torch_pruning.importance, "GroupMagnitudeImportance", lambda: first_ones)
    student, card = make(name, given)
    whole, head = widths_of(student), list(layers(student, ()))[-1]
    with torch.no_grad():
        for key, part in student.named_modules():
            stays = key == head or any(word in key for word in ("decoder", "to_codes"))
            if key in whole and not stays and not isinstance(part, nn.LayerNorm):
                for value in part.parameters(recurse=False):
                    value[goal(len(value), 0.5, 4) :] = 0
    cut, _ = halved(student, card)
    assert sum(value.numel() for value in cut.parameters()) < sum(value.numel() for value in student.parameters())
    assert same(cut, student, 1e-5)


def first_ones(group: Any) -> Tensor:
    """Importances under which the last channels go."""
    return -torch.arange(len(group[0].idxs), dtype=torch.float)


def test_a_halved_student_costs_what_one_built_so_narrow_does() -> None:
    """Parameters and FLOPs of TinyAct, whose options can say the widths that are left."""
    given = {**examples("tinyact")["whole"], "widths": [16, 32, 64], "latent": 64, "hidden": 32}
    student, card = make("tinyact", given)
    cut, _ = cut_channels(student, card, widths_of(student), 0.5, 8, ())
    narrow_one, _ = make("tinyact", {**given, "widths": [8, 16, 32], "latent": 32, "hidden": 16})
    ours, theirs = measure(cut, 1), measure(narrow_one, 1)
    for figure in ("parameters", "gflops"):
        assert ours[figure] == theirs[figure]


@pytest.mark.parametrize("direction", ["bidirectional", "online"])
def test_a_pruned_shifted_network_is_the_pruned_plain_one_with_the_shift(direction: str) -> None:
    given: dict[str, object] = {**examples("tsn")["plain"], "backbone": "resnet18"}
    shifted, card = make("tsn", {**given, "shift": direction})
    plain, plain_card = make("tsn", given)
    plain.load_state_dict(shifted.state_dict())
    cut, plain_cut = halved(shifted, card)[0], halved(plain, plain_card)[0]
    assert not same(cut, plain_cut)
    backbone: Any = plain_cut.get_submodule("backbone")
    assert _shift.insert_shift(backbone.network, plain_cut.spec.frames, direction == "online") == 8
    assert same(cut, plain_cut)


def test_what_is_kept_keeps_its_channels() -> None:
    student, card = example("tinyact", "whole")
    cut, after = cut_channels(student, card, widths_of(student), 0.5, 4, ["autoencoder.to_latent"])
    assert cut(frames_for(cut)).latent.shape == (2, 16)
    assert after.widths["classifier.project"] == {"out_features": 8}
    with pytest.raises(UserError, match="keep: the student has no part 'latent'; it has autoencoder"):
        cut_channels(student, card, widths_of(student), 0.5, 4, ["latent"])


def test_a_network_that_cannot_be_pruned_is_refused_in_one_line() -> None:
    for backbone, why in (("convnext_tiny", "is a tensor whose width"), ("shufflenet_v2_x0_5", "does not follow")):
        student, card = make("tsn", {"backbone": backbone, "frames": 1, "size": 32})
        with pytest.raises(UserError, match=rf"method=channels cannot prune this student: .*{why}.*magnitude can"):
            halved(student, card)


def test_without_torch_pruning_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    student, card = example("tinyact", "whole")
    with pytest.raises(UserError, match="pip install torch-pruning"):
        halved(student, card)


def test_narrower_is_the_opposite_of_narrowed() -> None:
    student, card = example("tsn", "shifted")
    cut, card = halved(student, card)
    options = plugins.schema("student", "tsn")(**examples("tsn")["shifted"])
    again = outline(options, CLASSES)
    assert narrowed(cut, again) == card.widths
    narrow(again, card.widths)
    assert widths_of(again) == widths_of(cut)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in cut.state_dict().items()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    cut, card = halved(*example("tinyact", "whole"))
    save_student(folder, cut, card)
    return folder


FIRST = "autoencoder.encoder.0.0"
TAMPERED: list[tuple[Any, str]] = [
    ("8", "widths should be a table of layers"),
    ({FIRST: 8}, "widths should be a table of layers"),
    ({"nothing": {"out_channels": 8}}, "the student has no layer 'nothing' that could be narrower"),
    ({FIRST: {"out_channels": 10**9}}, f"{FIRST} cannot be .*because the options make it"),
    ({FIRST: {"out_channels": 0}}, f"{FIRST} cannot be"),
    ({FIRST: {"out_channels": True}}, f"{FIRST} cannot be"),
    ({FIRST: {"out_channels": 4.0}}, f"{FIRST} cannot be"),
    ({FIRST: {"weight": 4}}, f"{FIRST} cannot be"),
    ({FIRST: {"groups": 0}}, f"{FIRST} cannot be"),
    ({FIRST: {"out_channels": 4}}, "the layers do not fit each other"),
    ({"classifier.head": {"out_features": 4}}, "they leave 4 logits of 5 classes"),
    ({}, "does not fit the student that its card describes"),
]


@pytest.mark.parametrize(("widths", "told"), TAMPERED)
def test_wrong_widths_are_one_line(widths: Any, told: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    path = folder / "student" / "config.json"
    config = json.loads(path.read_text())
    assert config["widths"]
    path.write_text(json.dumps({**config, "widths": widths}))
    with pytest.raises(UserError, match=told) as error:
        load_student(folder)
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_list_of_sparse_tensors_is_one_line(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    path = folder / "student" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sparse": {"a": 1}}))
    with pytest.raises(UserError, match="sparse should be a list of names of tensors"):
        load_student(folder)


def test_a_request_that_cannot_be_met_is_one_line(
    tmp_path: Path, tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("tiny")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "recipe.yaml", bare)
    out = f"out={tmp_path / 'out'}"
    given = [f"run={run}", out]
    wrong = {
        "is no run folder": [f"run={tmp_path / 'nowhere'}", out],
        "holds no finished student": [f"run={bare}", out],
        "run= is missing": [out],
        "out= is missing": [f"run={run}"],
        "choose another out=": [f"run={run}", f"out={run}"],
        "amount is 1.0; it is a share above 0 and below 1": [*given, "amount=1"],
        "amount is 0.0": [*given, "amount=0"],
        "method is 'lottery'; known: channels, magnitude": [*given, "method=lottery"],
        "rounds is 0": [*given, "rounds=0"],
        "scope= is for method=magnitude": [*given, "scope=layer"],
        "multiple= is for method=channels": [*given, "method=magnitude", "multiple=4"],
        "student.latent= cannot be changed": [*given, "student.latent=8"],
        "is called steps= here": [*given, "train.steps=8"],
        "there is no key 'optim.rate'": [*given, "optim.rate=1"],
        "keep: the student has no part": [*given, "keep=nothing"],
    }
    for told, arguments in wrong.items():
        assert command.run("prune", arguments) == 2, told
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert told in error
        assert error.count("\n") == 1
