"""AST and CLAP's audio tower: Transformers over a spectrogram of one fixed length.

AST: Gong et al., 2021, arXiv 2104.01778. CLAP: Wu et al., 2023, arXiv 2211.06687, on HTSAT (Chen et al., 2022,
arXiv 2202.00874). Both know no padding mask: a short clip is filled up as the checkpoint's own front-end does it, and
its frames after the end are left out; a long one is read in chunks, so that no audio is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torchaudio.compliance.kaldi
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.audio_utils import mel_filter_bank

from omnichat.encoders.transformers_base import Backbone
from omnichat.utils.errors import UserError, one_of

_KALDI_FRAME_MS, _KALDI_SHIFT_MS = 25.0, 10.0
_SPECIAL_TOKENS = 2  # classification and distillation, in front of AST's patches


@dataclass(frozen=True, slots=True)
class AstFront:
    """AST's preprocessor_config.json: Kaldi filter bank, (x - mean) / (2 std); the defaults are AudioSet's."""

    sampling_rate: int = 16_000
    num_mel_bins: int = 128
    max_length: int = 1024
    do_normalize: bool = True
    mean: float = -4.2677393
    std: float = 4.5689974


class AstBackbone(Backbone):
    """Every 100 ms one step of twelve frames, its frequency patches from low to high, all with the step's time.

    The graph reads exactly `max_length` fbank frames (10.24 s). A clip of m fbank frames has (m - 16) // 10 + 1 steps,
    at least one; a longer one goes through in chunks of 101 steps, each chunk starting where the steps of the one
    before ended. Numbers are those of the published size; the configuration rules.

    Args:
        model: an ASTModel.
        front: how the spectrogram is made.
        graph: the configuration that shaped the model, as JSON.

    Raises:
        UserError: front-end and graph differ in mel bands or length, or the patches do not fit them.
    """

    def __init__(self, model: PreTrainedModel, front: AstFront, graph: dict[str, Any]) -> None:
        super().__init__()
        self.model = cast(Any, model)
        self.front, self.graph = front, graph
        config = self.model.config
        for name in ("num_mel_bins", "max_length"):
            if getattr(front, name) != getattr(config, name):
                raise UserError(
                    f"{name}: {getattr(front, name)} in the front-end, {getattr(config, name)} in the graph"
                )
        self.patch, self.stride = config.patch_size, config.time_stride
        self.bands = (config.num_mel_bins - self.patch) // config.frequency_stride + 1
        self.steps = (config.max_length - self.patch) // self.stride + 1  # of a chunk
        self.frame, self.shift = (int(front.sampling_rate * ms * 0.001) for ms in (_KALDI_FRAME_MS, _KALDI_SHIFT_MS))
        self.sample_rate = front.sampling_rate
        self.input_rate_hz = front.sampling_rate / self.shift
        self.receptive_sec = ((self.patch - 1) * self.shift + self.frame) / front.sampling_rate
        self.rate_hz = self.bands * self.input_rate_hz / self.stride
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.pass_steps = config.max_length
        self.silence = (0.0 - front.mean) / (2 * front.std) if front.do_normalize else 0.0

    def settings(self) -> dict[str, Any]:
        return {"frontend": asdict(self.front), "config": self.graph}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """Normalised Kaldi filter bank, float32 [m, mels], m = 1 + (N - 400) // 160, of samples in [-1, 1] unscaled.

        Hann frames of 25 ms every 10 ms, pre-emphasis 0.97, no dither; a clip below one frame is padded with silence.
        """
        padded = nn.functional.pad(wave_N.float(), (0, max(0, self.frame - len(wave_N))))
        with torch.autocast("cpu", enabled=False):
            fbank = torchaudio.compliance.kaldi.fbank(
                padded[None],
                num_mel_bins=self.front.num_mel_bins,
                sample_frequency=float(self.sample_rate),
                frame_length=_KALDI_FRAME_MS,
                frame_shift=_KALDI_SHIFT_MS,
                window_type="hanning",
            )
        return (fbank - self.front.mean) / (2 * self.front.std) if self.front.do_normalize else fbank

    def split(self, x: Tensor) -> list[Tensor]:
        hop = self.steps * self.stride
        chunks = math.ceil(self._steps(len(x)) / self.steps)
        return [x[number * hop : number * hop + self.front.max_length] for number in range(chunks)]

    def _steps(self, frames: int) -> int:
        return max(1, (frames - self.patch) // self.stride + 1)

    def frame_times(self, frames: int) -> Tensor:
        step = torch.arange(frames, dtype=torch.float64).div(self.bands, rounding_mode="floor")
        return (step * self.stride / self.input_rate_hz + self.receptive_sec / 2).float()

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        fbank = torch.stack([nn.functional.pad(x, (0, 0, 0, length - len(x)), value=self.silence) for x in inputs])
        x = self.model.embeddings(fbank)
        states = [x]
        for layer in self.model.layers:
            states.append(layer(states[-1]))
        states[-1] = self.model.layernorm(states[-1])
        hidden = [self._time_major(x[:, _SPECIAL_TOKENS:]) for x in states]
        return hidden, [min(self.steps, self._steps(len(x))) * self.bands for x in inputs]

    def _time_major(self, x_BPD: Tensor) -> Tensor:
        """The graph's patches run over time within a band; the frames of an expert run over bands within a time."""
        return x_BPD.unflatten(1, (self.bands, self.steps)).transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class ClapFront:
    """CLAP's preprocessor_config.json. `truncation` chooses the mel filters: HTK's for fusion, Slaney's otherwise."""

    sampling_rate: int = 48_000
    feature_size: int = 64
    hop_length: int = 480
    fft_window_size: int = 1024
    max_length_s: int = 10
    frequency_min: float = 0.0
    frequency_max: float = 14_000.0
    truncation: str = "fusion"
    padding: str = "repeatpad"


class ClapBackbone(Backbone):
    """32 frames for 10 s: the last feature map of HTSAT, whose two frequency bins are averaged.

    Ten seconds of mel (1001 frames, 64 bands) are stretched to 1024 columns, cut into four quarters that are stacked to
    a square image, and reduced 32-fold; so a frame covers 32 columns and is centred on column 32 j + 15.5, that is on
    (32 j + 15.5) * 10 / 1023 seconds. Frames whose centre lies after the clip's end are left out (one always stays).
    Shorter audio is repeated or padded as the checkpoint says; longer audio is read in chunks of 10 s. Only the last
    stage keeps one width, so the hidden states are its input and the output of its blocks. Numbers are those of the
    published sizes; the configuration rules.

    A checkpoint with feature fusion is run as its front-end has it for clips of at most 10 s: without the crops. (The
    library's front-end then marks one clip of a batch, at random, as longer; that is not done here.)

    Args:
        encoder: the `audio_encoder` of a ClapAudioModel.
        front: how the spectrogram is made.
        graph: the configuration that shaped the encoder, as JSON.

    Raises:
        UserError: front-end and graph do not fit each other, or an unknown padding.
    """

    def __init__(self, encoder: nn.Module, front: ClapFront, graph: dict[str, Any]) -> None:
        super().__init__()
        self.model = cast(Any, encoder)
        self.front, self.graph = front, graph
        config = self.model.config
        if front.padding not in ("repeatpad", "repeat", "pad"):
            raise one_of("padding", front.padding, ("repeatpad", "repeat", "pad"))
        if front.feature_size != config.num_mel_bins:
            raise UserError(f"feature_size: {front.feature_size} in the front-end, {config.num_mel_bins} in the graph")
        if self.model.patch_embed.proj.in_channels != 1 or not config.flatten_patch_embeds:
            raise UserError("fusion_type and flatten_patch_embeds: only null and true, those of the published sizes")
        self.chunk = front.max_length_s * front.sampling_rate  # samples
        self.mel_frames = self.chunk // front.hop_length + 1
        self.ratio = config.spec_size // config.num_mel_bins
        self.columns = config.spec_size * self.ratio
        self.grid = self.model.input_resolutions[-1][0]
        if self.mel_frames > self.columns or self.grid % self.ratio or config.spec_size % config.num_mel_bins:
            raise UserError(
                f"{self.mel_frames} mel frames of {config.num_mel_bins} bands do not fit spec_size={config.spec_size}"
            )
        self.frames = self.grid * self.ratio  # of a chunk
        mel_sec = front.hop_length / front.sampling_rate
        self.column_sec = (self.mel_frames - 1) / (self.columns - 1) * mel_sec
        self.span = self.columns // self.frames
        self.sample_rate = front.sampling_rate
        self.input_rate_hz = 1 / mel_sec
        # Bicubic stretching reads two mel frames on either side of a column.
        self.receptive_sec = self.span * self.column_sec + 3 * mel_sec + front.fft_window_size / front.sampling_rate
        self.rate_hz = self.frames / front.max_length_s
        self.width, self.depth = self.model.num_features, config.depths[-1]
        self.pass_steps = self.mel_frames
        slaney = front.truncation != "fusion"
        filters = mel_filter_bank(
            num_frequency_bins=front.fft_window_size // 2 + 1,
            num_mel_filters=front.feature_size,
            min_frequency=front.frequency_min,
            max_frequency=front.frequency_max,
            sampling_rate=front.sampling_rate,
            norm="slaney" if slaney else None,
            mel_scale="slaney" if slaney else "htk",
        )
        self.filters_KM = torch.from_numpy(filters).double()  # no buffer: the front-end stays on the CPU

    def settings(self) -> dict[str, Any]:
        return {"frontend": asdict(self.front), "config": self.graph}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """Log-mel in dB and, as last column, whether a row lies in the clip: float32 [chunks x 1001, mels + 1]."""
        return torch.cat([self._log_mel(chunk) for chunk in wave_N.float().split(self.chunk)])

    def _log_mel(self, wave_N: Tensor) -> Tensor:
        samples = len(wave_N)
        if self.front.padding != "pad":
            times = self.chunk // samples + (1 if self.front.padding == "repeat" else 0)
            wave_N = wave_N.repeat(times)[: self.chunk]
        wave_N = nn.functional.pad(wave_N, (0, self.chunk - len(wave_N)))
        size, hop = self.front.fft_window_size, self.front.hop_length
        window = torch.hann_window(size, dtype=torch.float64)
        # float64: a quiet band beside a loud one is lost in float32's rounding, and the logarithm shows it.
        stft = torch.stft(wave_N.double(), size, hop, window=window, return_complex=True)
        mel = (stft.abs().square().T @ self.filters_KM).clamp(min=1e-10)
        inside = torch.arange(self.mel_frames) * hop < samples
        return torch.cat([10 * mel.log10(), inside[:, None].double()], dim=1).float()

    def split(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.mel_frames))

    def frame_times(self, frames: int) -> Tensor:
        number = torch.arange(frames, dtype=torch.float64)
        chunk = number.div(self.frames, rounding_mode="floor")
        within = self._centres_sec()[(number % self.frames).long()]
        return (chunk * self.front.max_length_s + within).float()

    def _centres_sec(self) -> Tensor:
        """Centres of a chunk's frames, float64 [frames]."""
        column = torch.arange(self.frames, dtype=torch.float64) * self.span + (self.span - 1) / 2
        return column * self.column_sec

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        mel, encoder = torch.stack(list(inputs))[:, None, :, :-1], self.model
        mel = encoder.batch_norm(mel.transpose(1, 3)).transpose(1, 3)
        no_crops = torch.zeros(0, dtype=torch.long, device=mel.device)
        x = encoder.patch_embed(encoder.reshape_mel2img(mel), no_crops)
        *stages, last = encoder.layers
        for stage, size in zip(stages, encoder.input_resolutions[:-1], strict=True):
            x = stage(x, size)[0]
        states = [x]
        for block in last.blocks:
            states.append(block(states[-1], encoder.input_resolutions[-1])[0])
        states[-1] = encoder.norm(states[-1])
        centres = self._centres_sec()
        ends = [float(x[:, -1].sum()) / self.input_rate_hz for x in inputs]
        return [self._frames(x) for x in states], [max(1, int((centres < end).sum())) for end in ends]

    def _frames(self, x_BPD: Tensor) -> Tensor:
        """[B, rows x columns, D] of the stacked image -> [B, frames, D]: quarter by quarter, frequency averaged."""
        return x_BPD.unflatten(1, (self.ratio, self.grid // self.ratio, self.grid)).mean(2).flatten(1, 2)
