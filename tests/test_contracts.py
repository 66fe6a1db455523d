"""What every plug-in promises. Files are found by being there: none is named here.

A plug-in is tried with the options that a recipe gives it, so a plug-in that only works with files of somebody else's
(weights, videos) needs a recipe whose options can be had here.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import example
from examples import EXAMPLES
from examples import build as build_source
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from student_examples import examples, lacking
from teacher_examples import Example
from teacher_examples import make as make_teacher
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from distill import plugins
from distill.checkpoint import StudentCard, build_student, load_student, read_card, save_student
from distill.clips.decode import read_frames
from distill.clips.manifest import Manifest
from distill.errors import UserError
from distill.hub import DistilledStudent
from distill.measure import imagined
from distill.outputs import Clips, ClipSpec, Student, StudentOutput, TeacherOutput
from distill.teaching.teacher import LiveTeacher, fingerprint, open_teacher, wants

BATCH, CLASSES = 4, 5


def every(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", plugins.names(kind))


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

EXAMPLES_OF_STUDENTS = [
    (name, label) for name in plugins.names("student") if name not in lacking() for label in examples(name)
]
EVERY_STUDENT = pytest.mark.parametrize(("name", "label"), EXAMPLES_OF_STUDENTS)


def test_every_student_has_examples() -> None:
    assert lacking() == [], "tests/student_examples/NAME.py says what to try a student with"
    assert [name for name in plugins.names("student") if not examples(name)] == []


def example_options(name: str, label: str) -> Any:
    return options_of("student", name, examples(name)[label])


def built(name: str, label: str) -> Student:
    torch.manual_seed(0)
    return build_student(example_options(name, label), CLASSES)


def pictures(spec: ClipSpec, batch: int = BATCH, seed: int = 1) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    shape = (batch, spec.frames, 3, spec.size, spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance)


def everything(student: Student) -> tuple[str, ...]:
    """All that can be asked of a student."""
    return (*student.feature_names, "reconstruction")


@torch.no_grad()
def stir(parameters: Iterable[nn.Parameter]) -> None:
    """Away from where they are: a fresh layer may be zero on purpose."""
    for parameter in parameters:
        parameter.add_(torch.randn_like(parameter), alpha=0.02)


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


def assert_same(ours: StudentOutput, theirs: StudentOutput) -> None:
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@EVERY_STUDENT
def test_a_student_answers_with_the_right_shapes(name: str, label: str) -> None:
    student = built(name, label).eval()
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


@EVERY_STUDENT
def test_a_student_depends_on_every_frame_that_it_sees(name: str, label: str) -> None:
    student = built(name, label).eval()
    clip = pictures(student.spec, 1)
    changed = clip.repeat(student.spec.frames, 1, 1, 1, 1)
    for frame, one in enumerate(changed):
        one[frame] = 255 - one[frame]
    plain, others = student(clip), student(changed)
    for frame in range(student.spec.frames):
        assert not torch.allclose(others.latent[frame], plain.latent[0], rtol=0, atol=1e-6), f"frame {frame}"
        assert not torch.allclose(others.logits[frame], plain.logits[0], rtol=0, atol=1e-7), f"frame {frame}"


@EVERY_STUDENT
def test_a_student_s_answers_do_not_depend_on_the_batch(name: str, label: str) -> None:
    student = built(name, label).eval()
    frames, want = pictures(student.spec), everything(student)
    order = torch.tensor([2, 0, 3, 1])
    whole = student(frames, want=want)
    assert_close(student(frames[order], want=want), whole.map(lambda tensor: tensor[order]))
    assert_close(student(frames[1:2], want=want), whole.map(lambda tensor: tensor[1:2]))


@EVERY_STUDENT
def test_a_student_is_deterministic_and_built_from_torch_s_seed(name: str, label: str) -> None:
    student, again = built(name, label).eval(), built(name, label).eval()
    frames, want = pictures(student.spec), everything(student)
    before = frames.clone()
    first = student(frames, want=want)
    assert_same(first, student(frames, want=want))
    assert_same(first, again(frames, want=want))
    assert torch.equal(frames, before)  # a batch serves several models


@EVERY_STUDENT
def test_gradients_reach_every_parameter_that_recognises(name: str, label: str) -> None:
    student = built(name, label).train()
    frames = pictures(student.spec)
    stir(student.parameters())
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
    loss = nn.functional.cross_entropy(answer.logits, target) + answer.latent.square().mean()
    loss.backward()
    gradients = {key: p.grad for key, p in student.named_parameters() if key in used and p.requires_grad}
    assert gradients
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0] == []


@EVERY_STUDENT
def test_every_parameter_is_for_recognition_or_for_something_that_can_be_asked_for(name: str, label: str) -> None:
    student = built(name, label).train()
    stir(student.parameters())
    answer = student(pictures(student.spec), want=everything(student))
    torch.stack([value.square().mean() for value in tensors(answer).values()]).sum().backward()
    assert [key for key, p in student.named_parameters() if p.grad is None and p.requires_grad] == []


@EVERY_STUDENT
def test_a_reconstruction_is_pictures_and_asking_changes_nothing_else(name: str, label: str) -> None:
    student = built(name, label).eval()
    frames = pictures(student.spec)
    plain, asked = student(frames), student(frames, want=("reconstruction",))
    assert_same(plain, replace(asked, reconstruction=None))
    if asked.reconstruction is not None:
        batch, count, colours, height, width = asked.reconstruction.shape
        assert (batch, colours, height) == (BATCH, 3, width)
        assert count <= student.spec.frames
        assert height <= student.spec.size
        assert 0 <= asked.reconstruction.min() <= asked.reconstruction.max() <= 1


@EVERY_STUDENT
def test_a_student_s_features_can_be_asked_for(name: str, label: str) -> None:
    """A name that it does not have is left out, not an error: a loss says which ones it misses."""
    student = built(name, label).eval()
    frames = pictures(student.spec)
    plain = student(frames)
    assert_same(plain, student(frames, want=("no_such_feature",)))
    assert len(set(student.feature_names)) == len(student.feature_names)
    assert "embedding" in student.feature_names
    whole = student(frames, want=student.feature_names)
    assert set(whole.features) == set(student.feature_names)
    for feature in student.feature_names:
        alone = student(frames, want=(feature,))
        assert torch.equal(alone.features[feature], whole.features[feature]), feature
        assert_same(replace(alone, features=plain.features), plain)


@EVERY_STUDENT
def test_a_student_s_features_have_the_promised_layouts(name: str, label: str) -> None:
    """Maps of videos [B,C,T,H,W], features of frames [B,T,D], embeddings [B,D], weights of frames [B,T]."""
    student = built(name, label).eval()
    spec = student.spec
    found = student(pictures(spec), want=student.feature_names).features
    assert found["embedding"].dim() == 2
    for feature, value in found.items():
        assert value.dim() in (2, 3, 5), feature
        if value.dim() == 3:
            assert value.shape[1] <= spec.frames, feature
        if value.dim() == 5:
            assert value.shape[2] <= spec.frames, feature
            assert value.shape[3] == value.shape[4] <= spec.size, feature


@EVERY_STUDENT
def test_the_encoder_is_all_that_makes_the_latent(name: str, label: str) -> None:
    student = built(name, label).eval()
    stir(student.parameters())
    frames, parts = pictures(student.spec), dict(student.named_modules())
    inside = {parameter for part in student.encoder for parameter in parts[part].parameters()}
    outside = [parameter for parameter in student.parameters() if parameter not in inside]
    before = student(frames).latent
    (before * torch.linspace(-1, 1, before.shape[1])).sum().backward()
    names = {parameter: key for key, parameter in student.named_parameters()}
    assert [names[parameter] for parameter in outside if parameter.grad is not None] == []
    assert [names[parameter] for parameter in inside if parameter.grad is None and parameter.requires_grad] == []
    stir(outside)
    assert torch.equal(student(frames).latent, before)
    stir(inside)
    assert not torch.allclose(student(frames).latent, before, rtol=0, atol=1e-6)


@EVERY_STUDENT
def test_a_latent_can_be_classified_elsewhere(name: str, label: str) -> None:
    student = built(name, label).eval()
    stir(student.parameters())
    whole = student(pictures(student.spec))
    latent = whole.latent.detach().clone()
    before = latent.clone()
    torch.testing.assert_close(student.classify(latent), whole.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.classify(latent[1:2]), whole.logits[1:2], rtol=1e-5, atol=1e-6)
    assert torch.equal(latent, before)
    assert not torch.allclose(student.classify(latent.flip(0)), whole.logits, rtol=0, atol=1e-6)


@EVERY_STUDENT
def test_a_saved_student_is_the_same_student(name: str, label: str, tmp_path: Path) -> None:
    student, options = built(name, label), example_options(name, label)
    frames, want = pictures(student.spec), everything(student)
    student.train()
    student(frames)  # moves running statistics, which have to be kept too
    card = StudentCard(dict(vars(options)), [f"class {i}" for i in range(CLASSES)], student.spec)
    save_student(tmp_path, student, card)
    assert read_card(tmp_path) == card
    again = load_student(tmp_path)
    assert again.spec == student.spec
    answer = student.eval()(frames, want=want)
    assert_same(again(frames, want=want), answer)
    assert set(load_file(tmp_path / "student" / "model.safetensors")) == set(student.state_dict())
    from_hub = DistilledStudent.from_pretrained(tmp_path / "student")
    assert_same(from_hub(frames, want=want), answer)
    parts = dict(from_hub.named_modules())
    assert all(part in parts for part in from_hub.encoder)


@EVERY_STUDENT
def test_a_student_can_be_exported(name: str, label: str) -> None:
    student = built(name, label).eval()
    program = torch.export.export(student, (pictures(student.spec),)).module()
    frames = pictures(student.spec, seed=2)
    with torch.no_grad():
        answer = program(frames)
        assert isinstance(answer, StudentOutput)
        assert_close(answer, student(frames))


def test_an_answer_that_is_put_together_again_is_checked_again() -> None:
    answer = StudentOutput(torch.zeros(2, 5), torch.zeros(2, 3), {"embedding": torch.zeros(2, 3)})
    leaves, tree = tree_flatten(answer)
    assert len(leaves) == 3
    assert_same(tree_unflatten(leaves, tree), answer)
    with pytest.raises(ValueError, match=r"StudentOutput.latent is float32\[3, 3\]"):
        tree_unflatten([leaves[0], torch.zeros(3, 3), leaves[2]], tree)


@EVERY_STUDENT
def test_a_student_computes_in_any_precision(name: str, label: str) -> None:
    student = built(name, label).eval()
    frames, want = pictures(student.spec), everything(student)
    single = student(frames, want=want)
    with torch.autocast("cpu", torch.bfloat16):
        answer = student(frames, want=want).float()
    assert all(torch.isfinite(value).all() for value in tensors(answer).values())
    double = student.double()(frames, want=want)
    assert {field: value.dtype for field, value in tensors(double).items() if value.dtype != torch.float64} == {}
    for field, value in tensors(double).items():
        torch.testing.assert_close(value.float(), tensors(single)[field], rtol=1e-3, atol=1e-4, msg=field)


@EVERY_STUDENT
def test_a_student_can_be_built_without_memory(name: str, label: str) -> None:
    student = built(name, label)
    with torch.device("meta"):
        imaginary = build_student(example_options(name, label), CLASSES)
    assert imaginary.spec == student.spec
    ours, theirs = imaginary.state_dict(), student.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@every("student")
def test_a_student_s_defaults_are_of_one_that_works(name: str) -> None:
    with torch.device("meta"):
        student = build_student(plugins.schema("student", name)(), 400)
        assert imagined(student).logits.shape == (1, 400)


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
    return options_of("teacher", request.node.callspec.params["teacher_example"], teacher_example.options)


def options_of(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Options as a recipe would hand them over."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(plugins.schema(kind, name)), dict(options)))


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
    assert set(answer.maps) <= set(teacher.network.map_names)
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
        assert fingerprint(options_of("teacher", name, {**teacher_example.options, **change})) != first, change

    home = Path(os.path.commonpath([file.parent for file in teacher_example.weights]))
    shutil.copytree(home, tmp_path / "moved")
    text = json.dumps(teacher_example.options).replace(str(home), str(tmp_path / "moved"))
    moved = options_of("teacher", name, json.loads(text))
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
