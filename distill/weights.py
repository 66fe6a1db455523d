"""Weights from files of every origin, without unpickling anything, and what identifies them."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

CONTAINERS = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state", "model_state_dict")
# Settings that trainers pickle beside the weights, and the plain type that stands for them here.
HARMLESS = [(collections.OrderedDict, name) for name in ("yacs.config.CfgNode", "argparse.Namespace")]


def read_weights(path: Path, origin: str = "") -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, a torch checkpoint or a TorchScript archive, out of their wrappings.

    `origin` is what to tell a person who does not have the file: where to get it.
    """
    if not path.is_file():
        what = "is a folder, not a file of weights" if path.is_dir() else "is not there"
        raise ValueError(f"{path} {what}" + (f"; {origin}" if origin else ""))
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    weights = unwrap(found, path)
    if hollow := next((name for name, value in weights.items() if not _is_dense(value)), None):
        raise ValueError(f"{path}: {hollow} is no plain table of numbers (meta, sparse or quantised); save it as one")
    return weights


def _is_dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)


def unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """A state dict out of its container, without the prefix that a wrapper put before every name."""
    container = next(
        (found[key] for key in CONTAINERS if isinstance(found, Mapping) and _is_state(found.get(key))), found
    )
    if not _is_state(container):
        kind = f"keys {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{path} holds no named tensors (it has {kind})")
    weights = {str(name): value for name, value in container.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _read_checkpoint(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # it is handled below
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what fails is told below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails with whatever its reader stumbles over
        if not isinstance(error, RuntimeError) or "TorchScript" not in str(error):
            raise ValueError(f"{path} {_why(error)}") from error
        return _read_script(path)


def _read_script(path: Path) -> Any:
    try:
        return torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except OSError:
        raise
    except Exception as error:  # as various as a pickle's
        raise ValueError(f"{path} is not a whole TorchScript archive") from error


def _why(error: Exception) -> str:
    """What torch's refusal means for a person; never its own advice, which is to let the file run code."""
    if isinstance(error, UnpicklingError) and (code := re.search(r"GLOBAL ([\w.]+) ", str(error))):
        return (
            f"wants to run code when it is opened ({code[1]}), so it is not opened; where you trust it, save its "
            "tensors as .safetensors and name that file"
        )
    if isinstance(error, RuntimeError):
        return f"is not a whole torch checkpoint ({str(error).splitlines()[0]})"
    return "is not a torch checkpoint"


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Changes when a name, a type, a shape or a number does, and with nothing else."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        if value.numel():
            found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_file(path: Path, origin: str = "") -> str:
    """The digest of a file's tensors: the same weights in another container, under another name, are the same."""
    if not path.is_file():
        read_weights(path, origin)
    return digest_parts([path])


def digest_parts(paths: Sequence[Path]) -> str:
    """The digest of tensors that stand in several files, read once while the files stay as they are."""
    facts = [path.stat() for path in paths]
    return _digest_parts(tuple(paths), tuple((found.st_size, found.st_mtime_ns) for found in facts))


@functools.lru_cache(maxsize=16)
def _digest_parts(paths: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> str:
    return digest_weights({name: value for path in paths for name, value in read_weights(path).items()})


def digest_facts(facts: Any) -> str:
    """Of whatever JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
