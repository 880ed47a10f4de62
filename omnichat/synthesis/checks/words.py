"""Are the words there? Whisper's word error rate against the script (the paper's check, 5 % there)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
import whisper
from torch import Tensor
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.normalizers import EnglishTextNormalizer

from omnichat.encoders.whisper_files import load_whisper
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, need_rate, unusable
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

WINDOW_SEC = 30.0
WER_EDGES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_CANDIDATES = 16  # tokens whose logits are computed exactly; bfloat16 is wrong by a hundredth, the first is among them
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WordErrorCheck(Check):
    """Word error rate of a dialogue and of each turn, after Whisper's English normaliser on both sides.

    One slip in a sentence of six words is 17 %, so a turn's limit is loose and the dialogue's pooled rate is the strict
    one. Clips are heard in a short window first (`context_sec`; many times cheaper than Whisper's 30 s, but now and
    then it repeats a sentence). Where a dialogue would be rejected on that, its turns with errors are heard again in
    the full window, and that counts.

    Args:
        path: Whisper weights (CTranslate2 folder, OpenAI .pt, or safetensors folder).
        max_dialogue_wer: limit of errors over all turns divided by all words.
        max_turn_wer: limit of one turn.
        context_sec: the short window, in seconds; longer clips get their length and five seconds.
        dtype: "float32" or "bfloat16" (of the encoder).
        max_tokens: longest transcript of a clip.
    """

    name = "words"

    def __init__(
        self,
        path: str,
        max_dialogue_wer: float,
        max_turn_wer: float,
        context_sec: float,
        dtype: str,
        max_tokens: int,
    ) -> None:
        if dtype not in _DTYPES:
            raise UserError(f"checks.words.dtype={dtype!r} is not valid; choose one of: {', '.join(_DTYPES)}")
        if not 1.0 <= context_sec <= WINDOW_SEC:
            raise UserError(f"checks.words.context_sec must be in [1, {WINDOW_SEC:g}], got {context_sec}")
        self.path = path
        self.max_dialogue_wer = max_dialogue_wer
        self.max_turn_wer = max_turn_wer
        self.context_sec = context_sec
        self.dtype = dtype
        self.max_tokens = max_tokens
        self._model: Any = None
        self._rough_VD = torch.zeros(0)
        self._normalise = EnglishTextNormalizer()

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "asr_text", "wer", "errors" and "words"."""
        need_rate(clips, whisper.audio.SAMPLE_RATE, self.name)
        if (finding := unusable(clips)) is not None:
            return finding
        if not clips:
            return Finding()
        if any(clip.seconds > WINDOW_SEC for clip in clips):
            return Finding(["a turn is longer than Whisper hears at once"], [{} for _ in clips])
        if any(not self._normalise(clip.text) for clip in clips):
            return Finding(["a sentence holds no word"], [{} for _ in clips])
        heard = self.transcribe([clip.wave_N for clip in clips], self.context_sec)
        finding = self._judge(clips, heard)
        if finding.reasons:
            again = [i for i, clip in enumerate(finding.clips) if clip["errors"]]
            for i, text in zip(again, self.transcribe([clips[i].wave_N for i in again], WINDOW_SEC), strict=True):
                heard[i] = text
            finding = self._judge(clips, heard)
        return finding

    def _judge(self, clips: Sequence[Clip], heard: Sequence[str]) -> Finding:
        """Compare transcripts with the script."""
        finding = Finding()
        for clip, text in zip(clips, heard, strict=True):
            errors, words = self.word_errors(clip.text, text)
            finding.clips.append({"asr_text": text, "wer": errors / words, "errors": errors, "words": words})
        pooled = sum(c["errors"] for c in finding.clips) / sum(c["words"] for c in finding.clips)
        finding.dialogue = {"wer": pooled}
        if pooled > self.max_dialogue_wer:
            finding.reasons.append("word error rate of the dialogue above max_dialogue_wer")
        if any(c["wer"] > self.max_turn_wer for c in finding.clips):
            finding.reasons.append("word error rate of a turn above max_turn_wer")
        return finding

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float) -> list[str]:
        """Greedy transcripts of mono float32 [N] clips at 16 kHz, none longer than 30 s."""
        if not waves:
            return []
        if self._model is None:
            self._model = load_whisper(resolve_path(self.path))
            self._rough_VD = self._model.decoder.token_embedding.weight.detach().bfloat16()
        rate = whisper.audio.SAMPLE_RATE
        longest = max(len(wave) for wave in waves) / rate
        if longest > WINDOW_SEC:
            raise UserError(f"a spoken turn lasts {longest:.1f} s; the word check hears at most {WINDOW_SEC:g} s")
        window = min(WINDOW_SEC, max(window_sec, np.ceil(longest + 5.0)))
        options = DecodingOptions(language="en", without_timestamps=True, fp16=False, sample_len=self.max_tokens)
        with torch.inference_mode():
            # each clip's mel alone: Whisper scales by the clip's own loudest frame
            mel_BFT = torch.stack([_mel(wave, round(window * rate)) for wave in waves])
            task = DecodingTask(self._model, options)
            found = _greedy(task, self._encode(mel_BFT), self._rough_VD)
            return [task.tokenizer.decode(tokens).strip() for tokens in found]

    def thresholds(self) -> dict[str, Any]:
        """Both limits."""
        return {"max_dialogue_wer": self.max_dialogue_wer, "max_turn_wer": self.max_turn_wer}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Pooled rate, mean over turns, share of turns without an error, histograms."""
        clips = [clip for finding in findings for clip in finding.clips]
        turns = [clip["wer"] for clip in clips]
        return {
            "wer": sum(c["errors"] for c in clips) / sum(c["words"] for c in clips),
            "wer_mean_of_turns": float(np.mean(turns)),
            "turns_without_error": float(np.mean([wer == 0 for wer in turns])),
            "histogram_dialogues": histogram([f.dialogue["wer"] for f in findings], WER_EDGES),
            "histogram_turns": histogram(turns, WER_EDGES),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_model": None, "_rough_VD": torch.zeros(0)}

    def words(self, text: str) -> list[str]:
        """The words of a text as they are compared; fillers such as "hmm" are none."""
        return str(self._normalise(text)).split()

    def word_errors(self, reference: str, hypothesis: str) -> tuple[int, int]:
        """Return (word errors, words of the reference) after normalising both; UserError for one without a word."""
        wanted = self._normalise(reference)
        if not wanted:
            raise UserError(f"script sentence {reference!r} holds no word")
        result = jiwer.process_words(wanted, self._normalise(hypothesis))
        return result.substitutions + result.deletions + result.insertions, len(wanted.split())

    def _encode(self, mel_BFT: Tensor) -> Tensor:
        """Whisper's encoder on a window of any length up to 30 s: its own forward takes 30 s only."""
        encoder = self._model.encoder
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
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
    tokens_BL = torch.tensor([task.initial_tokens]).repeat(len(found), 1)
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


def _mel(wave_N: np.ndarray, length: int) -> Tensor:
    padded = np.zeros(length, dtype=np.float32)
    padded[: len(wave_N)] = wave_N
    return whisper.log_mel_spectrogram(torch.from_numpy(padded))
