"""Small checkpoints of transformers' audio encoders, written by the library itself, and what it computes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
AST = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CLAP = {
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [2, 2, 4, 4],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 4,
}


@dataclass(frozen=True)
class Official:
    """One published kind of checkpoint, small: names of transformers' classes, and how to write and run it."""

    family: str
    config: str
    model: str
    extractor: str
    head: str | None = None  # a class with the same encoder and something beside it
    changes: dict[str, Any] = field(default_factory=dict)
    front: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, head: bool = False, **changes: Any) -> nn.Module:
        """Save config, weights and front-end; return the model, or the one with a head."""
        config = getattr(transformers, self.config)(**{**self.changes, **changes})
        torch.manual_seed(0)
        name = self.head if head and self.head is not None else self.model
        model = getattr(transformers, name)(config).eval()
        _scatter(model)
        model.save_pretrained(folder)
        self.front_end().save_pretrained(folder)
        return model

    def front_end(self) -> Any:
        """Transformers' own feature extractor."""
        return getattr(transformers, self.extractor)(**self.front)

    def features(self, wave_N: Tensor) -> dict[str, Tensor]:
        """What the library's model takes of one clip."""
        extractor = self.front_end()
        return extractor(wave_N.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")


def _scatter(model: nn.Module) -> None:
    """Move every weight away from the ones and zeros that it starts with, so that each one counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


_EXTRACTOR = "Wav2Vec2FeatureExtractor"
_CTC: Callable[[str], str] = "{}ForCTC".format

OFFICIAL = {
    "wav2vec2": Official("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", _EXTRACTOR, "Wav2Vec2ForPreTraining", WAVE),
    "wav2vec2-stable": Official(
        "wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", _EXTRACTOR, "Wav2Vec2ForXVector", {**WAVE, **STABLE}
    ),
    "hubert": Official(
        "hubert", "HubertConfig", "HubertModel", _EXTRACTOR, _CTC("Hubert"), WAVE, {"do_normalize": False}
    ),
    "hubert-batch-norm": Official(
        "hubert",
        "HubertConfig",
        "HubertModel",
        _EXTRACTOR,
        "HubertForSequenceClassification",
        {**WAVE, **STABLE, "conv_pos_batch_norm": True, "feat_proj_layer_norm": False},
    ),
    "wavlm": Official("wavlm", "WavLMConfig", "WavLMModel", _EXTRACTOR, "WavLMForXVector", WAVE),
    "wavlm-stable": Official("wavlm", "WavLMConfig", "WavLMModel", _EXTRACTOR, _CTC("WavLM"), {**WAVE, **STABLE}),
    "data2vec": Official(
        "data2vec-audio", "Data2VecAudioConfig", "Data2VecAudioModel", _EXTRACTOR, _CTC("Data2VecAudio"), WAVE
    ),
    "odd-strides": Official(
        "wav2vec2",
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        _EXTRACTOR,
        None,
        {**WAVE, "conv_dim": [16] * 3, "conv_kernel": [9, 4, 3], "conv_stride": [4, 3, 2]},
        {"sampling_rate": 8000},
    ),
    "ast": Official(
        "ast", "ASTConfig", "ASTModel", "ASTFeatureExtractor", "ASTForAudioClassification", AST, {"mean": -3.0}
    ),
    "ast-small-grid": Official(
        "ast",
        "ASTConfig",
        "ASTModel",
        "ASTFeatureExtractor",
        None,
        {**AST, "max_length": 200, "num_mel_bins": 64, "time_stride": 8, "frequency_stride": 12},
        {"max_length": 200, "num_mel_bins": 64},
    ),
    "clap": Official(
        "clap",
        "ClapAudioConfig",
        "ClapAudioModel",
        "ClapFeatureExtractor",
        "ClapAudioModelWithProjection",
        CLAP,
        {"truncation": "rand_trunc"},
    ),
    "clap-fused": Official(
        "clap",
        "ClapAudioConfig",
        "ClapAudioModel",
        "ClapFeatureExtractor",
        None,
        {**CLAP, "enable_fusion": True},
        {"truncation": "fusion", "padding": "pad"},
    ),
}
