"""A student in a folder of its own, ready for the Hub: model.safetensors, config.json and README.md, its model card.

config.json says how to build the student again (the plug-in's options, the names of the classes, the clips it wants;
of a pruned one the widths that are left, and the tensors whose zeros stay) and what is known of it (facts for the
card). model.safetensors holds the tensors under the names that the plug-in's
network gives them. Shapes: B clips, T frames, K classes, L latent width.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill import plugins
from distill.errors import UserError
from distill.files import publish, publish_text
from distill.measure import imagined
from distill.model_card import TASK, TEMPLATE, results, tables
from distill.outputs import ClipSpec, Student, StudentOutput
from distill.widths import Widths, narrow

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class DistilledStudent(
    Student,
    PyTorchModelHubMixin,
    library_name="distill",
    pipeline_tag=TASK,
    tags=["action-recognition", "knowledge-distillation"],
    model_card_template=TEMPLATE,
):
    """Any plug-in's student and the names of its classes: save_pretrained, from_pretrained and push_to_hub.

    Building one fetches no pretrained weights: its own come from a file, or from a student that was trained.
    """

    def __init__(
        self,
        options: dict[str, Any],
        classes: list[str],
        facts: dict[str, Any] | None = None,
        widths: Widths | None = None,
        sparse: list[str] | None = None,
    ) -> None:
        super().__init__()
        checked = unfetched(check_options(options, "the student's options"))
        self.student: Student = plugins.build("student", checked, classes=len(classes))
        narrow_student(self.student, widths or {}, len(classes))
        self.classes, self.facts = list(classes), facts or {}
        self.spec, self.feature_names = self.student.spec, self.student.feature_names
        self.encoder = tuple(f"student.{name}" for name in self.student.encoder)
        self._hub_mixin_config: dict[str, Any] = {
            "options": asdict(checked),
            "classes": self.classes,
            "spec": asdict(self.spec),
            "facts": self.facts,
            **({"widths": widths} if widths else {}),
            **({"sparse": sparse} if sparse else {}),
        }

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> StudentOutput:
        answer: StudentOutput = self.student(frames, want=want)
        return answer

    def fill(self, weights: Mapping[str, Tensor], origin: object) -> None:
        """Take over every tensor; one that is missing, too many or of another shape is an error."""
        own = self.student.state_dict()
        found = {
            "lacks": [name for name in own if name not in weights],
            "has besides": [name for name in weights if name not in own],
            "has in other shapes": [name for name in own if name in weights and weights[name].shape != own[name].shape],
        }
        wrong = [f"{what} {some(names)}" for what, names in found.items() if names]
        if wrong:
            raise UserError(f"{origin} does not fit the student that its card describes: it {' and '.join(wrong)}")
        self.student.load_state_dict(weights)

    def _save_pretrained(self, save_directory: Path) -> None:
        """The configuration, then the weights: what a crash leaves behind lacks one of them and does not load."""
        (save_directory / WEIGHTS).unlink(missing_ok=True)
        publish_text(save_directory / CONFIG, json.dumps(self._hub_mixin_config, indent=1) + "\n")
        # Copies, because tensors that share memory are refused, and other programs look for each under its own name.
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.student.state_dict().items()
        }
        publish(save_directory / WEIGHTS, lambda part: save_file(weights, part, {"format": "pt"}))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # one that loads strictly takes no `strict`
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | torch.device = "cpu",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """A student from a folder, or from the Hub; it comes in evaluation mode."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            how = {"revision": revision, "token": token, "cache_dir": cache_dir}
            how |= {"force_download": force_download, "local_files_only": local_files_only}
            folder = _download(str(pretrained_model_name_or_path), how)
        config = read_config(folder)  # one clear line where the mixin would stumble
        model = super().from_pretrained(folder, map_location=map_location)
        if model.spec != ClipSpec(**config["spec"]):
            raise UserError(f"{folder / CONFIG}: spec is {config['spec']}, but its options make {asdict(model.spec)}")
        return model

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the files are here by now, and the rest of them says nothing new
        cls, *, model_id: str, map_location: str | torch.device, options: Any, classes: Any, facts: Any, **more: Any
    ) -> Self:
        file = Path(model_id) / WEIGHTS
        if not file.is_file():
            raise UserError(f"{file} is missing: the student was not saved to its end")
        try:
            model = cls(options, classes, facts, more.get("widths"), more.get("sparse"))
        except UserError as error:
            raise UserError(f"{file.with_name(CONFIG)}: {error}") from error
        try:
            model.fill(load_file(file), file)
        except SafetensorError as error:
            raise UserError(f"{file} is not a whole safetensors file ({error})") from error
        return model.to(map_location).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What is known of task, data, teacher, student, figures and recipe."""
        name, info, answer = self._hub_mixin_config["options"]["name"], self._hub_mixin_info, imagined(self.student)
        card: ModelCard = ModelCard.from_template(
            ModelCardData(**{**vars(info.model_card_data), **results(name, self.facts)}),
            template_str=info.model_card_template,
            title=f"{name}, {len(self.classes)} actions",
            frames=f"[B, {self.spec.frames}, 3, {self.spec.size}, {self.spec.size}]",
            logits=f"[B, {answer.logits.shape[1]}]",
            latent=f"[B, {answer.latent.shape[1]}]",
            tables=tables(name, self.classes, self.spec, self.facts),
            recipe=OmegaConf.to_yaml(OmegaConf.create(self.facts.get("recipe", {}))).rstrip(),
            **kwargs,
        )
        return card


def _download(name: str, how: dict[str, Any]) -> Path:
    """The folder of a student from the Hub."""
    try:
        files = [Path(hf_hub_download(name, file, **how)) for file in (CONFIG, WEIGHTS)]
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{name} is neither a folder nor a student that can be had from the Hub ({why})") from error
    return files[0].parent


def read_config(folder: Path) -> dict[str, Any]:
    """options, classes, spec, facts, widths and sparse of the student in this folder; nothing is built or imported but
    its plug-in."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no student ({path} is missing)") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file that can be read ({error})") from error
    parts = ("options", "classes", "spec", "facts")
    if not isinstance(found, dict) or any(part not in found for part in parts):
        raise UserError(f"{path} does not describe a student of distill: it should have {', '.join(parts)}")
    check_options(found["options"], path)
    classes, spec = found["classes"], found["spec"]
    if not isinstance(classes, list) or not classes or any(not isinstance(name, str) for name in classes):
        raise UserError(f"{path}: classes should be a list of names")
    if not isinstance(spec, dict) or spec.keys() != ClipSpec.__dataclass_fields__.keys():
        raise UserError(f"{path}: spec should be a number of frames and a size")
    if any(type(value) is not int or value < 1 for value in spec.values()):
        raise UserError(f"{path}: spec should be a number of frames and a size, each a whole number of at least 1")
    if not isinstance(found["facts"], dict):
        raise UserError(f"{path}: facts should be a table of what is known")
    widths, sparse = found.get("widths", {}), found.get("sparse", [])
    if not isinstance(widths, dict) or any(not isinstance(layer, dict) for layer in widths.values()):
        raise UserError(f"{path}: widths should be a table of layers")
    if not isinstance(sparse, list) or any(not isinstance(name, str) for name in sparse):
        raise UserError(f"{path}: sparse should be a list of names of tensors")
    return {**{part: found[part] for part in parts}, "widths": widths, "sparse": sparse}


def check_options(given: Any, origin: object) -> Any:
    """A plug-in's options from what a file says: only a plug-in that is there, names that it knows, the right types."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise UserError(f"{origin}: options should name a student; known: {', '.join(plugins.names('student'))}")
    try:
        schema = plugins.schema("student", given["name"])
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    unknown = [str(name) for name in given if name not in schema.__dataclass_fields__]
    if unknown:
        raise UserError(f"{origin}: student {given['name']} has no option {unknown[0]!r}; it may be of another version")
    if "${" in json.dumps(given):  # OmegaConf would look up what stands there, in the environment for one
        raise UserError(f"{origin}: options should be plain values, without ${{...}}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(given)))
    except OmegaConfBaseException as error:
        raise UserError(f"{origin}: option {error.full_key}: {str(error.msg).splitlines()[0]}") from error


def narrow_student(student: Student, widths: Widths, classes: int) -> None:
    """Make a student as narrow as these widths say, if that makes a network."""
    narrow(student, widths)
    if not widths:
        return
    try:
        logits = imagined(student, ("reconstruction",)).logits
    except (RuntimeError, ValueError) as error:
        raise UserError(f"widths: the layers do not fit each other ({str(error).splitlines()[0]})") from error
    if logits.shape[1] != classes:
        raise UserError(f"widths: they leave {logits.shape[1]} logits of {classes} classes")


def unfetched(options: Any) -> Any:
    """Options of the same network that asks for nobody's pretrained weights, because it gets others."""
    return replace(options, pretrained=False) if getattr(options, "pretrained", False) else options


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few of many names."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
