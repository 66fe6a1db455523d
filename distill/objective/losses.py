"""Every loss, by name: a pure function (said, taught, clips, *, options) -> scalar, and one line in the table below.

Its keyword-only arguments are its recipe options; one without default must be given. Options annotated `Moving` may
change over time. `learnt` is no option: it is what the loss learns. A loss is a mean over the clips of its batch, so it
does not change with the batch's size or with the number of frames; where it does, its docstring says so.

    answers.py    labels, and the teacher's logits: cross_entropy kl dkd dist
    pictures.py   the frames themselves: reconstruction
    features.py   what student and teacher say of a clip or a frame: mse feature hint temporal vid
    maps.py       where something is: attention reviewkd
    relations.py  how clips lie to each other: rkd_distance rkd_angle pkt similarity
    contrast.py   telling a clip from all others: crd
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distill.objective import features, maps
from distill.objective.answers import cross_entropy, dist, dkd, kl
from distill.objective.contrast import contrast, crd
from distill.objective.features import feature, hint, mse, temporal, vid
from distill.objective.maps import attention, reviewkd
from distill.objective.pairs import for_each
from distill.objective.pictures import reconstruction
from distill.objective.relations import pkt, rkd_angle, rkd_distance, similarity
from distill.outputs import Clips, StudentOutput, TeacherOutput

LEARNT = "learnt"  # the keyword by which a loss is handed what it learns


@dataclass(frozen=True)
class Loss:
    """A loss function, and what has to be known of it."""

    function: Callable[..., Tensor]
    teacher: bool = False  # it needs a teacher
    answers: bool = False  # it trains the classifier
    logits: bool = False  # it compares logits, so it can be averaged over several teachers
    hard: bool = False  # it is about one clip and its label, so clips may not be mixed
    want: frozenset[str] = field(default_factory=frozenset)  # what to ask of the student, whatever the options say
    module: Callable[..., nn.Module | None] | None = None  # makes what it learns

    def __call__(self, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, /, **options: Any) -> Tensor:
        """Never in half precision, whatever student and teacher computed in."""
        with torch.autocast(said.logits.device.type, enabled=False):
            return self.function(said.float(), taught.float() if taught else None, clips, **options)

    def learns(
        self, said: StudentOutput, taught: TeacherOutput | None, training: Sequence[int], /, **options: Any
    ) -> nn.Module | None:
        """What it learns, if anything, made for a pair of answers, of which the shapes alone count.

        `training` are the indices of the clips that will be trained on.
        """
        if self.module is None:
            return None
        defaults = inspect.getfullargspec(self.function).kwonlydefaults or {}
        options = {name: value for name, value in (defaults | options).items() if name != LEARNT}
        return self.module(said, taught, training, **options)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, answers=True),
    "kl": Loss(kl, teacher=True, answers=True, logits=True),
    "dkd": Loss(dkd, teacher=True, answers=True, logits=True, hard=True),
    "dist": Loss(dist, teacher=True, answers=True, logits=True),
    "reconstruction": Loss(reconstruction, want=frozenset({"reconstruction"})),
    "mse": Loss(mse, teacher=True, answers=True, module=for_each("mse", features.projection)),
    "feature": Loss(feature, teacher=True, module=for_each("feature", features.projection)),
    "hint": Loss(hint, teacher=True, module=for_each("hint", features.regressor)),
    "temporal": Loss(temporal, teacher=True, module=for_each("temporal", features.motion_projection)),
    "vid": Loss(vid, teacher=True, module=for_each("vid", features.forecast)),
    "attention": Loss(attention, teacher=True),
    "reviewkd": Loss(reviewkd, teacher=True, module=maps.review),
    "rkd_distance": Loss(rkd_distance, teacher=True),
    "rkd_angle": Loss(rkd_angle, teacher=True),
    "pkt": Loss(pkt, teacher=True),
    "similarity": Loss(similarity, teacher=True),
    "crd": Loss(crd, teacher=True, hard=True, module=contrast),
}
