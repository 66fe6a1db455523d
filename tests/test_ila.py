"""ILA against the official code's own answers.

tests/data/ila_* were recorded by running the official repository on weights and videos that a recipe draws from their
names ("philox-v1", `drawn` and `weight` below), so both can be drawn again here and only answers are stored:
ila_golden.safetensors the answers in every mode of the official code; ila_golden.json each case's sizes, a digest of
its weights, norms of gradients, and a digest of the class names' tokens; ila_keys.tsv the names and shapes of two full
checkpoints (repeated blocks once, and how often); ila_classes.json the class names of Kinetics-400 and
Something-Something.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import hashlib
import json
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from teacher_examples.ila import randomised
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.teaching.teacher import open_teacher
from distill.weights import read_weights
from teachers import ila
from teachers.ila import ILA, Options, Sizes, TextSizes

DATA = Path(__file__).parent / "data"
FACTS: dict[str, Any] = json.loads((DATA / "ila_golden.json").read_text())
GOLDEN = load_file(DATA / "ila_golden.safetensors")
CLASSES: dict[str, list[str]] = json.loads((DATA / "ila_classes.json").read_text())
KINDS = {"a": (True, "text"), "b": (True, "text"), "d": (True, "text"), "e": (False, "text"), "c": (False, "linear")}
EVERY_CASE = pytest.mark.parametrize("case", list(KINDS))
FROM_CLIP_S_WIDTH = ("visual.proj", "text_projection", "prompts_visual_proj")
POSITIONS = (
    "positional_embedding",
    "visual.positional_embedding",
    "mit.positional_embedding",
    "token_embedding.weight",
)


# ---------------------------------------------------------------- the recipe of weights and inputs


def drawn(seed: str, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Numbers in [-1,1) that hang on a name alone."""
    key = np.frombuffer(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:16], dtype="<u8")
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape, dtype=np.int64)))
    return (2 * ((raw >> np.uint64(11)) * 2.0**-53) - 1).reshape(shape)


def weight(seed: str, name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    s = drawn(seed, name, shape)
    fan = shape[0] if name in FROM_CLIP_S_WIDTH else int(np.prod(shape[1:]))
    gain = 2**0.5 if ".message_attn." in name else 1
    rules = (
        (name == "logit_scale", lambda: np.full(shape, np.log(100))),
        (name.endswith("running_mean"), lambda: 0.2 * s),
        (name.endswith("running_var"), lambda: 1 + 0.5 * s),
        (name == "prompts_generator.alpha", lambda: 0.1 + 0.05 * s),
        (len(shape) == 1 and name.endswith(".weight"), lambda: 1 + 0.2 * s),
        (len(shape) == 1 or name in POSITIONS, lambda: 0.1 * s),
        (True, lambda: gain * np.sqrt(3 / fan) * s),
    )
    value = next(rule() for applies, rule in rules if applies)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def sizes_of(config: dict[str, Any], depthwise: bool, head: str) -> Sizes:
    text = (config[key] for key in ("vocab_size", "context_length", "text_width", "text_layers", "prompts_layers"))
    return Sizes(
        frames=config["T"],
        patch=config["vision_patch_size"],
        grid=config["image_resolution"] // config["vision_patch_size"],
        width=config["vision_width"],
        layers=config["vision_layers"],
        embed=config["embed_dim"],
        mixers=config["mit_layers"],
        depthwise=depthwise,
        head=TextSizes(*text) if head == "text" else config["num_classes"],
    )


def planned(sizes: Sizes) -> ILA:
    """A network without numbers."""
    with torch.device("meta"):
        return ILA(sizes)


@functools.cache
def weights(case: str) -> dict[str, Tensor]:
    config = FACTS[case]["config"]
    plan = planned(sizes_of(config, *KINDS.get(case, (True, "text")))).state_dict()
    return {name: weight(config["seed"], name, tuple(like.shape)) for name, like in plan.items()}


def video(case: str) -> Tensor:
    config = FACTS[case]["config"]
    shape = (config["B"], config["T"], 3, config["image_resolution"], config["image_resolution"])
    return torch.from_numpy((2 * drawn(config["seed"], "input.video", shape)).astype(np.float32))


def tokens(case: str) -> Tensor:
    config = FACTS[case]["config"]
    if config.get("tokens") == "k400":
        return open_clip.tokenize(CLASSES["k400"][: config["K"]])
    last = config["vocab_size"] - 1
    rows = torch.zeros(config["K"], config["context_length"], dtype=torch.int64)
    for k, row in enumerate(rows):
        s = drawn(config["seed"], f"input.tokens.{k}", (1 + k % (config["context_length"] - 3),))
        body = np.floor((0.5 * s + 0.5) * (last - 2)).astype(int) + 1
        row[: len(body) + 2] = torch.tensor([last - 1, *body, last])
    return rows


def teacher(case: str) -> ILA:
    return ILA.from_official(weights(case), frames=FACTS[case]["config"]["T"], class_tokens=tokens(case))


def digest(found: dict[str, Tensor]) -> str:
    lines = (
        f"{name} {list(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}\n"
        for name, value in sorted(found.items())
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@EVERY_CASE
def test_names_shapes_and_recipe_are_the_official_ones(case: str) -> None:
    assert digest(weights(case)) == FACTS[case]["weights"]


# ---------------------------------------------------------------- the official answers


def close(got: Tensor, name: str, atol: float) -> None:
    torch.testing.assert_close(got.detach(), GOLDEN[name], rtol=0, atol=atol, msg=lambda said: f"{name}: {said}")


def with_notes(network: ILA) -> dict[str, Tensor]:
    """What inner parts say in the next forward, under the names of the golden tensors."""
    notes: dict[str, Tensor] = {}

    def note(part: nn.Module, name: str, read: Any = lambda out: out) -> None:
        part.register_forward_hook(lambda _part, _given, out: notes.__setitem__(name, read(out)))

    for i, block in enumerate(network.visual.transformer.resblocks):
        note(block, f"visual.block{i}.cls", lambda out: out[:, 0])
        note(block.message_attn, f"visual.block{i}.points", lambda out: out.points)
    note(network.visual, "visual.cls", lambda out: out.frame_cls.flatten(0, 1))
    note(network.visual, "visual.patch_tokens", lambda out: out.patches.flatten(0, 1))
    note(network.mit, "video_embed")
    note(network.mit, "video_embed_normalised", lambda out: F.normalize(out, dim=-1))
    if network.takes_any_class:
        note(network.prompts_generator, "text_prompt_delta")
        notes["text_embed_base"] = network.class_text
    return notes


@EVERY_CASE
def test_evaluation(case: str) -> None:
    network = teacher(case)
    notes = with_notes(network)
    logits, embedding = network.forward_normalised(video(case))
    assert torch.equal(embedding, notes["video_embed"])
    close(logits, f"{case}/eval.logits", 1e-4)
    inner = [name.removeprefix(f"{case}/eval.") for name in GOLDEN if name.startswith(f"{case}/eval.")]
    inner = [name for name in inner if name not in ("logits", "cos_losses")]
    assert len(inner) >= 2
    for name in inner:
        loose = "block" in name or "patch" in name  # inside, numbers are larger
        close(notes[name], f"{case}/eval.{name}", 1e-4 if loose else 1e-5)


@EVERY_CASE
@pytest.mark.parametrize(
    ("mode", "disturbance"), [("eval", 0), ("eval_disturbed", 0.2), ("eval_disturbed_decay1", 0.1)]
)
def test_disturbed_points_and_the_alignment_loss(case: str, mode: str, disturbance: float) -> None:
    answer = teacher(case).respond(video(case), ("alignment",), disturbance)
    close(answer.logits, f"{case}/{mode}.logits", 1e-4)
    if f"{case}/{mode}.cos_losses" in GOLDEN:
        close(answer.maps["alignment"].mean(0), f"{case}/{mode}.cos_losses", 1e-5)
    if f"{case}/{mode}.video_embed" in GOLDEN:
        assert answer.feature is not None
        close(answer.feature, f"{case}/{mode}.video_embed", 1e-5)


@EVERY_CASE
def test_the_second_official_forward_uses_statistics_of_the_batch(case: str) -> None:
    network = teacher(case)
    if case != "c":  # that code does not put itself back into training mode
        train_parts(network)
    answer = network.respond(video(case), ("alignment",))
    close(answer.logits, f"{case}/eval_second_forward.logits", 1e-4)
    close(answer.maps["alignment"].mean(0), f"{case}/eval_second_forward.cos_losses", 1e-5)


def train_parts(network: ILA) -> None:
    """The teacher itself never trains, but its parts can be made to."""
    for part in network.children():
        part.train()


@EVERY_CASE
def test_a_training_step(case: str) -> None:
    """Batch statistics, what they leave behind, and the gradient of every parameter."""
    network = teacher(case).requires_grad_(True)
    train_parts(network)
    if case == "c":
        network.mit.classify_head[1].p = 0.0  # chance, switched off for the recording too
    answer = network.respond(video(case), ("alignment",), disturbance=0.2)
    close(answer.logits, f"{case}/train.logits", 1e-4)
    alignment = answer.maps["alignment"].mean(0)
    close(alignment, f"{case}/train.cos_losses", 1e-5)
    loss = F.cross_entropy(answer.logits, GOLDEN[f"{case}/train.labels"]) + alignment.sum()
    close(loss[None], f"{case}/train.loss", 1e-4)
    after = network.state_dict()
    for name in (name for name in GOLDEN if name.startswith(f"{case}/train.after.")):
        close(after[name.removeprefix(f"{case}/train.after.")], name, 1e-5)
    loss.backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    for name, expected in FACTS[case].get("gradient_norms", {}).items():
        norm = None if gradients[name] is None else float(gradients[name].norm())
        assert norm == (expected and pytest.approx(expected, rel=2e-3, abs=2e-6)), name


@pytest.mark.slow
def test_the_full_model() -> None:
    """ViT-B/16, 16 frames, 400 classes: half a minute of computing, 2.5 GB."""
    assert digest(weights("full")) == FACTS["full"]["weights"]
    network = teacher("full")
    notes = with_notes(network)
    answer = network.respond(video("full"), ("points", "frame_cls", "alignment"))
    close(answer.logits, "full/eval.logits", 2e-4)
    assert answer.feature is not None
    close(answer.feature, "full/eval.video_embed", 1e-5)
    close(answer.maps["points"], "full/eval.points", 5e-5)
    close(answer.maps["frame_cls"][0], "full/eval.frame_cls", 2e-5)
    close(answer.maps["alignment"][0], "full/eval.cos_losses", 1e-5)
    close(network.class_text[:8], "full/eval.text_embed_base_first8", 1e-5)
    close(notes["text_prompt_delta"][:, :8], "full/eval.text_prompt_delta_first8", 1e-5)
    weights.cache_clear()  # 800 MB


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("variant", ["k400", "ssv2"])
def test_the_names_and_shapes_of_full_checkpoints(variant: str) -> None:
    config = {**FACTS["full"]["config"], "num_classes": 400}
    network = planned(sizes_of(config, *((True, "text") if variant == "k400" else (False, "linear"))))
    parameters = {name for name, _ in network.named_parameters()}
    found = collections.Counter(
        (
            re.sub(r"(resblocks|decoder)\.\d+\.", r"\1.*.", name),
            ",".join(map(str, value.shape)),
            str(value.dtype).removeprefix("torch."),
            "param" if name in parameters else "buffer",
        )
        for name, value in network.state_dict().items()
    )
    _, *rows = ((DATA / "ila_keys.tsv").read_text()).splitlines()
    table = {tuple(row.split("\t")[:4]): dict(zip(("k400", "ssv2"), row.split("\t")[4:], strict=True)) for row in rows}
    assert found == {key: int(counts[variant]) for key, counts in table.items() if counts[variant] != "0"}
    assert found.total() == {"k400": 959, "ssv2": 697}[variant]


@pytest.mark.parametrize(
    ("patch", "grid", "width", "layers", "embed", "text", "frames", "millions"),
    [
        (32, 7, 768, 12, 512, 512, 16, 201.6),
        (16, 14, 768, 12, 512, 512, 16, 199.944497),
        (14, 16, 1024, 24, 768, 768, 8, 567.7),
        (14, 24, 1024, 24, 768, 768, 16, 568.1),
    ],
)
def test_the_sizes_of_the_published_models(
    patch: int, grid: int, width: int, layers: int, embed: int, text: int, frames: int, millions: float
) -> None:
    network = planned(Sizes(frames, patch, grid, width, layers, embed, 1, True, TextSizes(49408, 77, text, 12, 2)))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0 if millions == 199.944497 else 0.05)
    assert network.spec == ClipSpec(frames, {7: 224, 14: 224, 16: 224, 24: 336}[grid])


@contextlib.contextmanager
def yacs() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Gives what stands for yacs's CfgNode, a dictionary with a state of its own; afterwards there is no yacs."""

    def settings(given: dict[str, Any]) -> Any:
        found = module.CfgNode(given)
        found.__dict__["__immutable__"] = False
        return found

    module: Any = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        yield settings


def half(case: str) -> dict[str, Tensor]:
    return {name: value.half() if value.is_floating_point() else value for name, value in weights(case).items()}


def test_an_official_checkpoint(tmp_path: Path) -> None:
    """Its layout, in half precision: weights, the optimiser's state, and settings of a class that is not installed."""
    kept = half("checkpoint")
    assert digest(kept) == FACTS["checkpoint"]["weights"]
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 8e-6, "params": [0]}]}
    rest = {"lr_scheduler": {"last_epoch": 3}, "max_accuracy": 85.7, "epoch": 29}
    with yacs() as settings:
        config = settings({"MODEL": settings({"ARCH": "ViT-B/32", "NUM_FRAMES": 16}), "AUG": ["a", 0.5]})
        torch.save({"model": kept, "optimizer": optimiser, **rest, "config": config}, tmp_path / "best.pth")
    with pytest.raises(Exception, match=r"yacs\.config\.CfgNode"):
        torch.load(tmp_path / "best.pth", weights_only=True)
    network = ILA.from_official(read_weights(tmp_path / "best.pth"), frames=4, class_tokens=tokens("checkpoint"))
    close(network.forward_normalised(video("checkpoint"))[0], "checkpoint/eval.logits", 1e-4)
    assert {value.dtype for name, value in network.state_dict().items() if "tracked" not in name} == {torch.float32}


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it_ran"),)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": half("checkpoint"), "config": Command()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth wants to run code") as refusal:
        open_teacher(named_options(weights=str(tmp_path / "bad.pth"), frames=4, size=32), ["a", "b"])
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it_ran").exists()


def named_options(**options: Any) -> Any:
    return types.SimpleNamespace(**{"name": "ila", "labels": "", **options})


def test_wrappers_prefix_is_taken_off() -> None:
    wrapped = {f"module.{name}": value for name, value in weights("a").items()}
    network = ILA.from_official(wrapped, frames=4, class_tokens=tokens("a").numpy())
    close(network.forward_normalised(video("a"))[0], "a/eval.logits", 1e-4)


def test_other_weights_are_refused_by_name() -> None:
    good = weights("a")
    norm, proj = "visual.transformer.resblocks.1.message_ln.weight", "visual.proj"
    in_proj = "visual.transformer.resblocks.1.attn.in_proj_weight"
    counter = "visual.transformer.resblocks.0.message_attn.prediction_block.1.num_batches_tracked"
    for missing in (norm, proj, in_proj, counter, "token_embedding.weight", "prompts_generator.alpha"):
        refused({name: value for name, value in good.items() if name != missing}, f"1 missing: {re.escape(missing)}$")
    refused({**good, "extra.bias": torch.zeros(3)}, r"1 unexpected: extra\.bias$")
    refused({**good, norm: torch.zeros(5)}, r"1 of another shape: .*message_ln\.weight \[5\] instead of \[64\]$")
    both = {name: value for name, value in good.items() if name != norm} | {"extra.bias": torch.zeros(3)}
    refused(both, r"1 missing: .*message_ln\.weight; 1 unexpected: extra\.bias$")
    stems = {name: value for name, value in good.items() if ".depthwise_conv." not in name}
    refused(stems, r"missing: .*interactive_block.*unexpected: .*pointwise_conv")
    refused({"head.weight": torch.zeros(3)}, r"1 missing: mit\.positional_embedding$")


def refused(state: dict[str, Tensor], match: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=match) as refusal:
        ILA.from_official(state, **{"frames": 4, "class_tokens": tokens("a"), **changes})
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_is_refused() -> None:
    refused(weights("a"), "for 4 frames, not 8", frames=8)
    refused(weights("a"), "a text head needs class_tokens", class_tokens=None)
    refused(weights("a"), r"int64 \[5, 17\] .* should be int \[K,16\] below 64", class_tokens=torch.ones(5, 17).long())
    refused(weights("a"), r"float32 \[5, 16\]", class_tokens=torch.ones(5, 16))
    refused(weights("a"), r"up to 49407; they should be int \[K,16\] below 64", class_tokens=torch.full((5, 16), 49407))
    with pytest.raises(ValueError, match="needs 2 at least, not 1"):
        planned(Sizes(1, 8, 4, 64, 1, 64, 1, True, 5))
    with pytest.raises(ValueError, match="these weights have 3x3"):
        planned(Sizes(4, 8, 3, 64, 1, 64, 1, True, 5))


def test_stems_and_heads_combine() -> None:
    """Text with both stems and a plain stem with a linear head are golden cases; here is the fourth."""
    mixed = {name: value for name, value in weights("a").items() if name.startswith(("visual.", "mit."))}
    mixed |= {name: value for name, value in weights("c").items() if name.startswith("mit.classify_head.")}
    network = ILA.from_official(mixed, frames=4)
    assert not network.takes_any_class
    logits, embedding = network.forward_normalised(video("a"))
    torch.testing.assert_close(embedding, GOLDEN["a/eval.video_embed"], rtol=0, atol=1e-5)
    normed, _, linear = (teacher("c").mit.classify_head[i] for i in range(3))
    assert torch.allclose(logits, linear(normed(F.normalize(GOLDEN["a/eval.video_embed"], dim=-1))), atol=1e-5)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("names", list(CLASSES))
def test_class_names_become_the_official_tokens(names: str) -> None:
    found = ila._tokens(CLASSES[names])
    assert found.shape == ({"k400": 400, "ssv2": 174}[names], 77)
    assert [row[row > 0].tolist() for row in found[:3]] == FACTS["tokens"][names]["first"]
    assert hashlib.sha256(found.numpy().astype("<i4").tobytes()).hexdigest() == FACTS["tokens"][names]["sha256"]


def test_text_is_computed_once_and_only_as_far_as_names_reach() -> None:
    network = teacher("b")
    lengths: list[int] = []
    network.transformer.resblocks[0].register_forward_hook(lambda _part, given, _out: lengths.append(given[0].shape[1]))
    network.forward_normalised(video("b"))
    assert lengths == []
    short = tokens("b")
    network.learn_classes(short)
    before = network.class_text
    long = open_clip.tokenize("word " * 80)
    network.learn_classes(torch.cat([short, long]))
    assert lengths == [int(short.argmax(1).max()) + 1, 77]
    torch.testing.assert_close(network.class_text[:-1], before, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- a teacher


def test_it_is_frozen_and_stays_the_same_function() -> None:
    network = teacher("a")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = network.forward_normalised(video("a"))
    for _ in range(3):
        nn.ModuleList([network]).train()
        again = network.train().forward_normalised(video("a"))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_it_does_not_share_memory_with_what_it_was_read_from() -> None:
    state = {name: value.clone() for name, value in weights("a").items()}
    network = ILA.from_official(state, frames=4, class_tokens=tokens("a"))
    for value in state.values():
        value.zero_()
    close(network.forward_normalised(video("a"))[0], "a/eval.logits", 1e-4)


def test_clips_do_not_see_each_other() -> None:
    network = teacher("d")
    whole = network.respond(video("d"), ("points", "alignment", "attention", "frame_cls"))
    for i in range(3):
        alone = network.respond(video("d")[i : i + 1], ("points", "alignment", "attention", "frame_cls"))
        torch.testing.assert_close(alone.logits, whole.logits[i : i + 1], rtol=0, atol=5e-5)
        for name, value in alone.maps.items():
            torch.testing.assert_close(value, whole.maps[name][i : i + 1], rtol=0, atol=1e-5, msg=name)


def test_maps() -> None:
    """Their shapes, and attention against torch's own module."""
    network = teacher("a")
    notes: list[Tensor] = []
    last = network.visual.transformer.resblocks[-1]
    last.attn.register_forward_pre_hook(lambda _part, given: notes.append(given[0]))
    answer = network.respond(video("a"), ("points", "alignment", "attention", "frame_cls"))
    shapes = {"points": (2, 2, 3, 4), "alignment": (2, 2), "attention": (2, 4, 16), "frame_cls": (2, 4, 64)}
    assert {name: tuple(value.shape) for name, value in answer.maps.items()} == shapes
    theirs = nn.MultiheadAttention(64, 1, batch_first=True)
    theirs.load_state_dict(last.attn.state_dict())
    _, share = theirs(notes[0], notes[0], notes[0])
    torch.testing.assert_close(answer.maps["attention"].flatten(0, 1), share[:, 0, 1:], rtol=0, atol=1e-6)
    assert network.respond(video("a")).maps == {}


def test_attention_is_a_mean_over_heads() -> None:
    ours, theirs = ila.ClipBlock(192).attn, nn.MultiheadAttention(192, 3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 192, generator=torch.Generator().manual_seed(0))
    out, share = theirs(x, x, x)
    torch.testing.assert_close(ours(x), out, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.of_first_token(x), share[:, 0], rtol=0, atol=1e-6)


def test_frames_are_normalised_as_imagenet_s() -> None:
    network = teacher("a")
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    seen = (frames.float() - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    answer = network(frames)
    torch.testing.assert_close(answer.logits, network.forward_normalised(seen)[0], rtol=0, atol=5e-5)


def opened(folder: Path, case: str, classes: list[str], **options: Any) -> ILA:
    save_file(weights(case), folder / "ila.safetensors")
    teacher = open_teacher(
        named_options(**{"weights": str(folder / "ila.safetensors"), "frames": 4, "size": 32, **options}), classes
    )
    assert isinstance(teacher.network, ILA)
    return teacher.network


def test_a_linear_head_takes_the_data_set_s_order_or_a_file_s(tmp_path: Path) -> None:
    classes = CLASSES["ssv2"]
    assert opened(tmp_path, "c", classes).classes == classes
    (tmp_path / "labels.txt").write_text("\n".join(classes[::-1]))
    labelled = opened(tmp_path, "c", classes, labels=str(tmp_path / "labels.txt"))
    assert labelled.classes == classes[::-1]
    (tmp_path / "short.txt").write_text("\n".join(classes[1:]))
    with pytest.raises(UserError, match=r"174 outputs and .*short\.txt names 173 classes; name a file"):
        opened(tmp_path, "c", classes, labels=str(tmp_path / "short.txt"))
    with pytest.raises(UserError, match="174 outputs and the data set has 5 classes; name a file"):
        opened(tmp_path, "c", classes[:5])
    with pytest.raises(UserError, match="does not know 1 of the data set's 1 classes: 'else'"):
        opened(tmp_path, "c", ["else"], labels=str(tmp_path / "labels.txt"))
    plain, named = (
        Options(weights=str(tmp_path / "ila.safetensors"), labels=labels)
        for labels in ("", str(tmp_path / "labels.txt"))
    )
    assert ila.fingerprint(plain) != ila.fingerprint(named)


def test_mistakes_in_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth is not there; .*model zoo .*github.com/Francis-Rings/ILA"):
        open_teacher(named_options(weights=str(tmp_path / "nowhere.pth")), ["a"])
    with pytest.raises(UserError, match=r"is for pictures of 32 pixels, not 224: set teacher\.size=32"):
        opened(tmp_path, "c", CLASSES["ssv2"], size=224)
    with pytest.raises(UserError, match="are for 4 frames, not 8"):
        opened(tmp_path, "c", CLASSES["ssv2"], frames=8)
    with pytest.raises(UserError, match="labels are for a linear head"):
        opened(tmp_path, "b", ["a"], frames=8, size=56, labels="names.txt")


# ---------------------------------------------------------------- from CLIP


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    network = open_clip.CLIP(64, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick_gelu=True)
    randomised(network)
    return network.eval().requires_grad_(False)


def archive(network: nn.Module, path: Path) -> None:
    """A TorchScript archive with the extra numbers that OpenAI's have."""
    network = copy.deepcopy(network)
    for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        vars(network).pop(name, None)
        network.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings(action="ignore"):  # tracing is deprecated, and the files are still there
        traced = torch.jit.trace(network, (torch.zeros(1, 3, 32, 32), ila._tokens(["a"])), check_trace=False)
        traced.save(str(path))


@pytest.mark.parametrize("form", ["state", "safetensors", "archive"])
@pytest.mark.parametrize("head", ["text", "linear"])
def test_a_fresh_one_sees_frames_exactly_as_clip(clip: open_clip.CLIP, form: str, head: Any, tmp_path: Path) -> None:
    state = clip.state_dict()
    if form == "safetensors":
        save_file(state, tmp_path / "clip.safetensors")
        state = read_weights(tmp_path / "clip.safetensors")
    if form == "archive":
        archive(clip, tmp_path / "clip.pt")
        state = read_weights(tmp_path / "clip.pt")
    torch.manual_seed(1)
    names = CLASSES["k400"][:6]
    network = ILA.from_clip(state, frames=4, class_tokens=ila._tokens(names), head=head).eval()
    pictures = video("a")
    theirs = clip.encode_image(pictures.flatten(0, 1)).view(2, 4, 64)
    torch.testing.assert_close(network.visual(pictures).frame_cls, theirs, rtol=0, atol=1e-6)
    assert network.respond(pictures).logits.shape == (2, 6)
    if head == "text":
        torch.testing.assert_close(network.class_text, clip.encode_text(ila._tokens(names)), rtol=0, atol=1e-5)


def test_a_fresh_one_can_be_trained_and_read_again(clip: open_clip.CLIP) -> None:
    torch.manual_seed(1)
    kept = {name: value.clone() for name, value in clip.state_dict().items()}
    network = ILA.from_clip(kept, frames=4, class_tokens=ila._tokens(["run", "walk"]), stem="plain").train()
    assert network.mit.training
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        answer = network.respond(video("a"), ("alignment",), disturbance=0.2)
        loss = F.cross_entropy(answer.logits, torch.tensor([0, 1])) + answer.maps["alignment"].mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, kept[name]) for name, value in clip.state_dict().items())
    again = ILA.from_official(network.state_dict(), frames=4, class_tokens=ila._tokens(["run", "walk"]))
    network.eval()
    assert torch.equal(again.respond(video("a")).logits, network.respond(video("a")).logits)


def test_a_clip_of_another_kind_is_refused(clip: open_clip.CLIP) -> None:
    state = {f"text.{name}" if "visual" not in name else name: value for name, value in clip.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: token_embedding\.weight, positional_embedding$"):
        ILA.from_clip(state, frames=4, class_tokens=ila._tokens(["run"]))
    state = {**clip.state_dict(), "logit_bias": torch.zeros(())}
    with pytest.raises(ValueError, match=r"1 unexpected: logit_bias$"):
        ILA.from_clip(state, frames=4, class_tokens=ila._tokens(["run"]))
