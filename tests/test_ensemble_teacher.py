"""Several teachers against the same teachers asked one by one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from teacher_examples import make
from torch import Tensor

from distill import plugins
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec
from distill.recipe import Recipe, read_recipe, save_recipe
from distill.teaching.teacher import LiveTeacher, fingerprint, open_teacher, wants

RECIPE = """
out: runs/together
student: {{name: tinyact}}
teacher:
  name: ensemble
  average: {average}
  weights: {weights}
  members:
    - {{name: student, run: {a}}}
    - {{name: student, {key}: {b}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ensemble")
    make("ensemble", found)
    return found


def options(folder: Path, **more: Any) -> Any:
    members = [{"name": "student", "run": str(folder / name)} for name in "ab"]
    return plugins.schema("teacher", "ensemble")(**{"members": members, **more})


def alone(folder: Path, name: str) -> LiveTeacher:
    return open_teacher(plugins.schema("teacher", "student")(run=str(folder / name)), CLASSES, ["block2"])


CLASSES = [f"class {place}" for place in (2, 0, 3)]  # the members know five and six, in orders of their own


def clips(spec: ClipSpec) -> Clips:
    shape = (3, spec.frames, 3, spec.size, spec.size)
    index = torch.arange(3)
    frames = torch.randint(256, shape, generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    return Clips(frames, index, index, index)


def logits(teacher: LiveTeacher, batch: Clips) -> Tensor:
    found = teacher(batch).logits
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("weights", [[], [1.0, 1.0], [3.0, 1.0]])
def test_probabilities_are_averaged(folder: Path, weights: list[float]) -> None:
    teacher = open_teacher(options(folder, weights=weights), CLASSES)
    batch = clips(teacher.spec)
    a, b = (logits(alone(folder, name), batch).double().exp() for name in "ab")
    share = weights[0] / sum(weights) if weights else 0.5
    wanted = share * a / a.sum(1, keepdim=True) + (1 - share) * b / b.sum(1, keepdim=True)
    answer = logits(teacher, batch)
    torch.testing.assert_close(answer.double().exp(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(3))


def test_logits_are_averaged(folder: Path) -> None:
    teacher = open_teacher(options(folder, average="logits", weights=[3, 1]), CLASSES)
    batch = clips(teacher.spec)
    a, b = (logits(alone(folder, name), batch) for name in "ab")
    torch.testing.assert_close(logits(teacher, batch), 0.75 * a + 0.25 * b)


def test_each_member_sees_what_it_wants(folder: Path) -> None:
    """4 frames of 16 and 8 of 32, out of 16 of 40."""
    teacher = open_teacher(options(folder), CLASSES)
    assert teacher.spec == wants(options(folder)) == ClipSpec(8, 32)
    shapes: list[Any] = []
    for member in teacher.network.members:
        member.register_forward_pre_hook(lambda _member, given: shapes.append(tuple(given[0].shape)))
    teacher(clips(ClipSpec(16, 40)))
    assert shapes == [(3, 4, 3, 16, 16), (3, 8, 3, 32, 32)]


def test_features_and_maps_stand_side_by_side(folder: Path) -> None:
    teacher = open_teacher(options(folder), CLASSES, ["1.block2", "0.block2"])
    batch = clips(teacher.spec)
    answer, (a, b) = teacher(batch), (alone(folder, name)(batch) for name in "ab")
    assert a.feature is not None
    assert b.feature is not None
    assert torch.equal(answer.feature, torch.cat([a.feature, b.feature], dim=1))
    assert list(answer.maps) == ["1.block2", "0.block2"]
    assert torch.equal(answer.maps["0.block2"], a.maps["block2"])
    assert torch.equal(answer.maps["1.block2"], b.maps["block2"])
    for name in ("block2", "2.block2", "0.nothing"):
        with pytest.raises(UserError, match=f"the teacher gives no map '{name}'"):
            open_teacher(options(folder), CLASSES, [name])(batch)


def test_without_the_feature_of_one_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = open_teacher(options(folder), CLASSES)
    member = teacher.network.members[1]
    answer_of = type(member).forward

    def featureless(frames: Tensor, want: Any = ()) -> Any:
        answer = answer_of(member, frames, want)
        answer.feature = None
        return answer

    monkeypatch.setattr(member, "forward", featureless)
    assert teacher(clips(teacher.spec)).feature is None


def test_ensembles_of_ensembles(folder: Path) -> None:
    a, b = options(folder).members
    inner = {"name": "ensemble", "members": [a, b], "average": "logits"}
    teacher = open_teacher(options(folder, members=[inner, b], average="logits"), CLASSES, ["0.1.block2"])
    batch = clips(teacher.spec)
    first, second = (logits(alone(folder, name), batch) for name in "ab")
    torch.testing.assert_close(logits(teacher, batch), 0.25 * first + 0.75 * second)
    assert torch.equal(teacher(batch).maps["0.1.block2"], alone(folder, "b")(batch).maps["block2"])


def test_the_fingerprint_knows_what_makes_no_difference(folder: Path) -> None:
    plain = fingerprint(options(folder))
    assert fingerprint(options(folder, weights=[2.0, 2.0])) == plain
    assert fingerprint(options(folder, weights=[2.0, 1.0])) != plain
    assert fingerprint(options(folder, average="logits")) != plain


# ---------------------------------------------------------------- recipes


def recipe(folder: Path, tmp_path: Path, *more: str, key: str = "run", **facts: Any) -> Recipe:
    facts = {"average": "logits", "weights": "[]", "a": folder / "a", "b": folder / "b", **facts}
    (tmp_path / "together.yaml").write_text(RECIPE.format(key=key, **facts))
    return read_recipe([f"recipe={tmp_path / 'together.yaml'}", *more])


def test_a_recipe_of_several_teachers(folder: Path, tmp_path: Path) -> None:
    found = recipe(folder, tmp_path, weights="[1, 3]")
    teacher = open_teacher(found.teacher, CLASSES)
    batch = clips(teacher.spec)
    wanted = open_teacher(options(folder, average="logits", weights=[1.0, 3.0]), CLASSES)
    assert torch.equal(logits(teacher, batch), logits(wanted, batch))
    assert fingerprint(found.teacher) == fingerprint(options(folder, average="logits", weights=[1.0, 3.0]))
    save_recipe(found, tmp_path / "merged.yaml")
    again = read_recipe([f"recipe={tmp_path / 'merged.yaml'}"])
    assert OmegaConf.structured(again.teacher) == OmegaConf.structured(found.teacher)


def test_members_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    found = recipe(folder, tmp_path, f"teacher.members=[{{name: student, run: {folder / 'b'}}}]")
    assert wants(found.teacher) == ClipSpec(8, 32)
    teacher = open_teacher(found.teacher, CLASSES)
    batch = clips(teacher.spec)
    torch.testing.assert_close(logits(teacher, batch), logits(alone(folder, "b"), batch))


def test_a_wrong_key_of_a_member(folder: Path, tmp_path: Path) -> None:
    found = recipe(folder, tmp_path, key="rum")
    for ask in (wants, fingerprint, lambda options: open_teacher(options, CLASSES)):
        complains(
            lambda ask=ask: ask(found.teacher),
            "teacher ensemble: members[1] (student): there is no key 'rum'; did you mean 'run'?",
        )


def complains(ask: Any, wanted: str) -> None:
    with pytest.raises(UserError, match=re.escape(wanted)) as error:
        ask()
    assert "\n" not in str(error.value)


STUDENT = {"name": "student", "run": "/nowhere"}


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"members": []}, "it has no members; say members: [{name: NAME, ...}, ...]"),
        ({"members": ["clip"]}, "members[0] needs a name; known: "),
        ({"members": [{"run": "/nowhere"}]}, "members[0] needs a name; known: "),
        ({"members": [{**STUDENT, "name": "nobody"}]}, "members[0] needs a name; known: "),
        ({"members": [{"name": "student"}]}, "members[0] (student): run has no value"),
        ({"members": [{"name": "student", "run": [1]}]}, "members[0] (student): run: "),
        ({"members": [STUDENT]}, "members[0] (student): /nowhere"),
        (
            {"members": [{"name": "ensemble", "members": [STUDENT]}]},
            "members[0] (ensemble): members[0] (student): /now",
        ),
        ({"average": "votes"}, "average='votes' is none of probabilities, logits"),
        ({"weights": [1.0]}, "weights=[1.0] should be 2 numbers above 0"),
        ({"weights": [0.0, 0.0]}, "weights=[0.0, 0.0] should be 2 numbers above 0"),
    ],
)
def test_mistakes_name_the_member(folder: Path, more: dict[str, Any], wanted: str) -> None:
    for ask in (wants, fingerprint):
        complains(lambda ask=ask: ask(options(folder, **more)), f"teacher ensemble: {wanted}")


def test_a_member_that_does_not_know_a_class(folder: Path) -> None:
    complains(
        lambda: open_teacher(options(folder), [*CLASSES, "one more"]),
        "teacher ensemble: members[0] (student) does not know 1 of the data set's 4 classes: 'one more'",
    )


def test_a_member_that_cannot_be_built(folder: Path) -> None:
    complains(
        lambda: open_teacher(options(folder, members=[STUDENT]), CLASSES),
        "teacher ensemble: members[0]: teacher student: /nowhere",
    )
