"""The records that travel between the rooms check themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.clips.sampling import uniform
from distill.outputs import Clips, ClipSpec, StudentOutput, TeacherOutput


def clips(batch: int = 2, **changes: Any) -> Clips:
    whole = torch.arange(batch)
    frames = torch.zeros(batch, 4, 3, 8, 8, dtype=torch.uint8)
    return Clips(**{"frames": frames, "label": whole, "index": whole, "view": whole, **changes})


def student(**changes: Any) -> StudentOutput:
    return StudentOutput(**{"logits": torch.zeros(2, 5), "latent": torch.zeros(2, 7), **changes})


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (clips, {"frames": torch.zeros(2, 4, 3, 8, 8)}, r"Clips.frames is float32\[2, 4, 3, 8, 8\]; .*uint8"),
    (clips, {"frames": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"Clips.frames is uint8\[2, 3, 8, 8\]"),
    (clips, {"label": torch.zeros(3, dtype=torch.int64)}, r"Clips.label is int64\[3\]; it should be torch.int64 \[2\]"),
    (clips, {"label": torch.zeros(2)}, r"Clips.label is float32\[2\]"),
    (clips, {"index": torch.zeros(2, 1, dtype=torch.int64)}, r"Clips.index is int64\[2, 1\]"),
    (clips, {"view": torch.zeros(2, dtype=torch.int32)}, r"Clips.view is int32\[2\]"),
    (clips, {"label_weight": torch.ones(2, dtype=torch.float64)}, r"Clips.label_weight is float64\[2\]"),
    (TeacherOutput, {"logits": torch.zeros(5)}, r"TeacherOutput.logits is float32\[5\]; .*\[any, any\]"),
    (TeacherOutput, {"logits": torch.zeros(2, 5, dtype=torch.int64)}, r"TeacherOutput.logits is int64.*floating point"),
    (
        TeacherOutput,
        {"logits": torch.zeros(2, 5), "feature": torch.zeros(3, 4)},
        r"TeacherOutput.feature is float32\[3, 4\]",
    ),
    (TeacherOutput, {"logits": torch.zeros(2, 5), "maps": {"a": torch.zeros(3, 4)}}, r"TeacherOutput.maps\['a'\]"),
    (student, {"latent": torch.zeros(3, 7)}, r"StudentOutput.latent is float32\[3, 7\]; .*\[2, any\]"),
    (student, {"features": {"block": torch.zeros(1, 4, 4)}}, r"StudentOutput.features\['block'\]"),
    (
        student,
        {"reconstruction": torch.zeros(2, 4, 1, 8, 8)},
        r"StudentOutput.reconstruction .*\[2, any, 3, any, any\]",
    ),
]


@pytest.mark.parametrize(("make", "fields", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_wrong_shapes_and_types_are_named(make: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_prints_shapes_not_numbers() -> None:
    text = repr(student(features={"embedding": torch.zeros(2, 3, dtype=torch.float16)}))
    assert text == (
        "StudentOutput(logits=float32[2, 5], latent=float32[2, 7], "
        "features={embedding: float16[2, 3]}, reconstruction=None)"
    )
    assert "frames=uint8[2, 4, 3, 8, 8]" in repr(clips())


def test_map_reaches_every_tensor_and_checks_again() -> None:
    given_ = student(features={"a": torch.zeros(2, 3)}, reconstruction=torch.zeros(2, 4, 3, 8, 8))
    seen: list[Tensor] = []

    def change(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor + 1

    changed = given_.map(change)
    assert len(seen) == 4
    assert changed.features["a"].eq(1).all()
    assert given_.features["a"].eq(0).all()
    with pytest.raises(ValueError, match="latent"):
        given_.map(lambda tensor: tensor[:1] if tensor.shape == (2, 7) else tensor)


def test_float_and_to() -> None:
    half = student(logits=torch.zeros(2, 5).half(), features={"a": torch.zeros(2, 3, dtype=torch.bfloat16)}).float()
    assert (half.logits.dtype, half.features["a"].dtype) == (torch.float32, torch.float32)
    same = clips().float()
    assert (same.frames.dtype, same.label.dtype) == (torch.uint8, torch.int64)
    meta = clips().to("meta")
    assert {value.device.type for value in vars(meta).values() if value is not None} == {"meta"}
    assert len(clips(5)) == 5


@pytest.mark.parametrize(
    ("labels", "weights"),
    [([0, 1, 2, 3], [1, 1, 1, 1]), ([0, -1, -1, 3], [2, 0, 0, 2]), ([-1, 2], [0, 2]), ([-1, -1], [0, 0])],
)
def test_labels_weigh_one_on_average(labels: list[int], weights: list[float]) -> None:
    assert clips(len(labels), label=torch.tensor(labels)).label_weight.tolist() == weights


def test_a_given_label_weight_is_kept() -> None:
    assert clips(label_weight=torch.tensor([3.0, 0.5])).label_weight.tolist() == [3.0, 0.5]


SPECS = st.builds(ClipSpec, st.integers(1, 32), st.integers(1, 64))


@given(SPECS, SPECS)
def test_union_serves_both(one: ClipSpec, other: ClipSpec) -> None:
    both = one.union(other)
    assert both == other.union(one)
    assert both.frames == max(one.frames, other.frames)
    assert both.size == max(one.size, other.size)
    assert one.union(one) == one


@given(st.integers(1, 40), st.integers(0, 60))
def test_fit_takes_the_middles(wanted: int, more: int) -> None:
    given_ = wanted + more
    frames = torch.arange(given_, dtype=torch.uint8).view(1, given_, 1, 1, 1).expand(2, given_, 3, 4, 4)
    kept = ClipSpec(wanted, 4).fit(frames)
    assert kept[0, :, 0, 0, 0].tolist() == uniform(0, given_, wanted, given_).tolist()
    assert kept.shape == (2, wanted, 3, 4, 4)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(2, 20))
def test_fit_changes_the_size_and_keeps_the_rest(batch: int, count: int, height: int, width: int, size: int) -> None:
    frames = torch.full((batch, count, 3, height, width), 77, dtype=torch.uint8)
    fitted = ClipSpec(count, size).fit(frames)
    assert (fitted.shape, fitted.dtype) == ((batch, count, 3, size, size), torch.uint8)
    assert fitted.eq(77).all()


def test_fit_is_the_identity_when_nothing_differs_and_refuses_too_few_frames() -> None:
    frames = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    assert ClipSpec(4, 8).fit(frames) is frames
    with pytest.raises(ValueError, match="4 frames cannot serve a model that wants 5"):
        ClipSpec(5, 8).fit(frames)
