"""What probes are said to cost: laws grow, a budget is kept, memory is looked at, and what a person says is read."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.probing.classifiers import PROBES
from distill.probing.costs import (
    Cost,
    Planned,
    Speed,
    expected,
    free_memory,
    plan,
    read_budget,
    size_text,
    table_rows,
    time_text,
)
from distill.probing.laws import LAWS
from distill.probing.work import Size, Work

SPEED = Speed(1e11, 5e8, 1e9)
MIDDLE = Size(rows=5000, held_out=5000, test=1000, width=512, classes=50, folds=5)
KINETICS = Size(rows=91_200, held_out=91_200, test=37_200, width=1024, classes=400, folds=10)
GB = 10**9


def cost(name: str, size: Size, **grid: list[object]) -> Cost:
    return expected(name, grid or PROBES[name].grid(MIDDLE.rows), size, SPEED)


def twice(size: Size, **more: int) -> Size:
    return replace(size, **{key: value * getattr(size, key) for key, value in more.items()})


def test_every_classifier_has_a_law() -> None:
    assert set(LAWS) == set(PROBES)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("size", [MIDDLE, KINETICS, Size(60, 6, 20, 8, 2, 1)], ids=["middle", "kinetics", "tiny"])
def test_cost_grows_with_rows_features_and_classes(name: str, size: Size) -> None:
    least = cost(name, size)
    assert least.seconds > 0
    assert least.bytes > 0
    for larger in (twice(size, rows=2, held_out=2, test=2), twice(size, width=2)):
        assert cost(name, larger).seconds > least.seconds
        assert cost(name, larger).bytes > least.bytes
    assert cost(name, twice(size, classes=2)).seconds > least.seconds


@pytest.mark.parametrize("name", PROBES)
def test_a_hold_out_is_cheaper_than_folds_and_ten_folds_dearer_than_five(name: str) -> None:
    held, five, ten = (
        cost(name, replace(MIDDLE, folds=folds, held_out=5000 if folds > 1 else 500)) for folds in (1, 5, 10)
    )
    assert held.seconds < five.seconds
    if name == "knn":  # compares all pairs of rows, however they are parted
        assert ten.seconds == pytest.approx(five.seconds, rel=0.2)
    else:
        assert ten.seconds > five.seconds


@pytest.mark.parametrize("name", PROBES)
def test_time_falls_as_speed_rises(name: str) -> None:
    grid = PROBES[name].grid(MIDDLE.rows)
    twice_as_fast = Speed(*(2 * value for value in astuple(SPEED)))
    slow, fast = expected(name, grid, MIDDLE, SPEED), expected(name, grid, MIDDLE, twice_as_fast)
    assert fast.seconds == pytest.approx(slow.seconds / 2)
    assert fast.bytes == slow.bytes


FREE = [
    ("ridge", {"alpha": [1.0]}, {"alpha": [1.0, 10.0, 100.0]}),
    ("lda", {"shrinkage": [0.1]}, {"shrinkage": [0.1, 0.3, 0.9]}),
    ("knn", {"n_neighbors": [100]}, {"n_neighbors": [10, 50, 100]}),
    ("nystroem", {"alpha": [1.0]}, {"alpha": [0.1, 1.0, 10.0]}),
    ("decision_tree", {"max_depth": [None]}, {"max_depth": [4, 16, None]}),
    ("random_forest", {"n_estimators": [300]}, {"n_estimators": [30, 100, 300]}),
    ("xgboost", {"n_estimators": [100]}, {"n_estimators": [25, 50, 100]}),
]


@pytest.mark.parametrize(("name", "one", "three"), FREE, ids=[case[0] for case in FREE])
def test_settings_that_one_fit_serves_cost_little(name, one, three) -> None:  # type: ignore[no-untyped-def]
    assert cost(name, MIDDLE, **three).seconds < 1.4 * cost(name, MIDDLE, **one).seconds


FITTED = [
    ("svm", "C", 1e-4),
    ("svm_rbf", "C", 1.0),
    ("logistic_regression", "C", 1e-3),
    ("decision_tree", "min_samples_leaf", 5),
    ("random_forest", "min_samples_leaf", 3),
    ("xgboost", "max_depth", 3),
    ("mlp", "lr", 1e-3),
]


@pytest.mark.parametrize(("name", "key", "value"), FITTED, ids=[case[0] for case in FITTED])
def test_settings_with_a_fit_of_their_own_cost_as_much_as_the_first(name: str, key: str, value: float) -> None:
    """Ten folds of two settings are 20 fits, of one 10; each is followed by one fit and three smaller ones."""
    one, two = cost(name, KINETICS, **{key: [value]}), cost(name, KINETICS, **{key: [value, 1.1 * value]})
    assert 1.6 < two.seconds / one.seconds < 2.1


def test_the_memory_of_a_forest_is_that_of_its_leaf_tables() -> None:
    """scikit-learn's: 325 MB were measured for one tree on 91,200 rows of 400 classes."""
    forest = cost("random_forest", KINETICS, n_estimators=[100, 300], min_samples_leaf=[1])
    assert forest.bytes == pytest.approx(300 * 325e6, rel=0.15)
    assert forest.mostly == "leaf tables of 300 trees x 400 classes"


def test_full_size_is_as_it_was_measured() -> None:
    """Processor seconds of a 10-fold search at the size of Kinetics-400, at 150 GFLOP/s: to a factor of three."""
    speed = Speed(1.5e11, 5e8, 1e9)
    ridge = expected("ridge", {"alpha": [float(power) for power in range(20)]}, KINETICS, speed)
    assert 32 / 3 < ridge.seconds < 32 * 3
    knn = expected("knn", {"n_neighbors": [5, 10, 20, 50, 100], "weights": ["uniform", "softmax"]}, KINETICS, speed)
    assert 230 / 3 < knn.seconds < 230 * 3


def test_work_adds_up() -> None:
    assert Work(1, 2, 3) + 2 * Work(10, 20, 30) == Work(21, 42, 63)
    assert Speed(1, 2, 4).seconds(Work(1, 2, 4)) == 3


def test_measured_speed_is_positive() -> None:
    assert all(value > 1e6 for value in astuple(Speed.measured()))


# ------------------------------------------------------------ plans


def sizes(rows: int, width: int, classes: int, held_out: int | None = None):  # type: ignore[no-untyped-def]
    def size(folds: int) -> Size:
        return Size(rows, rows if folds > 1 else held_out or rows // 10, rows // 3, width, classes, folds)

    return size


def planned(names, budget=None, memory=10**15, folds=10, cores=2, size=None):  # type: ignore[no-untyped-def]
    grids = {name: PROBES[name].grid(5000) for name in names}
    size = size or sizes(5000, 512, 50)
    return plan(names, grids, size, folds, SPEED, budget=budget, cores=cores, memory=memory)


names_of_probes = st.lists(st.sampled_from(list(PROBES)), unique=True, min_size=1)


@settings(max_examples=150)
@given(
    names=names_of_probes,
    shape=st.tuples(st.integers(100, 100_000), st.integers(16, 2048), st.integers(2, 500)),
    folds=st.sampled_from([1, 3, 10]),
    budget=st.floats(1, 1e6),
    cores=st.integers(1, 64),
    memory=st.integers(10**8, 10**11),
)
def test_a_budget_is_kept_and_used(names, shape, folds, budget, cores, memory) -> None:  # type: ignore[no-untyped-def]
    size = sizes(*shape)
    grids = {name: PROBES[name].grid(5000) for name in names}
    whole = {name: expected(name, grids[name], size(folds), SPEED) for name in names}
    held = {name: expected(name, grids[name], size(1), SPEED) for name in names}
    try:
        found, remarks = planned(names, budget, memory, folds, cores, size)
    except UserError:
        assert all(one.seconds > budget * cores or one.bytes > memory for one in held.values())
        return
    taken = {one.name: one for one in found}
    assert [name for name in names if name in taken] == [one.name for one in found]
    assert sum(one.cost.seconds for one in found) <= budget * cores * (1 + 1e-9)
    assert all(one.cost.bytes <= memory for one in found)
    assert len(remarks) == sum(name not in taken or taken[name].folds != folds for name in names)
    for name in names:
        before = sum(one.cost.seconds for one in found if whole[one.name].seconds < whole[name].seconds)
        left = (budget * cores - before) * (1 + 1e-9)
        if name not in taken:
            assert held[name].seconds > left * (1 - 2e-9) or held[name].bytes > memory
        else:
            assert taken[name].cost == (whole if taken[name].folds == folds else held)[name]
            if taken[name].folds != folds:
                assert whole[name].seconds > left * (1 - 2e-9) or whole[name].bytes > memory


def test_without_a_budget_all_is_done_as_asked() -> None:
    found, remarks = planned(list(PROBES)[::-1])
    assert [(one.name, one.folds) for one in found] == [(name, 10) for name in list(PROBES)[::-1]]
    assert remarks == []


def test_what_does_not_fit_in_memory_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError) as told:
        planned(["random_forest", "svm", "ridge"], memory=21 * GB, size=sizes(91_200, 1024, 400))
    line = str(told.value)
    assert "\n" not in line
    assert "random_forest needs 1" in line
    assert "leaf tables of 300 trees x 400 classes" in line
    assert "21.0 GB are free" in line
    assert "probe.probes=[svm,ridge]" in line


def test_where_nothing_fits_in_memory_no_classifier_is_recommended() -> None:
    with pytest.raises(UserError, match=r"another classifier"):
        planned(["random_forest"], memory=GB // 100)


def test_within_a_budget_what_needs_too_much_memory_is_left_out() -> None:
    found, remarks = planned(["random_forest", "ridge"], 1e9, 21 * GB, size=sizes(91_200, 1024, 400))
    assert [one.name for one in found] == ["ridge"]
    assert [remark.split(" needs ")[0] for remark in remarks] == ["random_forest is left out: it"]


def test_a_hold_out_comes_before_leaving_out() -> None:
    whole, held = (cost("mlp", sizes(5000, 512, 50)(folds)).seconds for folds in (10, 1))
    found, remarks = planned(["mlp"], budget=(whole + held) / 2 / 2)
    assert [(one.name, one.folds) for one in found] == [("mlp", 1)]
    assert remarks == [f"mlp: a hold-out ({time_text(held / 2)}) instead of 10 folds ({time_text(whole / 2)})"]
    with pytest.raises(UserError, match=r"mlp is left out: with a hold-out it takes about .* of the budget are left"):
        planned(["mlp"], budget=held / 2 * 0.9)


def test_a_budget_that_nothing_fits_into_names_the_cheapest() -> None:
    with pytest.raises(UserError, match=r"budget=under 1 s is too little: svm is left out: with a hold-out it takes"):
        planned(["mlp", "svm"], budget=0.01)


# ------------------------------------------------------------ what a person says and reads

number = st.integers(0, 10**6).map(str) | st.floats(0, 1e6).map(lambda value: f"{value:.3f}")


@given(hours=st.none() | number, minutes=st.none() | number, seconds=st.none() | number)
def test_a_budget_is_the_sum_of_its_parts(hours: str | None, minutes: str | None, seconds: str | None) -> None:
    parts = {"h": hours, "min": minutes, "s": seconds}
    text = "".join(f"{value}{unit}" for unit, value in parts.items() if value is not None)
    wanted = sum(float(value or 0) * size for value, size in zip(parts.values(), (3600, 60, 1), strict=True))
    if wanted > 0:
        assert read_budget(text) == pytest.approx(wanted)
    else:
        with pytest.raises(UserError):
            read_budget(text)


@given(number.filter(lambda text: float(text) > 0))
def test_a_plain_number_is_seconds(text: str) -> None:
    assert read_budget(text) == float(text)


@example("")
@example("0")
@example("0min")
@example("-5min")
@example("ten minutes")
@example("30min1h")
@example("1h30")
@example("nan")
@example("9" * 400)
@given(st.text(alphabet="hmins ,-+e.x", max_size=8))
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"\Abudget=.* is no time; say 10min.*\Z"):
        read_budget(text)


def test_figures_are_short() -> None:
    times = [0.2, 40, 89, 180, 5000, 4320, 7200, 3 * 86400]
    assert [time_text(value) for value in times] == [
        "under 1 s",
        "40 s",
        "89 s",
        "3 min",
        "83 min",
        "72 min",
        "2.0 h",
        "3.0 days",
    ]
    assert [size_text(value) for value in (1e6, 4e8, 3.24e10)] == ["under 0.1 GB", "0.4 GB", "32.4 GB"]


def test_the_table_tells_folds_settings_time_and_memory() -> None:
    plans = [Planned("ridge", 10, Cost(180.0, 4e8)), Planned("knn", 1, Cost(5.0, 1e6))]
    grids = {"ridge": {"alpha": [1.0] * 20}, "knn": {"n_neighbors": [1, 2, 3], "weights": ["uniform", "softmax"]}}
    assert list(table_rows(plans, grids)) == [
        ("ridge", "10 folds x 20 settings", "3 min", "0.4 GB"),
        ("knn", "hold-out x 6 settings", "5 s", "under 0.1 GB"),
    ]


# ------------------------------------------------------------ free memory

MB = 2**20


def group(folder: Path, limit: str, used: int, files: int, version: int) -> None:
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    names.append(("memory.max", "memory.current", "inactive_file"))
    most, now, dropped = names[version - 1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / most).write_text(f"{limit}\n")
    (folder / now).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{dropped} {files}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_control_groups_leave(tmp_path: Path, version: int) -> None:
    own, kinds = tmp_path / "own", "memory" if version == 1 else ""
    own.write_text(f"4:cpu,cpuacct:/elsewhere\n1:{kinds}:/job/step\n0::/\n")
    root = tmp_path / "fs" / kinds
    unlimited = "max" if version == 2 else str(2**63 - 4096)
    group(root / "job" / "step", unlimited, 3 * MB, 0, version)
    everything = free_memory(tmp_path / "fs", own)
    assert everything > 100 * MB
    group(root / "job", str(50 * MB), 30 * MB, 10 * MB, version)  # a parent's limit binds too
    assert free_memory(tmp_path / "fs", own) == 30 * MB
    group(root / "job" / "step", str(20 * MB), 15 * MB, 0, version)
    assert free_memory(tmp_path / "fs", own) == 5 * MB


def test_free_memory_of_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/../elsewhere\n")
    group(tmp_path / "fs", str(40 * MB), 10 * MB, 0, 2)
    assert free_memory(tmp_path / "fs", own) == 30 * MB


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path / "none") > 100 * MB
