"""The page about judged latents, made from tables and answers that are drawn here; and the figures that it shows."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from test_report import Page, percent

from distill.errors import UserError
from distill.evaluate import counts
from distill.probing.base import Array, softmax
from distill.probing.judged import Judged, latent_facts
from distill.probing.metrics import PerClass, interval, measures, variances
from distill.probing.moments import Moments
from distill.probing.page import write_pages
from distill.probing.table import LatentTable, Split
from distill.report_figures import CONFUSION_CLASSES, confusion_table

CLASSES = ("<b>x</b>", "up | down", "down", "_left_", "right", "still")
PER_CLASS = 20
NONE = np.zeros(0, np.int64)
PROBES = {"svm": 0, "knn": 2, "random_forest": 5}  # how many clips of each class are taken for the next


def judged(
    name: str,
    classes: Sequence[str] = CLASSES,
    probes: Mapping[str, int] = PROBES,
    per_class: int = PER_CLASS,
    unanswered: Array = NONE,
    curve: Sequence[int] = (30, 60, 120),
) -> Judged:
    """Heaps of latents, one for each class, and classifiers that err as often as they are told to."""
    label = np.arange(len(classes)).repeat(per_class)
    draw = np.random.default_rng(len(name))
    latent = draw.normal(size=(len(label), 12)) + 3 * draw.normal(size=(len(classes), 12))[label]
    splits = {"train": Split(latent, label), "test": Split(latent.astype(np.float32), label, (), unanswered)}
    table = LatentTable(classes, splits, {"run": f"runs/{name}", "student": {"name": "video3d"}})
    said = {
        probe: (label + (np.tile(np.arange(per_class), len(classes)) < errors)) % len(classes)
        for probe, errors in probes.items()
    }
    found = {probe: verdict(probe, table, answers, curve) for probe, answers in said.items()}
    return Judged(name, table, latent_facts(table), found, said, name == "teacher")


def verdict(name: str, table: LatentTable, said: Array, curve: Sequence[int]) -> dict[str, Any]:
    """What the job would report about these answers."""
    test, classes = table.splits["test"], table.classes
    scores, shown = np.eye(len(classes))[said], counts(test.label, said, len(classes))
    clips = len(said) + len(test.unanswered)
    figures = dict(measures(test.label, scores, None if name == "svm" else softmax(scores), test.unanswered))
    right = int((said == test.label).sum())
    each = PerClass.of(shown, np.bincount(test.unanswered, minlength=len(classes)))
    pairs = [(true, answer) for true, answer in np.ndindex(shown.shape) if true != answer and shown[true, answer]]
    grid = [{"setting": {"C": c, "depth": None}, "mean": c, "std": 0.012, "scores": [c] * 5} for c in (0.25, 0.5)]
    return {
        "about": f"all about {name}",
        "setting": grid[1]["setting"],
        "grid": grid,
        "folds": {"count": 5, **{key: grid[1][key] for key in ("mean", "std", "scores")}},
        "test": {**figures, "interval": list(interval(right, clips)), "clips": clips},
        "classes": [
            {"name": name, "support": int(each.support[at])}
            | {key: float(getattr(each, key)[at]) for key in ("precision", "recall", "f1")}
            for at, name in enumerate(classes)
        ],
        "confused": [
            {
                "true": classes[true],
                "said": classes[said],
                "count": int(shown[true, said]),
                "of": int(shown[true].sum()),
            }
            for true, said in pairs[:50]
        ],
        "curve": [{"rows": rows, "top1": 0.1 * place} for place, rows in enumerate(curve, 1)],
        "cost": {"seconds": 12.34, "expected": 10.0},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    student = judged("labels_only", probes={"svm": 3, "knn": 5}, unanswered=np.array([0, 1]))
    write_pages(root, "Two <i>tables</i>", [judged("teacher"), student], 1 / 6)
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "probe.html")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (
        (folder / "probe.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ").replace("\N{EN DASH}", "-")
    )


def test_the_lead_tells_the_best_of_each_table(page: Page, text: str) -> None:
    # 17 of 20 are right, and 2 of 122 gave no answer: 102 / 122.
    student, teacher = percent("83.6"), percent("100.0")
    lead = (
        f"Of the test clips, classifiers name {student} correctly from the latents of labels only (svm); "
        f"{teacher} from those of teacher (svm), the mark to reach. Guessing would give {percent('16.7')}."
    )
    assert lead in page.text
    assert lead in text


def section(page: Page, name: str) -> str:
    """Its source, from its heading to the next."""
    _, _, rest = page.source.partition(f'<h2 id="{name}">')
    return rest.partition("<h2 id=")[0].replace("\N{NO-BREAK SPACE}", " ").replace("\N{EN DASH}", "-")


def test_results_mark_the_best_of_each_column(page: Page, text: str) -> None:
    results = section(page, "results")
    assert re.findall(r'class="best">([\d.]+)', results) == ["100.0", "83.6"]
    assert "96.9-100.0" in results  # Wilson's of 120 right of 120
    assert "2 of labels only" in results  # clips that could not be read
    assert "| svm | **100.0 %** (96.9-100.0) | **83.6 %** (" in text
    assert "| random forest | 75.0 % (66.6-81.9) | - |" in text


def test_every_measure_is_told_and_explained(page: Page) -> None:
    details = section(page, "details")
    assert details.count("<tr>") == 2 + 3 + 2
    for words in ("Top-1", "Top-5", "Balanced accuracy", "F1", "Log-loss"):
        assert details.count(words) == 2 + 1
    assert details.count(">50.0 % ± 1.2<small>5 folds</small>") == 3 + 2
    assert "C=0.5, depth=None" in details
    assert "12.3<small>10.0</small>" in details
    svm, knn = (re.findall(rf'<th scope="row">{name}</th>(.*)', details) for name in ("svm", "knn"))
    assert [cells.count('"number">-</td>') for cells in (*svm, *knn)] == [1, 1, 0, 0]  # an SVM gives no probabilities


def test_latents_are_told_with_their_spectrum(page: Page) -> None:
    latents = section(page, "latents")
    assert [row.count('<td class="number">12</td>') for row in latents.split('scope="row"')[1:3]] == [1, 1]  # width
    widest = max((judged("teacher"), judged("labels_only")), key=lambda one: float(one.latents["effective_rank"]))
    rank = f"{widest.latents['effective_rank']:.1f}"
    told = f"{widest.name.replace('_', ' ')}: effective rank {rank} of 12, the highest"
    assert told in page.text
    assert f"Variance of the latents over their principal axes. {told}" in [c["aria-label"] for c in page.all("svg")]


def test_learning_curves_are_drawn_and_told(page: Page) -> None:
    labels = [str(chart["aria-label"]) for chart in page.all("svg")]
    drawn = [label for label in labels if label.startswith("Top-1 over training rows, ")]
    assert [label.split(":")[0].split(", ")[1] for label in drawn] == ["teacher", "labels only"]
    assert "ends highest at 30.0\N{NO-BREAK SPACE}%, +10.0 points from 60 to 120 rows" in drawn[0]
    curves = section(page, "curves")
    assert curves.count(">30.0 %</td>") == 3 + 2


def test_mix_ups_and_classes(page: Page, text: str) -> None:
    assert f"“right” was taken for “still” in 3 of 20 clips ({percent('15.0')})" in page.text
    assert "labels only, svm: 102 of 120 right" in page.text
    assert "labels only, svm: 102 of 120 right" in text
    classes = section(page, "classes")
    names = re.findall(r'<th scope="row">(.*?)</th>', classes)
    assert set(names[:2]) == {"&lt;b&gt;x&lt;/b&gt;", "up | down"}  # whose clips could not be read
    assert "teacher, svm" in classes
    assert "<details>" not in classes  # all six are among the ten


def test_every_chart_speaks(page: Page) -> None:
    charts = page.all("svg")
    assert len(charts) == 1 + 2 + 2 * 2
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert len({chart["aria-label"] for chart in charts}) == len(charts)
    assert all(stand_in not in page.source for stand_in in ("#010203", "#040506", "#070809"))
    regions = [attributes for attributes in page.all("div") if attributes.get("role") == "region"]
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)


def test_settings_that_were_tried(page: Page, text: str) -> None:
    tried = section(page, "search")
    assert "6 settings on teacher" in tried
    assert tried.count('class="best">C=0.5, depth=None') == 5
    assert "| svm | C=0.25, depth=None | 25.0 % ± 1.2 |" in text


def test_how_it_was_made(page: Page, text: str) -> None:
    for told in (page.text, text):
        assert "run: runs/labels_only" in told
        assert "student.name: video3d" in told
        assert "scikit-learn" in told


def test_names_are_text(page: Page, text: str) -> None:
    assert "<b>x</b>" not in page.source
    assert "“<b>x</b>” was taken for “up | down”" in page.text
    assert "Two <i>tables</i>" in page.text
    assert "<b>" not in text
    assert "&lt;b>x&lt;/b>" in text
    assert r"\_left\_" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # every row of a table has as many cells
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def test_nothing_is_fetched(page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "img")]
    loads = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "xlink:href")]
    assert all(load and load.startswith("#") for load in loads)
    assert "@import" not in page.source
    assert "url(http" not in page.source


def test_sections_appear_where_there_are_data(page: Page, tmp_path: Path) -> None:
    everything = ["results", "details", "latents", "curves", "confusion", "classes", "maps", "search", "made"]
    assert page.sections == everything
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in everything]
    bare = Page(write_pages(tmp_path / "bare", "Latents alone", [judged("x", probes={})], 1 / 6))
    assert bare.sections == ["latents", "maps", "made"]
    assert [a["href"] for a in bare.all("a")] == ["#latents", "#maps", "#made"]
    one = judged("x", probes={"svm": 1}, curve=())
    one.probes["svm"]["folds"].update(count=1, scores=[0.5])
    flat = Page(write_pages(tmp_path / "flat", "No curve", [one], 1 / 6))
    assert ">50.0 %<small>hold-out</small>" in section(flat, "details")
    assert flat.sections == [name for name in everything if name != "curves"]
    assert [part for part in ("results", "details", "search") if 'class="best"' in section(flat, part)] == ["search"]
    with pytest.raises(UserError, match="at least one table"):
        write_pages(tmp_path, "Nothing", [], 1 / 6)


def test_tables_of_one_name_are_two(tmp_path: Path) -> None:
    twins = Page(write_pages(tmp_path, "Twins", [judged("teacher", probes={"svm": e}) for e in (1, 2)], 1 / 6))
    assert f"{percent('95.0')} correctly from the latents of teacher (svm); {percent('90.0')} from" in twins.text
    assert "the mark to reach." not in twins.text
    assert len(twins.all("svg")) == 1 + 2 + 2 * 2


def test_many_classes_make_a_readable_page(tmp_path: Path) -> None:
    names = [f"doing thing {place}" for place in range(400)]
    tables = [judged(name, names, {"svm": 1, "knn": 2}, 4) for name in ("teacher", "distilled")]
    page = Page(write_pages(tmp_path, "Many", tables, 1 / 400))
    assert len(page.source) < 2_000_000
    assert "the other 390 classes" in page.text
    assert f"The {CONFUSION_CLASSES} of 400 classes of the most frequent mix-ups" in page.text
    assert "grey: 388 other classes" in page.text
    assert page.source.count("was taken for") == 2 * 10
    assert (tmp_path / "probe.md").stat().st_size < 300_000


def test_classes_of_the_most_frequent_mix_ups_stand_side_by_side() -> None:
    table = 9 * np.eye(50, dtype=np.int64)
    table[40, 3], table[7, 30], table[1] = 5, 4, table[1] + 1
    found = confusion_table(table, [str(place) for place in range(50)], by_pairs=True)
    assert found["classes"][:5] == ["40", "3", "7", "30", "1"]
    assert len(found["classes"]) == CONFUSION_CLASSES
    assert found["rows"][0][1][:2] == [(9, 9 / 14, True), (5, 5 / 14, False)]


# ---------------------------------------------------------------- figures


@settings(max_examples=50)
@given(st.integers(2, 12), st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000))
def test_no_answer_is_a_wrong_answer(classes: int, rows: int, lost: int, seed: int) -> None:
    """As scikit-learn has it where no answer is one more answer, which is right for no class."""
    draw = np.random.default_rng(seed)
    truth, missing = draw.integers(0, classes, rows), draw.integers(0, classes, lost)
    scores = draw.normal(size=(rows, classes))
    shares, said = softmax(scores), scores.argmax(1)
    found = dict(measures(truth, scores, shares, missing))
    every, answers = np.concatenate([truth, missing]), np.concatenate([said, np.full(lost, classes)])
    seen = np.union1d(every, said)
    for average in ("macro", "weighted"):
        wanted = reference.precision_recall_fscore_support(
            every, answers, average=average, labels=seen, zero_division=0
        )
        got = [found[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(wanted[:3], abs=1e-12)
    assert found["top1"] == pytest.approx(reference.accuracy_score(every, answers))
    recall = reference.recall_score(every, answers, average="macro", labels=np.unique(every), zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recall)
    if classes > 5:
        right = reference.top_k_accuracy_score(truth, scores, k=5, labels=np.arange(classes), normalize=False)
        assert found["top5"] == pytest.approx(right / (rows + lost))
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, shares, labels=np.arange(classes)))


def test_facts_about_latents_have_closed_forms() -> None:
    label = np.arange(20_000) % 2  # more rows than are taken at once
    latent = np.zeros((len(label), 4), np.float32)
    latent[:, 0] = 3 * (2 * label - 1)  # the classes' means
    latent[:, 1] = 4 * (2 * (np.arange(len(label)) // 2 % 2) - 1)  # within classes
    latent[:, 2] = 12
    facts = latent_facts(LatentTable(["a", "b"], {"train": Split(latent, label), "test": Split(latent[:7], label[:7])}))
    assert facts["width"] == 4
    assert facts["variances"] == pytest.approx([16 / 25, 9 / 25, 0, 0], abs=1e-12)
    assert facts["between"] == pytest.approx(9 / 25)
    assert facts["spread"] == pytest.approx(5 / 13)
    assert facts["effective_rank"] == pytest.approx(np.exp(-0.64 * np.log(0.64) - 0.36 * np.log(0.36)))
    assert facts["rows"] == {"train": 20_000, "test": 7}


def test_latents_that_are_all_alike_have_no_shares() -> None:
    for value in (0.0, 2.0):
        latent, label = np.full((6, 3), value), np.arange(6) % 2
        facts = latent_facts(LatentTable(["a", "b"], {"train": Split(latent, label), "test": Split(latent, label)}))
        assert facts["variances"] == [0, 0, 0]
        assert (facts["between"], facts["spread"], facts["effective_rank"]) == (0, 0, 1)


def test_the_spectrum_is_that_of_the_covariance() -> None:
    draw = np.random.default_rng(0)
    latent = (draw.normal(size=(9000, 6)) @ draw.normal(size=(6, 6)) + 40).astype(np.float32)
    wanted = np.linalg.eigvalsh(np.cov(latent.T.astype(np.float64), bias=True))[::-1]
    found = variances(Moments.of(latent, draw.integers(0, 3, len(latent)), 3))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_facts_about_latents_take_little_memory(tmp_path: Path) -> None:
    latent, label = np.zeros((60_000, 256), np.float32), np.arange(60_000) % 300
    latent[:, 0] = label
    np.save(tmp_path / "latent.npy", latent)
    del latent
    split = Split(np.load(tmp_path / "latent.npy", mmap_mode="r"), label)
    tracemalloc.start()
    latent_facts(LatentTable([str(place) for place in range(300)], {"train": split, "test": split}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # all rows in float64 are 123 MB
