"""Students in folders and on the Hub: what is kept, what the card says, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from student_examples.tinyact import SMALL
from torch import Tensor, nn

from distill import hub, plugins
from distill.checkpoint import (
    StudentCard,
    blank_student,
    build_student,
    copy_student,
    fingerprint_student,
    load_student,
    read_card,
    save_student,
)
from distill.errors import UserError
from distill.hub import DistilledStudent
from distill.outputs import ClipSpec, Student
from distill.recipe import differences, read_recipe, save_recipe
from distill.sync import sync_batch_norm
from students import tinyact

OPTIONS = {"name": "tinyact", **SMALL}
CLASSES = ["left", "right", "with | and \u00fc", "up"]
SUMMARY = {
    "steps": 12,
    "seconds": 3.5,
    "test": {"top1": 0.625, "reconstruction": 0.01234},
    "unreadable": ["a clip's name"],
    "parameters": 12345,
    "gflops": 0.0421,
    "milliseconds": 1.23,
}
SPLITS = {"train": 64, "val": 16, "test": 15}


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return build_student(plugins.schema("student", "tinyact")(**SMALL), len(CLASSES)).eval()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, student: Student) -> Path:
    """A run folder as training leaves it, as far as the student goes."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = read_recipe(["recipe=tiny", f"out={folder}", "teacher.name=student", "teacher.run=runs/teacher"])
    save_recipe(recipe, folder / "recipe.yaml")
    save_student(folder, student, card(), SUMMARY, SPLITS)
    return folder


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def card(**changes: Any) -> StudentCard:
    return StudentCard({**OPTIONS, **changes}, CLASSES, ClipSpec(4, 32))


def frames() -> Tensor:
    return torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    one, other = (model(frames(), want=("reconstruction", "block2")) for model in (ours, theirs))
    return torch.equal(one.logits, other.logits) and torch.equal(one.reconstruction, other.reconstruction)


# ---------------------------------------------------------------- what is kept


def test_a_folder_holds_three_files_with_the_network_s_own_names(run: Path, student: Student) -> None:
    assert sorted(file.name for file in (run / "student").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    with safe_open(run / "student" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(student.state_dict())
    config = json.loads((run / "student" / "config.json").read_text())
    assert config["options"] == {**config["options"], **OPTIONS}
    assert config["classes"] == CLASSES
    assert config["spec"] == {"frames": 4, "size": 32}
    assert "unreadable" not in config["facts"]["summary"]


def test_what_was_saved_comes_back_however_often(run: Path, student: Student, tmp_path: Path) -> None:
    assert any(not value.is_contiguous() for value in student.state_dict().values())  # channels last
    model = DistilledStudent.from_pretrained(run / "student")
    for place in ("second", "third"):
        assert same(model, student)
        assert not model.training
        assert model.classes == CLASSES
        model.save_pretrained(tmp_path / place)
        for name in ("config.json", "model.safetensors", "README.md"):
            assert (tmp_path / place / name).read_bytes() == (run / "student" / name).read_bytes(), name
        model = DistilledStudent.from_pretrained(str(tmp_path / place))
    assert same(copy.deepcopy(model), student)
    assert same(load_student(tmp_path / "third"), student)  # a folder that holds a student serves as well as a run
    assert [value.stride() for value in load_student(run).parameters()] == [
        value.stride() for value in student.parameters()
    ]


def test_weights_that_are_shared_are_kept_and_stay_shared(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tinyact.build

    def tied(options: tinyact.Options, classes: int) -> tinyact.TinyAct:
        made = build(options, classes)
        made.classifier.blocks[1][1].weight = made.classifier.blocks[0][1].weight
        made.classifier.register_buffer("view", made.classifier.blocks[0][4].weight.detach()[2:])
        return made

    monkeypatch.setattr(tinyact, "build", tied)
    first = build_student(plugins.schema("student", "tinyact")(**SMALL), len(CLASSES)).eval()
    save_student(tmp_path, first, card())
    again: Any = load_student(tmp_path)
    assert same(again, first)
    assert again.classifier.blocks[1][1].weight is again.classifier.blocks[0][1].weight


def test_what_training_puts_around_a_student_is_not_kept(student: Student, tmp_path: Path) -> None:
    synced: Any = sync_batch_norm(copy.deepcopy(student), torch.device("cpu"))
    assert {type(part) for part in synced.modules()} != {type(part) for part in student.modules()}
    plain = copy_student(synced.double(), card())
    assert {type(part) for part in plain.modules()} == {type(part) for part in student.modules()}
    assert same(plain, student)
    save_student(tmp_path, synced, card())
    assert same(load_student(tmp_path), student)


def test_a_fingerprint_is_of_the_function_and_not_of_the_story(run: Path, student: Student, tmp_path: Path) -> None:
    first = fingerprint_student(run)
    assert fingerprint_student(run / "student") == first
    others = {"story": (student, card()), "options": (student, card(dropout=0.5))}
    others["classes"] = (student, StudentCard(OPTIONS, CLASSES[::-1], ClipSpec(4, 32)))
    changed = copy.deepcopy(student)
    changed.state_dict()["classifier.head.bias"][0] += 1e-3
    others["weights"] = (changed, card())
    for name, (kept, told) in others.items():
        save_student(tmp_path / name, kept, told)
        assert (fingerprint_student(tmp_path / name) == first) == (name == "story"), name


def test_pretrained_weights_are_not_fetched_for_a_student_that_has_its_own(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Options(tinyact.Options):
        pretrained: bool = False

    original = tinyact.build

    def build(options: Options, classes: int) -> tinyact.TinyAct:
        if options.pretrained:
            raise ValueError("the network cannot be reached")
        return original(options, classes)

    plugins.schema.cache_clear()
    monkeypatch.setattr(tinyact, "Options", Options)
    monkeypatch.setattr(tinyact, "build", build)
    try:
        options = plugins.schema("student", "tinyact")(**SMALL, pretrained=True)
        with pytest.raises(UserError, match="cannot be reached"):
            build_student(options, len(CLASSES))
        assert blank_student(options, len(CLASSES)).spec == ClipSpec(4, 32)
        save_student(tmp_path, student, card(pretrained=True))
        assert same(load_student(tmp_path), student)
        assert read_card(tmp_path).options["pretrained"] is False
    finally:
        plugins.schema.cache_clear()


class CrashError(BaseException):
    """Stands for kill -9 at this point."""


def crash_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Stop at this one of the steps by which files come and go."""
    done = iter(range(step))

    def stumbling(function: Callable[..., Any]) -> Callable[..., Any]:
        def stumble(*arguments: Any, **options: Any) -> Any:
            if next(done, None) is None:
                raise CrashError
            return function(*arguments, **options)

        return stumble

    for name in ("unlink", "replace"):
        patch.setattr(Path, name, stumbling(getattr(Path, name)))


def test_a_crash_leaves_no_half_student(finished: Path, student: Student, tmp_path: Path) -> None:
    """Another student takes the place of one that is there: whatever loads is one of them, whole."""
    other = copy.deepcopy(student)
    for value in other.parameters():
        value.data.add_(0.1)
    loaded = []
    for step in range(100):
        run = shutil.copytree(finished, tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patch:
            crash_at(step, patch)
            try:
                save_student(run, other, card(dropout=0.5), SUMMARY)
                break
            except CrashError:
                pass
        try:
            found = load_student(run)
        except UserError:
            loaded.append("none")
        else:
            first = read_card(run).options["dropout"] == 0.1
            assert same(found, student if first else other)
            loaded.append("first" if first else "second")
    assert list(dict.fromkeys(loaded)) == ["first", "none", "second"]
    assert same(load_student(run), other)


# ---------------------------------------------------------------- the card


def test_the_card_tells_of_task_data_teacher_student_metrics_and_recipe(run: Path, tmp_path: Path) -> None:
    found = ModelCard.load(run / "student" / "README.md")
    assert found.data.library_name == "distill"
    assert found.data.pipeline_tag == "video-classification"
    assert {"action-recognition", "knowledge-distillation", "pytorch_model_hub_mixin"} <= set(found.data.tags)
    scores = {result.metric_name: result.metric_value for result in found.data.eval_results}
    assert scores == {"Top-1": 0.625, "Mean squared error of the reconstruction": 0.0123}
    assert {result.dataset_name for result in found.data.eval_results} == {"motion"}
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", found.text, re.M))
    assert rows["Task"] == "action recognition, 4 classes"
    assert rows["Input"].startswith("4 frames of 32 x 32 pixels")
    assert rows["Network"] == "tinyact"
    assert rows["Parameters"].startswith("12,345 ")
    assert rows["Arithmetic"].startswith("0.0421 GFLOPs a clip")
    assert rows["Data"].startswith("motion (classes left + right + up + down, train 16")
    assert rows["Clips"] == "64 train, 16 val, 15 test"
    assert rows["Labels"] == "50% of the training clips have one"
    assert rows["Teacher"] == "student (run runs/teacher)"
    assert rows["Objective"].startswith("cross_entropy (weight 1")
    assert "reconstruction (weight to 5 over 4 steps" in rows["Objective"]
    assert rows["Steps"] == "12"
    assert rows["Top-1"] == "62.5%"
    (tmp_path / "again.yaml").write_text(code(found.text, "yaml"))
    assert differences(read_recipe([f"recipe={tmp_path / 'again.yaml'}"]), run / "recipe.yaml") == []


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("recipe.objective.cross_entropy.weight", 0, {"Mean squared error of the reconstruction"}),
        ("recipe.objective.reconstruction", {"weight": 0}, {"Top-1"}),
        ("summary.steps", 0, set()),
        ("summary.test", {"top1": 0.5, "latency": 3}, {"Top-1"}),
    ],
)
def test_the_card_leaves_out_what_the_student_was_not_trained_for(
    run: Path, tmp_path: Path, key: str, value: Any, kept: set[str]
) -> None:
    model = DistilledStudent.from_pretrained(run / "student")
    *way, last = key.split(".")
    functools.reduce(lambda tree, part: tree[part], way, model.facts)[last] = value
    found = model.generate_model_card()
    assert {result.metric_name for result in found.data.eval_results or []} == kept
    assert set(re.findall(r"^\| (Top-1|Mean squared.*?|latency) \|", found.text, re.M)) == kept


def code(text: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return str(found)


def test_the_three_lines_of_the_card_load_the_student(run: Path, student: Student) -> None:
    lines = code((run / "student" / "README.md").read_text(), "python")
    assert len(lines.splitlines()) == 3
    names = {"frames": frames()}
    exec(lines.replace("FOLDER OR HUB ID", str(run / "student")), names)
    assert torch.equal(names["answer"].logits, student(frames()).logits)
    assert "uint8 [B, 4, 3, 32, 32] -> answer.logits [B, 4], answer.latent [B, 16]" in lines


def test_a_card_without_facts_says_what_there_is(tmp_path: Path) -> None:
    DistilledStudent(OPTIONS, CLASSES).save_pretrained(tmp_path)
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.eval_results is None
    assert re.findall(r"^## (.*)$", found.text, re.M) == ["The student"]
    assert DistilledStudent.from_pretrained(tmp_path).classes == CLASSES


# ---------------------------------------------------------------- the Hub


class QuietHandler(SimpleHTTPRequestHandler):
    """The Hub, as far as downloads go: /NAMESPACE/NAME/resolve/REVISION/FILE."""

    def translate_path(self, path: str) -> str:
        name, file = path.split("/resolve/main/")
        return str(Path(self.directory) / name.strip("/").replace("/", "--") / file)

    def end_headers(self) -> None:
        self.send_header("ETag", f'"{abs(hash(self.path)):x}"')
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a local Hub serves: NAMESPACE--NAME/FILE."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(tmp_path / "served")))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloads"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "served"
    server.shutdown()
    server.server_close()


def test_a_student_goes_to_the_hub_and_comes_back(
    run: Path, student: Student, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Created:
        repo_id = "somebody/tiny"

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: Any) -> str:
        shutil.copytree(folder_path, hub_folder / repo_id.replace("/", "--"))
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert DistilledStudent.from_pretrained(run / "student").push_to_hub("somebody/tiny") == "done"
    assert sorted(path.name for path in (hub_folder / "somebody--tiny").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = DistilledStudent.from_pretrained("somebody/tiny")
    assert same(model, student)
    assert model.facts["summary"]["test"]["top1"] == 0.625


def test_what_is_not_on_the_hub_is_one_line(hub_folder: Path) -> None:
    hub_folder.mkdir()
    for name in ("somebody/nothing", "../up/and/away", "runs/not there"):
        with pytest.raises(UserError, match="is neither a folder nor a student that can be had from the Hub") as error:
            DistilledStudent.from_pretrained(name)
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------- what is refused


def refusal(folder: Path) -> str:
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        load_student(folder)
    with pytest.raises(UserError):
        DistilledStudent.from_pretrained(folder / "student")
    assert "\n" not in str(error.value)
    assert set(sys.modules) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("options", None, "options should name a student; known: "),
        ("options", {}, "options should name a student"),
        ("options.name", None, "options should name a student"),
        ("options.name", ["tinyact"], "options should name a student"),
        ("options.name", "nobody", "there is no student named 'nobody'"),
        ("options.name", "../tinyact", "there is no student named '../tinyact'"),
        ("options.name", "students.tinyact", "there is no student named"),
        ("options.name", "antigravity", "there is no student named"),
        ("options.name", "_backbones", "there is no student named"),
        ("options.name", "__init__", "there is no student named"),
        ("options.colour", "red", "student tinyact has no option 'colour'"),
        ("options.widths", "many", "option widths: "),
        ("options.latent", "wide", "option latent: "),
        ("options.latent", None, "option latent: "),
        ("options.latent", "${oc.env:HOME}", "plain values"),
        ("options.widths", [8, "${oc.env:HOME}", 16], "plain values"),
        ("options.size", 33, "student tinyact: size is 33"),
        ("options.frames", 8, "has in other shapes autoencoder.decoder.0.weight, autoencoder.decoder.0.bias"),
        ("options.latent", 17, "has in other shapes autoencoder.to_latent.weight"),
        ("options.decoder", False, "it has besides autoencoder.decoder."),
        ("options.blocks", 3, "it lacks classifier.blocks.2.0.weight, classifier.blocks.2.0.bias, "),
        ("classes", None, "classes should be a list of names"),
        ("classes", [], "classes should be a list of names"),
        ("classes", [1, 2, 3, 4], "classes should be a list of names"),
        ("classes", CLASSES[:3], "has in other shapes classifier.head.weight, classifier.head.bias"),
        ("spec", 3, "spec should be a number of frames and a size"),
        ("spec", {"frames": 4}, "spec should be a number of frames and a size"),
        ("spec", {"frames": "x", "size": None}, "spec should be a number of frames and a size, each a whole number"),
        ("spec", {"frames": 4, "size": 0}, "each a whole number of at least 1"),
        ("spec", {"frames": True, "size": 32}, "each a whole number of at least 1"),
        ("spec", {"frames": 8, "size": 32}, "spec is {'frames': 8, 'size': 32}, but its options make"),
        ("facts", 3, "facts should be a table"),
    ],
)
def test_a_configuration_that_is_wrong(run: Path, place: str, value: Any, told: str) -> None:
    path = run / "student" / "config.json"
    config = json.loads(path.read_text())
    *way, last = place.split(".")
    functools.reduce(lambda tree, key: tree[key], way, config)[last] = value
    path.write_text(json.dumps(config))
    said = refusal(run)
    assert told in said
    assert str(run / "student") in said or "student tinyact: " in said


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"tinyact"', '{"options": {}}', "\ud800", "[" * 100_000])
def test_a_configuration_that_is_none(run: Path, text: str) -> None:
    path = run / "student" / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    said = refusal(run)
    assert f"{path} is not a JSON file" in said or f"{path} does not describe a student of distill" in said


def test_weights_that_are_wrong(run: Path) -> None:
    path = run / "student" / "model.safetensors"
    weights, whole = load_file(path), path.read_bytes()
    path.write_bytes(whole[:-8])
    assert f"{path} is not a whole safetensors file" in refusal(run)
    save_file({**weights, "evil": torch.zeros(1)}, path)
    assert f"{path} does not fit the student that its card describes: it has besides evil" in refusal(run)
    save_file({name: value for name, value in weights.items() if name != "classifier.head.bias"}, path)
    assert "it lacks classifier.head.bias" in refusal(run)
    path.unlink()
    assert f"{path} is missing: the student was not saved to its end" in refusal(run)


def test_a_run_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no finished student .* train it first, or name another run"):
        load_student(tmp_path)
    with pytest.raises(UserError, match=r"holds no student \(.*config\.json is missing\)"):
        DistilledStudent.from_pretrained(tmp_path)


def test_a_student_that_is_not_what_its_card_says_is_not_kept(student: Student, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the trained student does not fit"):
        save_student(tmp_path, student, card(latent=17))
    assert not (tmp_path / "student").exists()


def test_the_constants_are_the_hub_s() -> None:
    assert (hub.CONFIG, hub.WEIGHTS) == (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)
