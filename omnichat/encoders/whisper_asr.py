"""Whisper as a recogniser: greedy transcripts of whole batches of clips (Radford et al., 2022, arXiv 2212.04356)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask

from omnichat.encoders.base import weights_sha256
from omnichat.encoders.whisper_files import load_whisper
from omnichat.utils.errors import UserError

RATE_HZ: int = whisper.audio.SAMPLE_RATE
WINDOW_SEC = 30.0
_CANDIDATES = 16  # tokens whose logits are computed exactly; bfloat16 is wrong by a hundredth, the first is among them


class WhisperTranscriber:
    """Greedy transcripts, the tokens that `DecodingTask.run` finds at temperature 0 without timestamps.

    Args:
        path: weights in any layout that `load_whisper` reads.
        max_tokens: longest transcript of a clip.
        dtype: "float32" or "bfloat16" (of the encoder).
        language: of the speech, as Whisper abbreviates it; English-only models know "en" alone.
        device: where it runs.

    Raises:
        UserError: see `load_whisper`; or a language that the model does not know.
    """

    def __init__(
        self, path: Path, max_tokens: int, dtype: str = "float32", language: str = "en", device: str = "cpu"
    ) -> None:
        self.model = load_whisper(path).to(device)
        if not self.model.is_multilingual and language != "en":
            raise UserError(f"{path}: an English-only Whisper, which cannot hear language={language!r}; set it to en")
        try:
            self._options = DecodingOptions(
                language=language, without_timestamps=True, fp16=False, sample_len=max_tokens
            )
            DecodingTask(self.model, self._options)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        self.device = device
        self.dtype = dtype
        self.rough_VD = self.model.decoder.token_embedding.weight.detach().bfloat16()

    def fingerprint(self) -> str:
        """Hex SHA-256 of the weights."""
        return weights_sha256(self.model.state_dict())

    @torch.inference_mode()
    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float = WINDOW_SEC) -> list[str]:
        """Transcripts of mono float32 [N] clips at 16 kHz.

        Args:
            window_sec: what the encoder reads of each clip, silence after its end included: Whisper was trained on 30
                s; less is many times cheaper, but now and then it repeats a sentence. The longest clip sets it for
                all where it needs more (its length and five seconds).

        Raises:
            UserError: a clip of more than 30 s.
        """
        if not waves:
            return []
        longest = max(len(wave) for wave in waves) / RATE_HZ
        if longest > WINDOW_SEC:
            raise UserError(f"a recording lasts {longest:.1f} s; Whisper hears at most {WINDOW_SEC:g} s at once")
        window = min(WINDOW_SEC, max(window_sec, np.ceil(longest + 5.0)))
        # each clip's mel alone: Whisper scales by the clip's own loudest frame
        mel_BFT = torch.stack([log_mel(wave, round(window * RATE_HZ), self.model.dims.n_mels) for wave in waves])
        task = DecodingTask(self.model, self._options)
        found = _greedy(task, self.encode(mel_BFT.to(self.device)), self.rough_VD)
        return [task.tokenizer.decode(tokens).strip() for tokens in found]

    def encode(self, mel_BFT: Tensor) -> Tensor:
        """Whisper's encoder on a window of any length up to 30 s: its own forward takes 30 s only."""
        encoder = self.model.encoder
        with torch.autocast(mel_BFT.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            x_BTD = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel_BFT)))).permute(0, 2, 1)
            x_BTD = x_BTD + encoder.positional_embedding[: x_BTD.shape[1]]
            for block in encoder.blocks:
                x_BTD = block(x_BTD)
            return encoder.ln_post(x_BTD).float()


def _greedy(task: DecodingTask, features_BTD: Tensor, rough_VD: Tensor) -> list[list[int]]:
    """Most likely tokens of each clip, as `DecodingTask.run` at temperature 0 finds them.

    A clip that has ended leaves the batch, so that a long sentence does not keep the short ones in it. `rough_VD` is
    the token embedding in bfloat16 (see `_best_tokens`).
    """
    model, end = task.model, task.tokenizer.eot
    found: list[list[int]] = [[] for _ in features_BTD]
    waiting = list(range(len(found)))
    tokens_BL = torch.tensor([task.initial_tokens], device=features_BTD.device).repeat(len(found), 1)
    cache, hooks = model.install_kv_cache_hooks()
    step_BL = tokens_BL
    try:
        for _ in range(task.sample_len):
            best_B = _best_tokens(_last_hidden(model.decoder, step_BL, features_BTD, cache), rough_VD, task, tokens_BL)
            going = best_B != end
            for row, token in zip(waiting, best_B.tolist(), strict=True):
                if token != end:
                    found[row].append(token)
            if not going.any():
                break
            if not going.all():
                waiting = [row for row, goes in zip(waiting, going.tolist(), strict=True) if goes]
                tokens_BL, features_BTD, best_B = tokens_BL[going], features_BTD[going], best_B[going]
                for module, kept in cache.items():
                    cache[module] = kept[going]
            tokens_BL = torch.cat([tokens_BL, best_B[:, None]], dim=1)
            step_BL = tokens_BL[:, -1:]
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _last_hidden(decoder: Any, step_BL: Tensor, features_BTD: Tensor, cache: dict[Any, Tensor]) -> Tensor:
    """What Whisper's decoder makes its logits of, at the last position: float32 [B, D]."""
    offset = next(iter(cache.values())).shape[1] if cache else 0
    x_BLD = decoder.token_embedding(step_BL) + decoder.positional_embedding[offset : offset + step_BL.shape[1]]
    for block in decoder.blocks:
        x_BLD = block(x_BLD, features_BTD, mask=decoder.mask, kv_cache=cache)
    return decoder.ln(x_BLD)[:, -1]


def _best_tokens(hidden_BD: Tensor, rough_VD: Tensor, task: DecodingTask, tokens_BL: Tensor) -> Tensor:
    """The most likely next token of each clip, int64 [B].

    Fifty thousand logits in bfloat16 name the candidates, their float32 logits decide: the same token as by all logits
    in float32, which take more than twice as long.
    """
    logits_BV = F.linear(hidden_BD.bfloat16(), rough_VD).float()
    for rule in task.logit_filters:
        rule.apply(logits_BV, tokens_BL)
    rough_BC, candidates_BC = logits_BV.topk(_CANDIDATES, dim=-1)
    embeddings_BCD = task.model.decoder.token_embedding.weight[candidates_BC]
    exact_BC = (embeddings_BCD @ hidden_BD[:, :, None]).squeeze(-1).masked_fill(rough_BC == -torch.inf, -torch.inf)
    return candidates_BC.gather(1, exact_BC.argmax(dim=-1, keepdim=True)).squeeze(1)


def log_mel(wave_N: np.ndarray, length: int, mels: int = 80) -> Tensor:
    """Whisper's input of a clip padded with silence to `length` samples: float32 [mels, length / 160]."""
    padded = np.zeros(length, dtype=np.float32)
    padded[: len(wave_N)] = wave_N
    return whisper.log_mel_spectrogram(torch.from_numpy(padded), mels)
