"""One dialogue with a model, turn by turn, its key-value cache kept: a turn costs its own tokens only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer
from transformers.generation import GenerateDecoderOnlyOutput

from omnichat.chat.base import Answer, DecodingConfig, HeardWindows, Talker
from omnichat.encoders.base import EncodedClip
from omnichat.fusion.base import FusedAudio
from omnichat.model.pretrained.conversation import ChatPrompt, Said
from omnichat.schema import Style
from omnichat.text.chat import Clip
from omnichat.text.style_format import parse_reply
from omnichat.utils.seeding import derive_seed

# transformers renamed the argument in 5.2x; what `generate` gives back is named as what it takes.
_CACHE = next(f.name for f in fields(GenerateDecoderOnlyOutput) if f.name in ("cache", "past_key_values"))


class _Streamer(TextIteratorStreamer):
    """Notes when the first token came."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.first_at: float | None = None

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt and self.first_at is None:
            self.first_at = time.perf_counter()
        super().put(value)


class _Stop(StoppingCriteria):
    """Ends a reply after the token at hand."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Session:
    """One dialogue. Not for two threads at a time.

    Args:
        talker: the model.
        decoding: how replies are decoded.
        system: system prompt in place of the trained one; None keeps it.
        keep_cache: keep keys and values from turn to turn; without, every turn reads the whole dialogue again, to the
            same replies (in fp32).
    """

    def __init__(
        self, talker: Talker, decoding: DecodingConfig, system: str | None = None, keep_cache: bool = True
    ) -> None:
        self.talker, self.decoding, self.system, self.keep_cache = talker, decoding, system, keep_cache
        self.reset()

    def reset(self) -> None:
        """Begin a new dialogue."""
        self.turns: list[Said] = []
        self.answers: list[Answer] = []
        self._read: ChatPrompt | None = None  # what the cache holds the keys and values of
        self._cache: Any = None
        self._heard: dict[str, dict[str, EncodedClip]] = {}  # recording -> what the experts heard

    def say(self, history: Sequence[Said]) -> None:
        """Take a dialogue that was held elsewhere as this one's turns so far; what the cache shares with it is kept."""
        self.turns = list(history)

    def answer(self, said: Said) -> Answer:
        """The reply to a user's turn; both become part of the dialogue.

        Raises:
            UserError: the turn lacks what the model reads; the dialogue is as before.
        """
        for _ in self.stream(said):
            pass
        return self.answers[-1]

    def stream(self, said: Said, stop: threading.Event | None = None) -> Iterator[str]:
        """Pieces of the reply's text as they come; at the end turn and reply are part of the dialogue.

        A stop, or an iterator that is closed early, ends the reply where it is; what was said by then counts.
        """
        started = time.perf_counter()
        stop = stop or threading.Event()
        said = self.talker.completed(said)
        prompt = self.talker.processor.prompt([*self.turns, said], self.system)
        kept = self._kept(prompt)
        embeds_1SD, fused = self._embed(prompt, kept)
        streamer = _Streamer(self.talker.processor.tokenizer) if self.decoding.beams == 1 else None
        made: dict[str, Any] = {}

        def decode() -> None:
            try:
                made["output"] = self._decode(embeds_1SD, streamer, stop)
            except Exception as error:
                made["error"] = error  # raised where the reply is waited for
                if streamer is not None:
                    streamer.end()

        thread = threading.Thread(target=decode, name="decode", daemon=True)
        thread.start()
        try:
            if streamer is not None:
                yield from (piece for piece in streamer if piece)
        except BaseException:  # closed early, or Ctrl-C while it waited
            stop.set()
            raise
        finally:
            thread.join()
            if "output" in made:
                first = (streamer.first_at if streamer is not None else None) or time.perf_counter()
                self._keep(prompt, kept, said, made["output"], (started, first), fused)
            else:
                self._cache = self._read = None  # half filled
        if "error" in made:
            raise made["error"]
        if streamer is None:
            yield self.answers[-1].text

    def _kept(self, prompt: ChatPrompt) -> int:
        """Positions of the prompt whose keys and values the cache holds; the cache is cut to them."""
        if not self.keep_cache or self._cache is None:
            self._cache, self._read = None, None
            return 0
        # The last position is read again in any case: its logits are the first token's.
        kept = prompt.shared_with(self._read, len(prompt.sequence) - 1)
        if kept == 0:
            self._cache = self._read = None
            return 0
        if surplus := self._cache.get_seq_length() - kept:
            self._cache.crop(-surplus)
        return kept

    def _embed(self, prompt: ChatPrompt, kept: int) -> tuple[Tensor, FusedAudio | None]:
        model = self.talker.model
        try:
            with torch.no_grad(), model.arithmetic():
                return model.embed_prompt(prompt, self._hear(prompt, kept), kept)
        except BaseException:
            self._cache = self._read = None  # cut to what was kept, and not read on from there
            raise

    def _hear(self, prompt: ChatPrompt, kept: int) -> dict[str, list[EncodedClip]]:
        """What the experts hear in the clips that the cache does not hold; a recording is encoded once a session."""
        sounds = [sound for start, sound in zip(prompt.starts(), prompt.sounds, strict=True) if start >= kept]
        if not self.keep_cache:
            return self.talker.model.hear(sounds)
        new = list({sound.sha256: sound for sound in sounds if sound.sha256 not in self._heard}.values())
        heard = self.talker.model.hear(new)
        for row, sound in enumerate(new):
            self._heard[sound.sha256] = {name: clips[row] for name, clips in heard.items()}
        return {name: [self._heard[sound.sha256][name] for sound in sounds] for name in self.talker.model.experts}

    def _decode(self, embeds_1SD: Tensor, streamer: _Streamer | None, stop: threading.Event) -> Any:
        model, options = self.talker.model, self.decoding.options()
        cached = {_CACHE: self._cache if self._cache is not None else DynamicCache(config=model.model.llm.config)}
        mask_1S = torch.ones(embeds_1SD.shape[:2], dtype=torch.long, device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), model.arithmetic(), torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(self.decoding.seed, "reply", len(self.turns)))
            return model.generate_from(
                embeds_1SD,
                mask_1S,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
                return_dict_in_generate=True,
                **(cached if self.keep_cache and self.decoding.beams == 1 else {}),
                **options,
            )

    def _keep(
        self,
        prompt: ChatPrompt,
        kept: int,
        said: Said,
        output: Any,
        times: tuple[float, float],
        fused: FusedAudio | None,
    ) -> None:
        """Take turn and reply into the dialogue, and note what the cache has read."""
        started, first = times
        end = self.talker.model.config.end_token_id
        ids: list[int] = output.sequences[0].tolist()
        complete = end in ids
        ids = ids[: ids.index(end)] if complete else ids
        text = self.talker.processor.decode(ids)
        style, words = parse_reply(text)
        self.turns += [said, Said("assistant", None, words or text.strip() or "...", style or Style())]
        if self.keep_cache and self.decoding.beams == 1:
            self._cache = getattr(output, _CACHE)
            # Of the reply, all that was fed back has been read: everything but the newest token.
            read = prompt.continued(output.sequences[0].tolist()[:-1])
            self._read = read if self._cache.get_seq_length() == len(read.sequence) else None
            self._cache = self._cache if self._read is not None else None
        self.answers.append(
            Answer(
                text=text,
                style=style,
                words=words,
                tokens=len(ids) + complete,
                prompt_tokens=len(prompt.sequence),
                kept_tokens=kept,
                first_token_sec=first - started,
                seconds=time.perf_counter() - started,
                heard=self._windows(prompt, fused) if said.sound is not None else None,
                complete=complete,
            )
        )

    def _windows(self, prompt: ChatPrompt, fused: FusedAudio | None) -> HeardWindows | None:
        fusion = self.talker.model.model.fusion
        if fused is None or fusion is None:
            return None
        clip: Clip = prompt.sequence.clips[-1]
        rows: tuple[tuple[float, ...], ...] = ()
        if fused.attention_BWE is not None:
            mass = fused.attention_BWE[-1, : clip.slots // fusion.queries].float().tolist()
            rows = tuple(tuple(round(value, 4) for value in window) for window in mass)
        return HeardWindows(float(fusion.window_sec), tuple(fusion.specs), rows)
