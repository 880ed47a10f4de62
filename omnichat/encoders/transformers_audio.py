"""Any of transformers' audio encoders as an expert: wav2vec 2.0, HuBERT, WavLM, data2vec-audio, AST, CLAP's audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.encoders.base import AudioEncoder, EncodedClip, StreamSpec, check_wave
from omnichat.encoders.checkpoints import check_sizes, find_checkpoint
from omnichat.encoders.transformers_base import Backbone
from omnichat.encoders.transformers_files import FAMILIES, build_graph, load_encoder, read_front
from omnichat.encoders.transformers_spectrogram import AstBackbone, AstFront, ClapBackbone, ClapFront
from omnichat.encoders.transformers_wave import WaveBackbone, WaveFront, small_wave_sizes
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import derive_seed

_PARTS: dict[str, tuple[type[Any], type[Any]]] = {
    "ast": (AstBackbone, AstFront),
    "clap": (ClapBackbone, ClapFront),
}


class TransformersEncoder(AudioEncoder):
    """One class for six families; rate, lengths and times follow from a checkpoint's own configuration.

    | family | frames | hidden states |
    |---|---|---|
    | wav2vec2, hubert, wavlm, data2vec-audio | 50 a second at 16 kHz, (N - 400) // 320 + 1 | blocks + 1 |
    | ast | 12 bands every 100 ms, at one time | blocks + 1 |
    | clap | 3.2 a second, frequency averaged | blocks of the last stage + 1 |

    Args:
        path: a folder in transformers' layout (config.json, preprocessor_config.json, model.safetensors or
            pytorch_model.bin, whole or sharded) or a hub id; null builds `family` with random weights, a stand-in.
        family: a name of the table. With a path it may be null: config.json says it.
        layers: "last", "mix", or an index into the hidden states (0 = input of the first block that counts); the
            last one is after the final norm.
        dtype: "float32", "bfloat16", or "auto".
        seed: of the random weights.
        depth, width, heads, ffn, conv_width: size of the random build; a checkpoint has its own.
        batch_sec: padded seconds of audio in one forward pass; None: by device.
        max_sec: longest clip that is taken; attention needs memory with the square of its length.

    Raises:
        UserError: an unknown family, or a folder that does not hold one whole encoder of it (what is wrong is named).
    """

    def __init__(
        self,
        path: str | None = None,
        family: str | None = None,
        layers: str | int = "last",
        dtype: str = "auto",
        seed: int = 0,
        depth: int = 2,
        width: int = 96,
        heads: int = 4,
        ffn: int = 192,
        conv_width: int = 32,
        batch_sec: float | None = None,
        max_sec: float = 60.0,
    ) -> None:
        super().__init__()
        if path is None:
            if family not in FAMILIES:
                raise one_of("family", family, FAMILIES)
            sizes = {"depth": depth, "width": width, "ffn": ffn, "conv_width": conv_width}
            raw = _small_graph(family, heads=heads, **sizes)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, family))
                model, graph = build_graph(FAMILIES[family], raw, family)
                _tame(model)
            self.backbone = _backbone(family, model, graph, None)
            origin = f"random weights (seed {seed})"
        else:
            folder = find_checkpoint(path)
            found, model, graph = load_encoder(folder, family)
            family = found.name
            self.backbone = _backbone(family, model, graph, folder)
            origin = Path(path).name
        backbone = self.backbone
        self.family = family
        self.sample_rate = backbone.sample_rate
        self.input_rate_hz = backbone.input_rate_hz
        self.receptive_sec = backbone.receptive_sec
        self.settle(layers, backbone.depth + 1, dtype, batch_sec, max_sec)
        self.description = f"{family} (transformers), {backbone.depth} x {backbone.width}, {origin}"

    @property
    def spec(self) -> StreamSpec:
        layers = self.backbone.depth + 1 if self.layers == "mix" else 1
        return StreamSpec(self.backbone.width, layers, self.backbone.rate_hz)

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "family": self.family, **self.backbone.settings()}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """One clip, mono float32 [N] at `sample_rate`, as the family reads it (time first); N >= 1."""
        check_wave(wave_N)
        return self.backbone.frontend(wave_N)

    def input_length(self, x: Tensor) -> int:
        return len(x)

    def check_length(self, x: Tensor) -> None:
        for chunk in self.backbone.split(x):
            super().check_length(chunk)

    def padded_length(self, x: Tensor) -> int:
        steps = self.backbone.pass_steps
        return super().padded_length(x) if steps is None else steps

    def frame_times(self, frames: int) -> Tensor:
        return self.backbone.frame_times(frames)

    def encode_clips(self, inputs: Sequence[Tensor]) -> list[EncodedClip]:
        chunked = [self.backbone.split(x) for x in inputs]
        encoded = iter(super().encode_clips([chunk for chunks in chunked for chunk in chunks]))
        clips = []
        for chunks in chunked:
            x = torch.cat([next(encoded).x_TD for _ in chunks], dim=-2)
            clips.append(EncodedClip(x, self.frame_times(x.shape[-2]).to(x.device)))
        return clips

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        return self.backbone.hidden_states(inputs, length)


def _backbone(family: str, model: nn.Module, graph: dict[str, Any], folder: Path | None) -> Backbone:
    """The graph with the front-end that a folder asks for, or with the family's usual one."""
    kind, front_kind = _PARTS.get(family, (WaveBackbone, WaveFront))
    front = front_kind() if folder is None else read_front(folder, front_kind)
    try:
        return kind(model, front, graph)
    except ValueError as error:  # the two do not fit each other
        raise UserError(f"{folder or family}: {error}") from None


def _small_graph(family: str, depth: int, width: int, heads: int, ffn: int, conv_width: int) -> dict[str, Any]:
    """Configuration of a random build: few and narrow blocks, and the published front-end and grid."""
    sizes = {"depth": depth, "width": width, "ffn": ffn, "conv_width": conv_width}
    if family == "clap":
        stages = 4  # each twice as wide as the one before
        check_sizes(family, {"heads times 8": heads * 2 ** (stages - 1)}, **sizes)
        return {
            "depths": [1] * (stages - 1) + [depth],
            "num_attention_heads": [heads] * stages,
            "patch_embeds_hidden_size": width // 2 ** (stages - 1),
            "hidden_size": width,
            "mlp_ratio": ffn / width,
        }
    if family == "ast":
        check_sizes(family, {"heads": heads}, **sizes)
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": ffn,
        }
    check_sizes(family, {"heads": heads, "conv_pos_groups": 16}, **sizes)
    return small_wave_sizes(family, depth, width, heads, ffn, conv_width, FAMILIES[family].config)


def _tame(model: nn.Module) -> None:
    """Give what a random build leaves at N(0, 1) or zero the size that training gives it."""
    for name, parameter in model.named_parameters():
        if "rel_attn_embed" in name or "position_embeddings" in name or "position_bias_table" in name:
            nn.init.normal_(parameter, std=0.02)
