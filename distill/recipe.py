"""A recipe is one experiment: a typed tree, read from YAML and from key=value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill import plugins
from distill.clips.clipset import ClipOptions
from distill.errors import UserError
from distill.files import publish_text
from distill.freezing import NEVER, Freezing
from distill.keys import (
    COMMAND_LINE,
    check_groups,
    dotlist,
    explain,
    find_recipe,
    flatten,
    load_yaml,
    named_recipe,
    nearest,
    recipe_names,
)
from distill.loop import Timetable, TrainOptions
from distill.objective import terms
from distill.objective.objective import check_members, named, teacher_maps
from distill.objective.schedule import read_course, steps_of
from distill.optim import Optim, Rate
from distill.probing.options import ProbeOptions
from distill.teaching.store import CacheOptions

Layer = tuple[str, DictConfig]  # where it comes from, and what it says


@dataclass
class DataOptions:
    root: str = "data"
    """Folder under which data sets and official weights lie; recipes say where in it with ${data.root}."""


@dataclass
class Recipe:
    """One experiment: clips, a teacher, a student, an objective and a schedule."""

    out: str = MISSING
    """Run folder: everything that the run leaves behind goes there."""
    seed: int = 0
    """Every random choice follows from it."""
    resume: bool = False
    """Go on with the run in `out` instead of refusing to touch it."""
    data: DataOptions = field(default_factory=DataOptions)
    clips: ClipOptions = field(default_factory=ClipOptions)
    student: Any = MISSING
    """The network to train: name of a file in students/, and its options."""
    init: str = ""
    """Where the student's weights start: a run folder, or a file of weights. Empty: as the student's options say.
    From the folder of a pruned student it is as narrow and as sparse as that one, and stays so."""
    teacher: Any = None
    """The network that teaches: name of a file in teachers/, and its options. Empty: no teacher."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    objective: dict[str, Any] = field(default_factory=dict)
    """Loss name -> weight and the loss's own options; see distill/objective/losses.py."""
    optim: Optim = field(default_factory=Optim)
    schedule: Freezing = field(default_factory=Freezing)
    train: TrainOptions = field(default_factory=TrainOptions)
    stages: dict[str, Any] = field(default_factory=dict)
    """Trainings one after the other, each from where the one before it ended: name -> changes of this recipe's keys.
    All but the last have a run folder of their name in `out`. `${key}` stands for the value outside of the stages."""
    probe: ProbeOptions = field(default_factory=ProbeOptions)


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """`recipe=NAME key=value ...` to a checked Recipe."""
    name, changes = named_recipe(arguments)
    if not name:
        raise UserError(f"which recipe? say recipe=NAME; known: {', '.join(recipe_names())}")
    path = find_recipe(name)
    recipe = _merge([(str(path), load_yaml(path)), (COMMAND_LINE, dotlist(changes))])
    stages(recipe)  # what is wrong with one of them shows now
    return recipe


def read_run(run: str | Path, changes: Sequence[str], usage: str) -> Recipe:
    """The recipe that a run was made with, and changes to it."""
    path = Path(run, "recipe.yaml")
    if not path.is_file():
        raise UserError(f"{run} is no run folder ({path} is missing); {usage}")
    return read_recipe([f"recipe={path}", *changes])


# What no stage can change: one cache serves all.
KEPT = ("out", "seed", "resume", "data", "clips", "teacher", "cache", "init", "stages")
TAKEN = ("student", "checkpoints", "tensorboard")  # folders that every run has


def stages(recipe: Recipe) -> list[Recipe]:
    """The recipe of each stage; of a recipe without stages, itself. Maps that a loss looks at join the cache's."""
    if not recipe.stages:
        return [_with_maps(recipe, [recipe])]
    whole, found = OmegaConf.create(_tree(replace(recipe, stages={}))), list[Recipe]()
    for name, changes in recipe.stages.items():
        origin = f"stages.{name}"
        if not re.fullmatch(r"[\w-]+", str(name)) or name in TAKEN:
            raise UserError(f"{origin} cannot be called so: it is a folder of its own, of letters, and none of {TAKEN}")
        if not isinstance(changes, dict) or not set(changes).isdisjoint(KEPT):
            raise UserError(f"{origin} is a group of changes to the recipe, but for {', '.join(KEPT)}")
        stage = _merge([("the recipe", whole), (origin, OmegaConf.create(_escaped(changes)))])
        if stage.train.precision != recipe.train.precision:
            raise UserError(f"{origin}: train.precision is {stage.train.precision}; it is the same in all stages")
        stage.init = found[-1].out if found else recipe.init
        stage.out = recipe.out if len(found) + 1 == len(recipe.stages) else f"{recipe.out}/{name}"
        found.append(_with_maps(stage, [stage]))
    return found


def for_cache(recipe: Recipe) -> Recipe:
    """The recipe with the maps that any of its stages looks at."""
    return _with_maps(recipe, stages(recipe))


def _with_maps(recipe: Recipe, lookers: Sequence[Recipe]) -> Recipe:
    wanted = [name for looker in lookers for name in teacher_maps(looker.objective)]
    maps = list(dict.fromkeys([*recipe.cache.maps, *wanted]))
    return replace(recipe, cache=replace(recipe.cache, maps=maps))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the merged recipe, which is a recipe too."""
    publish_text(path, OmegaConf.to_yaml(OmegaConf.create(_name_first(_tree(recipe)))))


def differences(recipe: Recipe, path: Path) -> list[str]:
    """The keys in which a recipe differs from the one saved at `path`."""
    mine, other = flatten(_tree(recipe)), flatten(_tree(_merge([(str(path), load_yaml(path))])))
    return [key for key in mine | other if mine.get(key) != other.get(key) and key != "resume"]


def _tree(recipe: Recipe) -> Any:
    return _escaped(asdict(recipe))


def _escaped(tree: Any) -> Any:
    """Values are resolved by now: a `${` that one still has is part of it, and has to be one when it is read again."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _name_first(tree: Any) -> Any:
    """The tree with every plug-in's name before its options, as a person would write it."""
    if not isinstance(tree, dict):
        return tree
    order = sorted(tree, key=lambda key: key != "name")
    return {key: _name_first(tree[key]) for key in order}


def _merge(layers: Sequence[Layer]) -> Recipe:
    """Defaults, then each layer over them, each checked against the schema under its own name."""
    merged = OmegaConf.structured(Recipe)
    plain: list[tuple[str, Any]] = [(origin, OmegaConf.to_container(tree)) for origin, tree in layers]
    for origin, tree in plain:  # before plug-ins are looked up: a wrong top-level key is the likelier mistake
        for key in tree:
            if key not in Recipe.__dataclass_fields__:
                near = nearest(str(key), list(Recipe.__dataclass_fields__))
                raise UserError(f"{origin}: there is no key {key!r}{near}")
    _put_schemas(merged, plain)
    for (origin, tree), (_, values) in zip(layers, plain, strict=True):
        check_groups(origin, OmegaConf.to_container(merged), values)
        try:
            merged = OmegaConf.merge(merged, tree)
            _check_times(merged)
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}: {explain(error)}") from error
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        recipe = None if missing else OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{layers[0][0]} with {COMMAND_LINE}: {explain(error)}") from error
    if missing:
        group = missing[0].rpartition(".")[0]
        asking = [origin for origin, tree in plain if any(key.startswith(f"{group}.") for key in flatten(tree))]
        in_stage = bool(asking) and asking[-1].startswith("stages.")
        where, key = (asking[-1], f"{asking[-1]}.{missing[0]}") if in_stage else (layers[0][0], missing[0])
        raise UserError(f"{where}: {missing[0]} has no value; set it there or say {key}=... on {COMMAND_LINE}")
    assert isinstance(recipe, Recipe)
    return recipe


def _put_schemas(merged: DictConfig, layers: Sequence[tuple[str, Any]]) -> None:
    """Give the plug-ins' nodes and the objective's terms the types that their names stand for."""
    for key, kind in (("student", "student"), ("teacher", "teacher"), ("clips.source", "source")):
        origin, name = _plugin_name(layers, key, kind)
        if name is None:
            continue
        try:
            OmegaConf.update(merged, key, OmegaConf.structured(plugins.schema(kind, name)), merge=False)
        except UserError as error:
            raise UserError(f"{origin}: {key}.name: {error}") from error
    for origin, tree in layers:
        named = tree.get("objective")
        for name in named if isinstance(named, dict) else ():
            try:
                merged.objective[name] = OmegaConf.structured(terms.schema(str(name)))
            except UserError as error:
                raise UserError(f"{origin}: objective.{name}: {error}") from error


def _check_times(tree: Any) -> None:
    """Whether lengths of time and what moves can be read; how long an epoch is does not matter for that."""
    train, optim = (OmegaConf.to_object(node) for node in (tree.train, tree.optim))
    assert isinstance(train, TrainOptions)
    assert isinstance(optim, Optim)
    Timetable.of(train, 1)
    Rate(optim, 0, 1)
    for name, term in tree.objective.items():
        given: Any = OmegaConf.to_container(term, resolve=True)
        for option in ("weight", *terms.moving(str(name))):
            if given[option] != MISSING:
                read_course(given[option], f"objective.{name}.{option}", stops=option == "weight")
        check_members(str(name), given["members"])
        for side in ("student", "teacher"):
            if given.get(side) != MISSING:
                named(str(name), SimpleNamespace(**given), side)
    for key, group in tree.schedule.groups.items():
        if group.at != NEVER:
            steps_of(group.at, 1, f"schedule.groups.{key}.at")


def _plugin_name(layers: Sequence[tuple[str, Any]], key: str, kind: str) -> tuple[str, str | None]:
    """Which plug-in the layers choose, and the layer that did; None stands for a teacher that is not there."""
    default = "motion" if kind == "source" else None
    chosen, mentioned = ("the defaults", default), ""
    for origin, tree in layers:
        node = tree
        for part in key.split("."):
            node = node.get(part, ...) if isinstance(node, dict) else ...
        if node is ...:
            continue
        if node is None and kind == "teacher":
            chosen, mentioned = (origin, None), ""
            continue
        name = node.get("name", chosen[1]) if isinstance(node, dict) else None
        chosen, mentioned = ((origin, name) if name != chosen[1] else chosen), origin
        if not isinstance(node, dict) or not isinstance(name, str | None):
            raise UserError(f"{origin}: {key} needs a name; known: {', '.join(plugins.names(kind))}")
    if mentioned and chosen[1] is None:
        raise UserError(f"{mentioned}: {key} needs a name; known: {', '.join(plugins.names(kind))}")
    return chosen
