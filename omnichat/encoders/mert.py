"""MERT as a music expert (Li et al., 2023, arXiv 2306.00107), on transformers' own HuBERT: no remote code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from omnichat.encoders.base import AudioEncoder, StreamSpec, check_wave
from omnichat.encoders.checkpoints import check_sizes, find_checkpoint, load_strict, read_weights
from omnichat.encoders.masked import norm_over_time
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

MERT_RATE_HZ = 24_000
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
_LEAST, _HOP = 400, 320  # samples under one frame, and between frames
_NORMALIZE_EPS = 1e-7
# Keys of MERT's config.json that shape HuBERT's graph; the rest (its training targets, its remote code) has no effect.
_GRAPH_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "feat_extract_norm", "feat_extract_activation", "feat_proj_layer_norm"),
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "do_stable_layer_norm"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
)


class MertEncoder(AudioEncoder):
    """75 frames a second at 24 kHz: (N - 400) // 320 + 1 frames, frame j centred on sample 320j + 200.

    The published first convolution is normalised over all time, padding included, which changes every frame of a
    padded clip; here its statistics are taken over the valid frames only.

    Args:
        path: a folder (or hub id) with MERT's config.json and model.safetensors or pytorch_model.bin (CC-BY-NC-4.0), or
            null to build the graph with random weights: an untrained stand-in.
        layers: "last", "mix", or an index into the hidden states (0 = input of the first block). As MERT's card
            reports them; for a pre-norm model (330M) the last one is after the final norm.
        dtype: "float32", "bfloat16", or "auto".
        seed: of the random weights.
        depth, width, heads, ffn, conv_width: size of the random build; a checkpoint has its own.
        batch_sec: padded seconds of audio in one forward pass; None: by device.
        max_sec: longest clip that is taken; attention needs memory with the square of its length.
    """

    licence = "CC-BY-NC-4.0"
    sample_rate = MERT_RATE_HZ
    input_rate_hz = float(MERT_RATE_HZ)
    receptive_sec = _LEAST / MERT_RATE_HZ

    def __init__(
        self,
        path: str | None = None,
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
            sizes = {"width": width, "depth": depth, "ffn": ffn, "conv_width": conv_width}
            check_sizes("mert", {"heads": heads, "conv_pos_groups": 16}, **sizes)
            config = HubertConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=ffn,
                conv_dim=(conv_width,) * 7,
                num_conv_pos_embeddings=32,
                mask_time_prob=0.0,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "mert"))
                self.model = HubertModel(config)
            self.normalize = False
            origin = f"random weights (seed {seed})"
        else:
            folder = find_checkpoint(path)
            self.model, self.normalize = load_mert(folder), wants_normalizing(folder)
            log.warning("MERT weights are licensed CC-BY-NC-4.0: non-commercial use only")
            origin = f"{Path(path).name} (weights CC-BY-NC-4.0)"
        config = self.model.config
        self.settle(layers, config.num_hidden_layers + 1, dtype, batch_sec, max_sec)
        self.description = f"MERT, {config.num_hidden_layers} x {config.hidden_size}, {origin}"

    @property
    def spec(self) -> StreamSpec:
        config = self.model.config
        layers = config.num_hidden_layers + 1 if self.layers == "mix" else 1
        return StreamSpec(config.hidden_size, layers, MERT_RATE_HZ / _HOP)

    def settings(self) -> dict[str, Any]:
        config = {key: getattr(self.model.config, key) for key in _GRAPH_KEYS}
        return {"version": 2, "sample_rate": self.sample_rate, "normalize": self.normalize, "config": config}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """The samples, float32 [N], with mean 0 and variance 1 where the checkpoint's preprocessor_config.json says
        `do_normalize`; a clip shorter than one frame is padded with silence to it."""
        check_wave(wave_N)
        x = wave_N.float()
        if self.normalize:  # as transformers' Wav2Vec2FeatureExtractor does, before any padding
            x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + _NORMALIZE_EPS)
        return nn.functional.pad(x, (0, max(0, _LEAST - len(wave_N))))

    def input_length(self, x: Tensor) -> int:
        return len(x)

    def frame_times(self, frames: int) -> Tensor:
        centre = torch.arange(frames, dtype=torch.float64) * _HOP + _LEAST / 2
        return (centre / MERT_RATE_HZ).float()

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        samples = torch.tensor([len(x) for x in inputs], device=self.device)
        frames = (samples - _LEAST) // _HOP + 1
        x = self._extract(torch.stack([nn.functional.pad(x, (0, length - len(x))) for x in inputs]), samples)
        x = self.model.feature_projection(x.transpose(1, 2))
        mask = torch.arange(x.shape[1], device=x.device)[None, :] < frames[:, None]
        x = x * mask[..., None]  # the positional convolution must not see padding
        encoder, pre_norm = self.model.encoder, self.model.config.do_stable_layer_norm
        # In float32: oneDNN's bfloat16 convolution with 16 groups and an even kernel returns garbage (torch 2.14, AMX).
        with torch.autocast(x.device.type, enabled=False):
            x = x + encoder.pos_conv_embed(x.float())
        hidden = [x if pre_norm else encoder.layer_norm(x)]
        key_mask = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for layer in encoder.layers:
            hidden.append(layer(hidden[-1], attention_mask=key_mask))
        if pre_norm:
            hidden[-1] = encoder.layer_norm(hidden[-1])
        return hidden, frames.tolist()

    def _extract(self, wave_BN: Tensor, samples_B: Tensor) -> Tensor:
        """The seven convolutions, [B, C, T]; a norm over time sees each clip's own frames only."""
        first, *rest = cast(list[Any], list(self.model.feature_extractor.conv_layers))
        if self.model.config.feat_extract_norm == "layer":  # per frame: padding has no way in
            x = first(wave_BN[:, None])
        else:
            x = first.conv(wave_BN[:, None])
            valid = (samples_B - _KERNELS[0]) // _STRIDES[0] + 1
            norm = first.layer_norm
            x = first.activation(norm_over_time(x, valid, norm.weight, norm.bias, norm.eps))
        for layer in rest:
            x = layer(x)
        return x


def load_mert(folder: Path) -> HubertModel:
    """Load MERT's published folder into transformers' HubertModel, strictly.

    Raises:
        UserError: a file is missing or unreadable, the config asks for another graph, or tensors are missing, unknown
            or misshapen (all named).
    """
    model = build_mert(folder / "config.json")
    state, weights = read_weights(folder, "MERT")
    state.pop("masked_spec_embed", None)  # stands for masked frames in pre-training; no part of the forward pass
    load_strict(model, state, weights, "a MERT")
    return model


def build_mert(file: Path) -> HubertModel:
    """Build HuBERT's graph, with random weights, as MERT's config.json describes it.

    Raises:
        UserError: a key is missing, or asks for another graph than MERT's.
    """
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file}: a config is a mapping")
    if missing := [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if key not in raw]:
        raise UserError(f"{file}: lacks {missing[0]!r}")
    if raw.get("deepnorm"):
        raise UserError(f"{file}: deepnorm={raw['deepnorm']!r} is not supported; MERT-v1 has false")
    graph = {key: raw[key] for key in _GRAPH_KEYS if key in raw}
    try:
        model = HubertModel(HubertConfig(**graph, mask_time_prob=0.0))
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        raise UserError(f"{file}: no graph can be built of it: {' '.join(str(error).split())}") from None
    kernels, strides = tuple(model.config.conv_kernel), tuple(model.config.conv_stride)
    if (kernels, strides) != (_KERNELS, _STRIDES):
        raise UserError(f"{file}: convolutions {kernels} by {strides} are not MERT's")
    return model


def wants_normalizing(folder: Path) -> bool:
    """Whether clips are to be normalised: `do_normalize` of preprocessor_config.json, false without that file.

    Raises:
        UserError: the file asks for another sample rate than MERT's 24 kHz.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return False
    raw = read_json(file)
    if not isinstance(raw, dict) or raw.get("sampling_rate", MERT_RATE_HZ) != MERT_RATE_HZ:
        raise UserError(f"{file}: MERT reads audio at sampling_rate {MERT_RATE_HZ}")
    return bool(raw.get("do_normalize", False))
