"""open_clip's models as teachers of videos: zero-shot by the names of the classes, or with a linear head.

Frames are embedded one by one. The feature is the video embedding: the mean of the unit embeddings of the frames, made
unit itself. Zero-shot logits are exp(logit_scale) * cos(video, text) + logit_bias, the text of a class being the mean
over the templates, made unit. With pool=attention, every class looks at the frames that are like it: its video
embedding is the mean of the frames weighted with softmax over frames of cos(frame, text) / temperature ("query
scoring", Bain et al. 2022); the feature stays the plain mean.

Maps on request: `frame_features` [B,T,E], the unit embeddings of the frames; `blocks` [B,L,T,W], what each block of
the vision tower gives, averaged over the picture, for towers whose blocks are all equally wide.

Shape legend: B clips, T frames, N = B*T pictures, E embedding width, K classes, P prompts, L blocks, W block width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from distill.labels import read_labels
from distill.outputs import ClipSpec, TeacherOutput
from distill.weights import digest_facts, digest_file, read_weights
from teachers import _open_clip
from teachers._frames import Normalise
from teachers._open_clip import Card, Source

# The 28 prompts that OpenAI tried on Kinetics.
SHOWN = ("photo", "video", "example", "demonstration")
DONE = (
    "{}.",
    "a person {}.",
    *(f"a person {verb} {{}}." for verb in ("using", "doing", "during", "performing", "practicing")),
)
TEMPLATES = [f"a {shown} of {done}" for shown in SHOWN for done in DONE]
POOLS = ("mean", "attention")
AT_ONCE = 256  # prompts in one pass through the text tower


@dataclass
class Options:
    model: str = MISSING
    """Name of one of open_clip's models (ViT-B-16-quickgelu), hf-hub:ORG/REPO, or local-dir:FOLDER."""
    pretrained: str = ""
    """Tag of a named model's weights (openai, laion2b_s34b_b88k, ...); it also says how pictures are normalised."""
    weights: str = ""
    """File of these weights, where they should not come from the Hub, its cache or the model's folder."""
    frames: int = 8
    """Frames the teacher sees."""
    templates: list[str] = field(default_factory=lambda: list(TEMPLATES))
    """Prompts, with {} for the name of the class; the 28 of OpenAI for Kinetics unless given."""
    pool: str = "mean"
    """How zero-shot makes a video of frames: mean, or attention (each class weighs frames by how like it they are)."""
    temperature: float = 0.1
    """Temperature of pool=attention; the higher, the more like the mean."""
    head: str = ""
    """File of a linear layer over the feature (weight [K,E], bias [K]), which then stands in for the prompts."""
    labels: str = ""
    """File of the head's class names, in the order of its rows."""


class ZeroShot(nn.Module):
    """Unit embeddings of frames [B,T,E] and video [B,E] -> logits [B,K]."""

    text: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, text: Tensor, scale: Tensor, bias: Tensor, temperature: float | None) -> None:
        super().__init__()
        self.temperature = temperature
        for name, value in {"text": text, "scale": scale, "bias": bias}.items():
            self.register_buffer(name, value)

    def forward(self, frames: Tensor, video: Tensor) -> Tensor:
        if self.temperature is None:
            likeness = video @ self.text
        else:
            share = (frames @ self.text / self.temperature).softmax(dim=1)  # [B,T,K]
            videos = F.normalize(torch.einsum("btk,bte->bek", share, frames), dim=1)
            likeness = (videos * self.text).sum(dim=1)
        return self.scale * likeness + self.bias


class LinearHead(nn.Module):
    """As ZeroShot, with learnt directions."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())

    def forward(self, frames: Tensor, video: Tensor) -> Tensor:
        return F.linear(video, self.weight, self.bias)


class ClipTeacher(nn.Module):
    map_names = ("frame_features", "blocks")

    def __init__(
        self,
        visual: nn.Module,
        head: ZeroShot | LinearHead,
        normalise: Normalise,
        classes: Sequence[str],
        spec: ClipSpec,
    ) -> None:
        super().__init__()
        self.visual, self.head, self.normalise = visual, head, normalise
        self.classes, self.spec = list(classes), spec
        self.takes_any_class = isinstance(head, ZeroShot)

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        batch = frames.shape[:2]
        embedded, maps = self._embed(self.normalise(frames.flatten(0, 1)), want)
        # exp(logit_scale) is 100 in most models: cosines rounded to half precision would be off by a third of a unit.
        with torch.autocast(frames.device.type, enabled=False):
            each = F.normalize(embedded.float(), dim=-1).view(*batch, -1)
            video = F.normalize(each.mean(dim=1), dim=-1)
            logits = self.head(each, video)
        if "blocks" in maps:
            maps["blocks"] = maps["blocks"].view(*batch, *maps["blocks"].shape[1:]).transpose(1, 2)
        if "frame_features" in want:
            maps["frame_features"] = each
        return TeacherOutput(logits, video, maps)

    def _embed(self, pixels: Tensor, want: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """[N,3,H,W] -> [N,E], and the blocks [N,L,W] where they are wanted."""
        if "blocks" not in want:
            found = self.visual(pixels)
            return found[0] if isinstance(found, tuple) else found, {}
        answer: dict[str, Any] = self.visual.forward_intermediates(pixels)  # type: ignore[operator]
        blocks = [block.mean(dim=(2, 3)) for block in answer["image_intermediates"]]
        equal = len({block.shape for block in blocks}) == 1
        return answer["image_features"], {"blocks": torch.stack(blocks, dim=1)} if equal else {}


def build(options: Options, classes: Sequence[str]) -> ClipTeacher:
    spec, source = wants(options), _source(options)
    card = _open_clip.read_card(source)
    network: Any = _open_clip.load(source, card)
    head = _linear_head(options, card) if options.head else _zero_shot(options, network, classes)
    names = read_labels(Path(options.labels)) if options.head else classes
    return ClipTeacher(network.visual, head, Normalise(card.mean, card.std), names, spec)


def fingerprint(options: Options) -> str:
    spec, source = wants(options), _source(options)
    card = _open_clip.read_card(source)
    facts: dict[str, Any] = {
        "architecture": card.architecture,
        "weights": digest_file(_open_clip.find_weights(source), _open_clip.origin(source)),
        "sees": [spec.frames, spec.size, *card.mean, *card.std],
    }
    if options.head:
        facts |= {"head": digest_file(Path(options.head)), "classes": read_labels(Path(options.labels))}
    else:
        facts |= {"templates": list(options.templates), "tokenizer": _open_clip.digest_tokenizer(source, card)}
        facts["temperature"] = options.temperature if options.pool == "attention" else None
    return digest_facts(facts)


def wants(options: Options) -> ClipSpec:
    if options.frames < 1:
        raise ValueError(f"frames={options.frames} should be at least 1")
    if options.pool not in POOLS:
        raise ValueError(f"pool={options.pool} is not one of {', '.join(POOLS)}")
    if options.temperature <= 0:
        raise ValueError(f"temperature={options.temperature} should be above 0")
    if bool(options.head) != bool(options.labels):
        raise ValueError("head and labels go together: a file of a linear layer, and one of its class names")
    if options.head and options.pool == "attention":
        raise ValueError("pool=attention weighs frames by prompts, which a head does not have; leave out one of them")
    if not options.templates or not all("{}" in template for template in options.templates):
        raise ValueError("templates should be prompts with {} where the name of the class goes")
    return ClipSpec(options.frames, _open_clip.read_card(_source(options)).size)


def _source(options: Options) -> Source:
    return Source(options.model, options.pretrained, options.weights)


def _linear_head(options: Options, card: Card) -> LinearHead:
    weights, names = read_weights(Path(options.head)), read_labels(Path(options.labels))
    shapes = {name: list(value.shape) for name, value in weights.items()}
    wanted = {"weight": [len(names), card.architecture["embed_dim"]], "bias": [len(names)]}
    if shapes != wanted:
        raise ValueError(f"{options.head} has {shapes}; with {options.labels} and this model it should have {wanted}")
    return LinearHead(weights["weight"], weights["bias"])


# ---------------------------------------------------------------- text


def _zero_shot(options: Options, network: Any, classes: Sequence[str]) -> ZeroShot:
    text = _embed_classes(options, network, classes)
    bias = torch.zeros(()) if network.logit_bias is None else network.logit_bias.detach().view(())
    temperature = options.temperature if options.pool == "attention" else None
    return ZeroShot(text, network.logit_scale.detach().exp().view(()), bias, temperature)


@torch.no_grad()
def _embed_classes(options: Options, network: Any, classes: Sequence[str]) -> Tensor:
    """Unit embeddings of the classes, [E,K]."""
    prompts = [template.replace("{}", spoken(name)) for name in classes for template in options.templates]
    tokens = _cut(network.text, _open_clip.tokenizer(_source(options))(prompts))
    embedded = torch.cat([network.encode_text(part, normalize=True) for part in torch.split(tokens, AT_ONCE)])
    return F.normalize(embedded.view(len(classes), len(options.templates), -1).mean(dim=1), dim=-1).T.contiguous()


def spoken(name: str) -> str:
    """The name of a class in words: brush_hair is brush hair, ApplyLipstick is Apply Lipstick."""
    name = name.replace("_", " ")
    return name if " " in name else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _cut(text: Any, tokens: Tensor) -> Tensor:
    """Tokens [K*P,length] without the padding behind the longest prompt, where the text tower never looks at it.

    Prompts are about a fifth of what the towers of CLIP have room for.
    """
    from open_clip.transformer import TextTransformer

    causal = isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is None
    if not causal or text.pool_type != "argmax":
        return tokens
    length = int(tokens.argmax(dim=1).max()) + 1
    text.attn_mask = text.attn_mask[:length, :length]
    return tokens[:, :length]
