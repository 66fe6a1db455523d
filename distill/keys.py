"""Keys and values as the command line has them, for a recipe and for whoever goes without one; no torch here."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.errors import UserError

COMMAND_LINE = "the command line"
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
Group = TypeVar("Group")


def pair(argument: str, usage: str) -> tuple[str, str]:
    """key=value, taken apart."""
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"{argument!r} is not key=value; {usage}")
    return key, value


def named_recipe(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What recipe= says, and the other arguments."""
    name, changes = "", list[str]()
    for argument in arguments:
        key, value = pair(argument, "example: recipe=tiny train.steps=10")
        if key == "recipe":
            name = value
        else:
            changes.append(argument)
    return name, changes


def recipe_names(folder: Path = RECIPES) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """recipe=NAME stands for recipes/NAME.yaml; anything with a slash or an ending is a path."""
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"recipe {name!r} is not there ({path}){nearest(name, recipe_names(folder))}")
    return path


def load_yaml(path: Path) -> DictConfig:
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path} is not a recipe: it should be a tree of keys and values")
    return tree


def read_group(kind: type[Group], changes: Sequence[str], recipe: Path | None = None) -> Group:
    """A group of keys that stands for itself, from `key=value ...` over a file of such keys."""
    layers = [(str(recipe), load_yaml(recipe))] if recipe else []
    merged = OmegaConf.structured(kind)
    for origin, tree in [*layers, (COMMAND_LINE, dotlist(changes))]:
        check_groups(origin, OmegaConf.to_container(merged), OmegaConf.to_container(tree))
        try:
            merged = OmegaConf.merge(merged, tree)
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}: {explain(error)}") from error
    try:
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{recipe or COMMAND_LINE}: {explain(error)}") from error
    assert isinstance(found, kind)
    return found


def whole_list(argument: str, keys: Collection[str]) -> str:
    """key=a,b stands for key=[a,b] where the key is one of a list."""
    key, _, value = argument.partition("=")
    return f"{key}=[{value}]" if key in keys and value[:1] != "[" else argument


def dotlist(changes: Sequence[str]) -> DictConfig:
    tree: Any = OmegaConf.create()
    for change in changes:
        try:
            key, _, value = change.partition("=")
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([f"{key}={_quoted(value)}"]))
        except (YAMLError, OmegaConfBaseException, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{COMMAND_LINE}: {change!r} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(tree, DictConfig)
    return tree


def _quoted(value: str) -> str:
    """A value as YAML that means it: the name of a folder may look like a comment or a map, and is none."""
    odd = (" #" in value or ": " in value) and value[:1] not in ("{", "[", "'", '"')
    return "'" + value.replace("'", "''") + "'" if odd else value


def check_groups(origin: str, schema: Any, values: Any, key: str = "") -> None:
    """A value where a group of keys belongs; OmegaConf's own complaint does not say where."""
    plain = isinstance(values, str | int | float) and not str(values).startswith("${")
    if isinstance(schema, list) and (plain or isinstance(values, dict)):
        raise UserError(f"{origin}: {key} is a list, not {values!r}; say {key}=[...]")
    if not isinstance(schema, dict) or (key == "teacher" and values is None):
        return
    if key.startswith("objective.") and "to" in schema and not isinstance(values, dict):
        return  # a weight that moved becomes one that does not
    if not isinstance(values, dict):
        example = next(iter(flatten(schema, key)), f"{key}.NAME.{'KEY' if key == 'stages' else 'weight'}")
        raise UserError(f"{origin}: {key} is a group of keys, not {values!r}; say {example}=...")
    for name, value in values.items():
        if name in schema:
            check_groups(origin, schema[name], value, f"{key}.{name}".lstrip("."))


def explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint as one sentence with the key in front."""
    key = error.full_key or error.key or ""
    known = getattr(error.object_type, "__dataclass_fields__", {})
    if "not in" in str(error.msg) and known:
        return f"there is no key {key!r}{nearest(str(key).rpartition('.')[2], list(known))}"
    if "Union[int, str]" in str(error.msg):
        given = str(error.msg).partition(" of type")[0].partition(" is ")[0]
        return f"{key}: {given} is no time; whole steps, like 1000, or a text like '20 epochs'"
    return f"{key}: {str(error.msg).splitlines()[0] if error.msg else error}"


def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
