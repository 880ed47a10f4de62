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
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, lowest, need_rate, unusable
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

RATE_HZ = 16000
_PARTIAL_FRAMES = 160  # 1.6 s, the length that the encoder was trained on
_PARTIAL_STEP = 80
_LEVEL_DB = -30.0  # the encoder reads plain power, not its logarithm: every clip comes at one level
COSINE_EDGES = tuple(round(0.4 + 0.05 * i, 2) for i in range(13))
GAP_EDGES = tuple(round(0.05 * i, 2) for i in range(11))


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
    def embed(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        """Clips, mono float32 [N] at 16 kHz with some sound -> float32 [B, 256] of length one each: the mean over
        overlapping partials, those of all clips in one pass."""
        partials = [self._partials(wave_N) for wave_N in waves]
        embedded = self(torch.cat(partials))
        means = [part.mean(dim=0) for part in embedded.split([len(part) for part in partials])]
        return nn.functional.normalize(torch.stack(means), dim=-1).numpy()

    def _partials(self, wave_N: np.ndarray) -> Tensor:
        """Mel of a clip without its pauses, at the one level, cut into windows: [partials, 160, 40]."""
        levelled = effects.to_level_db(wave_N[effects.active_mask(wave_N, RATE_HZ)], RATE_HZ, _LEVEL_DB)
        mel_TF = self.mel(torch.from_numpy(levelled)).T
        short = _PARTIAL_FRAMES - len(mel_TF)
        if short > 0:
            mel_TF = nn.functional.pad(mel_TF, (0, 0, 0, short))
        starts = list(range(0, len(mel_TF) - _PARTIAL_FRAMES + 1, _PARTIAL_STEP))
        return torch.stack([mel_TF[start : start + _PARTIAL_FRAMES] for start in starts])


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

    A clip's consistency ("within") is its cosine to the mean of its speaker's other clips in the dialogue, its likeness
    to the other speaker ("between") that to the mean of the other's clips. Style moves both, so a clip's limits are
    those of one person in another mood; the dialogue as a whole has to hold the two speakers apart: "gap" is the mean
    of "within" less the mean of "between". "Alike" is the cosine of the two speakers' means: it is higher than
    "between", for a mean has no mood.

    Args:
        path: Resemblyzer's pretrained.pt.
        min_within: lowest "within" of a clip. min_margin: lowest "within" less "between" of a clip.
        max_between: highest "alike" of a dialogue.
        min_gap: lowest gap of a dialogue.
    """

    name = "speakers"

    def __init__(
        self, path: str, min_within: float, min_margin: float, max_between: float, min_gap: float = 0.15
    ) -> None:
        self.path = path
        self.min_within = min_within
        self.min_margin = min_margin
        self.max_between = max_between
        self.min_gap = min_gap
        self._model: SpeakerEncoder | None = None

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "within" and "margin", the dialogue "within", "within_min", "between",
        "between_max", "alike" and "gap", where they exist."""
        need_rate(clips, RATE_HZ, self.name)
        if (finding := unusable(clips)) is not None:
            return finding
        if any(not clip.wave_N.any() for clip in clips):
            return Finding(["a turn is silent"], [{} for _ in clips])
        if not clips:
            return Finding()
        if self._model is None:
            self._model = load_speaker_encoder(resolve_path(self.path))
        embeddings = self._model.embed([clip.wave_N for clip in clips])
        finding = _compare(embeddings, np.array([clip.voice for clip in clips]))
        if any(clip.get("within", 1.0) < self.min_within for clip in finding.clips):
            finding.reasons.append("a speaker's voice changes more than min_within allows")
        if any(clip.get("margin", 1.0) < self.min_margin for clip in finding.clips):
            finding.reasons.append("a turn is nearer to the other speaker than min_margin allows")
        if finding.dialogue.get("alike", -1.0) > self.max_between:
            finding.reasons.append("the two speakers are more alike than max_between allows")
        if finding.dialogue.get("gap", 1.0) < self.min_gap:
            finding.reasons.append("the speakers are not as far apart as min_gap asks")
        return finding

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """See `Check.suspects`: the turns beyond a limit; where only the whole is too near, the quarter of the turns
        that is told apart least. Two voices that are alike as such are no turn's fault."""
        if finding.dialogue.get("alike", -1.0) > self.max_between:
            return None
        beyond = [
            i
            for i, clip in enumerate(finding.clips)
            if clip.get("within", 1.0) < self.min_within or clip.get("margin", 1.0) < self.min_margin
        ]
        if not beyond and "gap" in finding.dialogue:
            beyond = lowest([clip.get("margin", 1.0) for clip in finding.clips])
        return dict.fromkeys(beyond, 1.0) or None

    def thresholds(self) -> dict[str, Any]:
        """All limits."""
        return {name: getattr(self, name) for name in ("min_within", "min_margin", "max_between", "min_gap")}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Means, extremes and histograms."""
        out: dict[str, Any] = {}
        series: list[tuple[str, list[float], Any]] = [
            (key, [clip[key] for finding in findings for clip in finding.clips if key in clip], min)
            for key in ("within", "margin")
        ]
        series += [
            (key, [finding.dialogue[key] for finding in findings if key in finding.dialogue], extreme)
            for key, extreme in (("between", max), ("alike", max), ("gap", min))
        ]
        for key, values, extreme in series:
            if values:
                out[f"{key}_mean"] = float(np.mean(values))
                out[f"{key}_{extreme.__name__}"] = float(extreme(values))
                if key in ("within", "between", "alike"):
                    out[f"{key}_histogram"] = histogram(values, COSINE_EDGES)
                elif key == "gap":
                    out[f"{key}_histogram"] = histogram(values, GAP_EDGES)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_model": None}


def _compare(embeddings_BD: np.ndarray, voices: np.ndarray) -> Finding:
    """Cosines of every clip with its own speaker's other clips and with the other speaker's, and what they come to."""
    finding = Finding(clips=[{} for _ in voices])
    within, between = [], []
    for i, voice in enumerate(voices):
        rest, others = (voices == voice) & (np.arange(len(voices)) != i), voices != voice
        if others.any():
            between.append(_cosine(embeddings_BD[i], embeddings_BD[others].mean(axis=0)))
        if rest.any():
            within.append(_cosine(embeddings_BD[i], embeddings_BD[rest].mean(axis=0)))
            finding.clips[i]["within"] = within[-1]
            if others.any():
                finding.clips[i]["margin"] = round(within[-1] - between[-1], 4)
    if within:
        finding.dialogue |= {"within": round(float(np.mean(within)), 4), "within_min": min(within)}
    if between:
        finding.dialogue |= {"between": round(float(np.mean(between)), 4), "between_max": max(between)}
    means = [embeddings_BD[voices == voice].mean(axis=0) for voice in dict.fromkeys(voices)]
    if len(means) == 2:
        finding.dialogue["alike"] = _cosine(*means)
        if within:
            finding.dialogue["gap"] = round(finding.dialogue["within"] - finding.dialogue["between"], 4)
    return finding


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return round(float(a @ b) / length, 4) if length > 0 else 0.0
