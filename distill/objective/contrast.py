"""Contrastive distillation: a clip is told from other clips by comparing what student and teacher say.

Both sides are embedded in vectors of length 1. What a clip is told from is kept in buffers: a checkpoint holds them, so
a resumed run goes on with the same bits; what a batch adds is gathered from all processes, so that all hold the same.

Shape legend: B clips, E width of the embedding, N training clips, K negatives, Q length of the queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.pairs import pairs
from distill.outputs import Clips, StudentOutput, TeacherOutput
from distill.randomness import number

MODES = ("memory", "queue")


def crd(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: str = "latent",
    teacher: str = "feature",
    mode: str = "memory",
    width: int = 128,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    learnt: nn.Module | None = None,
) -> Tensor:
    """Contrastive distillation (Tian 2020): which of the teacher's embeddings is that of the clip? Mean over clips.

    mode=memory keeps both embeddings of every training clip (2 x clips x width numbers), moves them by momentum, and
    asks for each of `negatives` other clips, drawn with replacement, whether it is the one; usual weight 0.8. It costs
    2 x batch x negatives x width numbers a step. mode=queue, for very many clips, keeps the last `negatives`
    embeddings and asks which is the one (InfoNCE); momentum has no part in it.
    """
    assert isinstance(learnt, Memory | Queue)
    mine, other = _vectors(said, taught, student, teacher)
    value: Tensor = learnt(mine, other, clips.index)
    return value


def contrast(
    said: StudentOutput,
    taught: TeacherOutput | None,
    training: Sequence[int],
    /,
    *,
    student: str,
    teacher: str,
    mode: str,
    width: int,
    negatives: int,
    temperature: float,
    momentum: float,
) -> nn.Module:
    """What crd learns."""
    for name, value in (("width", width), ("negatives", negatives)):
        if value < 1:
            raise UserError(f"objective.crd.{name} is {value}; it is at least 1")
    if temperature <= 0:
        raise UserError(f"objective.crd.temperature is {temperature}; it is above 0")
    if not 0 <= momentum < 1:
        raise UserError(f"objective.crd.momentum is {momentum}; it is at least 0 and below 1")
    if mode not in MODES:
        raise UserError(f"objective.crd.mode is {mode!r}; known: {', '.join(MODES)}")
    mine, other = _vectors(said, taught, student, teacher)
    embed = Embed(mine.shape[1], other.shape[1], width)
    if mode == "queue":
        return Queue(embed, width, negatives, temperature)
    if len(training) < 2:
        raise UserError("objective.crd tells clips from each other; there is only one training clip")
    return Memory(embed, width, training, negatives, temperature, momentum)


def _vectors(said: StudentOutput, taught: TeacherOutput | None, student: str, teacher: str) -> tuple[Tensor, Tensor]:
    (pair,) = pairs("crd", said, taught, student, teacher)
    return pair.reduced(2)


class Embed(nn.Module):
    """A linear layer for each side; [B,D] of both -> [B,E] of both, each of length 1."""

    def __init__(self, student: int, teacher: int, width: int) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(student, width), nn.Linear(teacher, width)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.student(student)), F.normalize(self.teacher(teacher))


class Memory(nn.Module):
    """Every training clip's embedding by both sides, and noise-contrastive estimation against K of them."""

    student_bank: Tensor  # [N,E]
    teacher_bank: Tensor  # [N,E]
    clips: Tensor  # int64 [N]: of which clip each row is, rising
    log_z: Tensor  # [2]: log of what turns exp(score) into probabilities, for the student's and the teacher's side
    draws: Tensor  # int64 [2]: a number to draw by, and how many batches there were

    def __init__(
        self,
        embed: Embed,
        width: int,
        training: Sequence[int],
        negatives: int,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.embed, self.negatives, self.temperature, self.momentum = embed, negatives, temperature, momentum
        bound = 1 / math.sqrt(width / 3)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", torch.empty(len(training), width).uniform_(-bound, bound))
        self.register_buffer("clips", torch.tensor(sorted(training)))
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("draws", torch.stack([torch.randint(2**62, ()), torch.tensor(0)]))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        student, teacher = self.embed(student, teacher)
        own, (seed, batches) = self._rows(index), self.draws.tolist()
        rows = torch.cat([own[:, None], self.others(own, number("crd", seed, batches, _rank()))], 1)
        scores = [
            torch.einsum("be,bke->bk", vectors, bank[rows]) / self.temperature
            for vectors, bank in ((student, self.teacher_bank), (teacher, self.student_bank))
        ]
        log_z = self.log_z if batches else self._log_z(scores)
        if self.training:
            self._remember(own, student, teacher, log_z)
        return torch.stack([self._estimate(score - z) for score, z in zip(scores, log_z, strict=True)]).sum()

    def others(self, own: Tensor, seed: int) -> Tensor:
        """[B,K] rows of other clips, drawn with replacement."""
        chance = torch.Generator(own.device).manual_seed(seed)
        shape = (len(own), self.negatives)
        drawn = torch.randint(len(self.clips) - 1, shape, generator=chance, device=own.device)
        return drawn + (drawn >= own[:, None])

    def _rows(self, index: Tensor) -> Tensor:
        rows = torch.searchsorted(self.clips, index).clamp(max=len(self.clips) - 1)
        assert torch.equal(self.clips[rows], index), "a clip that is not one of the training clips"
        return rows

    def _estimate(self, log_p: Tensor) -> Tensor:
        """The paper's loss of one side; log_p [B,1+K] are the unnormalised probabilities, the clip's own first."""
        noise = self.negatives / len(self.clips)
        either = torch.logaddexp(log_p, log_p.new_tensor(math.log(noise + 1e-7)))
        own, others = either[:, 0] - log_p[:, 0], either[:, 1:] - math.log(noise)
        return (own + others.sum(1)).mean()

    @torch.no_grad()
    def _log_z(self, scores: Sequence[Tensor]) -> Tensor:
        """From the first batch alone, the mean of exp(score) times N."""
        means = torch.stack([score.logsumexp((0, 1)) - math.log(score.numel()) for score in scores])
        means = gathered(means[None])
        return means.logsumexp(0) - math.log(len(means) / len(self.clips))

    @torch.no_grad()
    def _remember(self, rows: Tensor, student: Tensor, teacher: Tensor, log_z: Tensor) -> None:
        self.log_z.copy_(log_z)
        self.draws[1] += 1
        rows, student, teacher = gathered(rows), gathered(student), gathered(teacher)
        last = ~(rows[:, None] == rows).triu(1).any(1)  # of a clip that is in the batch twice
        for bank, seen in ((self.student_bank, student), (self.teacher_bank, teacher)):
            moved = bank[rows[last]] * self.momentum + seen[last] * (1 - self.momentum)
            bank[rows[last]] = F.normalize(moved)


class Queue(nn.Module):
    """The newest embeddings by both sides, and the question which of them and of the clip's own is the clip's own."""

    student_queue: Tensor  # [Q,E]
    teacher_queue: Tensor  # [Q,E]
    clips: Tensor  # int64 [Q]: of which clip each is; -1 where there was none yet
    place: Tensor  # int64: where the next one goes

    def __init__(self, embed: Embed, width: int, length: int, temperature: float) -> None:
        super().__init__()
        self.embed, self.temperature = embed, temperature
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_queue", F.normalize(torch.randn(length, width)))
        self.register_buffer("clips", torch.full((length,), -1))
        self.register_buffer("place", torch.tensor(0))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        student, teacher = self.embed(student, teacher)
        value = self._which(index, student, teacher, self.teacher_queue)
        value = value + self._which(index, teacher, student, self.student_queue)
        if self.training:
            self._remember(index, student, teacher)
        return value

    def _which(self, index: Tensor, asking: Tensor, own: Tensor, queue: Tensor) -> Tensor:
        """Cross-entropy of the choice between a clip's own embedding by the other side, and all others in the queue."""
        itself = index[:, None] == self.clips  # the same clip, an epoch ago
        right = (asking * own.detach()).sum(1, keepdim=True)
        wrong = (asking @ queue.T.clone()).masked_fill(itself, -torch.inf)  # the queue moves on before the gradient
        return F.cross_entropy(torch.cat([right, wrong], 1) / self.temperature, torch.zeros_like(index))

    @torch.no_grad()
    def _remember(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        length = len(self.clips)
        index, student, teacher = (gathered(values)[-length:] for values in (index, student, teacher))
        places = (self.place + torch.arange(len(index), device=index.device)) % length
        for kept, new in ((self.student_queue, student), (self.teacher_queue, teacher), (self.clips, index)):
            kept[places] = new
        self.place.add_(len(index)).remainder_(length)


def gathered(mine: Tensor) -> Tensor:
    """Everybody's rows, in the order of the processes, each of which has as many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mine
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
