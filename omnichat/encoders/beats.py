"""BEATs as an expert for everything that is not speech (Chen et al., 2022, arXiv 2212.09058)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from omnichat.audio.frontends import BEATS_MEAN, BEATS_MELS, BEATS_PATCH, BEATS_RATE_HZ, BEATS_STD, beats_fbank
from omnichat.encoders.base import AudioEncoder, StreamSpec, check_wave
from omnichat.encoders.checkpoints import check_sizes, find_checkpoint, load_strict, read_torch_file
from omnichat.utils.errors import UserError
from omnichat.utils.seeding import derive_seed

BANDS = BEATS_MELS // BEATS_PATCH  # tokens that share one patch of 160 ms
_BIAS_TABLE = "relative_attention_bias.weight"
_PATCH_SEC = 0.16
_PATCH_CENTRE_SEC = (15 * 160 + 400) / 2 / BEATS_RATE_HZ  # sixteen 25 ms frames, 10 ms apart


@dataclass(frozen=True, slots=True)
class BeatsConfig:
    """The part of a checkpoint's `cfg` that shapes the graph; the defaults are those of every published file."""

    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    deep_norm: bool = True
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800

    @classmethod
    def from_checkpoint(cls, raw: dict[str, Any], where: Path) -> BeatsConfig:
        """Read a file's own cfg.

        Raises:
            UserError: a key is missing, of another type, or asks for another graph than ours.
        """
        fixed = {
            "input_patch_size": BEATS_PATCH,
            "activation_fn": "gelu",
            "layer_norm_first": False,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
        }
        usual = {field.name: field.default for field in fields(cls)}
        for name in (*fixed, *usual):
            if name not in raw:
                raise UserError(f"{where}: its cfg lacks {name!r}")
        for name, value in fixed.items():
            if raw[name] != value:
                raise UserError(f"{where}: cfg.{name}={raw[name]!r} is not supported, expected {value!r}")
        for name, value in usual.items():
            if type(raw[name]) is not type(value) or (type(value) is int and raw[name] < 1):
                raise UserError(f"{where}: cfg.{name}={raw[name]!r} is not valid, {value!r} is usual")
        for name in ("encoder_attention_heads", "conv_pos_groups"):
            if raw["encoder_embed_dim"] % raw[name]:
                width = raw["encoder_embed_dim"]
                raise UserError(f"{where}: cfg.encoder_embed_dim={width} is no multiple of cfg.{name}={raw[name]}")
        # A quarter of the buckets are exact on each side; the rest grow with the logarithm up to max_distance.
        if raw["num_buckets"] < 4 or raw["max_distance"] <= raw["num_buckets"] // 4:
            raise UserError(
                f"{where}: cfg.num_buckets={raw['num_buckets']} must be at least 4 and cfg.max_distance="
                f"{raw['max_distance']} more than a quarter of it"
            )
        return cls(**{name: raw[name] for name in usual})


class _GatedRelativeAttention(nn.Module):
    """Self-attention whose relative-position bias is scaled per query and head by a gate computed from the query."""

    def __init__(self, cfg: BeatsConfig, bias: nn.Embedding) -> None:
        super().__init__()
        width, self.heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.relative_attention_bias = bias  # one table, tied over all layers
        self.grep_linear = nn.Linear(width // self.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor, mask_BT: Tensor) -> Tensor:
        shape = (*x_BTD.shape[:2], self.heads, -1)
        q, k, v = (f(x_BTD).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        gates = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid()  # from the unscaled query
        gate_a, gate_b = gates.chunk(2, dim=-1)
        gate = gate_a * (gate_b * self.grep_a - 1.0) + 2.0
        scores = (gate * bias_HTT).masked_fill(~mask_BT[:, None, None, :], -math.inf)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Post-norm Transformer block with DeepNorm's residual scale (Wang et al., 2022)."""

    def __init__(self, cfg: BeatsConfig, bias: nn.Embedding) -> None:
        super().__init__()
        width = cfg.encoder_embed_dim
        self.alpha = (2 * cfg.encoder_layers) ** 0.25 if cfg.deep_norm else 1.0
        self.self_attn = _GatedRelativeAttention(cfg, bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, cfg.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(cfg.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias_HTT: Tensor, mask_BT: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias_HTT, mask_BT))
        return self.final_layer_norm(self.alpha * x + self.fc2(nn.functional.gelu(self.fc1(x))))


class _Encoder(nn.Module):
    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        width = cfg.encoder_embed_dim
        conv = nn.Conv1d(width, width, cfg.conv_pos, padding=cfg.conv_pos // 2, groups=cfg.conv_pos_groups)
        # In a Sequential only for the published names, `pos_conv.0.*`.
        self.pos_conv = nn.Sequential(parametrizations.weight_norm(conv, dim=2))
        bias = nn.Embedding(cfg.num_buckets, cfg.encoder_attention_heads)
        self.layers = nn.ModuleList([_Block(cfg, bias) for _ in range(cfg.encoder_layers)])
        self.layer_norm = nn.LayerNorm(width)
        self.buckets, self.max_distance = cfg.num_buckets, cfg.max_distance

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> list[Tensor]:
        frames = x_BTD.shape[1]
        x = x_BTD * mask_BT[..., None]  # the positional convolution must not see padding
        # In float32: oneDNN's bfloat16 convolution with 16 groups and an even kernel returns garbage (torch 2.14, AMX).
        with torch.autocast(x.device.type, enabled=False):
            around = self.pos_conv(x.float().transpose(1, 2))[..., :frames].transpose(1, 2)  # even: one frame too many
        hidden = [self.layer_norm(x + nn.functional.gelu(around))]
        places = torch.arange(frames, device=x.device)
        buckets = relative_buckets(places[None, :] - places[:, None], self.buckets, self.max_distance)
        first = cast(_Block, self.layers[0])
        bias_HTT = first.self_attn.relative_attention_bias(buckets).permute(2, 0, 1)
        for layer in self.layers:
            hidden.append(layer(hidden[-1], bias_HTT, mask_BT))
        return hidden


def relative_buckets(offset: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of a relative position (key minus query), as in T5: half of them a sign, exact near, log far."""
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    scale = (half - exact) / math.log(max_distance / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    return (offset > 0).long() * half + torch.where(distance < exact, distance, far.clamp(max=half - 1))


class Beats(nn.Module):
    """BEATs' graph under its published parameter names, without the classification head."""

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, cfg.embed_dim, BEATS_PATCH, BEATS_PATCH, bias=cfg.conv_bias)
        self.layer_norm = nn.LayerNorm(cfg.embed_dim)
        same = cfg.embed_dim == cfg.encoder_embed_dim
        self.post_extract_proj = None if same else nn.Linear(cfg.embed_dim, cfg.encoder_embed_dim)
        self.encoder = _Encoder(cfg)

    def forward(self, fbank_BFM: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """Hidden states [B, T, D] of fbank [B, 16 P, 128]; T = 8 P, time-major and frequency-minor."""
        x = self.patch_embedding(fbank_BFM[:, None]).flatten(2).transpose(1, 2)
        x = self.layer_norm(x)
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        return self.encoder(x, mask_BT)


class BeatsEncoder(AudioEncoder):
    """Eight frames (frequency bands, low to high) for every 160 ms at 16 kHz; all eight carry their patch's time.

    Args:
        path: an official checkpoint (.pt with `cfg` and `model`; pre-trained or fine-tuned), or null to build the
            graph with random weights: an untrained stand-in that lets everything run where no checkpoint is at hand.
        layers: "last", "mix", or an index into the hidden states (0 = input of the first block).
        dtype: "float32", "bfloat16", or "auto".
        seed: of the random weights.
        depth, width, heads, ffn, patch_width, conv_pos: size of the random build; a checkpoint has its own.
        batch_sec: padded seconds of audio in one forward pass; None: by device.
        max_sec: longest clip that is taken; attention needs memory with the square of its length.
    """

    licence = "MIT"
    sample_rate = BEATS_RATE_HZ
    input_rate_hz = 100.0
    receptive_sec = (15 * 160 + 400) / BEATS_RATE_HZ

    def __init__(
        self,
        path: str | None = None,
        layers: str | int = "last",
        dtype: str = "auto",
        seed: int = 0,
        depth: int = 2,
        width: int = 128,
        heads: int = 4,
        ffn: int = 256,
        patch_width: int = 64,
        conv_pos: int = 32,
        batch_sec: float | None = None,
        max_sec: float = 60.0,
    ) -> None:
        super().__init__()
        if path is None:
            sizes = {"width": width, "depth": depth, "ffn": ffn, "patch_width": patch_width, "conv_pos": conv_pos}
            check_sizes("beats", {"heads": heads, "conv_pos_groups": 16}, **sizes)
            cfg = BeatsConfig(
                embed_dim=patch_width,
                encoder_layers=depth,
                encoder_embed_dim=width,
                encoder_ffn_embed_dim=ffn,
                encoder_attention_heads=heads,
                conv_pos=conv_pos,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "beats"))
                self.model = Beats(cfg)
                # Of the size that trained tables have; the default N(0, 1) would drown the content.
                first = cast(_Block, self.model.encoder.layers[0])
                nn.init.normal_(first.self_attn.relative_attention_bias.weight, std=0.02)
            origin = f"random weights (seed {seed})"
        else:
            cfg, self.model = load_beats(find_checkpoint(path))
            origin = Path(path).name
        self.cfg = cfg
        self.settle(layers, cfg.encoder_layers + 1, dtype, batch_sec, max_sec)
        self.description = f"BEATs, {cfg.encoder_layers} x {cfg.encoder_embed_dim}, {origin}"

    @property
    def spec(self) -> StreamSpec:
        layers = self.cfg.encoder_layers + 1 if self.layers == "mix" else 1
        return StreamSpec(self.cfg.encoder_embed_dim, layers, BANDS / _PATCH_SEC)

    def settings(self) -> dict[str, Any]:
        front = {"mels": BEATS_MELS, "mean": BEATS_MEAN, "std": BEATS_STD, "patch": BEATS_PATCH, "scale": 2**15}
        return {"version": 1, "sample_rate": self.sample_rate, "frontend": front, "cfg": asdict(self.cfg)}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """Normalised Kaldi filter bank, float32 [m, 128]; m >= 16 for clips as short as one sample."""
        check_wave(wave_N)
        return beats_fbank(wave_N)

    def input_length(self, x: Tensor) -> int:
        return x.shape[0]

    def frame_times(self, frames: int) -> Tensor:
        patch = torch.arange(frames, dtype=torch.float64).div(BANDS, rounding_mode="floor")
        return (patch * _PATCH_SEC + _PATCH_CENTRE_SEC).float()

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        patches = [x.shape[0] // BEATS_PATCH for x in inputs]
        whole = length // BEATS_PATCH  # the last frames of a clip that fill no patch are left out, as in the original
        fbank = inputs[0].new_zeros(len(inputs), whole * BEATS_PATCH, BEATS_MELS)
        for row, (x, count) in enumerate(zip(inputs, patches, strict=True)):
            fbank[row, : count * BEATS_PATCH] = x[: count * BEATS_PATCH]
        lengths = [BANDS * count for count in patches]
        places = torch.arange(whole * BANDS, device=fbank.device)
        mask = places[None, :] < torch.tensor(lengths, device=fbank.device)[:, None]
        return self.model(fbank, mask), lengths


def load_beats(path: Path) -> tuple[BeatsConfig, Beats]:
    """Load an official checkpoint: cfg from the file, head dropped, every tensor checked.

    Raises:
        UserError: no such file, not a BEATs checkpoint, missing, unknown or misshapen tensors (named), or tables of
            relative positions that differ.
    """
    content = read_torch_file(path, "BEATs")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in ("cfg", "model")):
        raise UserError(f"{path}: a BEATs checkpoint holds `cfg` and `model`, mappings both")
    cfg = BeatsConfig.from_checkpoint(content["cfg"], path)
    state = {name: x for name, x in content["model"].items() if not name.startswith("predictor.")}
    if odd := [name for name, x in state.items() if not isinstance(x, Tensor)]:
        raise UserError(f"{path}: {odd[0]} is not a tensor")
    model = Beats(cfg)
    load_strict(model, state, path, "a BEATs")
    _check_tied(state, path)
    return cfg, model


def _check_tied(state: dict[str, Tensor], where: Path) -> None:
    """Refuse a file whose relative-position tables differ: training ties them, and our graph has one for all layers."""
    first, *others = sorted(name for name in state if name.endswith(_BIAS_TABLE))
    if odd := [name for name in others if not torch.equal(state[name], state[first])]:
        raise UserError(f"{where}: {odd[0]} differs from {first}; BEATs has one table for all layers")
