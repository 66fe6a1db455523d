"""open_clip's models as files: what describes them, where their weights lie, and the networks with their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.files import digest
from distill.weights import read_weights
from teachers._loading import load_strictly

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG, WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# What OpenAI's own files hold beside the weights.
OPENAI = {"input_resolution", "context_length", "vocab_size"}
# Names of the text tower, which stands in `text` here and lies open in the files of the first CLIPs.
TEXT = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


@dataclass(frozen=True)
class Source:
    """A model as recipes name it: open_clip's name and the tag of its weights, hf-hub:ORG/REPO or local-dir:FOLDER."""

    model: str
    tag: str
    file: str  # of weights, where they shall not be the ones that belong to the model

    def __str__(self) -> str:
        return f"{self.model} {self.tag}".strip()


@dataclass(frozen=True)
class Card:
    """What describes a model."""

    architecture: dict[str, Any]  # open_clip's model_cfg
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def size(self) -> int:
        found = self.architecture["vision_cfg"].get("image_size", 224)  # open_clip's own default
        height, width = (found, found) if isinstance(found, int) else found
        if height != width:
            raise ValueError(f"the model wants pictures of {height}x{width} pixels; only square ones can be had here")
        return int(height)


def read_card(source: Source) -> Card:
    if not source.model.startswith((HUB, FOLDER)):
        return _known_card(source)
    if source.tag:
        raise ValueError(f"pretrained={source.tag} goes with names of open_clip's models; {source.model} has its own")
    file = _member(source, CONFIG)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        pixels = found["preprocess_cfg"]
        return Card(found["model_cfg"], pixels["mean"], pixels["std"])
    except (ValueError, KeyError, TypeError) as error:
        what = "model_cfg, and preprocess_cfg with mean and std"
        raise ValueError(f"{file} is not what open_clip writes: it should have {what} ({error!r})") from error


def _known_card(source: Source) -> Card:
    import open_clip

    architecture = open_clip.get_model_config(source.model)
    if architecture is None:
        near = ", ".join(get_close_matches(source.model, open_clip.list_models())) or "open_clip.list_models()"
        raise ValueError(f"open_clip has no model named {source.model!r}; see {near}, or give {FOLDER}FOLDER")
    tag = open_clip.get_pretrained_cfg(source.model, source.tag)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(source.model)) or f"none; use {FOLDER}FOLDER"
        raise ValueError(f"pretrained={source.tag!r} is no tag of {source.model}; its tags: {tags}")
    if tag.get("quick_gelu"):
        _check_gelu(source, architecture)
    return Card(architecture, tag["mean"], tag["std"])


def _check_gelu(source: Source, architecture: dict[str, Any]) -> None:
    """open_clip only warns here, and the answers of such a network are subtly wrong."""
    if not architecture.get("quick_gelu"):
        advice = f"say model={source.model}-quickgelu"
        if source.model.startswith((HUB, FOLDER)):
            advice = f'its {CONFIG} should have "quick_gelu": true in model_cfg'
        raise ValueError(f"the weights of {source} were trained with QuickGELU and the model has plain GELU; {advice}")


def find_weights(source: Source) -> Path:
    """Their file; fetched from the Hub where it is not in its cache."""
    if source.file:
        return Path(source.file)
    if source.model.startswith(FOLDER):
        folder = Path(source.model.removeprefix(FOLDER))
        found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if not found:
            raise ValueError(f"{folder} has no {' or '.join(WEIGHTS)}; put one there, or give weights=FILE")
        return found
    if source.model.startswith(HUB):
        return _member(source, WEIGHTS[0])
    import open_clip

    tag = open_clip.get_pretrained_cfg(source.model, source.tag)
    try:
        return Path(open_clip.download_pretrained(tag))
    except (OSError, RuntimeError) as error:
        repository, _, name = tag["hf_hub"].rpartition("/")
        home = f"https://huggingface.co/{repository} ({name or WEIGHTS[0]})" if repository else tag["url"]
        advice = f"fetch them from {home} and say weights=FILE"
        raise ValueError(f"the weights of {source} are {_out_of_reach(error)}; {advice}") from error


def origin(source: Source) -> str:
    """What to say where the file of weights is not there."""
    return f"leave weights out to have those of {source} fetched, or put the file there"


def _member(source: Source, name: str) -> Path:
    """A file of a folder, or of a repository on the Hub."""
    if source.model.startswith(FOLDER):
        file = Path(source.model.removeprefix(FOLDER), name)
        if not file.is_file():
            raise ValueError(f"{file} is not there; a folder that open_clip wrote has it")
        return file
    from open_clip.pretrained import download_pretrained_from_hf

    repository = source.model.removeprefix(HUB)
    try:
        # Weights are asked for by their older name; open_clip prefers the newer where there is one.
        return Path(download_pretrained_from_hf(repository, filename=WEIGHTS[1] if name in WEIGHTS else name))
    except (OSError, RuntimeError) as error:
        advice = f"fetch https://huggingface.co/{repository} into a folder and say model={FOLDER}FOLDER"
        raise ValueError(f"{name} of {source} is {_out_of_reach(error)}; {advice}") from error


def _out_of_reach(error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return f"neither in the cache nor within reach ({reason})"


def digest_tokenizer(source: Source, card: Card) -> str:
    """What decides how text is cut: the name of a tokenizer, and its files where they lie in the model's own folder."""
    name: str = card.architecture["text_cfg"].get("hf_tokenizer_name") or ""
    if not name or not source.model.startswith(FOLDER):
        return name
    folder = Path(source.model.removeprefix(FOLDER))
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".model"))
    return hashlib.sha256(
        "".join(file.name + digest(file) for file in files if file.name != CONFIG).encode()
    ).hexdigest()


def load(source: Source, card: Card) -> nn.Module:
    """The two towers, with their weights; the text tower, in `text`, takes texts of any length up to its own."""
    from open_clip.convert import convert_state_dict

    file = find_weights(source)
    weights = read_weights(file, origin(source))
    if set(weights) >= OPENAI:
        _check_gelu(source, card.architecture)
    network = _towers(card)
    found: dict[str, Tensor] = convert_state_dict(network, weights)
    found = {_place(name): value for name, value in found.items() if name not in OPENAI}
    found.pop("text.transformer.embeddings.position_ids", None)  # written by transformers before 4.31
    for name in {"logit_scale", "logit_bias"} & found.keys() & network.state_dict().keys():
        found[name] = found[name].reshape(network.state_dict()[name].shape)  # one number, with brackets or without
    load_strictly(network, found, file, str(source))
    return network.eval()


def _towers(card: Card) -> nn.Module:
    import open_clip

    architecture = {name: value for name, value in card.architecture.items() if name != "custom_text"}
    # Towers of other libraries would fetch weights of their own first.
    vision, text = dict(architecture["vision_cfg"]), dict(architecture["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    kind = open_clip.CoCa if "multimodal_cfg" in architecture else open_clip.CustomTextCLIP
    try:
        network: nn.Module = kind(**architecture | {"vision_cfg": vision, "text_cfg": text})
    except (OSError, TypeError) as error:
        raise ValueError(f"open_clip cannot build this model: {str(error).splitlines()[0]}") from error
    return network


def _place(name: str) -> str:
    return f"text.{name}" if name.startswith(TEXT) else name


def tokenizer(source: Source) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(source.model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the tokenizer of {source} is not on this machine, nor within reach ({reason})") from error
