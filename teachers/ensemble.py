"""Several teachers who answer together: the average of what they say of each of the data set's classes.

Probabilities are those among the data set's classes, whatever else a member knows: one who knows four hundred has no
less of a say than one who was told these ten.

The members' features stand one after another in the feature; there is none if one of them has none. A map is asked for
by the member's place and the map's name: "0.attention"; "0.logits" is what the member says on its own.

Shape legend: B clips, T frames, H and W pixels, K classes of the data set, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import reduce
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from distill import plugins
from distill.labels import columns
from distill.outputs import ClipSpec, TeacherOutput
from distill.weights import digest_facts


@dataclass
class Options:
    members: list[Any] = MISSING
    """The teachers: a list of names, each with its options, as a recipe has them."""
    average: str = "probabilities"
    """What is averaged: probabilities (their logarithm is the answer) or logits."""
    weights: list[float] = field(default_factory=list)
    """How much each member counts, in their order. Empty: one as much as another."""


def _mean_of_probabilities(logits: Tensor, shares: Tensor) -> Tensor:
    return (logits.log_softmax(dim=2) + shares.log()).logsumexp(dim=0)


def _mean_of_logits(logits: Tensor, shares: Tensor) -> Tensor:
    return (logits * shares).sum(dim=0)


AVERAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probabilities": _mean_of_probabilities,
    "logits": _mean_of_logits,
}


class Ensemble(nn.Module):
    """Each member sees what it wants to see and answers for the data set's classes, whatever its own order."""

    shares: Tensor  # [M,1,1]

    def __init__(self, options: Options, members: Sequence[Any], classes: Sequence[str]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.classes, self.average = list(classes), AVERAGES[options.average]
        self.takes_any_class = all(getattr(member, "takes_any_class", False) for member in members)
        self.specs: list[ClipSpec] = [member.spec for member in members]
        self.spec = reduce(ClipSpec.union, self.specs)
        self.map_names = tuple(
            f"{place}.{name}" for place, member in enumerate(members) for name in ("logits", *member.map_names)
        )
        self.columns: list[list[int]] = []
        for place, (given, member) in enumerate(zip(options.members, members, strict=True)):
            with _named(place, given["name"], " "):
                self.columns.append(columns(member.classes, classes))
        self.register_buffer("shares", torch.tensor(_shares(options)).view(-1, 1, 1), persistent=False)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        logits: list[Tensor] = []
        features: list[Tensor] = []
        maps: dict[str, Tensor] = {}
        for place, member in enumerate(self.members):
            asked = [name.removeprefix(f"{place}.") for name in want if name.startswith(f"{place}.")]
            answer: TeacherOutput = member(self.specs[place].fit(frames), want=asked)
            assert isinstance(answer.logits, Tensor)
            logits.append(answer.logits[:, self.columns[place]].float())
            answer.maps["logits"] = logits[-1]
            features += [] if answer.feature is None else [answer.feature]
            maps |= {f"{place}.{name}": answer.maps[name] for name in asked if name in answer.maps}
        feature = torch.cat(features, dim=1) if len(features) == len(logits) else None
        return TeacherOutput(self.average(torch.stack(logits), self.shares), feature, maps)


def build(options: Options, classes: Sequence[str]) -> Ensemble:
    members = []
    for place, member in enumerate(_members(options)):
        with _named(place):
            members.append(plugins.build("teacher", member, classes=classes))
    return Ensemble(options, members, classes)


def fingerprint(options: Options) -> str:
    facts = [_ask_all(options, "fingerprint"), options.average, _shares(options)]
    return digest_facts(facts)


def wants(options: Options) -> ClipSpec:
    specs: list[ClipSpec] = _ask_all(options, "wants")
    return reduce(ClipSpec.union, specs)


def _ask_all(options: Options, question: str) -> list[Any]:
    answers = []
    for place, member in enumerate(_members(options)):
        with _named(place, member.name):
            answers.append(getattr(plugins.module("teacher", member.name), question)(member))
    return answers


def _members(options: Options) -> list[Any]:
    """The members' options, each checked against what its teacher takes."""
    if options.average not in AVERAGES:
        raise ValueError(f"average={options.average!r} is none of {', '.join(AVERAGES)}")
    if not options.members:
        raise ValueError("it has no members; say members: [{name: NAME, ...}, ...]")
    if options.weights and (len(options.weights) != len(options.members) or min(options.weights) <= 0):
        raise ValueError(
            f"weights={options.weights} should be {len(options.members)} numbers above 0, one for a member"
        )
    return [_member(place, given) for place, given in enumerate(options.members)]


def _member(place: int, given: Any) -> Any:
    """One member's options as the recipe of this teacher alone would have them."""
    name = given.get("name") if isinstance(given, Mapping) else None
    if name not in plugins.names("teacher"):
        raise ValueError(f"members[{place}] needs a name; known: {', '.join(plugins.names('teacher'))}")
    schema = plugins.schema("teacher", name)
    known = [item.name for item in fields(schema)]
    with _named(place, name):
        for key in given:
            if key not in known:
                near = get_close_matches(str(key), known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"there is no key {key!r}; {hint}")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), dict(given))
        except OmegaConfBaseException as error:
            raise ValueError(f"{error.full_key}: {str(error.msg).splitlines()[0]}") from error
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"{missing[0]} has no value")
    return OmegaConf.to_object(merged)


def _shares(options: Options) -> list[float]:
    """What part of the answer is each member's."""
    weights = options.weights or [1.0] * len(options.members)
    return [weight / sum(weights) for weight in weights]


@contextmanager
def _named(place: int, name: str = "", after: str = ": ") -> Iterator[None]:
    """Complaints begin with the member they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"members[{place}]{f' ({name})' if name else ''}{after}{error}") from error
