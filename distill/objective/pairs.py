"""What a loss on features compares: the things that its options name, and how two of different shape come together.

Shape legend: B clips, T frames, D or C channels, H and W places. How many axes a thing has says what it is: [B,D] a
vector, [B,T,D] a vector for each frame, [B,C,H,W] a map, [B,C,T,H,W] a map for each frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.outputs import StudentOutput, TeacherOutput, TopK

# From how many axes to how many: the axes that are averaged away.
AVERAGED = {(5, 4): (2,), (5, 3): (3, 4), (5, 2): (2, 3, 4), (4, 2): (2, 3), (3, 2): (1,)}
FRAMES = {5: (2,), 3: (1,)}  # of so many axes, those that count frames
FRAMES_AND_PLACES = {5: (2, 3, 4), 4: (2, 3), 3: (1,)}
ONLY_LARGEST = "only the teacher's largest logits are cached; set cache.top_k to the number of classes"


@dataclass(frozen=True)
class Pair:
    """One thing of the student's and one of the teacher's, which gets no gradient."""

    loss: str
    names: tuple[str, str]  # the student's, the teacher's
    student: Tensor
    teacher: Tensor

    def levelled(self, places: bool = True) -> tuple[Tensor, Tensor]:
        """Both with the same axes and as many frames, and with `places` as many places: the finer one is averaged.

        [B,64,8,7,7] and [B,768] become [B,64] and [B,768]; with [B,4,768] it becomes [B,4,64].
        """
        axes = min(self.student.dim(), self.teacher.dim())
        student, teacher = self.reduced(axes)
        for axis in (FRAMES_AND_PLACES if places else FRAMES).get(axes, ()):
            size = min(student.shape[axis], teacher.shape[axis])
            student, teacher = averaged(student, axis, size), averaged(teacher, axis, size)
        return student, teacher

    def reduced(self, axes: int) -> tuple[Tensor, Tensor]:
        """Both averaged over the axes that a thing of so many axes does not have."""
        for thing in (self.student, self.teacher):
            if thing.dim() != axes and (thing.dim(), axes) not in AVERAGED:
                raise self.refusal()
        return _reduced(self.student, axes), _reduced(self.teacher, axes)

    def meet(self, link: nn.Module, places: bool = True) -> tuple[Tensor, Tensor]:
        """Both levelled, the student's led to the teacher's shape by what was learnt."""
        student, teacher = self.levelled(places)
        student = link(student)
        if student.shape != teacher.shape:
            raise self.refusal()
        return student, teacher

    def refusal(self, why: str = "they cannot be brought to one shape") -> UserError:
        mine, other = (list(thing.shape) for thing in (self.student, self.teacher))
        both = f"the student's {self.names[0]} {mine} and the teacher's {self.names[1]} {other}"
        return UserError(f"objective.{self.loss}: {both}: {why}")


def pairs(loss: str, said: StudentOutput, taught: TeacherOutput | None, student: Any, teacher: Any) -> list[Pair]:
    """What the options `student` and `teacher` name, in pairs: one name each, or lists of the same length."""
    assert taught is not None
    mine, others = _names(f"objective.{loss}.student", student), _names(f"objective.{loss}.teacher", teacher)
    if len(mine) != len(others):
        raise UserError(f"objective.{loss}: {len(mine)} names of the student's and {len(others)} of the teacher's")
    painted = said.reconstruction
    painted = None if painted is None else painted.transpose(1, 2)  # colours before frames, as in every map
    has = {"latent": said.latent, "logits": said.logits, "reconstruction": painted, **said.features}
    knows: dict[str, Tensor | TopK | None] = {"feature": taught.feature, "logits": taught.logits, **taught.maps}
    return [
        Pair(loss, (left, right), _find(has, left, f"{loss}.student"), _find(knows, right, f"{loss}.teacher").detach())
        for left, right in zip(mine, others, strict=True)
    ]


def _names(key: str, given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{key} is {given!r}; it is a name, or a list of names")
    return names


def _find(known: Mapping[str, Tensor | TopK | None], name: str, key: str) -> Tensor:
    found = known.get(name)
    if found is None:
        gives = ", ".join(sorted(name for name, thing in known.items() if thing is not None))
        raise UserError(f"objective.{key} is {name!r}; the {key.split('.')[1]} gives {gives}")
    if isinstance(found, TopK):
        raise UserError(f"objective.{key}: {ONLY_LARGEST}")
    return found if found.dim() > 1 else found[:, None]


def averaged(thing: Tensor, axis: int, size: int) -> Tensor:
    """At most so many along an axis, each the average of a stretch; over several axes, average pooling to a size."""
    if thing.shape[axis] <= size:
        return thing
    last = thing.movedim(axis, -1)
    pooled = F.adaptive_avg_pool1d(last.flatten(0, -2), size)
    return pooled.view(*last.shape[:-1], size).movedim(-1, axis)


def _reduced(thing: Tensor, axes: int) -> Tensor:
    if thing.dim() == axes:
        return thing
    mean = thing.mean(AVERAGED[thing.dim(), axes])
    return mean.transpose(1, 2) if axes == 3 else mean


def channels(thing: Tensor) -> int:
    """The axis of the channels."""
    return 1 if thing.dim() > 3 else -1


def width(thing: Tensor) -> int:
    return thing.shape[channels(thing)]


def length(vectors: Tensor, axis: int = -1) -> Tensor:
    """Euclidean, kept as an axis of size 1; its gradient is 0 where the vector is."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=axis, keepdim=True)
    return found


class Channels(nn.Linear):
    """A linear layer over the channels, whatever other axes there are."""

    def forward(self, thing: Tensor) -> Tensor:
        axis = channels(thing)
        return super().forward(thing.movedim(axis, -1)).movedim(-1, axis)


def total(values: Iterable[Tensor]) -> Tensor:
    """Over pairs."""
    return torch.stack(list(values)).sum()


def linked(
    loss: str, said: StudentOutput, taught: TeacherOutput | None, student: Any, teacher: Any, learnt: nn.Module | None
) -> Iterator[tuple[Pair, nn.Module]]:
    """The pairs, each with what was learnt for it."""
    found = pairs(loss, said, taught, student, teacher)
    assert learnt is None or isinstance(learnt, nn.ModuleList)
    return zip(found, learnt or [nn.Identity() for _ in found], strict=True)


def for_each(loss: str, make: Callable[..., nn.Module | None]) -> Callable[..., nn.ModuleList | None]:
    """What a loss learns that needs a module for each pair: `make(pair, options)`, or the identity where it is None."""

    def learns(
        said: StudentOutput,
        taught: TeacherOutput | None,
        training: Sequence[int],
        /,
        *,
        student: Any,
        teacher: Any,
        **options: Any,
    ) -> nn.ModuleList | None:
        made = [make(pair, **options) for pair in pairs(loss, said, taught, student, teacher)]
        if all(module is None for module in made):
            return None
        return nn.ModuleList(nn.Identity() if module is None else module for module in made)

    return learns
