"""Plug-ins are files: `ls students/` is the registry.

A plug-in is a module with a dataclass `Options` and a function `build(options, ...)`. Nothing registers it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import field, make_dataclass
from types import ModuleType
from typing import Any

from distill.errors import UserError

KINDS = {"student": "students", "teacher": "teachers", "source": "distill.clips.sources"}


def names(kind: str) -> list[str]:
    package = importlib.import_module(KINDS[kind])
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))


def module(kind: str, name: str) -> ModuleType:
    if name not in names(kind):
        raise UserError(f"there is no {kind} named {name!r}; known: {', '.join(names(kind))}")
    return importlib.import_module(f"{KINDS[kind]}.{name}")


@functools.cache  # one class for each plug-in, so that copies of options equal each other
def schema(kind: str, name: str) -> type[Any]:
    """The plug-in's Options with its name in front, as it stands in a recipe."""
    options = module(kind, name).Options
    whole = {
        "__reduce__": lambda self: (_again, (kind, name, vars(self)))
    }  # a spawned worker finds no class by its name
    return make_dataclass(f"{name}.Options", [("name", str, field(default=name))], bases=(options,), namespace=whole)


def _again(kind: str, name: str, values: dict[str, Any]) -> Any:
    return schema(kind, name)(**values)


def build(kind: str, options: Any, **context: Any) -> Any:
    """Build the plug-in that `options.name` names."""
    try:
        return module(kind, options.name).build(options, **context)
    except (ValueError, RuntimeError) as error:  # torch refuses impossible sizes with a RuntimeError
        raise UserError(f"{kind} {options.name}: {error}") from error
