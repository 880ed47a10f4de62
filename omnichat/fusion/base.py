"""The interface of every fusion: streams of several experts -> windows that the LLM reads as embeddings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError


def window_count(seconds: float, window_sec: float) -> int:
    """ceil(seconds / window_sec), at least 1; a surplus below a microsecond, rounding of a header, opens no window."""
    return max(1, math.ceil(seconds / window_sec - 1e-6))


class FusedAudio(NamedTuple):
    """What the LLM reads of a batch of clips. A tuple, in which FSDP2's and DeepSpeed's hooks find the tensors.

    Attributes:
        x_BSD: [B, S, D] embeddings at the LLM's width, S = windows x queries, in time order.
        mask_BS: bool, True = valid; clip i has exactly `slots(seconds_i)` valid ones, at the front.
        attention_BWE: optional float [B, W, E], the attention mass per window and expert (sums to 1 over the experts,
            in the order of the specs), averaged over layers, heads and queries. No gradient.
    """

    x_BSD: Tensor
    mask_BS: Tensor
    attention_BWE: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Knobs:
    """The two constructor arguments that `fusion.budget` turns.

    Attributes:
        coarse: a width; tried in multiples of the argument named `step` (or of 1).
        fine: a hidden size, any whole number; its share in the parameters must be large enough to meet 2 %.
        ratio: fine / coarse while the coarse one is sought.
        step: name of the argument that the coarse one is a multiple of; None: 1.
    """

    coarse: str
    fine: str
    ratio: float
    step: str | None = None


class Fusion(nn.Module, ABC):
    """Base of all fusions. `specs` maps expert name to StreamSpec; its order is the order of the experts.

    Subclasses implement `fuse`. They must take a clip for which an expert has no valid frame at all (it is absent, or
    was dropped in training), as long as another expert has one, and run every parameter through the graph even then.

    Args:
        specs: what each expert emits.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        expert_dropout: in training, probability that an expert is silent for a clip; one always stays.
    """

    knobs: ClassVar[Knobs]
    local: ClassVar[bool] = True  # a window hears the frames of its own time only
    uses_context: bool = False  # whether `forward` wants `context_BD`
    window_sec: float
    queries: int
    inputs: nn.ModuleDict  # expert -> ExpertInput, for those that use `pooled` or `valid_frames`

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float,
        queries: int,
        expert_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not window_sec > 0:
            raise UserError(f"fusion.window_sec must be above 0 seconds, got {window_sec}")
        if queries < 1:
            raise UserError(f"fusion.queries must be at least 1, got {queries}")
        if not 0 <= expert_dropout < 1:
            raise UserError(f"fusion.expert_dropout must lie in [0, 1), got {expert_dropout}")
        self.specs = dict(specs)
        self.out_width = out_width
        self.window_sec = window_sec
        self.queries = queries
        self.expert_dropout = expert_dropout
        self.standard = nn.ModuleDict({name: Standardize(spec) for name, spec in self.specs.items()})

    def slots(self, seconds: float) -> int:
        """Embeddings that a clip of `seconds` costs in the LLM's sequence."""
        return window_count(seconds, self.window_sec) * self.queries

    def windows(self, seconds_B: Tensor) -> Tensor:
        """`window_count` of a batch: int64 [B], on the CPU."""
        seconds = seconds_B.detach().to("cpu", torch.float64)
        return (seconds / self.window_sec - 1e-6).ceil().clamp(min=1).long()

    def check_streams(self, streams: Mapping[str, EncodedAudio]) -> None:
        """Refuse streams that are not those of the specs: none, an unknown one, another width or number of layers."""
        if not streams or not set(streams) <= set(self.specs):
            raise ValueError(f"streams of the experts {sorted(self.specs)} are expected, got {sorted(streams)}")
        for name, stream in streams.items():
            spec, shape = self.specs[name], stream.x_BTD.shape
            layers = shape[1] if len(shape) == 4 else 1
            if (shape[-1], layers) != (spec.width, spec.layers):
                raise ValueError(
                    f"expert {name!r}: {layers} layers of width {shape[-1]} came, "
                    f"{spec.layers} of width {spec.width} were announced"
                )

    def calibrate(self, batches: Sequence[Mapping[str, EncodedAudio]]) -> None:
        """Measure the statistics of every expert's frames on some training audio; before the first step."""
        for name, standard in self.standard.items():
            if found := [streams[name] for streams in batches if name in streams]:
                cast(Standardize, standard).measure(found)

    def forward(
        self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None = None
    ) -> FusedAudio:
        """Fuse the streams of B clips.

        Args:
            streams: expert -> frames. Experts of the specs may be absent; one at least has frames of every clip.
            seconds_B: lengths of the clips, float64, on the CPU or the device.
            context_BD: [B, out_width], the dialogue before each clip, for fusions with `uses_context`; None: nothing.
        """
        self.check_streams(streams)
        return self.fuse(self._heard(streams), seconds_B, context_BD)

    @abstractmethod
    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        """As `forward`, with a stream for every expert of the specs, in their order; an absent one has no valid frame
        (its invalid frames hold finite numbers, whichever; their times may be NaN)."""

    def pooled(self, name: str, stream: EncodedAudio, windows_B: Tensor, parts: int) -> Tensor:
        """An expert's frames, through `self.inputs`, averaged in each part of every window: [B, W x parts, width]."""
        x_BTD = self.inputs[name](self.standard[name](stream.x_BTD))
        return pool_parts(x_BTD, stream, windows_B, self.window_sec, parts)

    def valid_frames(self, name: str, stream: EncodedAudio) -> Tensor:
        """An expert's valid frames of all clips, clip after clip, through `self.inputs`: [F, width]."""
        x = self.standard[name](stream.x_BTD)
        x_1LFD = x.transpose(0, 1)[:, stream.mask_BT][None] if x.dim() == 4 else x[stream.mask_BT][None]
        return self.inputs[name](x_1LFD)[0]

    def _heard(self, streams: Mapping[str, EncodedAudio]) -> dict[str, EncodedAudio]:
        """All experts' streams, in order: absent ones as silence, and in training some dropped for some clips."""
        batch, device = len(next(iter(streams.values())).mask_BT), next(iter(streams.values())).mask_BT.device
        heard = {}
        for name, spec in self.specs.items():
            if name in streams:
                heard[name] = streams[name]
                continue
            shape = (batch, spec.layers, 1, spec.width) if spec.layers > 1 else (batch, 1, spec.width)
            nothing = torch.zeros(batch, 1, device=device)
            heard[name] = EncodedAudio(torch.zeros(shape, device=device), nothing.bool(), nothing)
        there_BE = torch.stack([stream.mask_BT.any(1) for stream in heard.values()], dim=1)
        if not bool(there_BE.any(1).all()):
            raise ValueError("no expert has a valid frame of some clip")
        if not self.training or self.expert_dropout == 0:
            return heard
        luck_BE = torch.rand(there_BE.shape, device=device).masked_fill(~there_BE, -1.0)
        best_BE = luck_BE == luck_BE.amax(1, keepdim=True)  # one that is there always stays
        keep_BE = (luck_BE >= self.expert_dropout) | best_BE
        return {
            name: EncodedAudio(stream.x_BTD, stream.mask_BT & keep_BE[:, number, None], stream.time_sec)
            for number, (name, stream) in enumerate(heard.items())
        }


def check_settings(dropout: float, heads: int = 1, **sizes: int) -> None:
    """Check what most fusions have in common: sizes >= 1, width a multiple of heads, dropout in [0, 1).

    Raises:
        UserError: naming the setting and what would be right.
    """
    for name, size in (("heads", heads), *sizes.items()):
        if size < 1:
            raise UserError(f"fusion.{name} must be at least 1, got {size}")
    if sizes.get("width", heads) % heads:
        raise UserError(f"fusion.width={sizes['width']} must be a multiple of heads={heads}")
    if not 0 <= dropout < 1:
        raise UserError(f"fusion.dropout must lie in [0, 1), got {dropout}")


@dataclass(slots=True)
class WindowFrames:
    """Where the frames of one stream lie: every valid frame belongs to exactly one window of its clip.

    Attributes:
        index_BWM: int64 [B, W, M], positions on the stream's time axis; M is the fullest window's count (>= 1).
        valid_BWM: bool, whether an index stands for a frame of that window.
        nearest_BW: int64 [B, W], the frame nearest to the window's centre, wherever it lies.
        distance_BW: float64 [B, W], its distance from the centre in seconds; infinite for a clip without frames.
    """

    index_BWM: Tensor
    valid_BWM: Tensor
    nearest_BW: Tensor
    distance_BW: Tensor


def window_frames(stream: EncodedAudio, windows_B: Tensor, window_sec: float) -> WindowFrames:
    """Sort a stream's frames into windows of time, by their centre; later ones than the last window's end join it.

    Args:
        stream: frames whose valid ones are at the front with times that never fall (frames of equal time: in order).
        windows_B: int64 [B], the number of windows of each clip; W is the largest.
        window_sec: length of a window in seconds.
    """
    mask, device = stream.mask_BT, stream.mask_BT.device
    count_B = windows_B.to(device)
    window_count_max = int(windows_B.max())
    time = stream.time_sec.double().masked_fill(~mask, math.inf)
    home_BT = torch.minimum((time / window_sec).floor(), count_B[:, None] - 1.0).clamp(min=0)
    home_BT = home_BT.masked_fill(~mask, math.inf).contiguous()
    window_W = torch.arange(window_count_max, device=device, dtype=torch.float64)
    window_BW = window_W.expand(len(count_B), -1).contiguous()
    start_BW = torch.searchsorted(home_BT, window_BW)
    stop_BW = torch.searchsorted(home_BT, window_BW, right=True)
    fullest = max(1, int((stop_BW - start_BW).max()))
    index = start_BW[..., None] + torch.arange(fullest, device=device)
    valid = index < stop_BW[..., None]

    last_B = (mask.sum(1) - 1).clamp(min=0)[:, None]
    centre_BW = (window_BW + 0.5) * window_sec
    right = torch.minimum(torch.searchsorted(time.contiguous(), centre_BW), last_B)
    left = (right - 1).clamp(min=0)
    gap_right, gap_left = ((time.gather(1, side) - centre_BW).abs() for side in (right, left))
    nearest = torch.where(gap_left <= gap_right, left, right)
    return WindowFrames(index.clamp(max=mask.shape[1] - 1), valid, nearest, torch.minimum(gap_left, gap_right))


def gather_frames(x_BTD: Tensor, index_BWM: Tensor) -> Tensor:
    """Pick frames by their positions: [B, T, D] and [B, W, M] -> [B, W, M, D]."""
    rows = torch.arange(x_BTD.shape[0], device=x_BTD.device)[:, None, None]
    return x_BTD[rows, index_BWM]


def pool_parts(x_BTD: Tensor, stream: EncodedAudio, windows_B: Tensor, window_sec: float, parts: int) -> Tensor:
    """Mean of a stream's frames in each of `parts` equal parts of every window: [B, W x parts, D].

    A part without a frame takes the nearest one, or the mean of those that share its time (BEATs: eight bands); where
    the clip has none at all, the result is zero.
    """
    places = window_frames(stream, windows_B * parts, window_sec / parts)
    x_BTD = x_BTD.masked_fill(~stream.mask_BT[..., None], 0.0)
    valid = places.valid_BWM[..., None]
    pooled = (gather_frames(x_BTD, places.index_BWM) * valid).sum(2) / valid.sum(2).clamp(min=1)
    return torch.where(valid.any(2), pooled, mean_at_time(x_BTD, stream, places.nearest_BW))


def mean_at_time(x_BTD: Tensor, stream: EncodedAudio, index_BS: Tensor) -> Tensor:
    """Mean of the frames that share the time of frame `index_BS`: [B, S, D]; zero for a clip without a frame.

    BEATs gives eight bands of the spectrum at one time: taking one of them would throw seven away.
    """
    x_BTD = x_BTD.masked_fill(~stream.mask_BT[..., None], 0.0)
    time_BT = stream.time_sec.double().masked_fill(~stream.mask_BT, math.inf).contiguous()
    chosen_BS = time_BT.gather(1, index_BS)
    first_BS = torch.searchsorted(time_BT, chosen_BS)
    count_BS = torch.searchsorted(time_BT, chosen_BS, right=True) - first_BS
    count_BS = count_BS.masked_fill(~stream.mask_BT.any(1)[:, None], 1)  # nothing there: one frame, of zeros
    index_BSM = first_BS[..., None] + torch.arange(int(count_BS.max()), device=x_BTD.device)
    there = (index_BSM < (first_BS + count_BS)[..., None])[..., None]
    frames = gather_frames(x_BTD, index_BSM.clamp(max=x_BTD.shape[1] - 1)) * there
    return frames.sum(2) / count_BS[..., None]


def to_windows(x_N: Tensor, valid_BW: Tensor) -> Tensor:
    """Put the rows of the N real windows, [N, ...], in their places: [B, W, ...], zero elsewhere."""
    x_BW = x_N.new_zeros(*valid_BW.shape, *x_N.shape[1:])
    x_BW[valid_BW] = x_N
    return x_BW


def slot_mask(windows_B: Tensor, queries: int, device: torch.device) -> Tensor:
    """bool [B, max windows x queries]: the first windows_B[i] x queries slots of clip i are valid."""
    counts = (windows_B * queries).to(device)
    return torch.arange(int(windows_B.max()) * queries, device=device)[None, :] < counts[:, None]


class Standardize(nn.Module):
    """Zero mean and unit variance of every layer and dimension, by statistics of some training audio.

    An expert's frames share most of their energy whatever is said (tiny.en: 25-55 % lies in the mean, a few dimensions
    rule), while what tells one way of speaking from another is 1-3 %: unscaled, that is learnt last. The statistics are
    buffers: measured once before the first step, kept in checkpoints. Unmeasured, this does nothing.
    """

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.mean_LD: Tensor
        self.scale_LD: Tensor
        self.register_buffer("mean_LD", torch.zeros(spec.layers, spec.width))
        self.register_buffer("scale_LD", torch.ones(spec.layers, spec.width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] or [B, L, T, D], any float dtype -> the same shape, float32."""
        mean, scale = (v[0] if x.dim() == 3 else v[:, None] for v in (self.mean_LD, self.scale_LD))
        return (x.float() - mean) * scale

    @torch.no_grad()
    def measure(self, streams: Sequence[EncodedAudio]) -> None:
        """Set the statistics from the valid frames of some batches; without a frame nothing changes."""
        frames = []
        for stream in streams:
            x = stream.x_BTD if stream.x_BTD.dim() == 4 else stream.x_BTD[:, None]
            frames.append(x.transpose(1, 2)[stream.mask_BT].double())
        x_FLD = torch.cat(frames)
        if len(x_FLD) < 2:
            return
        self.mean_LD.copy_(x_FLD.mean(0))
        self.scale_LD.copy_(1.0 / x_FLD.std(0).clamp(min=1e-4))


class OutputScale(nn.Module):
    """Final norm and projection to the LLM's width, whose output starts with a root mean square of `out_rms`.

    An LLM's embeddings are small (SmolLM2-135M: about 0.1): slots of another scale would drown its text at step 1.
    """

    def __init__(self, width: int, out_width: int, out_rms: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width)
        nn.init.normal_(self.project.weight, std=out_rms / math.sqrt(width))
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., out_width]."""
        return self.project(self.norm(x))


class LayerMix(nn.Module):
    """Learned softmax weights over an expert's layers (as in SUPERB): [B, L, T, D] -> [B, T, D].

    Every layer is normalised first (no affine), so that a layer of large activations does not rule by scale alone.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Mix; a [B, T, D] input (one layer) is passed through."""
        if x.dim() == 3:
            return x
        normed = nn.functional.layer_norm(x.float(), x.shape[-1:])
        return torch.einsum("l,bltd->btd", self.logits.softmax(0), normed)


class ExpertInput(nn.Module):
    """One expert's frames at a common width: learned mix of its layers (if several), norm, projection."""

    def __init__(self, spec: StreamSpec, width: int) -> None:
        super().__init__()
        self.mix = LayerMix(spec.layers) if spec.layers > 1 else None
        self.norm = nn.LayerNorm(spec.width)
        self.project = nn.Linear(spec.width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D], or [B, L, T, D] with all layers, -> [B, T, width]."""
        if x.dim() == 4:
            x = x[:, 0] if self.mix is None else self.mix(x)
        return self.project(self.norm(x.float()))
