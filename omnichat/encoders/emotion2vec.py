"""emotion2vec as an expert for how something is said (Ma et al., 2023, arXiv 2312.15185), on data2vec 2.0's graph.

Own implementation under the published parameter names; neither fairseq nor funasr is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.encoders.base import AudioEncoder, StreamSpec, check_wave
from omnichat.encoders.checkpoints import check_sizes, find_checkpoint, load_strict, read_torch_file
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

_RATE_HZ = 16_000
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_LEAST, _HOP = 400, 320  # samples under one frame, and between frames
_POS_GROUPS = 16
_EPS = 1e-5  # of every norm
_AUDIO = "modality_encoders.AUDIO."
_FILES = ("emotion2vec_base.pt", "model.pt")  # the names of the published files
_CONTAINERS = ("model", "state_dict", "model_state_dict")  # where trainers put the weights
# What training leaves among the weights: the decoder of the pre-training, the emotion classifier, the teacher.
_LEFTOVERS = (f"{_AUDIO}decoder.", "decoder.", "shared_decoder.", "recon_proj.", "proj.", "_ema")
_REMEDY = (
    "if you trust the file, write its weights alone: "
    "torch.save({'model': torch.load(OLD, map_location='cpu', weights_only=False)['model']}, NEW)"
)


@dataclass(frozen=True, slots=True)
class Emotion2vecConfig:
    """Sizes of the graph; the defaults are those of base, plus_seed and plus_base (plus_large: 1024, 4096, 16 heads).

    Attributes:
        width, ffn, heads: of the Transformer blocks.
        prenet, blocks: number of blocks inside the audio encoder and after it; they compute the same.
        conv_width: channels of the seven convolutions.
        tokens: extra tokens in front of the frames.
        pos_layers, pos_kernel: of the convolutional position encoding.
    """

    width: int = 768
    ffn: int = 3072
    heads: int = 12
    prenet: int = 4
    blocks: int = 8
    conv_width: int = 512
    tokens: int = 10
    pos_layers: int = 5
    pos_kernel: int = 19

    @property
    def depth(self) -> int:
        """Number of Transformer blocks."""
        return self.prenet + self.blocks

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], where: Path) -> Emotion2vecConfig:
        """Read the sizes off the tensors. Raises UserError where one that tells a size is missing or odd."""

        def shape(name: str, dims: int) -> torch.Size:
            if name not in state:
                raise UserError(f"{where}: not an emotion2vec checkpoint: it lacks {name}")
            if state[name].dim() != dims:
                raise UserError(f"{where}: {name} has shape {tuple(state[name].shape)}, expected {dims} dimensions")
            return state[name].shape

        first = f"{_AUDIO}context_encoder.blocks.0" if _count(state, f"{_AUDIO}context_encoder.blocks.") else "blocks.0"
        width, conv_width = shape(f"{_AUDIO}project_features.2.weight", 2)
        position = shape(f"{_AUDIO}relative_positional_encoder.1.0.weight", 3)
        heads = shape(f"{_AUDIO}alibi_scale", 5)[2]
        if width % heads or width % _POS_GROUPS or position[2] % 2 == 0:
            raise UserError(f"{where}: width {width}, {heads} heads, kernel {position[2]} fit no emotion2vec")
        return cls(
            width=width,
            ffn=shape(f"{first}.mlp.fc1.weight", 2)[0],
            heads=heads,
            prenet=_count(state, f"{_AUDIO}context_encoder.blocks."),
            blocks=_count(state, "blocks."),
            conv_width=conv_width,
            tokens=shape(f"{_AUDIO}extra_tokens", 3)[1],
            pos_layers=_count(state, f"{_AUDIO}relative_positional_encoder."),
            pos_kernel=position[2],
        )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})


class _Block(nn.Module):
    """Post-norm Transformer block with one biased projection for query, key and value."""

    def __init__(self, width: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, ffn), "fc2": nn.Linear(ffn, width)})
        self.norm1, self.norm2 = nn.LayerNorm(width, _EPS), nn.LayerNorm(width, _EPS)

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHTT.to(q.dtype))
        x = self.norm1(x_BTD + self.attn["proj"](out.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](x))))


class _AudioPart(nn.Module):
    """Waveform to the input of the last blocks. Module names are the published ones, numbers included."""

    def __init__(self, cfg: Emotion2vecConfig) -> None:
        super().__init__()
        layers = nn.ModuleList()
        for number, (kernel, stride) in enumerate(zip(_KERNELS, _STRIDES, strict=True)):
            conv = nn.Conv1d(cfg.conv_width if number else 1, cfg.conv_width, kernel, stride, bias=False)
            norm = nn.LayerNorm(cfg.conv_width, _EPS)
            layers.append(nn.ModuleDict({"0": conv, "2": nn.ModuleDict({"1": norm})}))
        self.local_encoder = nn.ModuleDict({"conv_layers": layers})
        norm, linear = nn.LayerNorm(cfg.conv_width, _EPS), nn.Linear(cfg.conv_width, cfg.width)
        self.project_features = nn.ModuleDict({"1": norm, "2": linear})
        self.relative_positional_encoder = nn.ModuleDict()
        for number in range(1, cfg.pos_layers + 1):
            conv = nn.Conv1d(cfg.width, cfg.width, cfg.pos_kernel, padding="same", groups=_POS_GROUPS)
            self.relative_positional_encoder[str(number)] = nn.ModuleDict({"0": conv})
        self.extra_tokens = nn.Parameter(torch.randn(1, cfg.tokens, cfg.width))
        self.alibi_scale = nn.Parameter(torch.ones(1, 1, cfg.heads, 1, 1))
        blocks = nn.ModuleList([_Block(cfg.width, cfg.ffn, cfg.heads) for _ in range(cfg.prenet)])
        self.context_encoder = nn.ModuleDict({"norm": nn.LayerNorm(cfg.width, _EPS), "blocks": blocks})

    def frames(self, wave_BN: Tensor) -> Tensor:
        """[B, T, D] of normalised waveforms; a frame sees its own 400 samples and nothing else."""
        x = wave_BN[:, None]
        for layer in self.local_encoder["conv_layers"]:  # type: ignore[attr-defined]
            x = layer["2"]["1"](layer["0"](x).transpose(1, 2)).transpose(1, 2)
            x = nn.functional.gelu(x)
        return self.project_features["2"](self.project_features["1"](x.transpose(1, 2)))

    def positions(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Convolutional position encoding [B, T, D] in float32 (see below), blind to padding at each of its layers."""
        # Autocast off: oneDNN's bfloat16 convolutions with 16 groups are not to be trusted (torch 2.14, AMX).
        with torch.autocast(x_BTD.device.type, enabled=False):
            x = x_BTD.float()
            for layer in self.relative_positional_encoder.values():
                around = layer["0"]((x * mask_BT[..., None]).transpose(1, 2)).transpose(1, 2)  # type: ignore[index]
                x = nn.functional.gelu(nn.functional.layer_norm(around, around.shape[-1:], eps=_EPS))
        return x

    def bias(self, mask_BT: Tensor) -> Tensor:
        """ALiBi (Press et al., 2022) for both directions, scaled per head: float32 [B, H, E + T, E + T], -inf at
        padded keys, 0 from and to the E extra tokens."""
        heads, tokens, frames = self.alibi_scale.shape[2], self.extra_tokens.shape[1], mask_BT.shape[1]
        slope_H = alibi_slopes(heads).to(mask_BT.device) * self.alibi_scale.flatten().clamp(min=0)
        place = torch.arange(frames, device=mask_BT.device)
        distance_TT = (place[None, :] - place[:, None]).abs()
        bias = nn.functional.pad(-slope_H[:, None, None] * distance_TT, (tokens, 0, tokens, 0))
        keys = nn.functional.pad(mask_BT, (tokens, 0), value=True)
        return bias[None].masked_fill(~keys[:, None, None, :], -math.inf)


class Emotion2vec(nn.Module):
    """emotion2vec's graph under its published parameter names, without decoder and classifier."""

    def __init__(self, cfg: Emotion2vecConfig) -> None:
        super().__init__()
        self.modality_encoders = nn.ModuleDict({"AUDIO": _AudioPart(cfg)})
        self.blocks = nn.ModuleList([_Block(cfg.width, cfg.ffn, cfg.heads) for _ in range(cfg.blocks)])

    def forward(self, wave_BN: Tensor, frames_B: Tensor) -> list[Tensor]:
        """Hidden states [B, T, D], the input of the first block first, of normalised and zero-padded waveforms [B, N].

        T = (N - 400) // 320 + 1, of which the first `frames_B` are valid. The extra tokens are left out.
        """
        audio = self.modality_encoders["AUDIO"]
        assert isinstance(audio, _AudioPart)
        x = audio.frames(wave_BN)
        mask = torch.arange(x.shape[1], device=x.device)[None, :] < frames_B[:, None]
        x = x + audio.positions(x, mask)
        tokens = audio.extra_tokens.expand(len(x), -1, -1)
        hidden = [audio.context_encoder["norm"](torch.cat([tokens, x], dim=1))]
        bias = audio.bias(mask)
        for block in (*audio.context_encoder["blocks"], *self.blocks):  # type: ignore[misc]
            hidden.append(block(hidden[-1], bias))
        return [x[:, tokens.shape[1] :] for x in hidden]


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slopes, float32 [heads]: a geometric series from 2^(-8/n) to 2^-8 where n = `heads` is a power of two;
    otherwise that of the next lower power, then every second slope of the next higher one."""
    lower = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * lower, 2)][: heads - lower]
    return torch.tensor(slopes)


class Emotion2vecEncoder(AudioEncoder):
    """50 frames a second at 16 kHz: (N - 400) // 320 + 1 frames, frame j centred on sample 320 j + 200.

    Attention's memory grows with the square of a clip's length: 30 s take 110 MB a clip for its position bias.

    Args:
        path: an official checkpoint (emotion2vec_base.pt, or model.pt of emotion2vec+ seed, base or large), a folder
            that holds one, a hub id, or null to build the graph with random weights: an untrained stand-in.
        layers: "last", "mix", or an index into the hidden states (0 = input of the first block).
        dtype: "float32", "bfloat16", or "auto".
        seed: of the random weights.
        depth, width, heads, ffn, conv_width: size of the random build (a third of its blocks, rounded down, stand in
            the audio encoder); a checkpoint has its own.
        batch_sec: padded seconds of audio in one forward pass; None: by device.
        max_sec: longest clip that is taken; attention needs memory with the square of its length.
    """

    licence = "FunASR model licence (attribution)"
    sample_rate = _RATE_HZ
    input_rate_hz = float(_RATE_HZ)
    receptive_sec = _LEAST / _RATE_HZ

    def __init__(
        self,
        path: str | None = None,
        layers: str | int = "last",
        dtype: str = "auto",
        seed: int = 0,
        depth: int = 3,
        width: int = 96,
        heads: int = 4,
        ffn: int = 192,
        conv_width: int = 32,
        batch_sec: float | None = None,
        max_sec: float = 60.0,
    ) -> None:
        super().__init__()
        if path is None:
            sizes = {"width": width, "heads": heads, "depth": depth, "ffn": ffn, "conv_width": conv_width}
            check_sizes("emotion2vec", {"heads": heads, "pos_groups": _POS_GROUPS}, **sizes)
            prenet = depth // 3
            cfg = Emotion2vecConfig(width, ffn, heads, prenet, depth - prenet, conv_width)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "emotion2vec"))
                self.model = Emotion2vec(cfg)
            origin = f"random weights (seed {seed})"
        else:
            cfg, self.model = load_emotion2vec(find_checkpoint(path, patterns=("*.pt",)))
            log.info("emotion2vec weights are under FunASR's model licence: name their authors and source")
            origin = Path(path).name
        self.cfg = cfg
        self.settle(layers, cfg.depth + 1, dtype, batch_sec, max_sec)
        self.description = f"emotion2vec, {cfg.depth} x {cfg.width}, {origin}"

    @property
    def spec(self) -> StreamSpec:
        return StreamSpec(self.cfg.width, self.cfg.depth + 1 if self.layers == "mix" else 1, _RATE_HZ / _HOP)

    def settings(self) -> dict[str, Any]:
        front = {"normalize": "layer norm over the clip", "eps": _EPS}
        return {"version": 1, "sample_rate": self.sample_rate, "frontend": front, "cfg": asdict(self.cfg)}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """The samples with mean 0 and variance 1, float32 [N]; one frame's worth at least, padded with zeros."""
        check_wave(wave_N)
        normed = nn.functional.layer_norm(wave_N.float(), wave_N.shape, eps=_EPS)
        return nn.functional.pad(normed, (0, max(0, _LEAST - len(wave_N))))

    def input_length(self, x: Tensor) -> int:
        return len(x)

    def frame_times(self, frames: int) -> Tensor:
        centre = torch.arange(frames, dtype=torch.float64) * _HOP + _LEAST / 2
        return (centre / _RATE_HZ).float()

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        frames = [(len(x) - _LEAST) // _HOP + 1 for x in inputs]
        wave = torch.stack([nn.functional.pad(x, (0, length - len(x))) for x in inputs])
        return self.model(wave, torch.tensor(frames, device=wave.device)), frames


def load_emotion2vec(path: Path) -> tuple[Emotion2vecConfig, Emotion2vec]:
    """Load an official checkpoint from a file, or from a folder that holds one under its published name.

    The sizes come from the tensors. Decoder, classifier and teacher are dropped; every other tensor is checked.

    Raises:
        UserError: no such file, one that holds more than weights, or missing, unknown or misshapen tensors, named.
    """
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds no {' or '.join(_FILES)}")
        path = found[0]
    content = read_torch_file(path, "emotion2vec", _REMEDY)
    for name in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: an emotion2vec checkpoint maps names to tensors, under `model` or at the top")
    content = {name.removeprefix("d2v_model."): x for name, x in content.items()}
    state = {name: x for name, x in content.items() if not name.startswith(_LEFTOVERS)}
    if odd := sorted(name for name, x in state.items() if not isinstance(x, Tensor)):
        raise UserError(f"{path}: {odd[0]} is not a tensor")
    scale = f"{_AUDIO}alibi_scale"
    if scale in state and state[scale].dim() == 4:  # as early files have it; the axis for layers came later
        state[scale] = state[scale][None]
    cfg = Emotion2vecConfig.from_state(state, path)
    model = Emotion2vec(cfg)
    load_strict(model, state, path, "an emotion2vec")
    return cfg, model
