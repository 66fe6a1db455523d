"""What every loss promises: golden values, gradients, options, and the odd things that may be handed to it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_examples import (
    CASES,
    EXAMPLES,
    IDS,
    LABEL,
    MAP,
    STUDENT,
    TEACHER,
    TEACHER_MAP,
    TEACHER_VECTOR,
    VECTOR,
    clips,
    example,
    grid,
    said,
    with_learnt,
)
from omegaconf import MISSING, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.contrast import Memory
from distill.objective.losses import LEARNT, LOSSES
from distill.objective.terms import moving, own_options, schema
from distill.outputs import StudentOutput, TeacherOutput, TopK

EVERY = pytest.mark.parametrize("name", LOSSES)
EVERY_CASE = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)

# ---------------------------------------------------------------- golden values

GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())["values"]
MAPS: dict[str, Any] = {"student": "map", "teacher": "map"}
Terms = list[tuple[float, str, dict[str, Any]]]
MADE: dict[str, Terms] = {  # golden value -> what adds up to it
    "KD T=4, T^2*KL batchmean": [(1, "kl", {})],
    "KD total: 0.1*CE + 0.9*T^2*KL, T=4": [(0.1, "cross_entropy", {}), (0.9, "kl", {})],
    "DKD alpha=1 beta=8 T=4": [(1, "dkd", {})],
    "DKD TCKD only (alpha=1,beta=0) T=4": [(1, "dkd", {"beta": 0.0})],
    "DKD NCKD only (alpha=0,beta=1) T=4": [(1, "dkd", {"alpha": 0.0, "beta": 1.0})],
    "LogitStd-KD T=2 (z-score, unbiased std, eps 1e-7)": [(1, "kl", {"temperature": 2.0, "standardise": True})],
    "LogitStd-KD total: 0.5*CE + 9*T^2*KL, T=2": [
        (0.5, "cross_entropy", {}),
        (9, "kl", {"temperature": 2.0, "standardise": True}),
    ],
    "LogitStd-DKD alpha=1 beta=8 T=2": [(1, "dkd", {"temperature": 2.0, "standardise": True})],
    "DIST beta=gamma=1 tau=1": [(1, "dist", {})],
    "DIST beta=gamma=1 tau=4": [(1, "dist", {"temperature": 4.0})],
    "AT (code) p=2 one pair": [(1, "attention", MAPS)],
    "AT (paper) one pair": [(1, "attention", {**MAPS, "norm": True})],
    "FitNet hint MSE (no regressor)": [(1, "hint", MAPS)],
    "FitNet-like L2Loss default(normalize=True)": [(1, "hint", {**MAPS, "normalise": True})],
    "RKD 25*dist + 50*angle": [(25, "rkd_distance", {}), (50, "rkd_angle", {})],
    "RKD dist only (w=1)": [(1, "rkd_distance", {})],
    "RKD angle only (w=1)": [(1, "rkd_angle", {})],
    "RKD 25*dist + 50*angle, with_l2_norm": [
        (25, "rkd_distance", {"normalise": True}),
        (50, "rkd_angle", {"normalise": True}),
    ],
    "PKT eps=1e-7 (unweighted)": [(1, "pkt", {})],
    "SP (unweighted)": [(1, "similarity", MAPS)],
    "ReviewKD HCL [4,2,1], one level, no ABF": [(1, "reviewkd", MAPS)],
    "CRD K=12 N=40 D=16 t=0.07 m=0.5 first batch (unweighted)": [(1, "crd", {})],
}
NOT_OURS = {  # another reduction, and a method that is not here
    "KD T=4, modelopt HEAD default reduction=mean",
    "MLKD class-correlation cc_loss T=4",
    "MLKD batch-correlation bc_loss T=4",
}
ODD = {("DIST", "torchdistill"), ("SP", "torchdistill")}  # another epsilon; rows of length 1 in the sum of magnitudes


def golden_memory() -> Memory:
    """The banks, negatives and embeddings of the golden value."""
    options = {"width": 16, "negatives": 12}
    memory = LOSSES["crd"].learns(said(STUDENT, VECTOR), TeacherOutput(TEACHER, TEACHER_VECTOR), range(40), **options)
    assert isinstance(memory, Memory)
    for layer in (memory.embed.student, memory.embed.teacher):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    memory.double()
    row, column = grid(40, 16)
    memory.student_bank.copy_(F.normalize(torch.sin(0.37 * row + 0.11 * column)))
    memory.teacher_bank.copy_(F.normalize(torch.cos(0.29 * row - 0.13 * column)))
    memory.others = lambda own, seed: (own[:, None] + 3 * torch.arange(1, 13)) % 40  # type: ignore[method-assign]
    return memory


@pytest.mark.parametrize("key", MADE)
def test_golden(key: str) -> None:
    """Made with the authors' own code, and that of libraries, in float64."""
    leaves = [thing.clone().requires_grad_() for thing in (STUDENT, VECTOR, MAP)]
    student, teacher = said(*leaves[:2], map=leaves[2]), TeacherOutput(TEACHER, TEACHER_VECTOR, {"map": TEACHER_MAP})
    batch = clips(LABEL)
    batch.index = (5 * torch.arange(8) + 2) % 40
    memory = golden_memory()
    learns: dict[str, dict[str, Any]] = {"crd": {LEARNT: memory}}
    parts = [
        weight * LOSSES[name](student, teacher, batch, **(options | learns.get(name, {})))
        for weight, name, options in MADE[key]
    ]
    found = torch.stack(parts).sum()
    found.backward()  # type: ignore[no-untyped-call]
    (gradient,) = (leaf.grad for leaf in leaves if leaf.grad is not None)
    for source, expected in GOLDEN[key].items():
        if "loss" in expected and (key.split()[0], source) not in ODD:
            assert found.item() == pytest.approx(expected["loss"], rel=1e-9), source
            assert gradient.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9), source
    if "Z_v1,Z_v2" in GOLDEN[key]:
        assert memory.log_z.exp().tolist() == pytest.approx(GOLDEN[key]["Z_v1,Z_v2"], rel=1e-9)


def test_every_golden_value_is_tried() -> None:
    assert set(MADE) | NOT_OURS == set(GOLDEN)


# ---------------------------------------------------------------- options


def test_every_loss_has_an_example() -> None:
    assert set(EXAMPLES) == set(LOSSES)
    assert all(LOSSES[name].function.__name__ == name for name in LOSSES)


@EVERY
def test_every_keyword_option_is_a_recipe_option(name: str) -> None:
    parameters = inspect.signature(LOSSES[name].function).parameters
    options = {
        option: MISSING if item.default is inspect.Parameter.empty else item.default
        for option, item in parameters.items()
        if item.kind is inspect.Parameter.KEYWORD_ONLY and option != LEARNT
    }
    tree = OmegaConf.structured(schema(name))
    assert OmegaConf.is_missing(tree, "weight")  # no silent default
    assert own_options(schema(name)()) == options
    for given in EXAMPLES[name]:
        chosen = OmegaConf.to_object(OmegaConf.merge(tree, {"weight": 1.0} | given))
        assert own_options(chosen) == options | given
    assert moving(name) <= set(options)
    assert inspect.getdoc(LOSSES[name].function)


def test_unknown_losses_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=f"'kd'; known: {', '.join(sorted(LOSSES))}"):
        schema("kd")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("hint", {"student": "vidoe", "teacher": "video"}, ["hint.student", "'vidoe'", "student gives deep, flat"]),
        ("hint", {"student": "video", "teacher": "heat"}, ["hint.teacher", "'heat'", "teacher gives deep, feature"]),
        ("pkt", {"student": ["latent", "video"]}, ["pkt", "2 names", "1 of"]),
        ("pkt", {"student": []}, ["pkt.student", "a name, or a list of names"]),
        ("pkt", {"teacher": 3}, ["pkt.teacher", "3", "a name, or a list of names"]),
        ("mse", {"student": "frames", "teacher": "flat"}, ["frames [4, 4, 3]", "flat [4, 3, 3, 3]"]),
        ("mse", {"student": "latent", "teacher": "feature"}, ["latent [4, 6]", "feature [4, 7]"]),
        ("temporal", {"student": "latent", "teacher": "frames"}, ["latent [4, 6]", "frames [4, 2, 5]"]),
        ("attention", {"student": "frames", "teacher": "flat"}, ["frames [4, 4, 3]", "[B,C,H,W]"]),
        ("attention", {"student": "flat", "teacher": "feature", "rows": True}, ["feature [4, 7]", "rows=true"]),
        ("reviewkd", {"student": "frames", "teacher": "frames"}, ["frames [4, 4, 3]", "frames [4, 2, 5]"]),
        ("feature", {"kind": "l2"}, ["'l2'", "cosine, smooth_l1"]),
        ("attention", {"student": "flat", "teacher": "flat", "power": 0.5}, ["0.5", "at least 1"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_one_line(name: str, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        LOSSES[name](*example(), **options)
    for part in ["objective.", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_pair_of_a_list_counts() -> None:
    names = ["video", "latent"], ["video", "feature"]
    single = [LOSSES["pkt"](*example(), student=s, teacher=t) for s, t in zip(*names, strict=True)]
    both = LOSSES["pkt"](*example(), student=names[0], teacher=names[1])
    torch.testing.assert_close(both, single[0] + single[1])


def test_a_reconstruction_can_be_compared_too() -> None:
    student, teacher, batch = example()
    assert student.reconstruction is not None
    teacher.maps["film"] = student.reconstruction.transpose(1, 2)  # [B,C,T,H,W], as every map
    assert LOSSES["mse"](student, teacher, batch, student="reconstruction", teacher="film") == 0


@pytest.mark.parametrize("name", ["mse", "rkd_distance", "feature"])
def test_features_that_are_logits_need_all_of_them(name: str) -> None:
    student, teacher, batch = example()
    teacher.logits = TopK.of(teacher.dense, 2)
    with pytest.raises(UserError, match=rf"objective.{name}.teacher: only the teacher's largest logits .* cache.top_k"):
        LOSSES[name](student, teacher, batch, student="logits", teacher="logits")


# ---------------------------------------------------------------- gradients


def leaves_of(student: StudentOutput) -> tuple[StudentOutput, list[Tensor]]:
    leaves: list[Tensor] = []

    def grow(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    return student.map(grow), leaves


STOPPED = "queue"  # each side asks, and is given the other's answer as it is: the test of crd looks at its gradient


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[1].get("mode") != STOPPED])
def test_gradients_are_those_of_the_value(name: str, options: dict[str, Any]) -> None:
    """With respect to what the student gives and to what the loss learns; the teacher has none."""
    student, teacher, batch = example()
    student, leaves = leaves_of(student)
    teacher = teacher.map(lambda tensor: tensor.requires_grad_())
    given = with_learnt(name, options)
    if isinstance(memory := given.get(LEARNT), Memory):
        memory.draws[1] = 1  # what turns scores into probabilities is no function of the first batch any more
    LOSSES[name](student, teacher, batch, **given).backward()  # type: ignore[no-untyped-call]
    teacher.map(lambda tensor: tensor if tensor.grad is None else pytest.fail("the teacher would be trained"))
    parameters = list(given[LEARNT].parameters()) if LEARNT in given else []
    assert all(parameter.grad is not None for parameter in parameters)
    inputs = [leaf for leaf in leaves if leaf.grad is not None] + parameters
    assert len(inputs) > len(parameters)
    assert torch.autograd.gradcheck(
        lambda *_: LOSSES[name](student, teacher, batch, **given), inputs, atol=1e-6, fast_mode=True
    )


# ---------------------------------------------------------------- means

FALLS = {"pkt": 2.0, "similarity": 2.0}  # with so many times the clips, as the docstrings say
BY_CHANCE = ("crd",)  # draws others for each clip


@EVERY_CASE
def test_the_same_clips_twice_give_the_same_loss(name: str, options: dict[str, Any]) -> None:
    student, teacher, batch = example()
    batch = clips(torch.tensor([1, -1, 0, 4]), frames=batch.frames)
    given = with_learnt(name, options)

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])

    once = LOSSES[name](student, teacher, batch, **given)
    label, frames = twice(batch.label), twice(batch.frames)
    again = LOSSES[name](student.map(twice), teacher.map(twice), clips(label, frames=frames), **given)
    assert once.shape == ()
    if name == "vid":
        assert torch.isfinite(once)
    else:
        assert once.item() > 0
    if name not in BY_CHANCE or options.get("mode") == "queue":
        torch.testing.assert_close(again * FALLS.get(name, 1.0), once, rtol=1e-5, atol=1e-9)


FRAMES = [
    case
    for case in CASES
    if case[1].get("student") in ("video", "frames") and (case[0] != "attention" or case[1].get("norm"))
]


@pytest.mark.parametrize(("name", "options"), FRAMES)
def test_every_frame_twice_gives_the_same_loss(name: str, options: dict[str, Any]) -> None:
    """Of the student, which then is finer than the teacher; and of both."""
    student, teacher, batch = example()
    given = with_learnt(name, options)

    def slow(things: dict[str, Tensor]) -> dict[str, Tensor]:
        axes = {"video": 2, "frames": 1}
        return things | {key: things[key].repeat_interleave(2, axis) for key, axis in axes.items()}

    student.features |= {"video": student.features["video"][:, :, :2], "frames": student.features["frames"][:, :2]}
    once = LOSSES[name](student, teacher, batch, **given)
    student.features = slow(student.features)
    torch.testing.assert_close(LOSSES[name](student, teacher, batch, **given), once)
    teacher.maps = slow(teacher.maps)
    torch.testing.assert_close(LOSSES[name](student, teacher, batch, **given), once)


# ---------------------------------------------------------------- odd things


def change(values: Callable[[Tensor], Tensor]) -> tuple[StudentOutput, TeacherOutput]:
    student, teacher, _ = example()
    return student.map(values), teacher.map(values)


@EVERY_CASE
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_never_computed_in(name: str, options: dict[str, Any], half: torch.dtype) -> None:
    batch, given = example()[2], with_learnt(name, options)
    if LEARNT in given:
        given[LEARNT].float()
    full = LOSSES[name](*change(lambda tensor: tensor.to(half).float()), batch, **given)
    low = LOSSES[name](*change(lambda tensor: tensor.to(half)), batch, **given)
    with torch.autocast("cpu", torch.bfloat16):
        cast = LOSSES[name](*change(lambda tensor: tensor.to(half)), batch, **given)
    assert full.dtype == low.dtype == cast.dtype == torch.float32
    assert torch.equal(low, full)
    assert torch.equal(cast, full)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, far from each other in memory."""
    wide = torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)
    return wide[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last_3d) if tensor.dim() == 5 else tensor


@EVERY_CASE
@pytest.mark.parametrize("layout", [strided, channels_last])
def test_how_it_lies_in_memory_does_not_matter(
    name: str, options: dict[str, Any], layout: Callable[[Tensor], Tensor]
) -> None:
    given = with_learnt(name, options)
    expected = LOSSES[name](*example(), **given)
    torch.testing.assert_close(LOSSES[name](*change(layout), example()[2], **given), expected)


@EVERY_CASE
def test_a_single_clip_is_enough(name: str, options: dict[str, Any]) -> None:
    student, leaves = leaves_of(example(batch=1)[0])
    found = LOSSES[name](student, *example(batch=1)[1:], **with_learnt(name, options))
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[1].get("student") in ("video", "frames")])
def test_a_single_frame_of_a_single_row_is_enough_but_has_no_motion(name: str, options: dict[str, Any]) -> None:
    student, teacher, batch = example()
    shapes = {"video": (4, 3, 1, 1, 4), "frames": (4, 1, 3)}
    student.features |= {key: torch.randn(shape).double() for key, shape in shapes.items()}
    if name == "temporal":
        with pytest.raises(UserError, match="no motion in a single frame"):
            LOSSES[name](student, teacher, batch, **options)
        return
    if name == "hint" and options["teacher"] == "video":
        with pytest.raises(UserError, match="has to be larger than the teacher's"):
            LOSSES[name].learns(student, teacher, range(4), **options)
        return
    found = LOSSES[name].learns(student, teacher, range(4), **options)
    learnt = {} if found is None else {LEARNT: found.double()}
    assert torch.isfinite(LOSSES[name](student, teacher, batch, **options, **learnt))


@EVERY_CASE
def test_answers_of_zeros_leave_the_gradient_finite(name: str, options: dict[str, Any]) -> None:
    """A head that starts at zero, activations that are all dead, a still video."""
    student, teacher = change(torch.zeros_like)
    student, leaves = leaves_of(student)
    found = LOSSES[name](student, teacher, example()[2], **with_learnt(name, options))
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(found)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)


@EVERY_CASE
def test_what_is_learnt_depends_on_shapes_alone(name: str, options: dict[str, Any]) -> None:
    """Answers on the meta device have shapes and no numbers."""
    torch.manual_seed(0)
    found = LOSSES[name].learns(*change(lambda tensor: tensor.to("meta")), range(12), **options)
    expected = with_learnt(name, options).get(LEARNT)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        for ours, theirs in zip(found.double().state_dict().values(), expected.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_loss_without_a_module_learns_nothing() -> None:
    for name, options in CASES:
        learns = LOSSES[name].learns(*example()[:2], range(4), **options)
        assert learns is None or (LOSSES[name].module is not None and list(learns.parameters()))
    same = said(STUDENT, VECTOR, map=MAP), TeacherOutput(TEACHER, VECTOR, {"map": MAP})
    for name in ("mse", "feature", "hint", "reviewkd"):
        assert LOSSES[name].learns(*same, range(4), student="map", teacher="map") is None
