"""The CLIP teacher against open_clip's own functions, and what it says to mistakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tokenizers
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from teacher_examples.clip import ARCHITECTURE, CLASSES, PIXELS, write, write_head
from torch import Tensor
from torch.nn import functional as F

from distill.outputs import ClipSpec
from teachers import clip
from teachers.clip import TEMPLATES, ClipTeacher, Options, spoken

FEW = ["{}.", "a video of {}.", "a photo of a person doing {} slowly."]
WORDS = ["brush hair", "Apply Lipstick", "playing the violin", "jump", "run"]  # CLASSES in words
NO_MASK = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
TEXT: dict[str, Any] = ARCHITECTURE["text_cfg"]
VISION: dict[str, Any] = ARCHITECTURE["vision_cfg"]
KINDS: dict[str, dict[str, Any]] = {
    "vit": {},
    "gelu": {"quick_gelu": False},
    "resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}},
    "siglip": {"custom_text": True, "init_logit_bias": -10.0, "text_cfg": {**TEXT, **NO_MASK, "context_length": 16}},
    "timm": {"custom_text": True, "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": ""}},
    "reads at the end": {"custom_text": True, "text_cfg": {**TEXT, "pool_type": "last"}},
    "reads both ways": {"custom_text": True, "text_cfg": {**TEXT, "no_causal_mask": True}},
    "brackets": {"nonscalar_logit_scale": True},
}


def frames_of(count: int = 2, frames: int = 3, size: int = 32) -> Tensor:
    chance = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8, generator=chance)


def options_of(folder: Path, **changes: Any) -> Options:
    return Options(**{"model": f"local-dir:{folder}", "frames": 3, "templates": FEW} | changes)


def build(options: Options) -> ClipTeacher:
    return clip.build(options, CLASSES).eval().requires_grad_(False)


def embed(model: Any, frames: Tensor) -> Tensor:
    """Unit embeddings of frames by open_clip itself, one frame at a time."""
    mean, std = (torch.tensor(PIXELS[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        each = [[model.encode_image((f / 255 - mean)[None] / std, normalize=True)[0] for f in clip] for clip in frames]
    return torch.stack([torch.stack(clip) for clip in each])


def texts(model: Any, name: str) -> Tensor:
    return open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer(name), WORDS, FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot_is_what_open_clip_computes(tmp_path: Path, kind: str) -> None:
    write(tmp_path, **KINDS[kind])
    teacher = build(options_of(tmp_path))
    model: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    each, text = embed(model, frames_of()), texts(model, f"local-dir:{tmp_path}")
    video = F.normalize(each.mean(1), dim=-1)
    logits = model.logit_scale.exp() * video @ text + (0 if model.logit_bias is None else model.logit_bias)

    answer = teacher(frames_of(), want=["frame_features"])
    torch.testing.assert_close(answer.maps["frame_features"], each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.feature, video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.logits, logits.detach(), rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[0].mean()).abs().max() > 1e-3  # the classes do differ
    assert teacher.classes == CLASSES
    assert teacher.takes_any_class
    assert not any(name.startswith("text") for name, _ in teacher.named_modules()), "the text tower is not kept"


def test_coca_is_what_open_clip_computes(tmp_path: Path) -> None:
    """Its towers give tokens too, and its text tower reads a token of its own behind the text."""
    text = {**TEXT, "embed_cls": True, "output_tokens": True, "context_length": 76}
    vision = {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    several = {"context_length": 76, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    architecture = {**ARCHITECTURE, "text_cfg": text, "vision_cfg": vision, "multimodal_cfg": several}
    torch.manual_seed(0)
    save_file(open_clip.CoCa(**architecture).state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {**architecture, "custom_text": True}, "preprocess_cfg": PIXELS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))

    model: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    video = F.normalize(embed(model, frames_of()).mean(1), dim=-1)
    logits = model.logit_scale.exp() * video @ texts(model, f"local-dir:{tmp_path}")
    answer = build(options_of(tmp_path))(frames_of())
    torch.testing.assert_close(answer.logits, logits.detach(), rtol=1e-4, atol=1e-4)


def test_attention_weighs_frames_by_how_like_the_class_they_are(tmp_path: Path) -> None:
    write(tmp_path)
    model: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    each, text = embed(model, frames_of()), texts(model, f"local-dir:{tmp_path}")
    wanted = torch.zeros(2, len(CLASSES))
    for b in range(2):
        for k in range(len(CLASSES)):
            share = torch.softmax(each[b] @ text[:, k] / 0.05, dim=0)
            video = sum(share[t] * each[b, t] for t in range(3))
            wanted[b, k] = model.logit_scale.exp() * torch.cosine_similarity(video, text[:, k], dim=0)
    answer = build(options_of(tmp_path, pool="attention", temperature=0.05))(frames_of())
    torch.testing.assert_close(answer.logits, wanted.detach(), rtol=1e-4, atol=1e-4)

    plain = build(options_of(tmp_path))(frames_of())
    even = build(options_of(tmp_path, pool="attention", temperature=1e6))(frames_of())
    torch.testing.assert_close(even.logits, plain.logits, rtol=1e-4, atol=1e-4)
    assert (answer.logits - plain.logits).abs().max() > 1e-3
    assert torch.equal(answer.feature, plain.feature)


def test_a_head_stands_in_for_the_prompts(tmp_path: Path) -> None:
    write(tmp_path)
    head = write_head(tmp_path)
    teacher = clip.build(options_of(tmp_path, **head), ["data", "set"]).eval()
    answer = teacher(frames_of())
    layer = load_file(head["head"])
    wanted = build(options_of(tmp_path))(frames_of()).feature @ layer["weight"].T + layer["bias"]
    torch.testing.assert_close(answer.logits.detach(), wanted)
    assert teacher.classes == CLASSES
    assert not teacher.takes_any_class


def test_blocks_are_the_means_over_the_patches(tmp_path: Path) -> None:
    write(tmp_path)
    model: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    seen: list[Tensor] = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda _, given, out: seen.append(out[0, 1:].mean(0)))
    embed(model, frames_of())
    wanted = torch.stack(seen).view(2, 3, 3, 16).transpose(1, 2)  # clips, frames, blocks -> clips, blocks, frames
    maps = build(options_of(tmp_path))(frames_of(), want=["blocks"]).maps
    assert list(maps) == ["blocks"]
    torch.testing.assert_close(maps["blocks"], wanted, rtol=1e-4, atol=1e-5)


def test_blocks_of_different_widths_are_no_map(tmp_path: Path) -> None:
    write(tmp_path, **KINDS["resnet"])
    plain, asked = (build(options_of(tmp_path))(frames_of(), want) for want in ([], ["blocks"]))
    assert asked.maps == {}
    torch.testing.assert_close(asked.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_logits_are_not_rounded_to_half_precision(tmp_path: Path) -> None:
    """A scale of 100 makes cosines rounded to bfloat16 wrong by 0.2; only the towers may compute in it."""
    model = write(tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    save_file({**load_file(file), "logit_scale": torch.tensor(100.0).log()}, file)
    teacher = build(options_of(tmp_path))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = teacher(frames_of())
    assert answer.logits.dtype == answer.feature.dtype == torch.float32
    text = texts(model, f"local-dir:{tmp_path}")
    torch.testing.assert_close(answer.logits, 100 * answer.feature @ text, rtol=1e-4, atol=1e-3)


def test_the_prompts_are_openai_s() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) == 28
    assert {"a photo of {}.", "a example of a person using {}.", "a demonstration of a person during {}."} < set(
        TEMPLATES
    )
    assert OmegaConf.structured(Options).templates == TEMPLATES


@pytest.mark.parametrize(("name", "words"), list(zip(CLASSES, WORDS, strict=True)))
def test_classes_are_put_in_words(name: str, words: str) -> None:
    assert spoken(name) == words


def test_names_keep_their_capitals_where_they_are_words_already() -> None:
    assert spoken("using an iPhone") == "using an iPhone"


# ---------------------------------------------------------------- where models come from


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that open_clip knows by the name "tiny", with a tag "mine" whose file is there."""
    folder = tmp_path / "model"
    write(folder)
    (tmp_path / "tiny.json").write_text(json.dumps(ARCHITECTURE))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "tiny.json")
    tag = {**PIXELS, "file": str(folder / "open_clip_model.safetensors"), "quick_gelu": True, "url": "", "hf_hub": ""}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"mine": tag})
    return folder


def test_a_tag_is_the_same_teacher_as_its_folder(tiny: Path) -> None:
    by_folder, by_name = options_of(tiny), options_of(tiny, model="tiny", pretrained="mine")
    assert clip.fingerprint(by_name) == clip.fingerprint(by_folder)
    assert torch.equal(build(by_name)(frames_of()).logits, build(by_folder)(frames_of()).logits)


def test_a_tag_s_file_can_be_given(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As open_clip's trainer saves it: in a container, with a prefix before every name."""
    weights = load_file(tiny / "open_clip_model.safetensors")
    torch.save({"epoch": 1, "state_dict": {f"module.{n}": v for n, v in weights.items()}}, tmp_path / "epoch_1.pt")
    by_tag = options_of(tiny, model="tiny", pretrained="mine")
    by_file = replace(by_tag, weights=str(tmp_path / "epoch_1.pt"))
    expected, found = build(by_tag)(frames_of()).logits, clip.fingerprint(by_tag)
    monkeypatch.setattr(open_clip, "download_pretrained", None)
    assert clip.fingerprint(by_file) == found
    assert torch.equal(build(by_file)(frames_of()).logits, expected)


def test_the_tag_says_how_pictures_are_normalised(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_tag = options_of(tiny, model="tiny", pretrained="mine")
    found = clip.fingerprint(by_tag)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["tiny"]["mine"], "std", (0.3, 0.3, 0.3))
    torch.testing.assert_close(build(by_tag).normalise.std.flatten(), torch.full((3,), 0.3))
    assert clip.fingerprint(by_tag) != found


def test_weights_out_of_reach(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise OSError("no route to the Hub")

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", refuse)
    options = Options("ViT-B-16-quickgelu", "openai")
    assert clip.wants(options) == ClipSpec(8, 224)  # which needs no weights
    said = (
        r"weights of ViT-B-16-quickgelu openai are neither .* \(.*no route.*\); fetch them from https://huggingface.co/"
    )
    for ask in (clip.fingerprint, build):
        with pytest.raises(ValueError, match=said + r"timm/vit_base_patch16_clip_224.openai .* say weights=FILE"):
            ask(options)
    with pytest.raises(
        ValueError, match=r"open_clip_config.json of hf-hub:me/mine is neither .* model=local-dir:FOLDER"
    ):
        clip.wants(Options("hf-hub:me/mine"))


def test_a_repository_of_the_hub_is_a_folder_of_its_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_cache(repo_id: str, filename: str, **_: Any) -> str:
        if not (tiny / filename).is_file():
            raise OSError("no such file in the cache")
        return str(tiny / filename)

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", from_cache)
    options = options_of(tiny, model="hf-hub:me/mine")
    assert clip.fingerprint(options) == clip.fingerprint(options_of(tiny))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: open_clip.SimpleTokenizer())
    assert torch.equal(build(options)(frames_of()).logits, build(options_of(tiny))(frames_of()).logits)


def openai_archive(folder: Path) -> None:
    """As OpenAI's files: half precision, and numbers about the model between the weights."""
    weights = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    saved = {name: value.half() for name, value in weights.items()} | {n: torch.tensor(v) for n, v in numbers.items()}
    torch.save(saved, folder / "open_clip_pytorch_model.bin")


def test_openai_s_archives(tmp_path: Path) -> None:
    write(tmp_path)
    expected = build(options_of(tmp_path))(frames_of()).logits
    openai_archive(tmp_path)
    torch.testing.assert_close(build(options_of(tmp_path))(frames_of()).logits, expected, rtol=0.01, atol=0.02)


def test_a_scale_may_have_brackets_in_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path)
    expected = build(options_of(tmp_path))(frames_of()).logits
    file = tmp_path / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "logit_scale": weights["logit_scale"].view(1)}, file)
    assert torch.equal(build(options_of(tmp_path))(frames_of()).logits, expected)


def test_weights_of_quickgelu_are_not_read_into_plain_gelu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ViT-B-16 openai were trained with QuickGELU.*model=ViT-B-16-quickgelu"):
        clip.wants(Options("ViT-B-16", "openai"))
    assert clip.wants(Options("ViT-B-16", "laion2b_s34b_b88k")).size == 224
    write(tmp_path, quick_gelu=False)
    openai_archive(tmp_path)
    with pytest.raises(ValueError, match=r"trained with QuickGELU and the model has plain GELU; its open_clip_config"):
        build(options_of(tmp_path))


def test_a_text_tower_and_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    """They lie in the model's folder, and are part of the teacher."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(vocab_size=5, **small).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": "somewhere/else", "context_length": 16}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "jump": 3}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    write(tmp_path, custom_text=True, text_cfg={**text, "hf_model_pretrained": False})
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = text
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    fast.save_pretrained(tmp_path)
    options, file = options_of(tmp_path), tmp_path / "open_clip_model.safetensors"
    logits = build(options)(frames_of()).logits
    model: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    video = F.normalize(embed(model, frames_of()).mean(1), dim=-1)
    wanted = model.logit_scale.exp() * video @ texts(model, f"local-dir:{tmp_path}")
    torch.testing.assert_close(logits, wanted.detach(), rtol=1e-4, atol=1e-4)

    save_file({**load_file(file), "text.transformer.embeddings.position_ids": torch.arange(512)}, file)  # an old file
    assert torch.equal(build(options)(frames_of()).logits, logits)
    found = clip.fingerprint(options)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace("jump", "hop"))
    assert clip.fingerprint(options) != found


def test_a_fingerprint_knows_what_matters(tmp_path: Path) -> None:
    write(tmp_path)
    head = write_head(tmp_path)
    options = options_of(tmp_path)
    found = clip.fingerprint(options)
    assert clip.fingerprint(replace(options, temperature=0.3)) == found, "only attention has a temperature"
    with_head = replace(options, **head)
    assert clip.fingerprint(replace(with_head, templates=["{}"])) == clip.fingerprint(with_head), (
        "a head has no prompts"
    )
    shutil.copytree(tmp_path, tmp_path / "again")
    assert clip.fingerprint(options_of(tmp_path / "again")) == found
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0, 0, 0]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert clip.fingerprint(options) != found


# ---------------------------------------------------------------- mistakes

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tag": ({"model": "ViT-B-32"}, r"pretrained='' is no tag of ViT-B-32; its tags: openai, laion400m_e31"),
    "other tag": ({"model": "ViT-B-32", "pretrained": "opnai"}, r"pretrained='opnai' is no tag of ViT-B-32"),
    "other model": ({"model": "ViT-B-17"}, r"no model named 'ViT-B-17'; see ViT-B-16"),
    "two tags": ({"pretrained": "openai"}, r"pretrained=openai goes with names of open_clip's models"),
    "no folder": ({"model": "local-dir:/nowhere"}, r"/nowhere/open_clip_config.json is not there"),
    "no file": ({"weights": "/nowhere.pt"}, r"/nowhere.pt is not there; leave weights out"),
    "no frames": ({"frames": 0}, r"frames=0 should be at least 1"),
    "pool": ({"pool": "max"}, r"pool=max is not one of mean, attention"),
    "temperature": ({"temperature": 0.0}, r"temperature=0.0 should be above 0"),
    "head alone": ({"head": "head.safetensors"}, r"head and labels go together"),
    "no place": ({"templates": ["a video"]}, r"templates should be prompts with \{\}"),
    "no prompts": ({"templates": []}, r"templates should be prompts with \{\}"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named(tmp_path: Path, mistake: str) -> None:
    write(tmp_path)
    changes, said = WRONG[mistake]
    with pytest.raises(ValueError, match=said):
        build(options_of(tmp_path, **changes))


def test_a_head_of_another_size(tmp_path: Path) -> None:
    write(tmp_path)
    head = write_head(tmp_path)
    (tmp_path / "labels.txt").write_text("one\ntwo")
    with pytest.raises(ValueError, match=r"head.safetensors has .*\[5, 16\].*should have \{'weight': \[2, 16\]"):
        build(options_of(tmp_path, **head))
    with pytest.raises(ValueError, match=r"pool=attention weighs frames by prompts, which a head does not have"):
        build(options_of(tmp_path, **head, pool="attention"))


@pytest.mark.parametrize(("layers", "what"), [(4, "lack"), (2, "have besides")])
def test_weights_of_another_model(tmp_path: Path, layers: int, what: str) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = layers
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    said = rf"are not those of local-dir:.*: they {what} visual.transformer.resblocks.{min(layers, 3)}.* and 9 more$"
    with pytest.raises(ValueError, match=said):
        build(options_of(tmp_path))


def test_a_folder_that_lacks_something(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no open_clip_model.safetensors or open_clip_pytorch_model.bin; put one"):
        clip.fingerprint(options_of(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": {}}))
    with pytest.raises(
        ValueError, match=r"open_clip_config.json .* preprocess_cfg with mean and std \(KeyError\('mean'\)"
    ):
        clip.wants(options_of(tmp_path))
    oblong = {**ARCHITECTURE, "vision_cfg": {**VISION, "image_size": [32, 48]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": oblong, "preprocess_cfg": PIXELS}))
    with pytest.raises(ValueError, match=r"wants pictures of 32x48 pixels; only square ones"):
        clip.wants(options_of(tmp_path))


def test_a_model_that_open_clip_cannot_build(tmp_path: Path) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["sparkle"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"open_clip cannot build this model: .*sparkle"):
        build(options_of(tmp_path))
