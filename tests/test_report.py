"""The report, made from run folders that are written here by hand: known answers, known figures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.numpy import save_file

from distill.charts import COLOURS
from distill.checkpoint import StudentCard, build_student, save_student
from distill.clips.clipset import ClipOptions, ClipSet
from distill.clips.manifest import Clip, Manifest
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.recipe import read_recipe, save_recipe
from distill.report import write_report
from distill.report_figures import CONFUSION_CLASSES, strip

CLASSES = ("<b>x</b>", "up", "down", "left", "right", "still")
FRAMES, SIZE, PER_CLASS = 4, 16, 4
SMALL = "student.frames=4 student.size=16 student.widths=[4,4] student.strides=[[2,2,2],[2,2,2]] student.latent=8"
SIZES = {
    "teacher": {"top1": 1.0, "parameters": 2000, "gflops": 0.5, "milliseconds": 8.0, "megabytes": 0.008},
    "student": {"parameters": 500, "gflops": 0.1, "milliseconds": 2.0, "megabytes": 0.002},
}
EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "use", "path", "rect"}


@dataclass
class NoiseFrames:
    def get(self, index: int, views: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (len(views), FRAMES, 3, SIZE, SIZE), np.uint8)


def clip_set(classes: Sequence[str] = CLASSES, label: bool = True) -> ClipSet:
    """10 training clips per class, of which one is labelled, and a few test clips per class."""
    train = [Clip(f"t{k}/{i}", "", k if i == 0 else -1, "train") for k in range(len(classes)) for i in range(10)]
    test = [Clip(f"e{k}/{i}", "", k if label else -1, "test") for k in range(len(classes)) for i in range(PER_CLASS)]
    manifest = Manifest((*train, *test), tuple(classes))
    return ClipSet(manifest, ClipSpec(FRAMES, SIZE), ClipOptions(labelled=0.1), NoiseFrames())


def make_run(folder: Path, clips: ClipSet, terms: Mapping[str, float], errors: int = 0, *changes: str) -> Path:
    """A finished run with these loss weights whose first `errors` clips of each class are taken for the next class."""
    weights = [f"objective.{name}.weight={terms.get(name, 0)}" for name in ("cross_entropy", "kl", "reconstruction")]
    recipe = read_recipe(["recipe=quickstart", f"out={folder}", *SMALL.split(), *weights, *changes])
    save_recipe(recipe, folder / "recipe.yaml")
    torch.manual_seed(0)
    student = build_student(recipe.student, len(clips.manifest.classes))
    save_student(folder, student, StudentCard(vars(recipe.student), list(clips.manifest.classes), student.spec))
    rows = [
        {"step": step, "loss": 2.0 / step, "lr": 0.1}
        | {f"{kind}.{name}": factor / step for name, weight in terms.items() for kind, factor in _kinds(weight)}
        for step in (10, 20, 30)
    ]
    rows += [{"step": 30, "val.top1": 0.5}] if recipe.train.steps else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file(answers(clips, errors), folder / "answers.safetensors")
    return folder


def _kinds(weight: float) -> list[tuple[str, float]]:
    return [("raw", 1.0), ("weighted", weight)]


def answers(clips: ClipSet, errors: int) -> dict[str, np.ndarray]:
    index = np.array(clips.manifest.of("test"))
    count = len(clips.manifest.classes)
    true = np.arange(count).repeat(PER_CLASS)
    said = (true + (np.tile(np.arange(PER_CLASS), count) < errors)) % count
    latent = np.random.default_rng(0).normal(size=(len(true), 8)) + 9 * true[:, None]
    return {
        "index": index,
        "label": np.array([clips.manifest.clips[i].label for i in index]),
        "logits": np.eye(count, dtype=np.float32)[said] + 0.1 * np.eye(count, dtype=np.float32)[true],
        "latent": latent.astype(np.float32),
        "error": np.full(len(true), 0.0123, np.float32),
        "failed": np.zeros(len(true), bool),
    }


class Page(HTMLParser):
    """A page taken apart; complains about tags that do not match. Its text has every white space as one blank."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY or tag in ("path", "rect", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("h2")]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """What quickstart leaves: one teacher and four students."""
    root, clips = tmp_path_factory.mktemp("many"), clip_set()
    runs = {
        "teacher": make_run(
            root / "teacher", clips, {"cross_entropy": 1}, 0, "clips.labelled=1", "student.hidden=32", "train.steps=900"
        ),
        "untrained": make_run(root / "untrained", clips, {"cross_entropy": 1, "kl": 1}, 3, "train.steps=0"),
        "reconstruction": make_run(root / "reconstruction", clips, {"reconstruction": 1}, 3),
        "labels_only": make_run(root / "labels_only", clips, {"cross_entropy": 1}, 3),
        "distilled": make_run(root / "distilled", clips, {"cross_entropy": 1, "kl": 0.5, "reconstruction": 1}, 1),
    }
    for name, top1 in {"untrained": 0.125, "distilled": 0.875}.items():
        probe = {"svm": {"test": {"top1": top1}, "setting": {"C": 10.0}}}
        (runs[name] / "probe.json").write_text(json.dumps({"probes": probe}))
    summary = {"chance": 1 / 6, **SIZES, "probe": {}, "seconds": {"teacher": 30.0, "probe_distilled": 1.5}}
    return Page(write_report(root, "Few labels", runs, clips, summary))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root, clips = tmp_path_factory.mktemp("one"), clip_set()
    run = make_run(root / "tiny", clips, {"cross_entropy": 1}, 1)
    summary: dict[str, Any] = {"steps": 600, "seconds": 12.5, "test": {"top1": 0.75, "top5": 1.0}}
    return Page(write_report(run, "One run", {"tiny": run}, clips, summary))


def percent(number: str) -> str:
    return f"{number} %"


def test_sections_appear_where_there_are_data(many: Page, one: Page) -> None:
    assert many.sections == ["results", "probes", "curves", "confusion", "maps", "films", "cost", "made"]
    assert one.sections == ["results", "curves", "confusion", "maps", "cost", "made"]
    for page in (many, one):
        links = [a["href"] for a in page.all("a")]
        assert links == [f"#{name}" for name in page.sections]


def test_one_run_says_what_the_summary_says(one: Page) -> None:
    assert (
        f"Of 24 test clips, tiny names {percent('75.0')} correctly; guessing would give {percent('16.7')}." in one.text
    )
    assert percent("100.0") in one.text  # top-5
    assert "training 12.5" in one.text
    assert "18 labels" in one.text
    assert "There are 60 training clips" in one.text


def test_the_lead_compares_what_is_alike(many: Page) -> None:
    figures = ", ".join(f"{name} {percent(top1)}" for name, top1 in (("distilled", "75.0"), ("labels only", "25.0")))
    assert f"Of 24 test clips, teacher names {percent('100.0')}, {figures} correctly" in many.text
    # 24 clips each: 1.96 sqrt(2 * 0.1875 / 24) = 24.5 points, so 50 points are more than chance.
    assert (
        "With the same 18 labels the same network gains 50.0 points when it also learns from a teacher and" in many.text
    )
    assert f"The student has {percent('25.0')} of the teacher's parameters, needs {percent('20.0')}" in many.text


def test_a_small_gain_is_called_what_it_is(tmp_path: Path) -> None:
    clips = clip_set()
    runs = {
        "alone": make_run(tmp_path / "alone", clips, {"cross_entropy": 1}, 1),
        "taught": make_run(tmp_path / "taught", clips, {"cross_entropy": 1, "kl": 1}, 1),
    }
    page = Page(write_report(tmp_path, "Alike", runs, clips, {}))
    assert "gains 0.0 points when it also learns from a teacher, less than chance can do (± 24.5)." in page.text
    assert "cost" not in page.sections


def test_what_was_never_trained_is_not_judged(many: Page) -> None:
    captions = [
        f"{name}: {right} of 24 right" for name, right in (("teacher", 24), ("labels only", 6), ("distilled", 18))
    ]
    assert [caption in many.text for caption in captions] == [True] * 3
    assert many.text.count("of 24 right") == 3
    assert "nothing: random weights" in many.text
    assert "60 labels" in many.text  # the teacher's: all, though these clips show six
    assert "0.0123" in many.text
    assert "reconstruction answers" not in many.text


def test_mix_ups_are_named(many: Page) -> None:
    assert f"“up” was taken for “down” in 3 of 4 clips ({percent('75.0')})" in many.text


def test_the_best_probe_is_marked(many: Page) -> None:
    assert many.source.count('class="best"') == 1
    assert '<span class="best">87.5\N{NO-BREAK SPACE}%</span>' in many.source
    assert "C 10.0" in many.text


def test_nothing_is_fetched(many: Page, one: Page) -> None:
    for page in (many, one):
        assert not page.all("script")
        assert not page.all("link")
        assert not page.all("iframe")
        loads = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "xlink:href")]
        assert all(load and load.startswith(("data:image/", "#")) for load in loads)
        assert "@import" not in page.source
        assert "url(http" not in page.source
        assert len(page.source) < 2_000_000


def test_names_are_escaped(many: Page, tmp_path: Path) -> None:
    assert "<b>x</b>" not in many.source
    assert "True class: <b>x</b>" in many.text  # as words, not as a tag
    clips = clip_set()
    name = '"><script>alert(1)</script>'
    run = make_run(tmp_path / "run", clips, {"cross_entropy": 1, "reconstruction": 1})
    page = Page(write_report(tmp_path, name, {name: run}, clips, {}))
    assert not page.all("script")
    assert name in page.text


def test_every_picture_speaks(many: Page) -> None:
    charts, pictures = many.all("svg"), many.all("img")
    assert len(charts) == 1 + 5 + 5  # validation, losses of the runs with lines of losses, maps
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert len(pictures) == 4 * 3  # four clips: frames, two redrawings
    assert all(picture["alt"] for picture in pictures)
    assert all(stand_in not in many.source for stand_in in ("#010203", "#040506", "#070809"))


def test_maps_share_one_legend(many: Page) -> None:
    assert all(f"color:{colour}" in many.source for colour in COLOURS[: len(CLASSES)])
    assert f"{percent('100.0')} of clips lie next to one of their class" in many.text


def test_a_strip_holds_the_frames() -> None:
    frames = torch.from_numpy(NoiseFrames().get(7, [0])[0])
    kind, _, data = strip(frames).partition(",")
    assert kind == "data:image/png;base64"
    picture = (255 * imread(io.BytesIO(base64.b64decode(data)))[..., :3]).round().astype(np.uint8)
    assert picture.shape == (SIZE, FRAMES * (SIZE + 1) - 1, 3)
    second = picture[:, SIZE + 1 : 2 * SIZE + 1]
    np.testing.assert_array_equal(second, frames[1].permute(1, 2, 0))
    assert strip(torch.zeros(2, 3, 100, 100, dtype=torch.uint8)).startswith("data:image/jpeg;base64,")


def test_many_classes_still_make_a_readable_page(tmp_path: Path) -> None:
    clips = clip_set([f"class {k}" for k in range(30)])
    run = make_run(tmp_path / "run", clips, {"cross_entropy": 1}, 2)
    page = Page(write_report(tmp_path, "Many classes", {"run": run}, clips, {}))
    assert f"The {CONFUSION_CLASSES} of 30 classes with the most errors" in page.text
    assert f"grey: {30 - len(COLOURS)} other classes" in page.text


def test_without_labels_there_is_nothing_to_score(tmp_path: Path) -> None:
    clips = clip_set(label=False)
    run = make_run(tmp_path / "run", clips, {"cross_entropy": 1, "reconstruction": 1})
    page = Page(write_report(tmp_path, "No labels", {"run": run}, clips, {}))
    assert page.sections == ["results", "curves", "maps", "films", "made"]
    assert "True class: not known" in page.text
    assert "run redraws test clips with a mean squared error of 0.0123." in page.text


def test_a_run_that_broke_down_is_still_shown(tmp_path: Path) -> None:
    clips = clip_set()
    run = make_run(tmp_path / "run", clips, {"cross_entropy": 1})
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN, "raw.cross_entropy": NaN, "weighted.cross_entropy": NaN}\n'
    )
    lost = {
        name: np.full_like(value, np.nan) if value.dtype == np.float32 else value
        for name, value in answers(clips, 0).items()
    }
    save_file(lost, run / "answers.safetensors")
    page = Page(write_report(tmp_path, "Lost", {"run": run}, clips, {}))
    assert f"run names {percent('0.0')} correctly" in page.text
    assert "maps" not in page.sections


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    clips = clip_set()
    run = make_run(tmp_path / "run", clips, {"cross_entropy": 1})
    (run / "answers.safetensors").unlink()
    with pytest.raises(UserError, match=r"is not a finished run \(answers\.safetensors is missing\)"):
        write_report(tmp_path, "Half", {"run": run}, clips, {})
    with pytest.raises(UserError, match="at least one run"):
        write_report(tmp_path, "None", {}, clips, {})
