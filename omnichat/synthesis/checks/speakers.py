"""Does each speaker keep one voice, and do the two differ? Cosines of GE2E speaker embeddings.

The encoder is that of Wan et al., "Generalized end-to-end loss for speaker verification" (2018), in the sizes of the
Resemblyzer package, whose weights are read here into a module of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from omnichat.audio import effects
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

RATE_HZ = 16000
_PARTIAL_FRAMES = 160  # 1.6 s, the length that the encoder was trained on
_PARTIAL_STEP = 80
_LEVEL_DB = -30.0  # the encoder reads plain power, not its logarithm: every clip comes at one level
COSINE_EDGES = tuple(round(0.4 + 0.05 * i, 2) for i in range(13))


class SpeakerEncoder(nn.Module):
    """Three LSTM layers over 40 mel bands, a rectified projection, length one: [B, frames, 40] -> [B, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        # 25 ms windows every 10 ms, Slaney's mel scale and norm: what librosa computes by default
        self.mel = torchaudio.transforms.MelSpectrogram(
            RATE_HZ, n_fft=400, hop_length=160, n_mels=40, norm="slaney", mel_scale="slaney", pad_mode="constant"
        )

    def forward(self, mel_BTF: Tensor) -> Tensor:
        """Embed partial utterances."""
        _, (hidden_LBD, _) = self.lstm(mel_BTF)
        return nn.functional.normalize(torch.relu(self.linear(hidden_LBD[-1])), dim=-1)

    @torch.inference_mode()
    def embed(self, wave_N: np.ndarray) -> np.ndarray:
        """One clip, mono float32 [N] at 16 kHz -> float32 [256] of length one: the mean over overlapping partials."""
        levelled = effects.to_level_db(wave_N[effects.active_mask(wave_N, RATE_HZ)], RATE_HZ, _LEVEL_DB)
        mel_TF = self.mel(torch.from_numpy(levelled)).T
        short = _PARTIAL_FRAMES - len(mel_TF)
        if short > 0:
            mel_TF = nn.functional.pad(mel_TF, (0, 0, 0, short))
        starts = list(range(0, len(mel_TF) - _PARTIAL_FRAMES + 1, _PARTIAL_STEP))
        partials = torch.stack([mel_TF[start : start + _PARTIAL_FRAMES] for start in starts])
        return nn.functional.normalize(self(partials).mean(dim=0), dim=-1).numpy()


def load_speaker_encoder(path: Path) -> SpeakerEncoder:
    """Read Resemblyzer's pretrained.pt. Raises UserError if it is not there or holds other tensors."""
    if not path.is_file():
        raise UserError(f"checks.speakers.path: {path}: no such file")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "model_state" not in state:
        raise UserError(f"{path}: holds no 'model_state'")
    # its two similarity_* scalars belong to the training loss
    weights = {k: v for k, v in state["model_state"].items() if not k.startswith("similarity_")}
    model = SpeakerEncoder()
    weights |= {f"mel.{name}": value for name, value in model.mel.state_dict().items()}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{path}: not the GE2E speaker encoder: {str(error).splitlines()[-1].strip()}") from None
    return model.eval().requires_grad_(False)


class SpeakerCheck(Check):
    """Consistency within a speaker, distance between the two.

    A clip's consistency ("within") is its cosine to the mean of its speaker's other clips in the dialogue. Style moves
    it, so its limit is that of one person in another mood, and the sharper question is asked too: by how much a clip is
    nearer to its own speaker than to the other ("margin"). "Between" is the cosine of the two speakers' means.

    Args:
        path: Resemblyzer's pretrained.pt.
        min_within, min_margin: lowest values of a clip. max_between: highest cosine of the two speakers.
    """

    name = "speakers"

    def __init__(self, path: str, min_within: float, min_margin: float, max_between: float) -> None:
        self.path = path
        self.min_within = min_within
        self.min_margin = min_margin
        self.max_between = max_between
        self._model: SpeakerEncoder | None = None

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "within" and "margin", the dialogue "between", where they exist."""
        if self._model is None:
            self._model = load_speaker_encoder(resolve_path(self.path))
        if other := [clip.sample_rate for clip in clips if clip.sample_rate != RATE_HZ]:
            raise UserError(f"the speaker check hears {RATE_HZ} Hz, the voice speaks at {other[0]} Hz")
        embeddings = np.stack([self._model.embed(clip.wave_N) for clip in clips])
        voices = np.array([clip.voice for clip in clips])
        finding = Finding(clips=[{} for _ in clips])
        for i, voice in enumerate(voices):
            rest, others = (voices == voice) & (np.arange(len(clips)) != i), voices != voice
            if rest.any():
                finding.clips[i]["within"] = within = _cosine(embeddings[i], embeddings[rest].mean(axis=0))
                if others.any():
                    apart = within - _cosine(embeddings[i], embeddings[others].mean(axis=0))
                    finding.clips[i]["margin"] = round(apart, 4)
        means = [embeddings[voices == voice].mean(axis=0) for voice in dict.fromkeys(voices)]
        if len(means) == 2:
            finding.dialogue["between"] = _cosine(*means)
        if any(clip.get("within", 1.0) < self.min_within for clip in finding.clips):
            finding.reasons.append("a speaker's voice changes more than min_within allows")
        if any(clip.get("margin", 1.0) < self.min_margin for clip in finding.clips):
            finding.reasons.append("a turn is nearer to the other speaker than min_margin allows")
        if finding.dialogue.get("between", -1.0) > self.max_between:
            finding.reasons.append("the two speakers are more alike than max_between allows")
        return finding

    def thresholds(self) -> dict[str, float]:
        """All limits."""
        return {"min_within": self.min_within, "min_margin": self.min_margin, "max_between": self.max_between}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Means, extremes and histograms."""
        within = [clip["within"] for finding in findings for clip in finding.clips if "within" in clip]
        margin = [clip["margin"] for finding in findings for clip in finding.clips if "margin" in clip]
        between = [finding.dialogue["between"] for finding in findings if "between" in finding.dialogue]
        out: dict[str, Any] = {}
        for key, values, extreme in (("within", within, min), ("margin", margin, min), ("between", between, max)):
            if values:
                out[f"{key}_mean"] = float(np.mean(values))
                out[f"{key}_{extreme.__name__}"] = float(extreme(values))
                if key != "margin":
                    out[f"{key}_histogram"] = histogram(values, COSINE_EDGES)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_model": None}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))), 4)
