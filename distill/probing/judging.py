"""One classifier on one table: search, fit, learning curve, and one look at the test split. What is done is kept.

<folder>/search.json         scores of the folds that are done
<folder>/probe.safetensors   the fitted classifier
<folder>/found.json          all there is to report, and what was said of each test row; last
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import PredefinedSplit, StratifiedKFold
from threadpoolctl import threadpool_limits
from xxhash import xxh3_128

from distill.evaluate import confused_pairs, counts
from distill.files import sweep
from distill.probing.base import Array, Probe
from distill.probing.classifiers import PROBES
from distill.probing.costs import Planned
from distill.probing.kept import Kept
from distill.probing.metrics import PerClass, interval, measures
from distill.probing.saved import said_about, save_probe
from distill.probing.search import ProbeSearchCV
from distill.probing.table import LatentTable, Split, rank_in_class
from distill.probing.work import CURVE
from distill.run_log import Track, percent
from distill.surroundings import cores

HOLD_OUT = 10  # without a validation split one row of so many is held out
PAIRS = 50  # so many pairs of classes that are taken for one another are reported
SMALL = 1 << 22  # numbers of a table that one thread is enough for: on a busy machine more of them mostly wait
STEPS = 2 + len(CURVE)  # of a judgement beside its folds: fit, test, and the points of the curve
VERSION = 2  # of what is kept


def threads(table: LatentTable) -> int:
    """How many its classifiers are fitted with."""
    return 1 if table.splits["train"].latent.size < SMALL else cores()


@dataclass(frozen=True)
class Judgement:
    """What a classifier is asked about a table."""

    table: LatentTable
    planned: Planned
    seed: int
    folder: Path
    track: Track = field(repr=False)

    def __call__(self) -> tuple[dict[str, Any], Array]:
        """What is found, and what was said of each test row."""
        kept = self._kept.read("found.json")
        if kept is not None and said_about(self._saved).get("key") == self.key:
            self.track.advance(self.planned.folds + STEPS)
            return kept["found"], np.array(kept["said"], np.int64)
        with threadpool_limits(threads(self.table)):
            return self._judged()

    def _judged(self) -> tuple[dict[str, Any], Array]:
        started = time.process_time()
        search = self._search()
        setting, train = search.best_params_, self.table.splits["train"]
        curve = list(self._curve(setting, search))
        probe = self._fitted(setting, train.latent, train.label)
        scores, shares = self._answers(probe, self.table.splits["test"])
        if "val" in self.table.splits:
            curve.append({"rows": len(train.label), "top1": self._top1(probe, self.table.splits["val"])})
        self.track.advance(1, self.planned.name)
        said = scores.argmax(1)
        found = self._found(search, scores, shares, said) | {"curve": curve}
        found["cost"] = {"seconds": time.process_time() - started, "expected": self.planned.cost.seconds}
        self._keep(found, probe, said)
        self.track.advance(1, f"{self.planned.name} {percent(found['test']['top1'])}")
        return found, said

    # ------------------------------------------------------------ before the test

    @cached_property
    def folds(self) -> Array:
        """[N] the fold that tests a training row; -1: none."""
        train, wanted = self.table.splits["train"], self.planned.folds
        if wanted == 1:  # of every class the first of ten, drawn: however few it has, one is held out
            return np.where(rank_in_class(train.label, self.seed) % HOLD_OUT, -1, 0)
        folds = np.full(len(train.label), -1)
        cut = StratifiedKFold(wanted, shuffle=True, random_state=self.seed)
        for fold, (_, tested) in enumerate(cut.split(folds, train.label)):
            folds[tested] = fold
        return folds

    def _search(self) -> ProbeSearchCV:
        rows, label, folds = self._searched()
        kind = PROBES[self.planned.name]
        kept = self._kept.read("search.json") or {}
        known = {int(fold): np.array(scores) for fold, scores in kept.items()}
        self.track.advance(len(known))

        def keep(fold: int, scores: Array) -> None:
            known[fold] = scores
            self._kept.write("search.json", {str(one): known[one].tolist() for one in sorted(known)})
            self.track.advance(1, self.planned.name)

        grid = dict(kind.grid(len(self.table.splits["train"].label)))
        search = ProbeSearchCV(kind.make(self.seed), grid, PredefinedSplit(folds), refit=False)
        return search.fit(rows, label, known=dict(known), keep=keep)

    def _searched(self) -> tuple[Array, Array, Array]:
        """Rows, labels and folds of the search: the validation split is its only fold, if that is to choose."""
        train, val = self.table.splits["train"], self.table.splits.get("val")
        if self.planned.folds > 1 or val is None:
            return train.latent, train.label, self.folds
        folds = np.repeat([-1, 0], [len(train.label), len(val.label)])
        return np.concatenate([train.latent, val.latent]), np.concatenate([train.label, val.label]), folds

    def _curve(self, setting: dict[str, Any], search: ProbeSearchCV) -> Iterator[dict[str, Any]]:
        """Top-1 of the setting on the validation split, or on the first fold, by how many rows it was fitted on."""
        train, held = self.table.splits["train"], self.table.splits.get("val")
        rows = np.arange(len(train.label))
        if held is None:
            tested = self.folds == 0
            rows, held = rows[~tested], Split(train.latent[tested], train.label[tested])
        order = rank_in_class(train.label[rows], self.seed)
        for part in CURVE:
            chosen = rows[order % part == 0]
            probe = self._fitted(setting, train.latent[chosen], train.label[chosen])
            yield {"rows": len(chosen), "top1": self._top1(probe, held)}
            self.track.advance(1, self.planned.name)
        if "val" not in self.table.splits:
            top1 = search.cv_results_["split0_test_score"][search.best_index_]
            yield {"rows": len(rows), "top1": float(top1)}

    def _fitted(self, setting: dict[str, Any], rows: Array, label: Array) -> Probe:
        probe = clone(PROBES[self.planned.name].make(self.seed)).set_params(**setting)
        with warnings.catch_warnings():  # a learning curve begins with few rows of many classes
            warnings.filterwarnings("ignore", "The number of unique classes is greater than")
            fitted: Probe = probe.fit(rows, label)
        return fitted

    def _answers(self, probe: Probe, split: Split) -> tuple[Array, Array | None]:
        """Scores and shares over all the table's classes, of which training may have lacked some."""
        found = probe.scores(split.latent)
        scores = np.full((len(found), len(self.table.classes)), -np.inf, found.dtype)
        scores[:, probe.classes_] = found
        shares = probe.shares(found)
        if shares is None:
            return scores, None
        whole = np.zeros(scores.shape, shares.dtype)
        whole[:, probe.classes_] = shares
        return scores, whole

    def _top1(self, probe: Probe, split: Split) -> float:
        return float((self._answers(probe, split)[0].argmax(1) == split.label).mean())

    # ------------------------------------------------------------ what came of it

    def _found(self, search: ProbeSearchCV, scores: Array, shares: Array | None, said: Array) -> dict[str, Any]:
        test, classes = self.table.splits["test"], self.table.classes
        figures = dict(measures(test.label, scores, shares, test.unanswered))
        clips = len(test.label) + len(test.unanswered)
        table = counts(test.label, said, len(classes))
        lost = np.bincount(test.unanswered, minlength=len(classes))
        by_fold = np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(search.n_splits_)]).T
        chosen = by_fold[search.best_index_]
        return {
            "about": PROBES[self.planned.name].about,
            "setting": search.best_params_,
            "grid": [
                {"setting": setting, **_spread(of)}
                for setting, of in zip(search.cv_results_["params"], by_fold, strict=True)
            ],
            "folds": {"count": len(chosen), **_spread(chosen)},
            "test": {**figures, "interval": interval(int(table.trace()), clips), "clips": clips},
            "classes": list(_by_class(table, lost, classes)),
            "confused": [
                {"true": classes[true], "said": classes[said], "count": count, "of": int(table[true].sum())}
                for true, said, count in confused_pairs(table, PAIRS)
            ],
        }

    # ------------------------------------------------------------ what is kept

    @cached_property
    def key(self) -> str:
        """Everything that the answer depends on, but for the versions of libraries."""
        kind, train = PROBES[self.planned.name], self.table.splits["train"]
        about = {
            "version": VERSION,
            "table": self.table.fingerprint,
            "student": self.table.about.get("student"),  # which the fitted probe tells
            "classifier": repr(kind.make(self.seed).get_params()),
            "grid": repr(kind.grid(len(train.label))),
            "folds": self.planned.folds,
            "seed": self.seed,
        }
        return xxh3_128(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def _kept(self) -> Kept:
        return Kept(self.folder, self.key)

    @property
    def _saved(self) -> Path:
        return self.folder / "probe.safetensors"

    def _keep(self, found: dict[str, Any], probe: Probe, said: Array) -> None:
        about = {
            "key": self.key,
            "table": dict(self.table.about),
            "setting": found["setting"],
            "test": found["test"],
        }
        save_probe(probe, [self.table.classes[place] for place in probe.classes_], self._saved, about)
        self._kept.write("found.json", {"found": found, "said": said.tolist()})
        sweep(self.folder)


def _spread(scores: Array) -> dict[str, Any]:
    return {"mean": float(scores.mean()), "std": float(scores.std()), "scores": scores.tolist()}


def _by_class(table: Array, lost: Array, classes: Any) -> Iterator[dict[str, Any]]:
    each = PerClass.of(table, lost)
    for place, name in enumerate(classes):
        figures = {key: float(getattr(each, key)[place]) for key in ("precision", "recall", "f1")}
        yield {"name": name, **figures, "support": int(each.support[place])}
