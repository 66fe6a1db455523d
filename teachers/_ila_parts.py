"""The networks inside the ILA teacher: CLIP's blocks, the alignment of neighbouring frames, prompts for the text.

Parameters carry the names of the official checkpoints. Widths of heads are 64, as CLIP has them.

Shape legend: B clips, T frames, P = T-1 pairs of neighbouring frames, G side of the grid of patches, N = G*G patches,
L tokens (1+N in a picture), D width of the vision tower, E width of the embedding, K classes, A = 128 alignment width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALIGN = 128  # A
REACH = 0.75  # how far from the middle of a picture a point may lie; the edge is at 1
# Where the nine disturbed points lie around a point, in units of the disturbance; the first is the point itself.
AROUND = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), written over x: fresh memory for tensors this wide takes an eighth of an MLP's time."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x.mul_(1.702), inplace=True).div_(1.702)


class Attention(nn.Module):
    """Self-attention with the three projections in one matrix. [B,L,D] -> [B,L,D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = joint.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def of_first_token(self, x: Tensor) -> Tensor:
        """How the first token's attention is shared among all tokens, mean over heads: [B,L]."""
        batch, length, _ = x.shape
        weight, bias = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query = F.linear(x[:, 0], weight[0], bias[0]).view(batch, 1, self.heads, -1)
        key = F.linear(x, weight[1], bias[1]).view(batch, length, self.heads, -1)
        share = ((query * key).sum(-1) * key.shape[-1] ** -0.5).softmax(dim=1)
        mean: Tensor = share.mean(-1)
        return mean


class ClipBlock(nn.Module):
    """[B,L,D] -> [B,L,D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """A holder of blocks: checkpoints have them one level down."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class DepthwiseStem(nn.Module):
    """The cheap first convolution: each channel alone, then channels alone."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        wide = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.depthwise_conv = nn.Sequential(wide, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.pointwise_conv = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise_conv(self.depthwise_conv(x))
        return out


def stem(width: int, depthwise: bool) -> nn.Sequential:
    """Two frames' channels [.,2D,G,G] -> features of both [.,2A,G,G]."""
    out = 2 * ALIGN
    first: list[nn.Module] = (
        [DepthwiseStem(2 * width, out)]
        if depthwise
        else [nn.Conv2d(2 * width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    )
    return nn.Sequential(*first, nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def point_predictor() -> nn.Sequential:
    """[.,2A,G,G] -> [.,4,1] in (-1,1): x and y in the earlier frame, x and y in the later one."""
    last = nn.Conv1d(ALIGN // 2, 4, 1, groups=2)
    nn.init.zeros_(last.weight)
    return nn.Sequential(
        nn.Conv2d(2 * ALIGN, ALIGN, 3, padding=1),
        nn.BatchNorm2d(ALIGN),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(ALIGN, ALIGN, 3, padding=1),
        nn.BatchNorm2d(ALIGN),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(2),
        nn.Conv1d(ALIGN, ALIGN // 2, 1, groups=2),
        nn.ReLU(inplace=True),
        last,
        nn.Tanh(),
    )


def masks_around(points: Tensor, side: int, disturbance: float) -> Tensor:
    """How near each patch is to each point: [B,P,4] -> [B,P,2,N] in [0,1]; 1 within a quarter, falling from there."""
    around = points.new_tensor(AROUND if disturbance else AROUND[:1])
    centres = points.view(*points.shape[:2], 2, 1, 2) + disturbance * around
    axis = torch.linspace(
        -1, 1, side, device=points.device, dtype=torch.promote_types(points.dtype, torch.float32)
    )  # in half precision, a patch's place would be rough
    near = (1 - 1.5 * ((axis - centres[..., None]).abs() - 0.25)).clamp(0, 1)
    across, down = near.unbind(-2)
    return torch.einsum("bpfor,bpfoc->bpfrc", down, across).flatten(-2) / len(around)


def over_frames(earlier: Tensor, later: Tensor) -> Tensor:
    """What pairs say of their earlier and later frame, [B,P,...] each -> [B,T,...]; a frame in two has the mean."""
    return torch.cat([earlier[:, :1], (earlier[:, 1:] + later[:, :-1]) / 2, later[:, -1:]], dim=1)


@dataclass
class Alignment:
    points: Tensor  # [B,P,4]
    masks: Tensor  # [B,P,2,N]
    weight: Tensor  # [B,T,N]
    motion: Tensor  # [B,T,N,A]; fc makes it D wide

    def disagreement(self, patches: Tensor) -> Tensor:
        """1 - cosine between what the masks select of two neighbouring frames, mean over pairs: [B]."""
        earlier = torch.einsum("bpn,bpnd->bpd", self.masks[:, :, 0], patches[:, :-1])
        later = torch.einsum("bpn,bpnd->bpd", self.masks[:, :, 1], patches[:, 1:])
        return (1 - F.cosine_similarity(earlier, later, dim=-1)).mean(1)


class Aligner(nn.Module):
    """Looks at neighbouring frames in pairs: where they show the same thing, and what changes. Patches [B,T,N,D]."""

    def __init__(self, width: int, depthwise: bool) -> None:
        super().__init__()
        self.interactive_block = stem(width, depthwise)
        self.prediction_block = point_predictor()
        self.conv = nn.Conv3d(ALIGN, ALIGN, (3, 1, 1), padding=(1, 0, 0))
        self.fc = nn.Linear(ALIGN, width)

    def forward(self, patches: Tensor, disturbance: float) -> Alignment:
        batch, frames, count, _ = patches.shape
        side = isqrt(count)
        pairs = torch.cat([patches[:, :-1], patches[:, 1:]], dim=-1)
        # Channels stay last in memory all along: convolutions take that as it is.
        both = self.interactive_block(pairs.view(-1, side, side, pairs.shape[-1]).permute(0, 3, 1, 2))
        points = REACH * self.prediction_block(both).view(batch, frames - 1, 4)
        masks = masks_around(points, side, disturbance)
        earlier, later = both.permute(0, 2, 3, 1).view(batch, frames - 1, side, side, -1).split(ALIGN, dim=-1)
        motion = self.conv(over_frames(earlier, later).permute(0, 4, 1, 2, 3))
        motion = motion.permute(0, 2, 3, 4, 1).flatten(2, 3)
        return Alignment(points, masks, over_frames(masks[:, :, 0], masks[:, :, 1]), motion)


class AligningBlock(ClipBlock):
    """CLIP's block, and before it an exchange with the neighbouring frames."""

    def __init__(self, width: int, depthwise: bool) -> None:
        super().__init__(width)
        self.message_fc = nn.Linear(width, width)
        self.message_ln = nn.LayerNorm(width)
        self.message_attn = Aligner(width, depthwise)
        self.temporal_skip_fc = nn.Linear(width, width)
        self.temporal_skip_align_fc = nn.Linear(width, width)
        for skip in (self.temporal_skip_fc, self.temporal_skip_align_fc):  # begins as CLIP
            nn.init.zeros_(skip.weight)
            nn.init.zeros_(skip.bias)

    def exchange(
        self, x: Tensor, frames: int, disturbance: float, want: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens [B*T,L,D] with what the neighbours add, and those of "points" and "alignment" that are wanted."""
        message = self.message_ln(self.message_fc(x)).view(-1, frames, *x.shape[1:])
        patches = message[:, :, 1:]
        found: Alignment = self.message_attn(patches, disturbance)
        weight = F.pad(found.weight, (1, 0), value=1.0)[..., None]
        skip, widen = self.temporal_skip_fc, self.message_attn.fc
        # skip(widen(motion)) as one narrow matrix: a twentieth of the whole network's work less.
        change = F.linear(found.motion, skip.weight @ widen.weight, skip(widen.bias))
        x = x + self.temporal_skip_align_fc(message * weight).flatten(0, 1)
        x = x + torch.cat([skip(message[:, :, :1]), change], dim=2).flatten(0, 1)
        maps = {"points": found.points} if "points" in want else {}
        if "alignment" in want:
            maps["alignment"] = found.disagreement(patches)
        return x, maps


@dataclass
class Seen:
    frame_cls: Tensor  # [B,T,E]
    patches: Tensor  # [B,T,N,D]
    maps: dict[str, Tensor]


class VisualTower(nn.Module):
    """Normalised video [B,T,3,G*patch,G*patch] -> Seen."""

    def __init__(self, patch: int, grid: int, width: int, layers: int, embed: int, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid**2, width) * width**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer([AligningBlock(width, depthwise) for _ in range(layers)])
        self.proj = nn.Parameter(torch.randn(width, embed) * width**-0.5)

    def forward(self, video: Tensor, disturbance: float = 0.0, want: Collection[str] = ()) -> Seen:
        frames = video.shape[1]
        x = self.conv1(video.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        notes: list[dict[str, Tensor]] = []
        attention = {}
        block: Any
        for block in self.transformer.resblocks:
            x, note = block.exchange(x, frames, disturbance, want)
            notes.append(note)
            if "attention" in want and len(notes) == len(self.transformer.resblocks):
                share = block.attn.of_first_token(block.ln_1(x))[:, 1:]
                attention["attention"] = share.view(len(video), frames, -1)
            x = block(x)
        x = x.view(*video.shape[:2], *x.shape[1:])
        frame_cls = self.ln_post(x[:, :, 0]) @ self.proj
        maps = {name: torch.stack([note[name] for note in notes], dim=1) for name in notes[0]}
        maps |= attention | ({"frame_cls": frame_cls} if "frame_cls" in want else {})
        return Seen(frame_cls, x[:, :, 1:], maps)


class FrameMixer(nn.Module):
    """A small transformer over the frames of a clip: frame_cls [B,T,E] -> video embedding [B,E].

    With `outputs` it also holds the linear head, which sees embeddings of length one.
    """

    def __init__(self, frames: int, embed: int, layers: int, outputs: int | None) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, frames, embed) * 0.02)
        self.resblocks = nn.ModuleList([ClipBlock(embed) for _ in range(layers)])
        if outputs is not None:
            self.classify_head = nn.Sequential(nn.LayerNorm(embed), nn.Dropout(0.5), nn.Linear(embed, outputs))

    def forward(self, frame_cls: Tensor) -> Tensor:
        x = frame_cls + self.positional_embedding
        for block in self.resblocks:
            x = block(x)
        return (frame_cls + x).mean(1)


class CrossAttention(nn.Module):
    """Classes [B,K,E] ask the picture [B,N,E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (self.q_proj(asking), self.k_proj(asked), self.v_proj(asked))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class PromptLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(width)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        # What stands at 2 has no parameters and does nothing; the official names count it.
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, text: Tensor, context: Tensor) -> Tensor:
        text = text + self.cross_attn(self.norm1(text), context)
        out: Tensor = text + self.mlp(self.norm3(text))
        return out


class Prompts(nn.Module):
    """What a video adds to the classes' text: text [K,E], context [B,N,E] -> [B,K,E]."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList([PromptLayer(width) for _ in range(layers)])
        self.alpha = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, text: Tensor, context: Tensor) -> Tensor:
        context = self.norm(context)
        text = text.expand(len(context), -1, -1)
        for layer in self.decoder:
            text = layer(text, context)
        return self.alpha * text
