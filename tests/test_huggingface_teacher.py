"""The teachers of transformers against transformers itself, all five architectures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from teacher_examples.huggingface import CLASSES, MODELS, OWN, PREPROCESSOR, SIZES, save
from torch import Tensor, nn

from distill import plugins
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, TeacherOutput
from distill.teaching.teacher import LiveTeacher, fingerprint, open_teacher, wants
from teachers.huggingface import FAMILIES

BATCH, FRAMES, SIDE, GRID = 3, 4, 32, 4
STEPS = {"videomae": 2, "timesformer": 4, "vivit": 2, "vjepa2": 2, "xclip": 4}
EVERY = pytest.mark.parametrize("kind", list(MODELS))
CLASSIFIERS = [kind for kind in MODELS if kind != "xclip"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture, not to be changed."""
    root = tmp_path_factory.mktemp("transformers")
    for kind in MODELS:
        save(kind, root / kind)
    return {kind: root / kind for kind in MODELS}


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder of an architecture to be changed."""

    def copy(kind: str) -> Path:
        return shutil.copytree(made[kind], tmp_path / kind)

    return copy


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def options(folder: Path | str, **more: Any) -> Any:
    return plugins.schema("teacher", "huggingface")(model=str(folder), **more)


def teach(folder: Path, classes: Any = CLASSES, want: Any = (), **more: Any) -> LiveTeacher:
    return open_teacher(options(folder, **more), classes, want)


def clips(batch: int = BATCH, frames: int = FRAMES, side: int = SIDE) -> Clips:
    pictures = torch.randint(256, (batch, frames, 3, side, side), generator=torch.Generator().manual_seed(1))
    index = torch.arange(batch)
    return Clips(pictures.to(torch.uint8), index, index, index)


def by_hand(frames: Tensor) -> Tensor:
    mean, std = (torch.tensor(PREPROCESSOR[key], dtype=torch.float64) for key in ("image_mean", "image_std"))
    return ((frames.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).float()


@torch.no_grad()
def reference(kind: str, folder: Path, frames: Tensor, way: str = "sdpa", **more: Any) -> tuple[Any, Any]:
    """transformers' own network and its answer, as its documentation has it."""
    way = "eager" if kind == "timesformer" else way
    model = getattr(transformers, MODELS[kind]).from_pretrained(folder, attn_implementation=way)
    if kind == "xclip":
        more |= transformers.AutoTokenizer.from_pretrained(folder)(list(CLASSES), padding=True, return_tensors="pt")
    pixels = "pixel_values_videos" if kind == "vjepa2" else "pixel_values"
    return model, model(**{pixels: by_hand(frames)}, **more)


# ---------------------------------------------------------------- answers


def test_there_is_an_example_of_every_architecture() -> None:
    assert set(FAMILIES) == set(MODELS) == set(SIZES)


@EVERY
def test_its_answers_are_the_network_s_own(kind: str, made: dict[str, Path]) -> None:
    batch = clips()
    answer = teach(made[kind])(batch)
    _, wanted = reference(kind, made[kind], batch.frames)
    if kind == "xclip":
        logits = wanted.logits_per_video
        torch.testing.assert_close(answer.feature, wanted.video_embeds)
        assert answer.feature is not None
        torch.testing.assert_close(answer.feature.norm(dim=1), torch.ones(BATCH))
    else:
        logits = wanted.logits[:, [OWN.index(name) for name in ("wave", "jump rope", "pour water", "clap", "Spin")]]
    torch.testing.assert_close(answer.logits, logits, rtol=1e-4, atol=1e-5)
    assert answer.maps == {}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_feature_is_what_the_classifier_reads(kind: str, made: dict[str, Path]) -> None:
    batch, read = clips(), []
    network = teach(made[kind]).network
    with torch.no_grad():
        answer = network(batch.frames)
    assert torch.equal(network.head(answer.feature), answer.logits)
    model = getattr(transformers, MODELS[kind]).from_pretrained(made[kind])
    model.classifier.register_forward_pre_hook(lambda _module, given: read.append(given[0]))
    with torch.no_grad():
        model(**{FAMILIES[kind].pixels: by_hand(batch.frames)})
    torch.testing.assert_close(answer.feature, read[0], rtol=1e-4, atol=1e-5)


@EVERY
def test_a_clip_s_answer_does_not_depend_on_the_others(kind: str, made: dict[str, Path]) -> None:
    teacher, batch = teach(made[kind], want=["attention", "hidden"]), clips()
    whole = teacher(batch)
    for at in range(BATCH):
        alone = teacher(batch.map(lambda tensor, at=at: tensor[at : at + 1]))
        assert_close(alone, whole.map(lambda tensor, at=at: tensor[at : at + 1]))
    assert not torch.allclose(whole.logits[0], whole.logits[1], atol=1e-4)


def assert_close(one: TeacherOutput, other: TeacherOutput) -> None:
    for got, wanted in zip(parts(one), parts(other), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def parts(answer: TeacherOutput) -> list[Tensor]:
    assert isinstance(answer.logits, Tensor)
    assert answer.feature is not None
    return [answer.logits, answer.feature, *answer.maps.values()]


@EVERY
def test_fewer_classes_and_another_order(kind: str, made: dict[str, Path]) -> None:
    batch = clips()
    answer = teach(made[kind])(batch).logits
    torch.testing.assert_close(teach(made[kind], CLASSES[::-1])(batch).logits, answer.flip(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teach(made[kind], CLASSES[2:])(batch).logits, answer[:, 2:], rtol=1e-4, atol=1e-5)


@EVERY
def test_it_is_shown_exactly_what_its_config_says(kind: str, made: dict[str, Path]) -> None:
    """TimeSformer and V-JEPA 2 would take anything."""
    teacher, seen = teach(made[kind]), []
    assert wants(options(made[kind])) == teacher.spec == ClipSpec(FRAMES, SIDE)
    teacher.network.model.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named[FAMILIES[kind].pixels].shape), with_kwargs=True
    )
    teacher(clips(2, 11, 40))
    assert seen == [(2, FRAMES, 3, SIDE, SIDE)]


def test_v_jepa_2_takes_other_numbers_of_frames(made: dict[str, Path]) -> None:
    batch = clips(2, 6)
    teacher = teach(made["vjepa2"], OWN, ["hidden", "attention"], frames=6)
    answer = teacher(batch)
    assert wants(options(made["vjepa2"], frames=6)) == teacher.spec == ClipSpec(6, SIDE)
    assert [len(value[0]) for value in answer.maps.values()] == [3, 3]
    _, wanted = reference("vjepa2", made["vjepa2"], batch.frames)
    torch.testing.assert_close(answer.logits, wanted.logits, rtol=1e-4, atol=1e-5)


def test_v_jepa_2_predicts_nothing(made: dict[str, Path]) -> None:
    teacher, ran = teach(made["vjepa2"]), []
    teacher.network.model.vjepa2.predictor.register_forward_pre_hook(lambda *_: ran.append(1))
    teacher(clips())
    assert not ran


def test_half_precision_weights_are_read_as_whole(copied: Callable[[str], Path]) -> None:
    folder = copied("videomae")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    teacher = teach(folder)
    assert {value.dtype for value in teacher.network.parameters()} == {torch.float32}
    assert teacher(clips()).logits.dtype == torch.float32


# ---------------------------------------------------------------- X-CLIP


def test_x_clip_reads_its_class_names_once_and_answers_exactly_alike(made: dict[str, Path]) -> None:
    batch = clips()
    teacher = teach(made["xclip"])
    assert not any("text_model" in name for name, _ in teacher.named_parameters())
    model = transformers.XCLIPModel.from_pretrained(made["xclip"])
    tokens = transformers.AutoTokenizer.from_pretrained(made["xclip"])(list(CLASSES), padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(pixel_values=teacher.network.normalise(batch.frames), **tokens)
    assert torch.equal(teacher(batch).logits, wanted.logits_per_video)


def test_x_clip_is_told_of_classes_as_the_prompt_says(made: dict[str, Path]) -> None:
    batch = clips()
    told = [f"a video of {name}" for name in CLASSES]
    answer = teach(made["xclip"], prompt="a video of {}")(batch).logits
    torch.testing.assert_close(answer, teach(made["xclip"], told)(batch).logits)
    assert not torch.allclose(answer, teach(made["xclip"])(batch).logits, atol=1e-4)
    assert fingerprint(options(made["xclip"], prompt="a video of {}")) != fingerprint(options(made["xclip"]))


def test_x_clip_s_fingerprint_follows_its_tokenizer(copied: Callable[[str], Path]) -> None:
    folder = copied("xclip")
    before = fingerprint(options(folder))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"Lowercase"', '"NFD"'))
    assert fingerprint(options(folder)) != before


# ---------------------------------------------------------------- maps


def attention_by_hand(kind: str, answer: Any) -> Tensor:
    """Out of all layers' attention, as transformers gives it."""
    if kind in ("videomae", "vjepa2"):
        return answer.attentions[-1].mean(dim=1).mean(dim=1).unflatten(1, (STEPS[kind], GRID, GRID))
    if kind == "vivit":
        return answer.attentions[-1].mean(dim=1)[:, 0, 1:].unflatten(1, (STEPS[kind], GRID, GRID))
    last = answer.attentions[-1] if kind == "timesformer" else answer.vision_model_output.attentions[-1]
    rows = last.mean(dim=1)[:, 0, 1 : 1 + GRID * GRID]  # B*T frames
    return rows.view(BATCH, STEPS[kind], GRID, GRID)


@EVERY
def test_attention(kind: str, made: dict[str, Path]) -> None:
    batch = clips()
    teacher = teach(made[kind], want=["attention"])
    plain = teach(made[kind])(batch)
    answer = teacher(batch)
    assert list(answer.maps) == ["attention"]
    _, wanted = reference(kind, made[kind], batch.frames, "eager", output_attentions=True)
    torch.testing.assert_close(answer.maps["attention"], attention_by_hand(kind, wanted), rtol=1e-4, atol=1e-6)
    assert answer.maps["attention"].shape == (BATCH, STEPS[kind], GRID, GRID)
    shares = answer.maps["attention"].sum(dim=(2, 3) if kind in ("timesformer", "xclip") else (1, 2, 3))
    assert shares.max() <= 1 + 1e-5
    assert shares.min() > 0.5
    torch.testing.assert_close(answer.logits, plain.logits, rtol=1e-4, atol=1e-5)


@EVERY
def test_after_an_attention_the_fast_way_is_taken_again(kind: str, made: dict[str, Path]) -> None:
    batch = clips()
    network = teach(made[kind]).network
    way = network.model.config._attn_implementation
    assert way == ("eager" if kind == "timesformer" else "sdpa")
    with torch.no_grad():
        before = network(batch.frames).logits
        network(batch.frames, want=["attention"])
        assert network.model.config._attn_implementation == "eager"
        after = network(batch.frames)
    assert torch.equal(after.logits, before)
    assert after.maps == {}
    assert network.model.config._attn_implementation == way
    assert not any(part._forward_hooks for part in network.modules())


@EVERY
def test_hidden(kind: str, made: dict[str, Path]) -> None:
    """Token by token: the mean over the patches of a time step."""
    batch = clips()
    answer = teach(made[kind], want=["hidden"])(batch).maps["hidden"]
    model, whole = reference(kind, made[kind], batch.frames)
    with torch.no_grad():
        if kind == "xclip":
            tokens = whole.vision_model_output.last_hidden_state.view(BATCH, FRAMES, 1 + GRID * GRID, -1)
        else:
            tokens = getattr(model, kind)(by_hand(batch.frames)).last_hidden_state
    wanted = torch.empty_like(answer)
    for step in range(STEPS[kind]):
        if kind == "xclip":
            at = tokens[:, step, 1:]
        elif kind == "timesformer":
            at = tokens[:, [1 + patch * FRAMES + step for patch in range(GRID * GRID)]]
        else:
            first = int(kind == "vivit")
            at = tokens[:, first + step * GRID * GRID : first + (step + 1) * GRID * GRID]
        wanted[:, step] = at.mean(dim=1)
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


@EVERY
@torch.no_grad()
def test_maps_are_laid_out_as_the_picture_is(kind: str, made: dict[str, Path]) -> None:
    """Where one patch of one frame is painted over, that token changes and no other; the maps put it there."""
    row, column, frame = 1, 2, 3
    step = frame * STEPS[kind] // FRAMES
    network = teach(made[kind]).network
    frames = clips(1).frames
    painted = frames.clone()
    painted[:, frame, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 255
    body = network.model.get_submodule(FAMILIES[kind].body)
    embed: nn.Module = body.encoder.embeddings if kind == "vjepa2" else body.embeddings
    nothing_hidden = [None] if kind == "videomae" else []
    pixels = (network.normalise(x.flatten(0, 1) if kind == "xclip" else x) for x in (frames, painted))
    one, other = (embed(x, *nothing_hidden) for x in pixels)
    changed = (one != other).any(dim=2)  # [1 or T, N]
    assert changed.sum() == 1
    hidden = network._hidden(changed[..., None].float(), 1)
    assert hidden.nonzero().tolist() == [[0, step, 0]]
    if kind == "timesformer":  # its attention has the tokens in the order of the frames
        changed = changed[:, 1:].view(GRID * GRID, FRAMES).T
        changed = torch.cat([torch.zeros(FRAMES, 1, dtype=torch.bool), changed], dim=1)
    weights = changed.float()[:, None, None].expand(-1, 2, changed.shape[1], -1)
    assert network._attention((None, weights), 1).nonzero().tolist() == [[0, step, row, column]]


# ---------------------------------------------------------------- pixels


def processors() -> Iterator[tuple[str, Any]]:
    plain = {"do_resize": False, "do_center_crop": False}
    yield "VideoMAE picture", transformers.VideoMAEImageProcessor(**plain)
    yield "VideoMAE video", transformers.VideoMAEVideoProcessor(**plain, image_mean=[0.1, 0.2, 0.3])
    yield "TimeSformer", transformers.TimesformerVideoProcessor(**plain)
    yield "V-JEPA 2", transformers.VJEPA2VideoProcessor(**plain)
    yield "ViViT, -3..1", transformers.VivitImageProcessor(**plain)
    yield "ViViT, -1..1", transformers.VivitImageProcessor(**plain, do_normalize=False)
    yield (
        "ViViT, 0..1",
        transformers.VivitImageProcessor(**plain, offset=False, do_normalize=False, rescale_factor=1 / 255),
    )
    yield "ViViT video", transformers.VivitVideoProcessor(**plain)
    yield "not normalised", transformers.VideoMAEImageProcessor(**plain, do_normalize=False)


@pytest.mark.parametrize("name", [name for name, _ in processors()])
def test_pixels_are_prepared_as_transformers_processor_does(name: str, copied: Callable[[str], Path]) -> None:
    processor, folder = dict(processors())[name], copied("videomae")
    (folder / "preprocessor_config.json").unlink()
    processor.save_pretrained(folder)
    frames = clips(1).frames
    given = list(frames[0].permute(0, 2, 3, 1).numpy())
    wanted = next(iter(processor(given, return_tensors="pt").values()))
    got = teach(folder).network.normalise(frames)
    torch.testing.assert_close(got, wanted.reshape(got.shape), rtol=1e-5, atol=1e-5)
    assert fingerprint(options(folder)).isalnum()


def test_vivit_without_a_processor_s_name_is_prepared_as_vivit(copied: Callable[[str], Path]) -> None:
    folder = copied("vivit")
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    got = teach(folder).network.normalise(torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1))
    torch.testing.assert_close(got[0, :, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_old_and_nested_files_say_the_same(copied: Callable[[str], Path]) -> None:
    """X-CLIP's files are from when dividing by 255 went without saying; processors of today nest theirs."""
    folder = copied("xclip")
    before = fingerprint(options(folder))
    old = {"image_mean": PREPROCESSOR["image_mean"], "image_std": PREPROCESSOR["image_std"], "size": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    assert fingerprint(options(folder)) == before
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR}))
    assert fingerprint(options(folder)) == before


def test_pixels_can_be_said_in_the_recipe(copied: Callable[[str], Path]) -> None:
    folder, batch = copied("videomae"), clips()
    wanted = teach(folder)(batch).logits
    before = fingerprint(options(folder))
    (folder / "preprocessor_config.json").unlink()
    more = {"mean": PREPROCESSOR["image_mean"], "std": PREPROCESSOR["image_std"]}
    assert torch.equal(teach(folder, **more)(batch).logits, wanted)
    assert fingerprint(options(folder, **more)) == before
    assert fingerprint(options(folder, mean=[0.5] * 3, std=[0.5] * 3)) != before


# ---------------------------------------------------------------- names


def test_classes_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Not in the order of the file, where 10 comes before 2."""
    names = [f"name of {place}" for place in range(12)]
    save("videomae", tmp_path, names)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(sorted(config["id2label"].items()))
    assert list(config["id2label"])[2] == "10"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert teach(tmp_path, names[3:]).network.classes == names


def test_a_file_names_the_classes(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder, file, batch = copied("videomae"), tmp_path / "names.txt", clips()
    file.write_text("\n".join(OWN))
    wanted, before = teach(folder)(batch).logits, fingerprint(options(folder))
    label(folder, [f"LABEL_{place}" for place in range(len(OWN))])
    assert torch.equal(teach(folder, labels=str(file))(batch).logits, wanted)
    assert fingerprint(options(folder, labels=str(file))) == before
    file.write_text("\n".join(OWN[::-1]))
    assert fingerprint(options(folder, labels=str(file))) != before


def label(folder: Path, names: list[str]) -> None:
    change(folder, id2label=dict(enumerate(names)), label2id={})


def change(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **facts}))


# ---------------------------------------------------------------- files


def test_weights_in_many_files(made: dict[str, Path], copied: Callable[[str], Path]) -> None:
    folder, batch = copied("videomae"), clips()
    (folder / "model.safetensors").unlink()
    model = transformers.VideoMAEForVideoClassification.from_pretrained(made["videomae"])
    model.save_pretrained(folder, max_shard_size="50KB")
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert torch.equal(teach(folder)(batch).logits, teach(made["videomae"])(batch).logits)
    assert fingerprint(options(folder)) == fingerprint(options(made["videomae"]))
    weights = load_file(parts[1])
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, parts[1], {"format": "pt"})
    assert fingerprint(options(folder)) != fingerprint(options(made["videomae"]))
    parts[1].unlink()
    refused(folder, r"lacks 1 of its \d files of weights: model-00002")


@pytest.mark.parametrize("kind", ["videomae", "xclip"])
def test_bookkeeping_does_not_change_the_fingerprint(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    before = fingerprint(options(folder))
    change(folder, transformers_version="4.0.0", _name_or_path="elsewhere", dtype="float16", torch_dtype="float16")
    assert fingerprint(options(folder)) == before


@pytest.mark.parametrize("kind", ["videomae", "xclip"])
def test_the_config_changes_the_fingerprint(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    before = fingerprint(options(folder))
    change(folder, **{"videomae": {"hidden_act": "relu"}, "xclip": {"prompt_hidden_act": "relu"}}[kind])
    assert fingerprint(options(folder)) != before


def test_what_it_wants_is_known_without_the_weights(copied: Callable[[str], Path]) -> None:
    folder = copied("xclip")
    (folder / "model.safetensors").unlink()
    assert wants(options(folder)) == ClipSpec(FRAMES, SIDE)


def test_loading_is_silent(made: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    teach(made["videomae"])
    teach(made["xclip"])
    assert capfd.readouterr() == ("", "")


def test_its_options_can_be_read_without_the_heavy_library() -> None:
    """`distill --help` reads every plug-in's."""
    code = "import teachers.huggingface, sys; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_model_of_the_hub_that_was_fetched_before(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    home = tmp_path / "models--somebody--videomae"
    shutil.copytree(made["videomae"], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in ("", "main", commit):
        assert fingerprint(options("somebody/videomae", revision=revision)) == fingerprint(options(made["videomae"]))
    assert wants(options("somebody/videomae")) == ClipSpec(FRAMES, SIDE)
    assert teach(Path("somebody/videomae"))(clips()).logits.shape == (BATCH, len(CLASSES))
    refused(Path("somebody/videomae"), "could not be had from the Hub", revision="v2")


# ---------------------------------------------------------------- refusals


def refused(folder: Path | str, match: str, classes: Any = CLASSES, **more: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        open_teacher(options(folder, **more), classes)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("teacher huggingface")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: [None, (folder / name).write_text(text)][0]  # type: ignore[func-returns-value]


def changed(**facts: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, **facts)


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def pretrained_only(folder: Path) -> None:
    shutil.rmtree(folder)
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.VideoMAEConfig(**SIZES["videomae"], **sizes)
    transformers.VideoMAEForPreTraining(config).save_pretrained(folder)


PICTURES = "preprocessor_config.json"
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config": (without("config.json"), "has no config.json"),
    "not json": (written("config.json", "{"), r"config.json is not JSON"),
    "another model": (changed(model_type="bert"), "model_type bert is none of videomae, timesformer"),
    "wrong type": (changed(num_frames="four"), "config.json cannot be read: .*num_frames"),
    "no classes": (
        pretrained_only,
        "holds VideoMAEForPreTraining, which knows no actions; a teacher needs VideoMAEFor",
    ),
    "weights": (without("model.safetensors"), "has no model.safetensors"),
    "pickled": (only_bin, r"only as pytorch_model.bin, which is not opened .* convert it with .*save_file"),
    "half a file": (cut_short, "cannot be loaded: .*(?i:incomplete|invalid)"),
    "more layers": (changed(num_hidden_layers=3), r"does not hold 15 of the weights .*: videomae.encoder.layer.2"),
    "other sizes": (
        lambda folder: label(folder, ["one", "two"]),
        "does not hold 2 of the weights .*: classifier.bias, classifier.weight$",
    ),
    "oblong": (changed(image_size=[32, 64]), "its pictures are 32 x 64; only square ones"),
    "unnamed": (
        lambda folder: label(folder, [f"LABEL_{place}" for place in range(7)]),
        "does not name its 7 classes .* set teacher.labels=FILE",
    ),
    "no pixels": (without(PICTURES), "has no preprocessor_config.json .*; set teacher.mean and teacher.std"),
    "no mean": (written(PICTURES, "{}"), "lacks image_mean or image_std"),
    "two colours": (written(PICTURES, '{"image_mean": [1, 2], "image_std": 1}'), "lacks image_mean or image_std"),
    "not rescaled": (written(PICTURES, '{"do_rescale": false}'), "do_rescale: false, so what"),
    "disagreement": (
        written("video_" + PICTURES, json.dumps({**PREPROCESSOR, "image_mean": 0.5})),
        r"video_preprocessor_config.json and .* do not agree",
    ),
}


@pytest.mark.parametrize("mistake", list(SPOILT))
def test_a_spoilt_folder_is_refused_in_one_line(mistake: str, copied: Callable[[str], Path]) -> None:
    folder = copied("videomae")
    spoil, match = SPOILT[mistake]
    spoil(folder)
    refused(folder, match)


def test_pickled_weights_can_be_converted_as_the_message_says(copied: Callable[[str], Path]) -> None:
    from distill.weights import read_weights

    folder = copied("videomae")
    before = fingerprint(options(folder))
    only_bin(folder)
    save_file(read_weights(folder / "pytorch_model.bin"), folder / "model.safetensors", {"format": "pt"})
    assert fingerprint(options(folder)) == before
    teach(folder)


@pytest.mark.parametrize(
    ("kind", "more", "match"),
    [
        ("videomae", {"revision": "main"}, "revision is for models on the Hub"),
        ("videomae", {"prompt": "a {}"}, "prompt is for X-CLIP"),
        ("videomae", {"mean": [0.5] * 3}, "set teacher.mean and teacher.std"),
        ("videomae", {"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, "set teacher.mean and teacher.std"),
        ("videomae", {"labels": "/nowhere"}, "/nowhere is not there"),
        ("videomae", {"frames": 8}, "this videomae takes 4 frames and no other number"),
        ("timesformer", {"frames": 8}, "this timesformer takes 4 frames and no other number"),
        ("vivit", {"frames": 8}, "this vivit takes 4 frames and no other number"),
        ("xclip", {"frames": 8}, "this xclip takes 4 frames and no other number"),
        ("vjepa2", {"frames": 5}, "V-JEPA 2 reads frames by 2"),
        ("xclip", {"labels": "names.txt"}, "labels is for models with classes of their own"),
        ("xclip", {"prompt": "no place"}, "should have one {}"),
    ],
)
def test_options_that_cannot_be(kind: str, more: dict[str, Any], match: str, made: dict[str, Path]) -> None:
    refused(made[kind], match, **more)


def test_too_few_names(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo")
    refused(made["vivit"], "names 2 classes; .* has 7", labels=str(tmp_path / "names.txt"))


def test_timesformer_of_another_kind(copied: Callable[[str], Path]) -> None:
    folder = copied("timesformer")
    change(folder, attention_type="space_only")
    refused(folder, "attention_type 'space_only'; only divided_space_time")


def test_x_clip_without_words(copied: Callable[[str], Path]) -> None:
    folder = copied("xclip")
    refused(folder, r"'z{60}', has 62 tokens; 40 can be read", ["a", "z" * 60])
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "has a tokenizer that cannot be read")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json, without which X-CLIP cannot read")


def test_x_clip_with_words_in_the_old_files(copied: Callable[[str], Path]) -> None:
    folder, batch = copied("xclip"), clips()
    wanted = teach(folder)(batch).logits
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(words["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(teach(folder)(batch).logits, wanted)


@pytest.mark.parametrize("place", ["/no/such/folder", "./nowhere", "nowhere"])
def test_a_folder_that_is_not_there(place: str) -> None:
    refused(place, "is neither a folder here nor the name of a model on the Hub, OWNER/NAME")


def test_a_model_of_the_hub_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("someone/some-model", "`hf download someone/some-model --local-dir DIR` and set teacher.model=DIR")


def test_classes_that_it_does_not_know(made: dict[str, Path]) -> None:
    refused(made["videomae"], "does not know 1 of the data set's 2 classes: 'sleep'", ["wave", "sleep"])
