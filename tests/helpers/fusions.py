"""Members, experts and streams for the contract suite of the fusions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.base import Fusion
from omnichat.fusion.cross_attention import CrossAttention
from omnichat.fusion.gated import Gated
from omnichat.fusion.linear import LinearDownsample
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.moe import MixtureOfExperts
from omnichat.fusion.perceiver import Perceiver
from omnichat.fusion.salmonn import WindowQFormer
from omnichat.fusion.single import Single
from omnichat.fusion.stack import Stack
from omnichat.schema import EncodedAudio

SPECS = {"content": StreamSpec(24, 1, 50.0), "sounds": StreamSpec(16, 3, 50.0), "music": StreamSpec(12, 1, 75.0)}
OUT = 20


@dataclass(frozen=True, slots=True)
class Member:
    """A fusion in the suite, small, and what it does not promise.

    Attributes:
        build: makes it; keyword arguments go to its class.
        hears: the experts that it listens to.
        borrows: a neighbouring window may change with a frame that is not its own (a part without a frame of its own
            takes the nearest one).
        spans: windows are spans of time, as many as the clip is long (otherwise its own tests say what holds).
        orders: the order of the frames inside a window matters.
        joins: frames later than the last window's end are heard in that window.
        still: parts of the names of weights that never get a gradient. A key bias adds one constant to all scores:
            softmax cancels it, in exact arithmetic.
        scales: its output starts at `out_rms` whatever the scale of the frames (otherwise for standardised ones).
    """

    build: Callable[..., Fusion]
    hears: tuple[str, ...] = tuple(SPECS)
    borrows: bool = False
    spans: bool = True
    orders: bool = True
    joins: bool = True
    still: tuple[str, ...] = ("key.bias",)
    scales: bool = True


def _member(cls: type[Fusion], sizes: dict[str, int | str], **traits: object) -> Member:
    return Member(lambda **kw: cls(SPECS, OUT, **{**sizes, **kw}), **traits)  # type: ignore[arg-type]


_QFORMER = {"width": 32, "heads": 4}
_GRID = {"window_sec": 0.34, "frames": 17, "hidden": 64}
_BERT = {"width": 24, "heads": 12, "hidden": 48}
_ALONE = (".attention.attention.query.", ".attention.attention.key.")  # one query looks at itself, whatever these are
MEMBERS: dict[str, Member] = {
    "mix_former": _member(MixFormer, _QFORMER),
    "mix_former_k3": _member(MixFormer, {**_QFORMER, "queries": 3}),
    "mix_former_conditioned": _member(MixFormer, {**_QFORMER, "conditioned": True}),
    "stack": _member(Stack, {"width": 16, "hidden": 48}, borrows=True),
    "single": _member(Single, _QFORMER, hears=("content",)),
    "linear": _member(LinearDownsample, _GRID, borrows=True, joins=False, scales=False),
    "linear_k2": _member(LinearDownsample, {**_GRID, "queries": 2}, borrows=True, joins=False, scales=False),
    "salmonn": _member(WindowQFormer, _BERT, spans=False, orders=False, still=("key.bias", *_ALONE)),
    "salmonn_k2": _member(WindowQFormer, {**_BERT, "queries": 2}, spans=False, orders=False),
    "stack_k2": _member(Stack, {"width": 16, "hidden": 48, "queries": 2}, borrows=True),
    "gated": _member(Gated, {"width": 16, "hidden": 48}, borrows=True),
    "gated_k2": _member(Gated, {"width": 16, "hidden": 48, "queries": 2}, borrows=True),
    "moe": _member(MixtureOfExperts, {"width": 16, "hidden": 32}, borrows=True),
    "moe_k2_all": _member(MixtureOfExperts, {"width": 16, "hidden": 32, "queries": 2, "top_k": 3}, borrows=True),
    "cross_attention": _member(CrossAttention, _QFORMER, borrows=True),
    "cross_attention_k2_sounds": _member(CrossAttention, {**_QFORMER, "queries": 2, "primary": "sounds"}, borrows=True),
    "perceiver": _member(Perceiver, _QFORMER),
    "perceiver_k2": _member(Perceiver, {**_QFORMER, "queries": 2}),
}


def build(name: str, **settings: float) -> Fusion:
    """A member of the suite with weights of a fixed seed, not in training."""
    torch.manual_seed(0)
    return MEMBERS[name].build(**settings).eval()


def names(**traits: bool) -> list[str]:
    """Members with these traits (`local`, a trait of the class, included)."""

    def has(member: Member, trait: str) -> bool:
        return bool(getattr(member.build(), trait) if trait == "local" else getattr(member, trait))

    return [name for name, member in MEMBERS.items() if all(has(member, t) == value for t, value in traits.items())]


def clip(seconds: float, seed: int) -> dict[str, EncodedClip]:
    """One clip as three experts hear it: 50 Hz; three layers, eight bands every 160 ms; 75 Hz and five times louder."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    content = max(1, math.ceil(seconds * 50))
    patches = max(1, int(seconds / 0.16))
    music = max(1, int(seconds * 75))
    return {
        "content": EncodedClip(randn(content, 24), (torch.arange(content) + 0.5) / 50),
        "sounds": EncodedClip(randn(3, 8 * patches, 16), (torch.arange(8 * patches) // 8) * 0.16 + 0.0875),
        "music": EncodedClip(5 * randn(music, 12), (torch.arange(music) * 320 + 200) / 24000),
    }


def streams_of(lengths: list[float], seed: int = 0) -> tuple[dict[str, EncodedAudio], Tensor]:
    """Clips of these seconds, batched, and the seconds, float64 [B]."""
    clips = [clip(seconds, seed + number) for number, seconds in enumerate(lengths)]
    streams = {name: collate_clips([one[name] for one in clips]) for name in SPECS}
    return streams, torch.tensor(lengths, dtype=torch.float64)


def silent(stream: EncodedAudio, rows: slice = slice(None)) -> EncodedAudio:
    """The stream of an expert that has no valid frame of these clips, with rubbish where they were."""
    mask = stream.mask_BT.clone()
    mask[rows] = False
    time = stream.time_sec.masked_fill(~mask, float("nan"))
    there = mask[:, None, :, None] if stream.x_BTD.dim() == 4 else mask[..., None]
    return EncodedAudio(stream.x_BTD.masked_fill(~there, 1e4), mask, time)


def context_of(fusion: Fusion, batch: int, seed: int = 0) -> Tensor | None:
    """A dialogue before each clip, [B, OUT], for a fusion that wants one."""
    if not fusion.uses_context:
        return None
    return torch.randn(batch, OUT, generator=torch.Generator().manual_seed(seed))
