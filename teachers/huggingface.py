"""Video classifiers of transformers, from a folder or from the Hub.

VideoMAE, TimeSformer, ViViT and V-JEPA 2 answer for the classes that they were trained on; X-CLIP compares a video with
the names of any classes. Maps on request: "attention" [B,S,G,G], how much each patch is attended to in the last layer,
averaged over heads: by the classification token (TimeSformer, X-CLIP: each frame on its own; ViViT: the whole clip), or
by all patches where there is none (VideoMAE, V-JEPA 2); and "hidden" [B,S,D], what the body says of each time step,
averaged over its patches.

Shape legend: B clips, T frames, H and W pixels, K classes, D and E widths, S time steps (T over the frames of a
tubelet), G patches along a side, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from distill.labels import read_labels
from distill.outputs import ClipSpec, TeacherOutput
from distill.weights import digest_facts, digest_parts
from teachers import _huggingface as files
from teachers._frames import Normalise


@dataclass
class Options:
    model: str = MISSING
    """Folder with config.json and model.safetensors, or a model's name on the Hub, OWNER/NAME."""
    revision: str = ""
    """Branch, tag or commit of a model on the Hub. Empty: its main branch."""
    frames: int = 0
    """Frames that it is shown; 0 stands for the number that it was made for. Only V-JEPA 2 takes another."""
    labels: str = ""
    """File of class names in the order of the logits, in place of the checkpoint's own."""
    prompt: str = "{}"
    """What X-CLIP is told of a class; {} stands for the class's name."""
    mean: list[float] = field(default_factory=list)
    """Mean of the pixels in 0..1 for each of the three colours, in place of what the checkpoint says; goes with std."""
    std: list[float] = field(default_factory=list)
    """Standard deviation of the pixels in 0..1 for each of the three colours; goes with mean."""


@dataclass(frozen=True)
class Family:
    """What one architecture calls things, and how it lays out its tokens."""

    model: str  # transformers' class that answers for classes
    body: str  # the module whose last_hidden_state are the tokens
    attention: str  # the last layer's module that gives the attention, or gives it second
    has_token: bool = False  # a classification token stands before the patches
    in_frame: bool = False  # each frame attends to itself alone
    patch_first: bool = False  # all times of a patch, then the next patch
    frames: str = "num_frames"
    size: str = "image_size"
    pixels: str = "pixel_values"


FAMILIES = {
    "videomae": Family(
        "VideoMAEForVideoClassification", "videomae", "videomae.encoder.layer.{last}.attention.attention"
    ),
    "timesformer": Family(
        "TimesformerForVideoClassification",
        "timesformer",
        "timesformer.encoder.layer.{last}.attention.attention.attn_drop",
        has_token=True,
        in_frame=True,
        patch_first=True,
    ),
    "vivit": Family("VivitForVideoClassification", "vivit", "vivit.layers.{last}.attention", has_token=True),
    "vjepa2": Family(
        "VJEPA2ForVideoClassification",
        "vjepa2",
        "vjepa2.encoder.layer.{last}.attention",
        frames="frames_per_clip",
        size="crop_size",
        pixels="pixel_values_videos",
    ),
    "xclip": Family(
        "XCLIPModel", "vision_model", "vision_model.encoder.layers.{last}.self_attn", has_token=True, in_frame=True
    ),
}
MODELS = {kind: family.model for kind, family in FAMILIES.items()}
# What a config says besides the function.
BOOKKEEPING = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
}


class Network(nn.Module):
    """A network of transformers: uint8 frames [B,T,3,H,W] -> TeacherOutput."""

    map_names = ("attention", "hidden")

    def __init__(self, model: Any, spec: ClipSpec, pixels: files.Pixels, classes: Sequence[str]) -> None:
        super().__init__()
        self.model, self.spec, self.classes, self.normalise = model, spec, list(classes), Normalise(*pixels)
        self.family = FAMILIES[model.config.model_type]
        shape = getattr(model.config, "vision_config", model.config)
        self.last = shape.num_hidden_layers - 1
        deep, *flat = _list(getattr(shape, "tubelet_size", 1))
        self.steps = spec.frames // deep
        self.grid = spec.size // _side(flat or shape.patch_size, "patches")
        self.plain = self.attending = model.config._attn_implementation

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        with self._watched(want) as seen:
            answer = self.model(**{self.family.pixels: self.normalise(frames)})
        maps = {}
        if "attention" in seen:
            maps["attention"] = self._attention(seen["attention"], len(frames))
        if "hidden" in seen:
            maps["hidden"] = self._hidden(seen["hidden"].last_hidden_state, len(frames))
        logits, feature = self._logits_and_feature(answer)
        return TeacherOutput(logits, feature, maps)

    def _logits_and_feature(self, answer: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @contextmanager
    def _watched(self, want: Collection[str]) -> Iterator[dict[str, Any]]:
        """Collects what the wanted maps are made of, and nothing else: all layers' attention would fill the memory."""
        way = "eager" if "attention" in want else self.plain  # the fast ways never hold an attention in their hands
        if way != self.attending:
            self.model.set_attn_implementation(way)
            self.attending = way
        seen: dict[str, Any] = {}
        places = {"attention": self.family.attention.format(last=self.last), "hidden": self.family.body}
        hooks = [
            self.model.get_submodule(place).register_forward_hook(
                lambda _module, _given, answer, name=name: seen.update({name: answer})
            )
            for name, place in places.items()
            if name in want
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _attention(self, found: Any, batch: int) -> Tensor:
        weights: Tensor = found if isinstance(found, Tensor) else found[1]  # [B or B*T, heads, N, N]
        if self.family.has_token:  # X-CLIP has one more token behind the patches
            patches = self.grid**2 * (1 if self.family.in_frame else self.steps)
            weights = weights[:, :, 0, 1 : 1 + patches].mean(1, dtype=torch.float32)
        else:
            weights = weights.mean((1, 2), dtype=torch.float32)
        return weights.reshape(batch, self.steps, self.grid, self.grid)

    def _hidden(self, tokens: Tensor, batch: int) -> Tensor:
        patches, width = tokens[:, int(self.family.has_token) :], tokens.shape[-1]
        if self.family.patch_first:
            return patches.reshape(batch, self.grid**2, self.steps, width).mean(1)
        return patches.reshape(batch, self.steps, self.grid**2, width).mean(2)


class Classifier(Network):
    """A body and a linear layer; what goes into the linear layer is the feature [B,D]."""

    def __init__(self, model: Any, *facts: Any) -> None:
        super().__init__(model, *facts)
        self.head: nn.Module = model.classifier
        model.classifier = nn.Identity()

    def _logits_and_feature(self, answer: Any) -> tuple[Tensor, Tensor]:
        return self.head(answer.logits), answer.logits


class Matcher(Network):
    """X-CLIP: a video against the texts of the classes; the video's embedding of length 1 is the feature [B,E]."""

    takes_any_class = True

    def _logits_and_feature(self, answer: Any) -> tuple[Tensor, Tensor]:
        return answer.logits_per_video, answer.video_embeds


class ClassTexts(nn.Module):
    """In place of X-CLIP's text tower, which would say the same of the same class names for every batch."""

    def __init__(self, pooled: Tensor) -> None:
        super().__init__()
        self.register_buffer("pooled", pooled)

    def forward(self, **asked: Any) -> tuple[None, Tensor]:
        return None, self.pooled  # type: ignore[return-value]


def build(options: Options, classes: Sequence[str]) -> Network:
    folder, config = _find(options, weights=True)
    spec, pixels = _spec(options, config), _pixels(options, folder, config)
    matches_texts = config.model_type == "xclip"
    words = _texts(options, classes) if matches_texts else _own_classes(options, folder, config)
    model = files.load_network(folder, config, MODELS[config.model_type])
    if not matches_texts:
        return Classifier(model, spec, pixels, words)
    model.text_model = ClassTexts(_read_texts(folder, model, words))
    return Matcher(model, spec, pixels, classes)


def fingerprint(options: Options) -> str:
    folder, config = _find(options, weights=True)
    if config.model_type == "xclip":
        words = [*_texts(options, [""]), files.digest_words(folder)]
    else:
        words = _own_classes(options, folder, config)
    seen = [_spec(options, config).frames, *_pixels(options, folder, config)]
    facts = [_shape(config.to_dict()), seen, words, digest_parts(files.find_weights(folder))]
    return digest_facts(facts)


def _shape(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config makes the function."""
    kept = {key: value for key, value in facts.items() if key not in BOOKKEEPING}
    return {key: _shape(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def wants(options: Options) -> ClipSpec:
    _, config = _find(options, weights=False)
    return _spec(options, config)


def _find(options: Options, weights: bool) -> tuple[Path, Any]:
    """The model's folder and its config."""
    folder = files.find_folder(options.model, options.revision, weights)
    config = files.read_config(folder, MODELS)
    kind = getattr(config, "attention_type", "divided_space_time")
    if kind != "divided_space_time":
        raise ValueError(f"{folder / 'config.json'}: attention_type {kind!r}; only divided_space_time is known here")
    return folder, config


def _pixels(options: Options, folder: Path, config: Any) -> files.Pixels:
    if not options.mean and not options.std:
        return files.read_pixels(folder, config.model_type)
    if (len(options.mean), len(options.std)) != (3, 3) or min(options.std) <= 0:
        raise ValueError(f"mean={options.mean} std={options.std}: {files.SET_MEAN}")
    return options.mean, options.std


def _spec(options: Options, config: Any) -> ClipSpec:
    """Exactly what the config says: TimeSformer and V-JEPA 2 would answer nonsense for anything else, silently."""
    family = FAMILIES[config.model_type]
    shape = getattr(config, "vision_config", config)
    own = getattr(shape, family.frames)
    frames = options.frames or own
    if frames != own and config.model_type != "vjepa2":
        raise ValueError(f"frames={frames}: this {config.model_type} takes {own} frames and no other number")
    if config.model_type == "vjepa2" and (frames < 1 or frames % config.tubelet_size):
        raise ValueError(f"frames={frames}: V-JEPA 2 reads frames by {config.tubelet_size}, so it takes a multiple")
    return ClipSpec(frames, _side(getattr(shape, family.size), "pictures"))


def _side(size: int | Sequence[int], what: str) -> int:
    side, *others = _list(size)
    if any(other != side for other in others):
        raise ValueError(f"its {what} are {' x '.join(map(str, _list(size)))}; only square ones are known here")
    return side


def _list(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _own_classes(options: Options, folder: Path, config: Any) -> list[str]:
    """The classes that the logits stand for, in their order."""
    if options.prompt != "{}":
        raise ValueError(f"prompt is for X-CLIP; {config.model_type} has classes of its own")
    count = config.num_labels
    if options.labels:
        found = read_labels(Path(options.labels))
        if len(found) != count:
            raise ValueError(f"{options.labels} names {len(found)} classes; {folder} has {count}")
        return found
    names = config.id2label
    if sorted(names) != list(range(count)) or all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names.values()):
        raise ValueError(
            f"{folder / 'config.json'} does not name its {count} classes (id2label); write their names, in the order "
            "of the logits, into a file and set teacher.labels=FILE"
        )
    return [str(names[place]) for place in range(count)]


def _texts(options: Options, classes: Sequence[str]) -> list[str]:
    """What X-CLIP is told of each class."""
    if options.labels:
        raise ValueError("labels is for models with classes of their own; X-CLIP takes the data set's")
    if options.prompt.count("{}") != 1:
        raise ValueError(f"prompt={options.prompt!r} should have one {{}}, where the class's name goes")
    return [options.prompt.replace("{}", name) for name in classes]


@torch.no_grad()
def _read_texts(folder: Path, model: Any, texts: Sequence[str]) -> Tensor:
    """What the text tower says of each text [K, its width]."""
    from transformers import AutoTokenizer

    # transformers makes one that knows no letters where there are no files.
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, without which X-CLIP cannot read the names of classes")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has a tokenizer that cannot be read: {files.one_line(error)}") from error
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    length, most = tokens["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length > most:
        raise ValueError(
            f"the longest text of a class, {max(texts, key=len)!r}, has {length} tokens; {most} can be read"
        )
    pooled: Tensor = model.text_model(**tokens).pooler_output
    return pooled
