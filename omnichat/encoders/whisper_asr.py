"""Whisper as a recogniser (Radford et al., 2022, arXiv 2212.04356) of many clips, in windows of their own length.

Whisper hears 30 s. Of a sentence of three seconds nine tenths of that are silence, which the encoder turns into nearly
the same features every time. So the encoder is given the clip alone, and what follows it are the features of silence at
the same positions, computed once: the decoder still hears that the speech is over. (In a window that simply ends after
the clip it does not, and says the sentence again and again.) The decoder attends to the silence of all clips at once,
for its keys and values are the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

WINDOW_SEC = 30.0
RATE_HZ: int = whisper.audio.SAMPLE_RATE
POSITIONS = 1500  # of the encoder, in WINDOW_SEC
_STEP_SEC = 0.5  # windows are multiples of this, so that clips share theirs
_AFTER_SEC = 1.0  # of a clip's own silence, which the encoder hears with it
_SILENCE = -0.7  # a silent frame as Whisper scales it, after speech whose loudest one is as loud as in a common clip
_CANDIDATES = 16  # tokens whose logits are computed exactly; bfloat16 is wrong by a hundredth, the first is among them


@dataclass(slots=True)
class _Heard:
    """Keys and values of one decoder block over what the encoder gave: of each clip, and of the silence after all."""

    key_BHTD: Tensor
    value_BHTD: Tensor
    tail_key_HDS: Tensor
    tail_value_HSD: Tensor


class WhisperTranscriber:
    """Greedy transcripts, the tokens that `DecodingTask.run` finds at temperature 0 without timestamps.

    Args:
        path: weights in any layout that `load_whisper` reads.
        max_tokens: longest transcript of a clip.
        dtype: "float32" or "bfloat16" (of the encoder, and of the keys and values that are made of its features).
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
        options = DecodingOptions(language=language, without_timestamps=True, fp16=False, sample_len=max_tokens)
        try:
            self.task = DecodingTask(self.model, options)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        self.device = device
        self.dtype = dtype
        self._rough_VD = self.model.decoder.token_embedding.weight.detach().bfloat16()
        with torch.inference_mode():
            silence_BFT = torch.full((1, self.model.dims.n_mels, 2 * POSITIONS), _SILENCE, device=device)
            self._silence_TD = self.encode(silence_BFT)[0]
            self._tails = [self._keys_and_values(self._silence_TD, block) for block in self.model.decoder.blocks]

    def fingerprint(self) -> str:
        """Hex SHA-256 of the weights."""
        return weights_sha256(self.model.state_dict())

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float = WINDOW_SEC) -> list[str]:
        """Transcripts of mono float32 [N] clips at 16 kHz.

        Args:
            window_sec: what the encoder reads of a clip, or the clip's length and a second, whichever is more; the
                features of silence follow up to 30 s. With the default it reads 30 s, as Whisper was trained.

        Raises:
            UserError: a clip of more than 30 s.
        """
        if not waves:
            return []
        longest = max(len(wave) for wave in waves) / RATE_HZ
        if longest > WINDOW_SEC:
            raise UserError(f"a recording lasts {longest:.1f} s; Whisper hears at most {WINDOW_SEC:g} s at once")
        with torch.inference_mode():
            features = self._features([np.asarray(wave) for wave in waves], window_sec)
            found = self._decode(torch.stack(features))
            return [self.task.tokenizer.decode(tokens).strip() for tokens in found]

    def transcribe_long(
        self, waves: Sequence[np.ndarray], batch_size: int, window_sec: float = WINDOW_SEC
    ) -> list[str]:
        """`transcribe` for clips of any length, which are cut into pieces of 30 s; `batch_size` pieces at a time."""
        piece = round(WINDOW_SEC * RATE_HZ)
        owners = [row for row, wave in enumerate(waves) for _ in range(0, len(wave), piece)]
        pieces = [wave[start : start + piece] for wave in waves for start in range(0, len(wave), piece)]
        parts: list[list[str]] = [[] for _ in waves]
        for start in range(0, len(pieces), batch_size):
            texts = self.transcribe(pieces[start : start + batch_size], window_sec)
            for row, text in zip(owners[start : start + batch_size], texts, strict=True):
                parts[row].append(text)
        return [" ".join(filter(None, words)) for words in parts]

    def encode(self, mel_BFT: Tensor) -> Tensor:
        """Whisper's encoder on a window of any length up to 30 s: its own forward takes 30 s only."""
        encoder = self.model.encoder
        with torch.autocast(mel_BFT.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            x_BTD = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel_BFT)))).permute(0, 2, 1)
            x_BTD = x_BTD + encoder.positional_embedding[: x_BTD.shape[1]]
            for block in encoder.blocks:
                x_BTD = block(x_BTD)
            return encoder.ln_post(x_BTD).float()

    def _features(self, waves: Sequence[np.ndarray], window_sec: float) -> list[Tensor]:
        """Of each clip [T, D], all as long as the longest: where a clip's own window ends, silence goes on."""
        windows = [_window(len(wave), window_sec) for wave in waves]
        longest = max(windows)
        out: list[Tensor] = [torch.empty(0)] * len(waves)
        for length in sorted(set(windows)):
            rows = [row for row, window in enumerate(windows) if window == length]
            # each clip's mel alone: Whisper scales by the clip's own loudest frame
            mel_BFT = torch.stack([log_mel(waves[row], length, self.model.dims.n_mels) for row in rows])
            encoded_BTD = self.encode(mel_BFT.to(self.device))
            positions = encoded_BTD.shape[1]
            rest_TD = self._silence_TD[positions : longest * POSITIONS // round(WINDOW_SEC * RATE_HZ)]
            for row, own_TD in zip(rows, encoded_BTD, strict=True):
                out[row] = torch.cat([own_TD, rest_TD])
        return out

    def _decode(self, features_BTD: Tensor) -> list[list[int]]:
        """Most likely tokens of each clip.

        A clip that has ended leaves the batch, so that a long sentence does not keep the short ones in it.
        """
        end = self.task.tokenizer.eot
        found: list[list[int]] = [[] for _ in features_BTD]
        waiting = list(range(len(found)))
        heard, past = self._attended(features_BTD), None
        tokens_BL = torch.tensor([self.task.initial_tokens], device=features_BTD.device).repeat(len(found), 1)
        step_BL = tokens_BL
        for _ in range(self.task.sample_len):
            hidden_BD, past = self._hidden(step_BL, heard, past)
            best_B = self._best_tokens(hidden_BD, tokens_BL)
            going = best_B != end
            for row, token in zip(waiting, best_B.tolist(), strict=True):
                if token != end:
                    found[row].append(token)
            if not going.any():
                break
            if not going.all():
                waiting = [row for row, goes in zip(waiting, going.tolist(), strict=True) if goes]
                tokens_BL, best_B = tokens_BL[going], best_B[going]
                past = [(key[going], value[going]) for key, value in past]
                for block in heard:
                    block.key_BHTD, block.value_BHTD = block.key_BHTD[going], block.value_BHTD[going]
            tokens_BL = torch.cat([tokens_BL, best_B[:, None]], dim=1)
            step_BL = best_B[:, None]
        return found

    def _attended(self, features_BTD: Tensor) -> list[_Heard]:
        """What every block of the decoder attends to."""
        length = features_BTD.shape[1]
        return [
            _Heard(
                *self._keys_and_values(features_BTD, block),
                tail_key[:, length:].transpose(1, 2).contiguous(),
                tail_value[:, length:].contiguous(),
            )
            for block, (tail_key, tail_value) in zip(self.model.decoder.blocks, self._tails, strict=True)
        ]

    def _keys_and_values(self, features_BTD: Tensor, block: Any) -> tuple[Tensor, Tensor]:
        """Of what the encoder gave, float32 [B, heads, T, D / heads]; made of it in the encoder's dtype."""
        with torch.autocast(features_BTD.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            key_BTD, value_BTD = block.cross_attn.key(features_BTD), block.cross_attn.value(features_BTD)
        return _heads(key_BTD.float(), block), _heads(value_BTD.float(), block)

    def _hidden(
        self, step_BL: Tensor, heard: Sequence[_Heard], past: Sequence[tuple[Tensor, Tensor]] | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What Whisper's decoder makes its logits of, at the last position, float32 [B, D]; and the keys and values of
        all positions so far."""
        decoder = self.model.decoder
        offset = 0 if past is None else past[0][0].shape[2]
        x_BLD = decoder.token_embedding(step_BL) + decoder.positional_embedding[offset : offset + step_BL.shape[1]]
        kept = []
        for number, block in enumerate(decoder.blocks):
            normal = block.attn_ln(x_BLD)
            key, value = _heads(block.attn.key(normal), block), _heads(block.attn.value(normal), block)
            if past is not None:
                key, value = (torch.cat(pair, dim=2) for pair in zip(past[number], (key, value), strict=True))
            kept.append((key, value))
            query = _heads(block.attn.query(normal), block)
            # only the first step holds several positions, and nothing precedes them
            out = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
            x_BLD = x_BLD + block.attn.out(_joined(out))
            query = _heads(block.cross_attn.query(block.cross_attn_ln(x_BLD)), block)
            x_BLD = x_BLD + block.cross_attn.out(_joined(_attend(query, heard[number])))
            x_BLD = x_BLD + block.mlp(block.mlp_ln(x_BLD))
        return decoder.ln(x_BLD)[:, -1], kept

    def _best_tokens(self, hidden_BD: Tensor, tokens_BL: Tensor) -> Tensor:
        """The most likely next token of each clip, int64 [B].

        Fifty thousand logits in bfloat16 name the candidates, their float32 logits decide: the same token as by all
        logits in float32, which take more than twice as long.
        """
        logits_BV = F.linear(hidden_BD.bfloat16(), self._rough_VD).float()
        for rule in self.task.logit_filters:
            rule.apply(logits_BV, tokens_BL)
        rough_BC, candidates_BC = logits_BV.topk(_CANDIDATES, dim=-1)
        embeddings_BCD = self.model.decoder.token_embedding.weight[candidates_BC]
        exact_BC = (embeddings_BCD @ hidden_BD[:, :, None]).squeeze(-1).masked_fill(rough_BC == -torch.inf, -torch.inf)
        return candidates_BC.gather(1, exact_BC.argmax(dim=-1, keepdim=True)).squeeze(1)


def log_mel(wave_N: np.ndarray, length: int, mels: int = 80) -> Tensor:
    """Whisper's input of a clip padded with silence to `length` samples: float32 [mels, length / 160]."""
    padded = np.zeros(length, dtype=np.float32)
    padded[: len(wave_N)] = wave_N
    return whisper.log_mel_spectrogram(torch.from_numpy(padded), mels)


def _window(samples: int, least_sec: float) -> int:
    """Samples of the window in which a clip is encoded."""
    seconds = max(least_sec, samples / RATE_HZ + _AFTER_SEC)
    return round(min(WINDOW_SEC, float(np.ceil(seconds / _STEP_SEC)) * _STEP_SEC) * RATE_HZ)


def _heads(x_TD: Tensor, block: Any) -> Tensor:
    """[..., T, D] -> [..., heads, T, D / heads]."""
    return x_TD.unflatten(-1, (block.attn.n_head, -1)).transpose(-2, -3).contiguous()


def _joined(x_BHTD: Tensor) -> Tensor:
    return x_BHTD.transpose(1, 2).flatten(2)


def _attend(query_BHLD: Tensor, heard: _Heard) -> Tensor:
    """Attention over a clip's own positions and the silence that follows, as over both in one."""
    batch, heads, steps, width = query_BHLD.shape
    query = query_BHLD * width**-0.5
    together_HND = query.transpose(0, 1).reshape(heads, batch * steps, width)
    tail_HNS = together_HND @ heard.tail_key_HDS
    tail_BHLS = tail_HNS.unflatten(1, (batch, steps)).transpose(0, 1)
    own_BHLT = query @ heard.key_BHTD.transpose(2, 3)
    weights = torch.cat([own_BHLT, tail_BHLS], dim=-1).softmax(dim=-1)
    own_BHLT, tail_BHLS = weights.split([own_BHLT.shape[-1], tail_BHLS.shape[-1]], dim=-1)
    tail_HND = tail_BHLS.transpose(0, 1).flatten(1, 2) @ heard.tail_value_HSD
    return own_BHLT @ heard.value_BHTD + tail_HND.unflatten(1, (batch, steps)).transpose(0, 1)
