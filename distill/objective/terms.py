"""What a recipe says of a loss: its weight, and the loss's own options, which are its keyword-only arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

from omegaconf import MISSING

from distill.errors import UserError
from distill.objective.losses import LEARNT, LOSSES


@dataclass
class Term:
    """What every term of an objective has; a loss's own options join it."""

    weight: Any = MISSING
    """Factor of this loss in the sum: a number, or one that moves, {to: 0.5, over: 20 epochs}; 0 switches it off."""
    members: dict[str, float] = field(default_factory=dict)
    """Several teachers: maps of an ensemble that hold its members' logits, e.g. {0.logits: 0.7, 1.logits: 0.3}; the
    loss is its mean over them, with these weights. Empty: the teacher's own answer."""


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """A loss's own options: its keyword-only arguments but for what it learns."""
    found = inspect.signature(LOSSES[name].function).parameters.values()
    return {item.name: item for item in found if item.kind is inspect.Parameter.KEYWORD_ONLY and item.name != LEARNT}


def shown(name: str) -> Iterator[str]:
    """A loss's own options for a person: with their defaults, if they have any."""
    for option, item in parameters(name).items():
        default = "" if item.default is inspect.Parameter.empty else f"={str(item.default).lower()}"
        yield f"{option}{default}" + (" (may move over time)" if option in moving(name) else "")


def moving(name: str) -> set[str]:
    """The options of a loss that may change over time."""
    hints = get_type_hints(LOSSES[name].function, include_extras=True)
    return {option for option in parameters(name) if get_origin(hints[option]) is Annotated}


def schema(name: str) -> type[Any]:
    """The recipe options of a loss: those of every term and its own."""
    if name not in LOSSES:
        raise UserError(f"there is no loss named {name!r}; known: {', '.join(sorted(LOSSES))}")
    hints, movable, own = get_type_hints(LOSSES[name].function), moving(name), []
    for option, item in parameters(name).items():
        default = MISSING if item.default is inspect.Parameter.empty else item.default
        own.append((option, Any if option in movable else hints[option], field(default=default)))
    return make_dataclass(f"{name}.Term", own, bases=(Term,))


def own_options(term: Any) -> dict[str, Any]:
    """A term's options without those that every term has."""
    return {name: value for name, value in vars(term).items() if name not in Term.__dataclass_fields__}
