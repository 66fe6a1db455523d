"""A folder as transformers saves a model: its config, how its pixels are prepared, its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

Pixels = tuple[list[float], list[float]]  # mean and standard deviation of each colour, of pixels in 0..1
WORDS = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
SET_MEAN = "set teacher.mean and teacher.std, three numbers each, for pixels in 0..1"


def find_folder(model: str, revision: str, weights: bool) -> Path:
    """The model's files here; those of the Hub are fetched, or found where they were fetched to."""
    folder = Path(model)
    if folder.is_dir():
        if revision:
            raise ValueError(f"revision is for models on the Hub; {folder} is a folder here")
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        raise ValueError(f"{model} is neither a folder here nor the name of a model on the Hub, OWNER/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "merges.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"{model} is no folder here and could not be had from the Hub ({type(error).__name__}); "
            f"download it with `hf download {model} --local-dir DIR` and set teacher.model=DIR"
        ) from error


def read_config(folder: Path, known: Mapping[str, str]) -> Any:
    """transformers' config of the model; `known` are the architectures, and their classes that answer for actions."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json, so it holds no model of transformers")
    said = read_json(path)
    kind = str(said.get("model_type"))
    if kind not in known:
        raise ValueError(f"{path}: model_type {kind} is none of {', '.join(known)}")
    made = said.get("architectures") or [known[kind]]
    if known[kind] not in made:
        raise ValueError(f"{folder} holds {made[0]}, which knows no actions; a teacher needs {known[kind]}")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error


def read_pixels(folder: Path, model_type: str) -> Pixels:
    """What the folder says of the pixels that the model was trained with.

    There is no default: a checkpoint may differ from its family, and wrong pixels go unnoticed.
    """
    said = {place: _prepared(facts, place, model_type) for place, facts in _preprocessors(folder)}
    if not said:
        raise ValueError(f"{folder} has no preprocessor_config.json to say how its pixels are prepared; {SET_MEAN}")
    first, *others = said.values()
    if any(other != first for other in others):
        raise ValueError(f"{' and '.join(said)} do not agree on how pixels are prepared; {SET_MEAN}")
    return first


def _preprocessors(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything in the folder that says how pictures are prepared, and where it stands."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            yield str(folder / name), read_json(folder / name)
    path = folder / "processor_config.json"
    whole = read_json(path) if path.is_file() else {}
    for part in ("video_processor", "image_processor"):
        if part in whole:
            yield f"{path} ({part})", whole[part]


def _prepared(facts: Mapping[str, Any], place: str, model_type: str) -> Pixels:
    """As transformers prepares videos: rescaled and normalised, unless the file says otherwise."""
    kinds = ("video_processor_type", "image_processor_type", "feature_extractor_type")
    kind = next((facts[key] for key in kinds if facts.get(key)), model_type)
    is_vivit = kind.lower().startswith("vivit")  # brings pixels to -1..1 before it normalises them
    if not facts.get("do_rescale", True):
        raise ValueError(f"{place} says do_rescale: false, so what its pixels should be is not clear; {SET_MEAN}")
    factor = 255 * facts.get("rescale_factor", 1 / 127.5 if is_vivit else 1 / 255)
    offset = float(facts.get("offset", is_vivit))
    mean, std = [0.0] * 3, [1.0] * 3
    if facts.get("do_normalize", True):
        mean, std = (_three(facts.get(key), place) for key in ("image_mean", "image_std"))
    return [round((offset + value) / factor, 9) for value in mean], [round(value / factor, 9) for value in std]


def _three(value: float | Sequence[float] | None, place: str) -> list[float]:
    values = [value] * 3 if isinstance(value, int | float) else list(value or [])
    if len(values) != 3:
        raise ValueError(f"{place} lacks image_mean or image_std of three colours; {SET_MEAN}")
    return values


def load_network(folder: Path, config: Any, kind: str) -> Any:
    """transformers' own network, every number of it out of the folder's safetensors files."""
    import transformers

    find_weights(folder)
    try:
        with _quietly():
            network, found = getattr(transformers, kind).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded: {one_line(error)}") from error
    amiss = sorted([*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])])
    if amiss:
        some = ", ".join(amiss[:3]) + (", ..." if len(amiss) > 3 else "")
        raise ValueError(f"{folder} does not hold {len(amiss)} of the weights that its config.json asks for: {some}")
    return network


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars and reports; what matters of them is raised."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def find_weights(folder: Path) -> list[Path]:
    """One file, or the parts that an index names; the one that transformers would choose."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        parts = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        gone = [part.name for part in parts if not part.is_file()]
        if gone:
            raise ValueError(f"{folder} lacks {len(gone)} of its {len(parts)} files of weights: {', '.join(gone[:3])}")
        return parts
    if (folder / "pytorch_model.bin").is_file():
        raise ValueError(
            f"{folder} has its weights only as pytorch_model.bin, which is not opened because it may run code; convert "
            "it with distill.weights.read_weights and safetensors.torch.save_file(weights, 'model.safetensors', "
            "{'format': 'pt'})"
        )
    raise ValueError(f"{folder} has no model.safetensors; on the Hub another revision may have it (teacher.revision)")


def digest_words(folder: Path) -> str:
    """Of what the tokenizer is made of."""
    found = hashlib.sha256()
    for path in (folder / name for name in WORDS):
        if path.is_file():
            found.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)})") from error
    return found


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
