"""What every plug-in and every recipe promises. Files are found by being there: none is named here.

A plug-in is tried with the options that a recipe gives it, so a plug-in that only works with files of somebody else's
(weights, videos) needs a recipe whose options can be had here.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import example, plain_recipe, users
from examples import EXAMPLES
from examples import build as build_source
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from teacher_examples import Example
from teacher_examples import make as make_teacher
from torch import Tensor

from distill import plugins
from distill.checkpoint import StudentCard, build_student, load_student, save_student
from distill.clips.decode import read_frames
from distill.clips.manifest import Manifest
from distill.command import JOBS
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, Student, StudentOutput, TeacherOutput
from distill.recipe import FOLDER, read_recipe, recipe_names
from distill.run_log import read_metrics
from distill.teaching.teacher import LiveTeacher, fingerprint, open_teacher, wants

BATCH, CLASSES = 4, 5
TinyRun = Callable[[str], Path]


def every(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", plugins.names(kind))


EVERY_RECIPE = pytest.mark.parametrize("name", recipe_names())
ANY_PLUG_IN = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]


# ---------------------------------------------------------------- any plug-in


@pytest.mark.parametrize(("kind", "name"), ANY_PLUG_IN)
def test_options_explain_themselves(kind: str, name: str) -> None:
    """Options is a dataclass whose fields have types OmegaConf knows, a default or ???, and a line of explanation."""
    options: type[Any] = plugins.module(kind, name).Options
    assert is_dataclass(options)
    explained = {field for ancestor in options.__mro__[:-1] for field in explained_fields(ancestor)}
    assert {field.name for field in fields(options)} - explained == set()
    tree = OmegaConf.structured(plugins.schema(kind, name))
    assert tree.name == name
    assert "name" not in {field.name for field in fields(options)}


def explained_fields(kind: type[Any]) -> Iterator[str]:
    """Fields of a dataclass that are followed by a string."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for item, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert str(text.value.value).strip().endswith((".", ")"))
            yield ast.unparse(item.target)


@pytest.mark.parametrize(("kind", "name"), ANY_PLUG_IN)
def test_a_plug_in_has_its_functions_and_says_what_it_is(kind: str, name: str) -> None:
    module = plugins.module(kind, name)
    functions = {"student": ["build"], "teacher": ["build", "fingerprint", "wants"], "source": ["build"]}[kind]
    for function in functions:
        assert next(iter(inspect.signature(getattr(module, function)).parameters)) == "options"
    assert module.__doc__


# ---------------------------------------------------------------- students


def student_options(name: str) -> Any:
    """The smallest options that a recipe has for this student, or its defaults."""
    found = list(users("student", name).values()) or [plugins.schema("student", name)()]
    return copy.deepcopy(min(found, key=cost))


def cost(options: Any) -> int:
    with torch.device("meta"):
        student = build_student(options, CLASSES)
    return student.spec.frames * student.spec.size**2 * sum(p.numel() for p in student.parameters())


def built(name: str) -> Student:
    torch.manual_seed(0)
    return build_student(student_options(name), CLASSES)


def pictures(spec: ClipSpec, batch: int = BATCH) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    shape = (batch, spec.frames, 3, spec.size, spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance)


def tensors(answer: StudentOutput | TeacherOutput) -> dict[str, Tensor]:
    """Every tensor of an answer under its name."""
    found: dict[str, Tensor] = {}
    for name, value in vars(answer).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
    return found


def assert_close(ours: StudentOutput | TeacherOutput, theirs: StudentOutput | TeacherOutput) -> None:
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


@every("student")
def test_a_student_answers_with_the_right_shapes(name: str) -> None:
    student = built(name).eval()
    assert isinstance(student, Student)
    assert isinstance(student.spec, ClipSpec)
    answer = student(pictures(student.spec))
    assert isinstance(answer, StudentOutput)
    assert answer.logits.shape == (BATCH, CLASSES)
    assert answer.latent.shape[0] == BATCH
    assert answer.reconstruction is None
    for field, value in tensors(answer).items():
        assert len(value) == BATCH, field
        assert torch.isfinite(value).all(), field
        assert value.dtype == torch.float32, field


@every("student")
def test_a_student_depends_on_what_it_sees(name: str) -> None:
    student = built(name).eval()
    frames = pictures(student.spec)
    answer = student(frames)
    assert not torch.allclose(answer.logits[0], answer.logits[1], rtol=0, atol=1e-6)
    backwards = student(frames.flip(1))
    assert student.spec.frames == 1 or not torch.equal(answer.logits, backwards.logits)


@every("student")
def test_a_student_s_answers_do_not_depend_on_the_batch(name: str) -> None:
    student = built(name).eval()
    frames = pictures(student.spec)
    order = torch.tensor([2, 0, 3, 1])
    whole = student(frames)
    assert_close(student(frames[order]), whole.map(lambda tensor: tensor[order]))
    assert_close(student(frames[1:2]), whole.map(lambda tensor: tensor[1:2]))


@every("student")
def test_a_student_is_deterministic_and_built_from_torch_s_seed(name: str) -> None:
    student, again = built(name).eval(), built(name).eval()
    frames = pictures(student.spec)
    before = frames.clone()
    first, second, other = student(frames), student(frames), again(frames)
    for field, value in tensors(first).items():
        assert torch.equal(value, tensors(second)[field]), field
        assert torch.equal(value, tensors(other)[field]), field
    assert torch.equal(frames, before)  # a batch serves several models


@every("student")
def test_gradients_reach_every_parameter_that_recognises(name: str) -> None:
    student = built(name).train()
    frames = pictures(student.spec)
    with torch.no_grad():
        for parameter in student.parameters():  # away from zero, where a fresh layer may stop gradients on purpose
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    used: set[str] = set()
    names = {parameter: key for key, parameter in student.named_parameters()}
    hooks = [
        part.register_forward_hook(lambda part, *_: used.update(names[p] for p in part.parameters(recurse=False)))
        for part in student.modules()
    ]
    answer = student(frames)
    for hook in hooks:
        hook.remove()
    target = torch.arange(BATCH) % CLASSES
    loss = torch.nn.functional.cross_entropy(answer.logits, target) + answer.latent.square().mean()
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in student.named_parameters() if key in used}
    assert gradients
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0] == []


@every("student")
def test_a_reconstruction_is_pictures_and_asking_changes_nothing_else(name: str) -> None:
    student = built(name).eval()
    frames = pictures(student.spec)
    plain, asked = student(frames), student(frames, want=("reconstruction",))
    assert torch.equal(plain.logits, asked.logits)
    assert torch.equal(plain.latent, asked.latent)
    if asked.reconstruction is not None:
        batch, count, colours, height, width = asked.reconstruction.shape
        assert (batch, colours, height) == (BATCH, 3, width)
        assert count <= student.spec.frames
        assert height <= student.spec.size
        assert 0 <= asked.reconstruction.min() <= asked.reconstruction.max() <= 1


@every("student")
def test_a_student_s_features_can_be_asked_for(name: str) -> None:
    """A name that it does not have is left out, not an error: a loss says which ones it misses."""
    student = built(name).eval()
    frames = pictures(student.spec)
    asked = student(frames, want=("no_such_feature",))
    assert "no_such_feature" not in asked.features
    assert_close(asked, student(frames))


@every("student")
def test_a_saved_student_is_the_same_student(name: str, tmp_path: Path) -> None:
    student, options = built(name), student_options(name)
    frames = pictures(student.spec)
    student.train()
    student(frames)  # moves running statistics, which have to be kept too
    card = StudentCard(dict(vars(options)), [f"class {i}" for i in range(CLASSES)], student.spec)
    save_student(tmp_path, student, card)
    again = load_student(tmp_path).eval()
    assert again.spec == student.spec
    ours, theirs = tensors(student.eval()(frames)), tensors(again(frames))
    for field, value in ours.items():
        assert torch.equal(value, theirs[field]), field
    assert set(load_file(tmp_path / "student.safetensors")) == set(student.state_dict())


@every("student")
def test_a_student_can_be_built_without_memory_and_run_in_bfloat16(name: str) -> None:
    with torch.device("meta"):
        assert build_student(student_options(name), CLASSES).spec == built(name).spec
    student = built(name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        answer = student(pictures(student.spec)).float()
    assert torch.isfinite(answer.logits).all()


# ---------------------------------------------------------------- teachers


@pytest.fixture(params=plugins.names("teacher"))
def teacher_example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """One example of each teacher, made once; tests that change its files work on a copy."""
    found = TEACHERS.get(request.param)
    if found is None:
        found = TEACHERS[request.param] = make_teacher(request.param, tmp_path_factory.mktemp(request.param))
    return found


TEACHERS: dict[str, Example] = {}


@pytest.fixture
def teacher_options(teacher_example: Example, request: pytest.FixtureRequest) -> Any:
    return options_of(request.node.callspec.params["teacher_example"], teacher_example.options)


def options_of(name: str, options: Mapping[str, Any]) -> Any:
    """Options as a recipe would hand them over."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(plugins.schema("teacher", name)), dict(options)))


def teacher_clips(spec: ClipSpec) -> Clips:
    index = torch.arange(BATCH)
    return Clips(frames=pictures(spec), label=index, index=index, view=index)


def test_a_teacher_answers_with_the_right_shapes(teacher_example: Example, teacher_options: Any) -> None:
    teacher = open_teacher(teacher_options, teacher_example.classes, teacher_example.maps)
    assert wants(teacher_options) == teacher.spec
    assert isinstance(teacher.spec, ClipSpec)
    answer = teacher(teacher_clips(teacher.spec))
    assert isinstance(answer, TeacherOutput)
    assert answer.logits.shape == (BATCH, len(teacher_example.classes))
    assert answer.feature is not None
    assert list(answer.maps) == list(teacher_example.maps)
    for field, value in tensors(answer).items():
        assert torch.isfinite(value).all(), field
        assert not value.requires_grad, field
    assert not torch.allclose(answer.logits[0], answer.logits[1], rtol=0, atol=1e-6)


def test_asking_for_maps_changes_nothing_else(teacher_example: Example, teacher_options: Any) -> None:
    plain = open_teacher(teacher_options, teacher_example.classes)
    clips = teacher_clips(plain.spec)
    before = plain(clips)
    assert before.maps == {}
    asked = open_teacher(teacher_options, teacher_example.classes, teacher_example.maps)(clips)
    assert_close(replace(asked, maps={}), before)
    with pytest.raises(UserError, match="the teacher gives no map 'nonsense'"):
        open_teacher(teacher_options, teacher_example.classes, ["nonsense"])(clips)


def test_a_teacher_never_learns(teacher_example: Example, teacher_options: Any) -> None:
    """Whatever is done to it: no training mode, no gradients, and buffers that stay."""
    teacher = open_teacher(teacher_options, teacher_example.classes, teacher_example.maps)
    clips = teacher_clips(teacher.spec)
    before, answer = copy.deepcopy(teacher.state_dict()), teacher(clips)
    teacher.train()
    torch.nn.ModuleList([teacher]).train()
    for _ in range(3):
        again = teacher(clips)
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    for field, value in tensors(answer).items():
        assert torch.equal(value, tensors(again)[field]), field


def test_a_teacher_s_answers_do_not_depend_on_the_batch(teacher_example: Example, teacher_options: Any) -> None:
    teacher = open_teacher(teacher_options, teacher_example.classes)
    clips = teacher_clips(teacher.spec)
    whole = teacher(clips)
    for at in range(BATCH):
        alone = teacher(clips.map(lambda tensor, at=at: tensor[at : at + 1]))
        assert_close(alone, whole.map(lambda tensor, at=at: tensor[at : at + 1]))


def test_a_teacher_takes_a_larger_batch_than_it_wants(teacher_example: Example, teacher_options: Any) -> None:
    """The batch is made for the student too, so it may have more frames and larger pictures."""
    teacher = open_teacher(teacher_options, teacher_example.classes)
    larger = teacher.spec.union(ClipSpec(teacher.spec.frames * 2, teacher.spec.size + 8))
    clips = teacher_clips(larger)
    assert_close(teacher(clips), teacher(replace(clips, frames=teacher.spec.fit(clips.frames))))


def test_building_a_teacher_leaves_random_numbers_alone(teacher_example: Example, teacher_options: Any) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    teacher = open_teacher(teacher_options, teacher_example.classes)
    assert isinstance(teacher, LiveTeacher)
    teacher(teacher_clips(teacher.spec))
    fingerprint(teacher_options), wants(teacher_options)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_teacher_runs_in_bfloat16(teacher_example: Example, teacher_options: Any) -> None:
    exact = open_teacher(teacher_options, teacher_example.classes)
    clips = teacher_clips(exact.spec)
    rough = open_teacher(teacher_options, teacher_example.classes, autocast="bf16")(clips).float()
    assert torch.isfinite(rough.logits).all()
    assert not torch.equal(rough.logits, exact(clips).logits)


def test_a_teacher_s_fingerprint_follows_its_function(
    request: pytest.FixtureRequest, teacher_example: Example, teacher_options: Any, tmp_path: Path
) -> None:
    """Another number in any tensor, or another option, is another teacher; another place for the files is not."""
    name = request.node.callspec.params["teacher_example"]
    first = fingerprint(teacher_options)
    assert isinstance(first, str)
    assert len(first) >= 16
    assert first == fingerprint(copy.deepcopy(teacher_options))
    for change in teacher_example.changes:
        assert fingerprint(options_of(name, {**teacher_example.options, **change})) != first, change

    home = Path(os.path.commonpath([file.parent for file in teacher_example.weights]))
    shutil.copytree(home, tmp_path / "moved")
    text = json.dumps(teacher_example.options).replace(str(home), str(tmp_path / "moved"))
    moved = options_of(name, json.loads(text))
    assert fingerprint(moved) == first
    for file in teacher_example.weights:
        place = tmp_path / "moved" / file.relative_to(home)
        weights = load_file(place)
        for key in some(list(weights), 12):
            changed = weights[key].clone()
            changed.view(-1)[-1] += 1
            save_file({**weights, key: changed}, place, {"format": "pt"})
            assert fingerprint(moved) != first, key
        save_file(weights, place, {"format": "pt"})
        assert fingerprint(moved) == first


def some(items: list[Any], count: int) -> list[Any]:
    return random.Random(0).sample(items, min(count, len(items)))


def test_a_teacher_s_classes_are_matched_by_name(teacher_example: Example, teacher_options: Any) -> None:
    """The data set's order is what comes out, whatever the teacher's own is; names it does not know are listed."""
    classes = list(teacher_example.classes)
    teacher = open_teacher(teacher_options, classes)
    clips = teacher_clips(teacher.spec)
    answer = teacher(clips).logits
    turned = open_teacher(teacher_options, classes[::-1])(clips).logits
    torch.testing.assert_close(turned, answer.flip(1), rtol=1e-4, atol=1e-5)
    some_of_them = open_teacher(teacher_options, classes[1:])(clips).logits
    torch.testing.assert_close(some_of_them, answer[:, 1:], rtol=1e-4, atol=1e-5)
    if list(teacher.network.classes) == classes and not getattr(teacher.network, "takes_any_class", False):
        with pytest.raises(UserError, match=r"does not know 1 of the data set's .* classes: 'no such class'"):
            open_teacher(teacher_options, [*classes, "no such class"])


def test_teachers_say_the_same_in_two_processes(tmp_path: Path) -> None:
    examples = []
    for name in plugins.names("teacher"):
        (tmp_path / name).mkdir()
        example = make_teacher(name, tmp_path / name)
        examples.append((name, example.options, list(example.classes)))
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(here / "two_processes.py"), str(tmp_path / "examples.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[: len(examples)] == [f"alike {name}" for name, *_ in examples]


# ---------------------------------------------------------------- sources


def manifest(name: str, folder: Path) -> Manifest:
    assert name in EXAMPLES, f"tests/examples.py has no example of the source {name}, so it cannot be tried"
    return build_source(name, **example(name, folder))


@every("source")
def test_a_source_gives_clips_that_are_there(name: str, tmp_path: Path) -> None:
    found = manifest(name, tmp_path / "here")
    assert len({clip.id for clip in found.clips}) == len(found.clips)
    assert len(set(found.classes)) == len(found.classes) >= 2
    for clip in found.clips:
        assert Path(clip.path).is_absolute(), clip.id
        assert Path(clip.path).exists(), clip.id
        assert -1 <= clip.label < len(found.classes), clip.id
    for split in ("train", "test"):
        assert found.of(split), f"nothing in {split}"
        frames = read_frames(found.clips[found.of(split)[0]].path, [0])
        assert frames.shape[0] == 1


@every("source")
def test_a_source_gives_the_same_clips_again_and_elsewhere(name: str, tmp_path: Path) -> None:
    """Ids name clips for ever: caches of one machine are right on another."""
    first = manifest(name, tmp_path / "here")
    assert manifest(name, tmp_path / "here") == first
    again = manifest(name, tmp_path / "elsewhere")
    assert again.keys.tolist() == first.keys.tolist()
    assert [clip.id for clip in again.clips] == [clip.id for clip in first.clips]


# ---------------------------------------------------------------- recipes


def header(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]


@EVERY_RECIPE
def test_a_recipe_s_header_says_what_command_cost_and_expectation(name: str) -> None:
    what, *rest = header(name)
    assert what.endswith(".")
    assert not what.startswith(("command", "cost", "expect"))
    said = {key: value.strip() for key, _, value in (line.partition(":") for line in rest)}
    for key in ("command", "cost", "expect"):
        assert said.get(key), f"{name}: no line '# {key}: ...'"
    jobs = re.findall(r"distill (\w+)", said["command"])
    assert jobs
    assert set(jobs) <= set(JOBS)
    assert f"recipe={name}" in said["command"] or name in jobs


@EVERY_RECIPE
def test_a_recipe_reads_like_the_experiment(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    content = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(content) < 40
    assert max(map(len, lines)) <= 120
    assert plain_recipe(name).out.startswith("runs/")


def test_recipes_keep_to_folders_of_their_own() -> None:
    folders = [plain_recipe(name).out for name in recipe_names()]
    assert len(set(folders)) == len(folders)


@EVERY_RECIPE
def test_a_recipe_trains(name: str, tiny_run: TinyRun) -> None:
    run = tiny_run(name)
    for file in ("recipe.yaml", "metrics.jsonl", "student.safetensors", "student.json", "summary.json"):
        assert (run / file).stat().st_size > 0, file
    assert read_recipe([f"recipe={run / 'recipe.yaml'}"]).train.steps == 2
    rows = [row for row in read_metrics(run) if "loss" in row]
    terms = [term for term, options in plain_recipe(name).objective.items() if options.weight]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["loss"] == pytest.approx(sum(row[f"weighted.{term}"] for term in terms))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert 0 <= summary["test"]["top1"] <= 1
    student = load_student(run).eval()
    assert torch.isfinite(student(pictures(student.spec, 1)).logits).all()
