"""Before training starts: student, teacher and objective meet over an example, so that what does not fit shows now."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.errors import UserError
from distill.objective.objective import Objective, student_names
from distill.outputs import Clips, ClipSpec, Student
from distill.randomness import generator, number
from distill.teaching.teacher import Teacher


def rehearse(
    student: Student,
    teacher: Teacher | None,
    objective: Objective,
    spec: ClipSpec,
    training: Sequence[int],
    seed: int,
    device: torch.device,
) -> None:
    """Makes what the losses learn. `spec` is that of the batches; random numbers go on as if nothing had happened."""
    index = torch.tensor([training[0], training[-1]])
    shape = (2, spec.frames, 3, spec.size, spec.size)
    noise = torch.from_numpy(generator(seed, "rehearsal").integers(0, 256, shape, "uint8"))
    clips = Clips(noise, torch.zeros_like(index), index, torch.ones_like(index)).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(number(seed, "parts"))
        student.eval()
        with torch.no_grad():
            try:
                said = student(student.spec.fit(clips.frames), want=_all_wanted(objective))
            except RuntimeError as error:
                raise UserError(f"the student cannot be shown {list(shape)}: {str(error).splitlines()[0]}") from error
            taught = teacher(clips) if teacher else None
        objective.meet(said, taught, clips, training)
        student.train()


def _all_wanted(objective: Objective) -> set[str]:
    """What any of the terms ever asks for."""
    return {name for term, options in objective.terms.items() for name in student_names(term, options)}
