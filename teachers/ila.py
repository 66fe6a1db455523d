"""ILA: a CLIP that aligns neighbouring frames with each other, and prompts its text with what it sees.

Written from a description of the official code (Francis-Rings/ILA on GitHub), whose checkpoints it reads. They come in
four kinds, told apart by their keys: the aligner begins with a depthwise or with a plain convolution, and the head
compares with text (Kinetics) or is linear (Something-Something).

Official evaluation differs from what its paper describes, and from this file, which is the same function at every call:

* The Kinetics code puts itself back into training mode inside its first forward. From the second view on, batch norm
  uses the statistics of the batch at hand and moves the running ones. Here it uses the running ones, always.
* A disturbance of the aligning points stays on after `eval()`; only the official validation script turns it off. Here
  it is off unless it is asked for: `respond(video, disturbance=0.2)` is what official training has.
* Official loading overlooks missing and unknown keys. Here they are errors.
* Pictures are normalised with ImageNet's mean and deviation, not with CLIP's.
* Official scores sum the softmax of twelve views at random times. Here a view is one answer, before softmax.

Shape legend: B clips, T frames, P = T-1 pairs, N patches of a frame, E width of the embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal, Self

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from distill.labels import read_labels
from distill.outputs import ClipSpec, TeacherOutput
from distill.weights import digest_facts, digest_file, read_weights, unwrap
from teachers._frames import Normalise
from teachers._ila_parts import ClipBlock, FrameMixer, Prompts, Transformer, VisualTower

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ORIGIN = (
    "official checkpoints are listed in the model zoo of the README of github.com/Francis-Rings/ILA (Google Drive); "
    "put one there, or name its place as teacher.weights"
)
NEW = ("mit.", "prompts_")  # what ILA adds to CLIP, by the beginning of a name, and inside the blocks:
NEW_IN_BLOCKS = (".message_", ".temporal_")
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # also in TorchScript archives


@dataclass
class Options:
    weights: str = MISSING
    """Checkpoint: an official .pth file, or its weights as .safetensors."""
    frames: int = 16
    """Frames that the checkpoint was trained with."""
    size: int = 224
    """Side of the picture that the checkpoint was trained with."""
    labels: str = ""
    """File of class names in the order of a linear head's outputs; empty where that is the data set's order."""


@dataclass(frozen=True)
class TextSizes:
    vocabulary: int
    context: int
    width: int
    layers: int
    prompts: int


@dataclass(frozen=True)
class Sizes:
    frames: int
    patch: int
    grid: int
    width: int
    layers: int
    embed: int
    mixers: int
    depthwise: bool
    head: TextSizes | int  # or the number of a linear head's outputs


class ILA(nn.Module):
    """Normalised or uint8 video -> logits of the classes, and the embedding of the video as the feature.

    With a text head any classes can be recognised: `learn_classes` computes their text once. Maps on request:

    * "frame_cls" [B,T,E]: the embedding of every frame.
    * "points" [B,layers,P,4]: where neighbouring frames show the same thing, x and y in the earlier one, then in the
      later one; the middle of a picture is 0, and a point lies 0.75 of the way to the edge at most.
    * "alignment" [B,layers]: how little neighbours agree there. Its mean over B, summed, is the official extra loss.
    * "attention" [B,T,N]: of the class token in the last block, mean over heads; what it keeps for itself is left out.
    """

    map_names = ("frame_cls", "points", "alignment", "attention")
    classes: Sequence[str]
    class_text: Tensor  # [K,E]

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        _check_sizes(sizes)
        self.sizes, self.frozen = sizes, False
        self.spec = ClipSpec(sizes.frames, sizes.grid * sizes.patch)
        self.takes_any_class = isinstance(sizes.head, TextSizes)
        self.visual = VisualTower(sizes.patch, sizes.grid, sizes.width, sizes.layers, sizes.embed, sizes.depthwise)
        outputs = None if isinstance(sizes.head, TextSizes) else sizes.head
        self.mit = FrameMixer(sizes.frames, sizes.embed, sizes.mixers, outputs)
        if isinstance(sizes.head, TextSizes):
            self._add_text(sizes.head, sizes)
        self.register_buffer("class_text", None, persistent=False)
        with torch.device("cpu"):  # numbers even where the weights are still to come
            self.normalise = Normalise(MEAN, DEVIATION)

    def _add_text(self, text: TextSizes, sizes: Sizes) -> None:
        self.token_embedding = nn.Embedding(text.vocabulary, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context, text.width) * 0.01)
        self.transformer = Transformer([ClipBlock(text.width) for _ in range(text.layers)])
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, sizes.embed) * text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())
        self.prompts_visual_ln = nn.LayerNorm(sizes.width)
        self.prompts_visual_proj = nn.Parameter(torch.randn(sizes.width, sizes.embed) * sizes.width**-0.5)
        self.prompts_generator = Prompts(sizes.embed, text.prompts)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Any], *, frames: int, class_tokens: Any = None) -> Self:
        """A frozen teacher. `class_tokens` are int [K,77]; a linear head has its classes already and ignores them."""
        weights = unwrap(state_dict, Path("the state dict"))
        sizes = _read_sizes(weights)
        if frames != sizes.frames:
            raise ValueError(f"the weights are for {sizes.frames} frames, not {frames}: ask for frames={sizes.frames}")
        with torch.device("meta"):
            network = cls(sizes)
        network._take(weights, set(network.state_dict()))
        network.frozen = True
        return network._with_classes(class_tokens).requires_grad_(False).eval()

    @classmethod
    def from_clip(
        cls,
        state_dict: Mapping[str, Any],
        *,
        frames: int,
        class_tokens: Any,
        head: Literal["text", "linear"] = "text",
        stem: Literal["depthwise", "plain"] = "depthwise",
    ) -> Self:
        """To be fine-tuned: CLIP's weights, and new parts that begin by changing nothing in what CLIP sees of a frame.

        The CLIP has to be one with QuickGELU, as OpenAI's are. `class_tokens` are int [K,77]; K is what a linear head
        has of them.
        """
        weights = {
            name: value
            for name, value in unwrap(state_dict, Path("the state dict")).items()
            if name not in NOT_WEIGHTS and (head == "text" or name.startswith("visual."))
        }
        kind = _text_sizes(weights, prompts=2) if head == "text" else len(class_tokens)
        network = cls(_visual_sizes(weights, frames=frames, mixers=1, depthwise=stem == "depthwise", head=kind))
        network._take(weights, {name for name in network.state_dict() if not _is_new(name)})
        return network._with_classes(class_tokens)

    def _take(self, weights: Mapping[str, Tensor], wanted: Collection[str]) -> None:
        """Copies of exactly the wanted weights, in this network's types."""
        own = self.state_dict()
        differences = {
            "missing": [name for name in own if name in wanted and name not in weights],
            "unexpected": [name for name in weights if name not in wanted],
            "of another shape": [
                f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
                for name in own
                if name in wanted and name in weights and weights[name].shape != own[name].shape
            ],
        }
        if any(differences.values()):
            raise ValueError(f"the weights are not those of this model; {_listed(differences)}")
        copies = {name: weights[name].detach().to(own[name].dtype, copy=True) for name in wanted}
        self.load_state_dict(copies, assign=True, strict=False)

    def _with_classes(self, class_tokens: Any) -> Self:
        if self.takes_any_class:
            if class_tokens is None:
                raise ValueError("a text head needs class_tokens: the class names as CLIP's tokens, int [K,77]")
            self.learn_classes(torch.as_tensor(class_tokens))
        return self

    @torch.no_grad()
    def learn_classes(self, tokens: Tensor) -> None:
        """Compute the text of the classes, int [K,C], that are to be told apart from now on.

        Text looks backwards only and is read off at its end, so positions behind the longest name's end are left out.
        """
        (context, _), known = self.positional_embedding.shape, self.token_embedding.num_embeddings
        if tokens.dim() != 2 or tokens.shape[1] > context or tokens.is_floating_point() or tokens.max() >= known:
            raise ValueError(
                f"class_tokens are {tokens.dtype} {list(tokens.shape)} up to {tokens.max()}; they should be int "
                f"[K,{context}] below {known}"
            )
        ends = tokens.argmax(-1).to(self.positional_embedding.device)
        longest = int(ends.max()) + 1
        x = self.token_embedding(tokens[:, :longest].long().to(ends.device)) + self.positional_embedding[:longest]
        for block in self.transformer.resblocks:
            x = block(x, causal=True)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), ends])
        self.class_text = x @ self.text_projection

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        """uint8 [B,T,3,H,W]."""
        return self.respond(self.normalise(frames), want)

    def forward_normalised(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video [B,T,3,H,W] as the official code feeds it -> logits [B,K], embedding of the video [B,E]."""
        logits, embedding, _ = self._answer(video, (), 0.0)
        return logits, embedding

    def respond(self, video: Tensor, want: Collection[str] = (), disturbance: float = 0.0) -> TeacherOutput:
        """Normalised video [B,T,3,H,W]. `disturbance` spreads each aligning point over nine, so far apart."""
        logits, embedding, maps = self._answer(video, want, disturbance)
        return TeacherOutput(logits=logits, feature=embedding, maps=maps)

    def _answer(
        self, video: Tensor, want: Collection[str], disturbance: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        seen = self.visual(video, disturbance, want)
        embedding = self.mit(seen.frame_cls)
        if self.takes_any_class:
            # The mean comes first because what follows is linear.
            context = self.prompts_visual_ln(seen.patches).mean(1) @ self.prompts_visual_proj
            text = self.class_text + self.prompts_generator(self.class_text, context)
            logits = self.logit_scale.exp() * F.cosine_similarity(embedding[:, None], text, dim=-1)
        else:
            logits = self.mit.classify_head(F.normalize(embedding, dim=-1))
        return logits, embedding, seen.maps


def _is_new(name: str) -> bool:
    return name.startswith(NEW) or any(part in name for part in NEW_IN_BLOCKS)


def _listed(differences: Mapping[str, Sequence[str]], most: int = 12) -> str:
    """One line: each kind of difference with its first names."""
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:most])}{', ...' if len(names) > most else ''}"
        for kind, names in differences.items()
        if names
    )


def _check_sizes(sizes: Sizes) -> None:
    if sizes.frames < 2:
        raise ValueError(f"ILA compares neighbouring frames, so it needs 2 at least, not {sizes.frames}")
    if sizes.grid < 4:
        raise ValueError(f"ILA needs 4x4 patches in a picture at least; these weights have {sizes.grid}x{sizes.grid}")


def _need(weights: Mapping[str, Tensor], *names: str) -> None:
    """Refuse weights without the tensors that all sizes are read from."""
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"the weights are not those of this model; {_listed({'missing': missing})}")


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)}
    return 1 + max(map(int, numbers), default=-1)


def _outputs(weights: Mapping[str, Tensor]) -> int | None:
    """The size of a linear head; None where classes are compared as text."""
    if not any(name.startswith("mit.classify_head.") for name in weights):
        return None
    _need(weights, "mit.classify_head.2.weight")
    return weights["mit.classify_head.2.weight"].shape[0]


def _read_sizes(weights: Mapping[str, Tensor]) -> Sizes:
    """All sizes and the kind of an ILA checkpoint, from its names and shapes."""
    _need(weights, "mit.positional_embedding")
    outputs = _outputs(weights)
    return _visual_sizes(
        weights,
        frames=weights["mit.positional_embedding"].shape[1],
        mixers=_layers(weights, "mit.resblocks."),
        depthwise=any(".depthwise_conv." in name for name in weights),
        head=_text_sizes(weights, _layers(weights, "prompts_generator.decoder.")) if outputs is None else outputs,
    )


def _visual_sizes(
    weights: Mapping[str, Tensor], *, frames: int, mixers: int, depthwise: bool, head: TextSizes | int
) -> Sizes:
    _need(weights, "visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    width, _, _, patch = weights["visual.conv1.weight"].shape
    grid, embed = isqrt(len(weights["visual.positional_embedding"]) - 1), weights["visual.proj"].shape[1]
    layers = _layers(weights, "visual.transformer.resblocks.")
    return Sizes(frames, patch, grid, width, layers, embed, mixers, depthwise, head)


def _text_sizes(weights: Mapping[str, Tensor], prompts: int) -> TextSizes:
    _need(weights, "token_embedding.weight", "positional_embedding")
    vocabulary, width = weights["token_embedding.weight"].shape
    context = len(weights["positional_embedding"])
    return TextSizes(vocabulary, context, width, _layers(weights, "transformer.resblocks."), prompts)


def _own_classes(options: Options, outputs: int | None, classes: Sequence[str]) -> list[str]:
    """Names in the order of the logits; `outputs` is the size of a linear head."""
    if outputs is None:
        if options.labels:
            raise ValueError("labels are for a linear head; these weights compare with the text of any class names")
        return list(classes)
    names = read_labels(Path(options.labels)) if options.labels else list(classes)
    if len(names) != outputs:
        whose = f"{options.labels} names" if options.labels else "the data set has"
        raise ValueError(
            f"the linear head of {options.weights} has {outputs} outputs and {whose} {len(names)} classes; name a file "
            "of the head's class names, in its order, as teacher.labels"
        )
    return names


def build(options: Options, classes: Sequence[str]) -> ILA:
    weights = read_weights(Path(options.weights), ORIGIN)
    names = _own_classes(options, _outputs(weights), classes)
    teacher = ILA.from_official(weights, frames=options.frames, class_tokens=_tokens(names))
    if teacher.spec.size != options.size:
        raise ValueError(
            f"{options.weights} is for pictures of {teacher.spec.size} pixels, not {options.size}: set "
            f"teacher.size={teacher.spec.size}"
        )
    teacher.classes = names
    return teacher


def _tokens(names: Sequence[str]) -> Tensor:
    """Class names as CLIP's tokens [K,77], just as they are: no sentence is made of them."""
    import open_clip

    tokens: Tensor = open_clip.tokenize(list(names))
    return tokens


def fingerprint(options: Options) -> str:
    weights = digest_file(Path(options.weights), ORIGIN)
    labels = read_labels(Path(options.labels)) if options.labels else []
    return digest_facts([weights, labels])


def wants(options: Options) -> ClipSpec:
    return ClipSpec(options.frames, options.size)
