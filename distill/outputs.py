"""What travels between the rooms of the house. Everybody may import this file; it imports torch only.

Shape legend: B clips, T frames, C colour channels (3), H height, W width, K classes, L latent width, D feature width,
k of K classes, R temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _check(owner: object, name: str, value: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype | None) -> None:
    """Refuse a tensor of the wrong shape (None stands for any size) or type."""
    fits = value.dim() == len(shape) and all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
    if not fits or (dtype is not None and value.dtype != dtype) or (dtype is None and not value.is_floating_point()):
        wanted = "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
        raise ValueError(
            f"{type(owner).__name__}.{name} is {_describe(value)}; it should be {dtype or 'floating point'} {wanted}"
        )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_describe(item)}" for key, item in value.items()) + "}"
    return repr(value)


class Tensors:
    """Base of the dataclasses below: they print shapes instead of numbers and move as one."""

    def __repr__(self) -> str:
        parts = (f"{f.name}={_describe(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same record with every tensor in it changed."""

        def over(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Tensors):
                return value.map(change)
            if isinstance(value, dict):
                return {key: over(item) for key, item in value.items()}
            return value

        return type(self)(**{f.name: over(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """What a loader calls so that copies to a GPU need not wait."""
        return self.map(Tensor.pin_memory)

    def float(self) -> Self:
        """Half-precision members as float32, so that losses are never computed in half precision."""
        half = (torch.float16, torch.bfloat16)
        return self.map(lambda tensor: tensor.float() if tensor.dtype in half else tensor)


@dataclass(frozen=True)
class ClipSpec:
    """What a model wants to see: how many frames, and the side of the square picture in pixels."""

    frames: int
    size: int

    def union(self, other: ClipSpec) -> ClipSpec:
        """The smallest batch that both models can be served from."""
        return ClipSpec(max(self.frames, other.frames), max(self.size, other.size))

    def fit(self, frames: Tensor) -> Tensor:
        """[B,T,C,H,W] of at least this many frames and any size, as this model wants it; uint8 stays uint8."""
        given, side = frames.shape[1], frames.shape[-1]
        if given < self.frames:
            raise ValueError(f"a batch of {given} frames cannot serve a model that wants {self.frames}")
        if given > self.frames:
            middle = (torch.arange(self.frames, device=frames.device) * 2 + 1) * given // (2 * self.frames)
            frames = frames[:, middle]
        if (frames.shape[-2], side) != (self.size, self.size):
            flat = frames.flatten(0, 1)
            flat = F.interpolate(flat, (self.size, self.size), mode="bilinear", antialias=True)
            frames = flat.view(-1, self.frames, *flat.shape[1:])
        return frames


@dataclass(repr=False)
class Blend(Tensors):
    """The other half of a mixed batch: each clip's frames are partly another clip's, and so is its label."""

    label: Tensor  # int64 [B]; of the other clip, -1 = unlabelled
    label_weight: Tensor  # float32 [B]; of the other clip's label
    share: Tensor  # float32 [B]; how much of the frames is the clip's own

    def __post_init__(self) -> None:
        batch = len(self.label)
        _check(self, "label", self.label, (batch,), torch.int64)
        _check(self, "label_weight", self.label_weight, (batch,), torch.float32)
        _check(self, "share", self.share, (batch,), torch.float32)


@dataclass(repr=False)
class Clips(Tensors):
    """A batch of clips. (index, view) is the key of everything that is ever cached about a clip."""

    frames: Tensor  # uint8 [B,T,C,H,W]
    label: Tensor  # int64 [B]; -1 = unlabelled
    index: Tensor  # int64 [B]; the clip's place in its manifest
    view: Tensor  # int64 [B]; 0 = the plain centre view, 1.. = augmented
    # float32 [B]: how much each label counts, 0 where there is none. The loader sets it so that means over the parts
    # of a batch (processes, accumulation steps) average to the mean over the labelled clips of the whole batch.
    label_weight: Tensor = field(default=None)  # type: ignore[assignment]
    failed: Tensor = field(default=None)  # type: ignore[assignment]  # bool [B]: gave no frames; only in evaluation
    colour: Tensor | None = None  # float32 [B,3,4]: a change of colour that the frames have still to go through
    # uint8 [B,20]: what the view drew (16 bytes) and a checksum of the frames (4, zeros while they may still change):
    # a cache that was made of other frames is found out. None: nobody looked.
    seen: Tensor | None = None
    blend: Blend | None = None  # Mixup and CutMix: what else is in these frames

    def __post_init__(self) -> None:
        _check(self, "frames", self.frames, (None,) * 5, torch.uint8)
        batch = self.frames.shape[0]
        for name in ("label", "index", "view"):
            _check(self, name, getattr(self, name), (batch,), torch.int64)
        if self.label_weight is None:
            labelled = self.label >= 0
            self.label_weight = labelled.float() * (batch / labelled.sum().clamp(min=1))
        _check(self, "label_weight", self.label_weight, (batch,), torch.float32)
        if self.failed is None:
            self.failed = torch.zeros_like(self.label, dtype=torch.bool)
        _check(self, "failed", self.failed, (batch,), torch.bool)
        if self.colour is not None:
            _check(self, "colour", self.colour, (batch, 3, 4), torch.float32)
        if self.seen is not None:
            _check(self, "seen", self.seen, (batch, 20), torch.uint8)

    def __len__(self) -> int:
        return self.frames.shape[0]


@dataclass(repr=False)
class TopK(Tensors):
    """The k largest of K logits, and what the others add up to, so that softened probabilities need no others.

    `rest` is the log of the sum of exp(logit / T) over the other classes, at each T of TEMPERATURES.
    """

    values: Tensor  # [B,k], largest first
    indices: Tensor  # int64 [B,k]
    rest: Tensor  # [B,R]

    TEMPERATURES: ClassVar[tuple[float, ...]] = (1.0, 2.0, 4.0, 8.0)

    def __post_init__(self) -> None:
        _check(self, "values", self.values, (None, None), None)
        _check(self, "indices", self.indices, tuple(self.values.shape), torch.int64)
        _check(self, "rest", self.rest, (len(self.values), len(self.TEMPERATURES)), None)

    @classmethod
    def of(cls, logits: Tensor, count: int) -> TopK:
        assert count < logits.shape[-1], "keep them all instead"
        values, indices = logits.topk(count, dim=-1)
        others = logits.scatter(-1, indices, -torch.inf)
        rest = [torch.logsumexp(others / temperature, -1) for temperature in cls.TEMPERATURES]
        return cls(values, indices, torch.stack(rest, -1))

    def rest_at(self, temperature: float, classes: int) -> Tensor:
        """[B]: log of the summed exp(logit / T) of the classes outside of the top.

        Exact at TEMPERATURES; elsewhere the polynomial in 1/T through them and through the number of classes, which is
        what the sum is at T = inf. It says nothing of temperatures below the lowest.
        """
        if temperature < min(self.TEMPERATURES):
            raise ValueError(f"a temperature of {temperature} needs all logits; only the largest are cached")
        knots = [0.0, *(1 / known for known in self.TEMPERATURES[::-1])]
        levels = [torch.full_like(self.rest[:, 0], math.log(classes - self.values.shape[1]))]
        levels += [self.rest[:, i] for i in reversed(range(len(self.TEMPERATURES)))]
        at = 1 / temperature
        total = torch.zeros_like(levels[0])
        for i, level in enumerate(levels):  # Lagrange's form of the polynomial through the knots
            others = [knot for j, knot in enumerate(knots) if j != i]
            total = total + level * math.prod((at - knot) / (knots[i] - knot) for knot in others)
        return total


@dataclass(repr=False)
class TeacherOutput(Tensors):
    """What a teacher says about a batch, live or from the cache."""

    logits: Tensor | TopK  # [B,K]; a cache of very many classes keeps the largest only
    feature: Tensor | None = None  # [B,D]
    maps: dict[str, Tensor] = field(default_factory=dict)  # name -> [B,...]

    def __post_init__(self) -> None:
        if isinstance(self.logits, Tensor):
            _check(self, "logits", self.logits, (None, None), None)
        batch = len(self.logits if isinstance(self.logits, Tensor) else self.logits.values)
        if self.feature is not None:
            _check(self, "feature", self.feature, (batch, None), None)
        for name, value in self.maps.items():
            _check(self, f"maps[{name!r}]", value, (batch, *(None,) * (value.dim() - 1)), None)

    @property
    def dense(self) -> Tensor:
        """All logits [B,K]."""
        if isinstance(self.logits, TopK):
            raise ValueError("only the teacher's largest logits are cached; set cache.top_k to the number of classes")
        return self.logits


@dataclass(repr=False)
class StudentOutput(Tensors):
    """What a student answers. `reconstruction` is there only when asked for."""

    logits: Tensor  # [B,K]
    latent: Tensor  # [B,L]
    features: dict[str, Tensor] = field(default_factory=dict)  # name -> [B,...]
    reconstruction: Tensor | None = None  # [B,T,C,H,W] in [0,1]

    def __post_init__(self) -> None:
        _check(self, "logits", self.logits, (None, None), None)
        batch = self.logits.shape[0]
        _check(self, "latent", self.latent, (batch, None), None)
        for name, value in self.features.items():
            _check(self, f"features[{name!r}]", value, (batch, *(None,) * (value.dim() - 1)), None)
        if self.reconstruction is not None:
            _check(self, "reconstruction", self.reconstruction, (batch, None, 3, None, None), None)


# So that a student can be exported with the answer that it gives, and an exported one gives it, checks and all.
torch.export.register_dataclass(StudentOutput, serialized_type_name="distill.StudentOutput")


class Student(nn.Module):
    """What a student plug-in builds: frames uint8 [B,T,C,H,W], as `spec` says -> StudentOutput."""

    spec: ClipSpec
    feature_names: tuple[str, ...]  # the features that can be asked for, from input to output
    encoder: tuple[str, ...]  # names of the submodules that make the latent

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        """`want` names what should come beyond logits and latent: "reconstruction", or features by name."""
        raise NotImplementedError

    def classify(self, latent: Tensor) -> Tensor:
        """[B,L] -> logits [B,K], those of the clips if it was made of them elsewhere; in evaluation mode."""
        raise NotImplementedError
