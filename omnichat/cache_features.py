"""`omnichat cache`: run the frozen experts once over the corpora, ahead of training."""

from __future__ import annotations

from pathlib import Path

from omnichat.assembly import build_experts, load_sources
from omnichat.config import TrainRun
from omnichat.training.features import fill_missing, open_caches
from omnichat.utils.files import check_writable


def run(config: TrainRun) -> None:
    """Encode every recording of the mixture's corpora that the cache does not hold yet."""
    check_writable(Path(config.cache.dir), "cache.dir")
    sources = load_sources(config.mixture)
    experts = build_experts(config.experts)
    caches = open_caches(experts, config.cache)
    fill_missing(experts, caches, sources, config.chat, config.cache)
    print("next: omnichat train with the same overrides; it reads this cache")
