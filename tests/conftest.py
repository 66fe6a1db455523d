"""What several tests share: a private place for rendered clips, and any recipe made small."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import EXAMPLES
from hypothesis import settings
from teacher_examples import make as make_teacher

from distill import command
from distill.checkpoint import blank_student
from distill.errors import UserError
from distill.keys import recipe_names
from distill.plugins import schema
from distill.recipe import Recipe, read_recipe

settings.register_profile("any machine", deadline=None)  # a busy one takes its time
settings.load_profile("any machine")
pytest.register_assert_rewrite("cloud_server", "dashboard_browser", "edge_cloud")  # their asserts tell what they saw

SMALL = {"train": "4", "val": "1", "test": "1"}  # clips per class


def example(source: str, folder: Path) -> dict[str, Any]:
    """Options for a data source that work here: small files in its layout, written once."""
    options = folder / "options.json"
    if not options.exists():
        folder.mkdir(parents=True)
        options.write_text(json.dumps(EXAMPLES[source](folder / "data")))
    found: dict[str, Any] = json.loads(options.read_text())
    return found


def tiny(name: str, out: Path, *more: str) -> list[str]:
    """key=value arguments that make a recipe small: few clips of two classes, two steps, nothing cached.

    A data set that has to be had from elsewhere is replaced by an example of it, and seen in small pictures.
    """
    recipe, smaller = plain_recipe(name), list[str]()
    source = recipe.clips.source
    if source.name != "motion":
        smaller.append(f"student.size={smallest(recipe.student)}")
    if getattr(recipe.student, "pretrained", False):
        smaller.append("student.pretrained=false")
    if recipe.clips.validation:
        smaller.append("clips.validation=0.4")
    if source.name == "motion":
        options = {**SMALL, "classes": f"[{','.join(source.classes[:2])}]"}
    else:
        options = example(source.name, out.parent / "examples" / source.name)
    clips = [f"clips.source.{key}={value}" for key, value in options.items()]
    fast = ["clips.workers=0", "cache.outputs=false", "cache.frames=false", f"cache.folder={out.parent / 'cache'}"]
    short = ["train.steps=2", "train.batch=4", "train.log_every=1", "train.evaluate_every=0"]
    short += [f"stages.{stage}.train.steps=2" for stage in recipe.stages]
    return [f"recipe={name}", f"out={out}", *clips, *fast, *short, *smaller, *more]


def smallest(student: Any) -> int:
    """The side of the smallest pictures that a student can see."""
    for size in (32, 64, 128):
        with suppress(UserError), torch.device("meta"):
            blank_student(replace(student, size=size), 2)
            return size
    return int(student.size)


@pytest.fixture(scope="session")
def tiny_arguments() -> Callable[..., list[str]]:
    return tiny


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a recipe made small, once per session, and gives its run folder; runs that it builds on come first."""
    root, done = tmp_path_factory.mktemp("runs"), dict[str, Path]()
    examples: dict[str, dict[str, Any]] = {}

    def arguments(name: str) -> list[str]:
        return tiny(name, root / name, *teacher_run(name), *first_run(name))

    def first_run(name: str) -> list[str]:
        """The run whose weights it starts from: of a recipe, or of one of its stages."""
        where = Path(plain_recipe(name).init)
        for other in recipe_names() if plain_recipe(name).init else ():
            out = Path(plain_recipe(other).out)
            if where == out or out in where.parents:
                return [f"init={run(other) / where.relative_to(out)}"]
        return []

    def teacher_run(name: str) -> list[str]:
        teacher = plain_recipe(name).teacher
        if teacher is None:
            return []
        if not hasattr(teacher, "run"):  # weights that have to be had from elsewhere: an example stands in for them
            if teacher.name not in examples:
                (folder := root / "teachers" / teacher.name).mkdir(parents=True)
                examples[teacher.name] = make_teacher(teacher.name, folder).options
            given = {**vars(schema("teacher", teacher.name)()), **examples[teacher.name]}
            return [f"teacher.{key}={json.dumps(value)}" for key, value in given.items()]
        makers = [other for other in recipe_names() if plain_recipe(other).out == teacher.run]
        assert makers, f"recipe {name}: no recipe has out: {teacher.run}, so nothing can train its teacher"
        return [f"teacher.run={run(makers[0])}"]

    def run(name: str) -> Path:
        if name not in done:
            if plain_recipe(name).clips.source.name != "motion":
                assert command.run("clips", arguments(name)) == 0
            assert command.run("train", arguments(name)) == 0
            done[name] = root / name
        return done[name]

    return run


def plain_recipe(name: str) -> Recipe:
    """A recipe as its file has it."""
    return copy.deepcopy(_read(name))


@functools.cache
def _read(name: str) -> Recipe:
    return read_recipe([f"recipe={name}"])


@pytest.fixture(autouse=True, scope="session")
def _private_clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clips are rendered into a folder of this session, never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("clips")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def _forget_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the life of a process; each test starts without them."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
