"""From key=value and YAML to a typed tree; every mistake is one line that says where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill import plugins
from distill.errors import UserError
from distill.keys import COMMAND_LINE, recipe_names
from distill.objective.losses import LOSSES
from distill.recipe import Recipe, differences, read_recipe, save_recipe, stages

SMALLEST = "out: runs/x\nstudent: {name: tinyact}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(*arguments: str) -> str:
    """What a person is told; always one line."""
    with pytest.raises(UserError) as caught:
        read_recipe(arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


MISTAKES: list[tuple[str, list[str]]] = [  # key=value -> what the one line has to contain
    ("trian.steps=3", ["'trian'", "'train'"]),
    ("train.stepz=3", ["'train.stepz'", "'steps'"]),
    ("clips.views.cuont=2", ["'clips.views.cuont'", "'count'"]),
    ("student.latnet=3", ["'student.latnet'", "'latent'"]),
    ("teacher.rum=x", ["'teacher.rum'", "'run'"]),
    ("clips.source.trian=2", ["'clips.source.trian'", "'train'"]),
    ("objective.kl.temperatur=3", ["'objective.kl.temperatur'", "'temperature'"]),
    ("objective.kl.wieght=3", ["'objective.kl.wieght'", "'weight'"]),
    ("train.steps=many", ["train.steps", "'many'"]),
    ("train.steps=1.5", ["train.steps", "1.5"]),
    ("train.steps=null", ["train.steps"]),
    ("train.steps.more=1", ["train.steps"]),
    ("student.decoder=maybe", ["student.decoder", "maybe"]),
    ("student.widths=[a]", ["student.widths", "'a'"]),
    ("student.widths=8", ["student.widths"]),
    ("objective.kl.weight=heavy", ["objective.kl.weight", "heavy"]),
    ("clips.source.speed=fast", ["clips.source.speed", "fast"]),
    ("train=3", ["train", "3"]),
    ("clips.views=2", ["clips.views", "2"]),
    ("objective.kl=2", ["objective.kl", "2"]),
    ("objective=2", ["objective", "group of keys"]),
    ("student=tinyact", ["student needs a name", "tinyact"]),
    ("student=null", ["student"]),
    ("student=", ["student"]),
    ("student=[]", ["student"]),
    ("clips.source=[]", ["clips.source"]),
    ("clips.source=null", ["clips.source"]),
    ("objective.kl=null", ["objective.kl"]),
    ("out=${nowhere}", ["out", "nowhere"]),
    ("seed=${out}", ["seed"]),
    ("out=${", ["out"]),
    ("out=[1", ["expected ',' or ']'"]),
    ("[=1", ["["]),
]


@pytest.mark.parametrize(("change", "told"), MISTAKES, ids=[change for change, _ in MISTAKES])
def test_a_mistake_on_the_command_line(change: str, told: list[str]) -> None:
    text = complaint("recipe=quickstart", change)
    assert COMMAND_LINE in text
    for part in told:
        assert part in text.replace(COMMAND_LINE, "")


FILE_MISTAKES: list[tuple[str, list[str]]] = [
    (SMALLEST + "trian: {steps: 3}\n", ["'trian'", "'train'"]),
    (SMALLEST + "train: {stepz: 3}\n", ["'train.stepz'", "'steps'"]),
    ("out: x\nstudent: {name: tinyact, latnet: 3}\n", ["'student.latnet'", "'latent'"]),
    (SMALLEST + "objective:\n  kl: {weight: 1, temperatur: 3}\n", ["'objective.kl.temperatur'", "'temperature'"]),
    (SMALLEST + "train: {steps: many}\n", ["train.steps", "'many'"]),
    (SMALLEST + "optim: {lr: [1]}\n", ["optim.lr"]),
    ("student: {name: tinyact}\n", ["out has no value", "out=..."]),
    ("out: x\n", ["student has no value"]),
    (SMALLEST + "objective:\n  kl: {temperature: 4}\n", ["objective.kl.weight has no value"]),
    (SMALLEST + "teacher: {name: student}\n", ["teacher.run has no value"]),
    ("out: x\nstudent: {latent: 3}\n", ["student needs a name"]),
    ("- out\n- student\n", ["not a recipe"]),
    ("just words\n", ["'just words'"]),
    ("", ["out"]),
    ("out: [1\n", ["not a YAML file that can be read"]),
    ("out: x\nout: y\nstudent: {name: tinyact}\n", ["duplicate key out"]),
    ("out: \tx\n\t- y", ["not a YAML file that can be read"]),
    ("1: 2\n" + SMALLEST, ["1"]),
]


@pytest.mark.parametrize(("text", "told"), FILE_MISTAKES, ids=[text[-35:].strip() for text, _ in FILE_MISTAKES])
def test_a_mistake_in_a_file(tmp_path: Path, text: str, told: list[str]) -> None:
    path = write(tmp_path, text)
    found = complaint(f"recipe={path}")
    assert str(path) in found
    for part in told:
        assert part in found


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00out: x")
    assert str(path) in complaint(f"recipe={path}")


@pytest.mark.parametrize(
    ("change", "wrong", "known"),
    [
        ("student.name=tinyatc", "tinyatc", plugins.names("student")),
        ("teacher.name=studnet", "studnet", plugins.names("teacher")),
        ("clips.source.name=motoin", "motoin", plugins.names("source")),
        ("student.name=../outside", "../outside", plugins.names("student")),
        ("objective.kd.weight=1", "kd", sorted(LOSSES)),
    ],
)
def test_an_unknown_plug_in_or_loss_is_told_the_known_ones(change: str, wrong: str, known: list[str]) -> None:
    text = complaint("recipe=quickstart", change)
    assert repr(wrong) in text
    assert f"known: {', '.join(known)}" in text
    assert text.count("known:") == 1
    assert COMMAND_LINE in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipe=quickstrat"], "did you mean 'quickstart'?"),
        (["recipe=/no/where.yaml"], "'/no/where.yaml' is not there"),
        (["recipe=zzz"], f"known: {', '.join(recipe_names())}"),
        (["recipe=./"], "'./' is not there"),
        ([], f"say recipe=NAME; known: {', '.join(recipe_names())}"),
        (["recipe="], "say recipe=NAME"),
        (["quickstart"], "'quickstart' is not key=value"),
        (["recipe=quickstart", "train.steps"], "'train.steps' is not key=value"),
        (["recipe=quickstart", "=3"], "'=3' is not key=value"),
        (["recipe=quickstart", "--steps", "3"], "'--steps' is not key=value"),
    ],
)
def test_what_cannot_be_a_recipe_or_a_change(arguments: list[str], told: str) -> None:
    assert told in complaint(*arguments)


def test_command_line_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "train: {steps: 7, batch: 4}\nclips: {views: {seed: 5}}\n")
    recipe = read_recipe([f"recipe={path}", "train.steps=9", "clips.views.count=2"])
    assert (recipe.train.steps, recipe.train.batch, recipe.train.accumulate) == (9, 4, 1)
    assert (recipe.clips.views.seed, recipe.clips.views.count, recipe.clips.views.span) == (5, 2, 0.8)
    assert recipe.student.name == "tinyact"
    assert recipe.clips.source.name == "motion"  # a default that is a plug-in
    assert read_recipe([f"recipe={path}", "train.steps=9", "train.steps=10"]).train.steps == 10


@pytest.mark.parametrize(
    ("text", "expected"), [("3e-4", 3e-4), ("1E3", 1e3), ("1", 1.0), (".5", 0.5), ("-2.5e-1", -0.25)]
)
def test_numbers_are_numbers(tmp_path: Path, text: str, expected: float) -> None:
    """Plain PyYAML reads 3e-4 as a string."""
    path = write(tmp_path, SMALLEST + f"optim: {{lr: {text}}}\n")
    for arguments in ([f"recipe={path}"], ["recipe=quickstart", f"optim.lr={text}"]):
        found = read_recipe(arguments).optim.lr
        assert (found, type(found)) == (expected, float)


def test_lists_null_and_text_on_the_command_line() -> None:
    recipe = read_recipe(
        ["recipe=quickstart", "student.widths=[4,4,4,4]", "student.pool=[1, 1, 1]", "teacher=null", "out=a=b c"]
    )
    assert (recipe.student.widths, recipe.student.pool) == ([4, 4, 4, 4], [1, 1, 1])
    assert recipe.teacher is None
    assert recipe.out == "a=b c"


def test_a_term_can_join_from_the_command_line() -> None:
    terms = read_recipe(["recipe=quickstart_teacher", "objective.kl.weight=2", "objective.kl.temperature=2"]).objective
    assert (terms["kl"].weight, terms["kl"].temperature) == (2, 2)
    assert "cross_entropy" in terms


def test_another_plug_in_on_the_command_line_brings_its_own_options(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    recipe = read_recipe([f"recipe={path}", "teacher.name=student", "teacher.run=runs/t"])
    assert (recipe.teacher.name, recipe.teacher.run) == ("student", "runs/t")


@pytest.mark.parametrize("name", recipe_names())
def test_the_saved_recipe_is_a_recipe_that_gives_the_same(tmp_path: Path, name: str) -> None:
    recipe = read_recipe([f"recipe={name}", f"out={tmp_path}", "seed=3", "optim.lr=3e-4"])
    saved = tmp_path / "recipe.yaml"
    save_recipe(recipe, saved)
    again = read_recipe([f"recipe={saved}"])
    assert as_text(again, tmp_path) == as_text(recipe, tmp_path)
    assert differences(recipe, saved) == []
    assert differences(again, saved) == []


@settings(max_examples=25)
@given(st.text("${}\\:a.# '\"[]", max_size=12))
def test_a_value_is_saved_as_it_is(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    """Also one with the signs that stand for other keys."""
    saved = tmp_path_factory.mktemp("saved") / "recipe.yaml"
    stage = {"objective": {}, "train": {"best": value}}
    recipe = replace(read_recipe(["recipe=tiny"]), out=f"runs/{value}", stages={"one": stage, "two": {}})
    save_recipe(recipe, saved)
    again = read_recipe([f"recipe={saved}"])
    assert differences(recipe, saved) == []
    assert again.out == recipe.out
    assert [stage.train.best for stage in stages(again)] == [value, recipe.train.best]


def as_text(recipe: Recipe, folder: Path) -> str:
    save_recipe(recipe, folder / "text.yaml")
    return (folder / "text.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ("train.steps=5", ["train.steps"]),
        ("student.latent=9", ["student.latent"]),
        ("student.widths=[1,2,3,4]", ["student.widths"]),
        ("clips.source.train=5", ["clips.source.train"]),
        ("objective.kl.temperature=2", ["objective.kl.temperature"]),
        ("objective.cross_entropy.smoothing=0.5", ["objective.cross_entropy.smoothing"]),
        ("resume=true", []),
    ],
)
def test_differences_name_the_changed_keys(tmp_path: Path, change: str, keys: list[str]) -> None:
    save_recipe(read_recipe(["recipe=quickstart"]), tmp_path / "recipe.yaml")
    assert differences(read_recipe(["recipe=quickstart", change]), tmp_path / "recipe.yaml") == keys


def test_differences_see_keys_that_only_one_side_has(tmp_path: Path) -> None:
    save_recipe(read_recipe(["recipe=quickstart"]), tmp_path / "recipe.yaml")
    without = read_recipe(["recipe=quickstart", "teacher=null"])
    assert any(key.startswith("teacher") for key in differences(without, tmp_path / "recipe.yaml"))
    save_recipe(without, tmp_path / "recipe.yaml")
    assert any(
        key.startswith("teacher") for key in differences(read_recipe(["recipe=quickstart"]), tmp_path / "recipe.yaml")
    )


def test_a_recipe_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SMALLEST)
    monkeypatch.chdir(tmp_path)
    assert read_recipe(["recipe=quickstart"]).out == "runs/quickstart/distilled"
    assert read_recipe(["recipe=mine.yaml"]).out == "runs/x"


NAMED = "out seed train train.steps student student.name student.widths teacher teacher.run clips.source objective"
KEYS = st.one_of(
    st.sampled_from([*NAMED.split(), "clips.source.name", "objective.kl", "objective.kl.weight", "probe.probes"]),
    st.text(alphabet=".[]{}:=$ \ttrainseedclk", max_size=12),
    st.text(max_size=6),
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["", "null", "???", "[]", "{}", "{a: 1}", "[1,2]", "${out}", "${x}", "${oc.env:HOME}", "1", "yes"]),
    st.text(alphabet="[]{}:,$&*!|>'\"% ab1-", max_size=8),
    st.text(max_size=8),
)
# A recipe by another name is another test.
CHANGES = st.builds("{}={}".format, KEYS, VALUES).filter(lambda change: not change.startswith("recipe="))


@settings(max_examples=150)
@given(st.lists(st.one_of(CHANGES, st.text(max_size=8)), max_size=4))
@example(["student=null"])
@example(["[=0"])
@example(["out=${x}"])
@example(["clips.source=[]", "a=b"])
def test_any_garbage_is_a_recipe_or_one_line(changes: list[str]) -> None:
    try:
        found = read_recipe(["recipe=quickstart", *changes])
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either outcome is right
    else:
        assert isinstance(found, Recipe)
        assert found.student is not None


@pytest.mark.parametrize("name", ["my vid #1", "a: b", "it's", "a, b", "50 %", "ünï 数据"])
def test_names_of_folders_are_taken_as_they_are(name: str) -> None:
    assert read_recipe(["recipe=videos", f"clips.source.folder=/data/{name}"]).clips.source.folder == f"/data/{name}"


def test_lists_and_maps_on_the_command_line() -> None:
    recipe = read_recipe(["recipe=videos", "student.widths=[8, 8, 8, 8]", "clips.source={name: folder, folder: x}"])
    assert recipe.student.widths == [8, 8, 8, 8]
    assert recipe.clips.source.folder == "x"


def test_a_map_where_a_list_belongs() -> None:
    assert "student.widths is a list, not {}" in complaint("recipe=tiny", "student.widths={}")
