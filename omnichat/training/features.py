"""What the experts heard in a clip: from the feature cache, or encoded on the spot; the same values either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnichat.audio.io import load_audio
from omnichat.data.collate import ClipKey
from omnichat.data.feature_cache import EncodedClip, FeatureCache, fill_cache
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder
from omnichat.text.chat import ChatConfig
from omnichat.training.data import Source
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger

log = get_logger(__name__)
MODES = ("auto", "online")


@dataclass(kw_only=True, slots=True)
class CacheConfig:
    """Features of the frozen experts."""

    dir: str = "cache/features"  # folder of the cache; all runs share it
    mode: str = "auto"  # auto (fill what is missing, then read) | online (encode in every step, keep nothing)
    dtype: str = "bfloat16"  # of the features, stored or not: bfloat16 | float32
    batch_size: int = 16  # clips encoded together
    threads: int = 2  # that read and transform audio ahead of the encoder

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise one_of("cache.mode", self.mode, MODES)
        if self.dtype not in COMPUTE_DTYPES:
            raise one_of("cache.dtype", self.dtype, COMPUTE_DTYPES)
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"cache.{name} must be at least 1, got {getattr(self, name)}")


class ExpertFeatures:
    """Callable: clips -> expert -> features of each clip, in the cache's storage dtype.

    With a cache it holds no expert and can be sent to a data worker; without one it encodes.
    """

    def __init__(
        self, experts: Mapping[str, AudioEncoder], caches: Mapping[str, FeatureCache], config: CacheConfig
    ) -> None:
        self.caches = dict(caches)
        self.experts = {} if caches else dict(experts)
        self.dtype = COMPUTE_DTYPES[config.dtype]

    def __call__(self, keys: Sequence[ClipKey]) -> dict[str, list[EncodedClip]]:
        if self.caches:
            return {name: [cache.get(key.sha256) for key in keys] for name, cache in self.caches.items()}
        heard = {}
        for name, expert in self.experts.items():
            waves = [expert.frontend(load_audio(key.path, expert.sample_rate)) for key in keys]
            encoded = expert.encode_clips(waves)
            heard[name] = [EncodedClip(clip.x_TD.to(self.dtype), clip.time_sec) for clip in encoded]
        return heard


def open_caches(experts: Mapping[str, AudioEncoder], config: CacheConfig) -> dict[str, FeatureCache]:
    """One cache an expert; none where `config.mode` is online."""
    if config.mode == "online":
        return {}
    return {name: FeatureCache.of(Path(config.dir), name, expert, config.dtype) for name, expert in experts.items()}


def fill_missing(
    experts: Mapping[str, AudioEncoder],
    caches: Mapping[str, FeatureCache],
    sources: Sequence[Source],
    chat: ChatConfig,
    config: CacheConfig,
) -> None:
    """Encode every recording that the model may hear and a cache lacks; logs throughput and size."""
    clips = heard_clips(sources, chat)
    for name, cache in caches.items():
        if not cache.missing(clips):
            log.info("cache %s: all %d clips are there (%.0f MB)", name, len(clips), cache.size_bytes() / 1e6)
            continue
        done = fill_cache(experts[name], clips.items(), cache, config.batch_size, threads=config.threads)
        log.info(
            "cache %s: %d clips, %.0f s of audio in %.1f s (%.0f times real time), %.0f MB in %s",
            name, done["clips"], done["audio_seconds"], done["seconds"],
            done["audio_seconds"] / max(1e-9, done["seconds"]), cache.size_bytes() / 1e6, cache.folder,
        )  # fmt: skip


def heard_clips(sources: Sequence[Source], chat: ChatConfig) -> dict[str, Path]:
    """Hash -> file of every recording that can stand in a sequence: the turns of the speaker who is not played."""
    listeners = {"A": ("B",), "B": ("A",), "both": ("A", "B")}[chat.target]
    clips: dict[str, Path] = {}
    for source in sources:
        for dialogue in source.corpus.dialogues:
            for turn in dialogue.turns:
                if turn.audio is not None and turn.sha256 is not None and turn.speaker in listeners:
                    clips.setdefault(turn.sha256, source.corpus.path_of(turn))
    return clips
