"""wav2vec 2.0, HuBERT, WavLM and data2vec-audio: convolutions over the waveform, then a Transformer.

wav2vec 2.0: Baevski et al., 2020, arXiv 2006.11477. HuBERT: Hsu et al., 2021, arXiv 2106.07447. WavLM: Chen et al.,
2022, arXiv 2110.13900. data2vec: Baevski et al., 2022, arXiv 2202.03555. The modules are transformers' own; the order
in which they are called is ours, because theirs lets padding into the frames of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from omnichat.encoders.masked import norm_over_time
from omnichat.encoders.transformers_base import Backbone

_NORM_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


@dataclass(frozen=True, slots=True)
class WaveFront:
    """The part of preprocessor_config.json that sets the input: rate in Hz, and whether clips are standardised."""

    sampling_rate: int = 16_000
    do_normalize: bool = True


class WaveBackbone(Backbone):
    """Frames of R samples every S samples, R and S by the convolutions: (N - R) // S + 1, frame j centred on S j + R/2.

    A first convolution with a norm over all time (wav2vec 2.0 and WavLM base) takes its statistics over the valid
    frames only; the positional convolutions see zeros after a clip's end, as they see them before its start.

    Args:
        model: a Wav2Vec2Model, HubertModel, WavLMModel or Data2VecAudioModel.
        front: how the waveform is prepared.
        graph: the configuration that shaped the model, as JSON.
    """

    def __init__(self, model: PreTrainedModel, front: WaveFront, graph: dict[str, Any]) -> None:
        super().__init__()
        self.model = cast(Any, model)
        self.front, self.graph = front, graph
        config = self.model.config
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.least, self.hop = receptive_field(self.kernels, self.strides)
        self.sample_rate = front.sampling_rate
        self.input_rate_hz = float(front.sampling_rate)
        self.receptive_sec = self.least / front.sampling_rate
        self.rate_hz = front.sampling_rate / self.hop
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.gated_bias = config.model_type == "wavlm"

    def settings(self) -> dict[str, Any]:
        return {"frontend": asdict(self.front), "config": self.graph}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """The samples, standardised where the checkpoint asks for it; a clip below one frame is padded to it."""
        wave = wave_N.float()
        if self.front.do_normalize:
            wave = (wave - wave.mean()) * torch.rsqrt(wave.var(correction=0) + _NORM_EPS)
        return nn.functional.pad(wave, (0, max(0, self.least - len(wave))))

    def frame_times(self, frames: int) -> Tensor:
        centre = torch.arange(frames, dtype=torch.float64) * self.hop + self.least / 2
        return (centre / self.sample_rate).float()

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        samples_B = torch.tensor([len(x) for x in inputs], device=inputs[0].device)
        frames_B = (samples_B - self.least) // self.hop + 1
        x = self._extract(torch.stack([nn.functional.pad(x, (0, length - len(x))) for x in inputs]), samples_B)
        x = self.model.feature_projection(x.transpose(1, 2))
        x = x if isinstance(x, Tensor) else x[0]  # HuBERT's returns the projection alone
        mask_BT = torch.arange(x.shape[1], device=x.device)[None, :] < frames_B[:, None]
        encoder = self.model.encoder
        x = x * mask_BT[..., None]
        x = x + _positions(encoder.pos_conv_embed, x, mask_BT)
        hidden = [x if self.pre_norm else encoder.layer_norm(x)]
        if self.gated_bias:
            bias_HTT = encoder.layers[0].attention.compute_bias(x.shape[1], x.shape[1])
            for layer in encoder.layers:
                hidden.append(_wavlm_block(layer, hidden[-1], bias_HTT, mask_BT, self.pre_norm))
        else:
            key_mask = mask_BT[:, None, None, :].expand(-1, 1, x.shape[1], -1)
            for layer in encoder.layers:
                hidden.append(layer(hidden[-1], attention_mask=key_mask))
        if self.pre_norm:
            hidden[-1] = encoder.layer_norm(hidden[-1])
        return hidden, frames_B.tolist()

    def _extract(self, wave_BN: Tensor, samples_B: Tensor) -> Tensor:
        """The convolutions, [B, C, T]; a norm over time sees each clip's own frames only."""
        first, *rest = list(self.model.feature_extractor.conv_layers)
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            x = first.conv(wave_BN[:, None])
            valid_B = (samples_B - self.kernels[0]) // self.strides[0] + 1
            norm = first.layer_norm
            x = first.activation(norm_over_time(x, valid_B, norm.weight, norm.bias, norm.eps))
        else:  # normalised frame by frame: padding has no way in
            x = first(wave_BN[:, None])
        for layer in rest:
            x = layer(x)
        return x


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Samples under one frame of a stack of unpadded convolutions, and samples between frames."""
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


def _positions(embed: Any, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The positional convolution(s) of `x_BTD`, whose invalid frames are zero; invalid frames get whatever they get."""
    # In float32: oneDNN's bfloat16 convolution with 16 groups and an even kernel returns garbage (torch 2.14, AMX).
    with torch.autocast(x_BTD.device.type, enabled=False):
        x = x_BTD.float().transpose(1, 2)
        mask = mask_BT[:, None]
        if hasattr(embed, "layers"):  # data2vec: a stack, each of which would spread the clip into its padding
            for layer in embed.layers:
                x = layer(x * mask)
        else:
            if getattr(embed, "batch_norm", None) is not None:  # some HuBERTs: makes zeros something else
                x = embed.batch_norm(x) * mask
            x = embed.activation(embed.padding(embed.conv(x)))
    return x.transpose(1, 2)


def _wavlm_block(layer: Any, x_BTD: Tensor, bias_HTT: Tensor, mask_BT: Tensor, pre_norm: bool) -> Tensor:
    """A WavLM layer, before or after whose branches the norms stand."""
    if pre_norm:
        x = x_BTD + _wavlm_attention(layer.attention, layer.layer_norm(x_BTD), bias_HTT, mask_BT)
        return x + layer.feed_forward(layer.final_layer_norm(x))
    x = layer.layer_norm(x_BTD + _wavlm_attention(layer.attention, x_BTD, bias_HTT, mask_BT))
    return layer.final_layer_norm(x + layer.feed_forward(x))


def _wavlm_attention(attention: Any, x_BTD: Tensor, bias_HTT: Tensor, mask_BT: Tensor) -> Tensor:
    """Self-attention with a relative-position bias that is gated per query and head.

    The library's own call also averages and returns the weights, which costs more than the attention itself.
    """
    shape = (*x_BTD.shape[:2], attention.num_heads, -1)
    q, k, v = (f(x_BTD).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
    gates = attention.gru_rel_pos_linear(x_BTD.view(shape).transpose(1, 2))  # of the input, where BEATs gates the query
    gate_a, gate_b = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
    gate = gate_a * (gate_b * attention.gru_rel_pos_const - 1.0) + 2.0
    scores = (gate * bias_HTT).masked_fill(~mask_BT[:, None, None, :], -math.inf)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype))
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def small_wave_sizes(
    family: str, depth: int, width: int, heads: int, ffn: int, conv_width: int, config: type[PreTrainedConfig]
) -> dict[str, Any]:
    """Configuration of a small random build: published kernels and strides, a short positional convolution."""
    convolutions = len(cast(Any, config()).conv_kernel)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "conv_dim": [conv_width] * convolutions,
    }
    return sizes if family == "data2vec-audio" else {**sizes, "num_conv_pos_embeddings": 32}
