"""`omnichat cache`: run the frozen experts once over the corpora, ahead of training; check the result; tidy it up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omnichat.assembly import build_experts, expert_builders, load_sources
from omnichat.config import CacheRun
from omnichat.data.cache_check import check_shards, move_aside, raise_if_damaged, recheck
from omnichat.data.cache_prune import remove, unreached
from omnichat.data.feature_cache import FeatureCache, folder_of
from omnichat.encoders.base import AudioEncoder
from omnichat.training.features import fill_missing, heard_clips, open_caches, plan_fill
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable
from omnichat.utils.packed import Recording


def run(config: CacheRun) -> None:
    """Fill (or only say what that takes), verify or prune the caches of the config's experts."""
    if config.cache.mode == "online":
        raise UserError("cache.mode=online keeps nothing: omnichat cache works on what is kept, so leave it at auto")
    if config.action == "fill" and not config.dry_run:
        check_writable(Path(config.cache.dir), "cache.dir")
    sources = load_sources(config.mixture, config.cache)
    clips = heard_clips(sources, config.chat)
    experts = build_experts(config.experts)
    if config.action == "verify":
        _verify(config, experts, clips)
        return
    caches = open_caches(experts, config.cache)
    if config.action == "prune":
        _prune(config, caches, clips)
    elif config.dry_run:
        print(plan_fill(experts, caches, clips, config.cache, timed=True).table())
        print("nothing was written; next: the same command without --dry-run")
    else:
        fill_missing(experts, caches, sources, config.chat, config.cache, expert_builders(config.experts))
        print("next: omnichat train with the same overrides; it reads this cache")


def _verify(config: CacheRun, experts: Mapping[str, AudioEncoder], clips: Mapping[str, Recording]) -> None:
    """Print what is sound, missing and damaged; UserError (exit code 2) where damage remains or clips are missing."""
    root, dtype = Path(config.cache.dir), config.cache.dtype
    remain: dict[Path, str] = {}
    lacking = 0
    for name, expert in experts.items():
        folder = folder_of(root, name, expert, dtype)
        found = check_shards(folder, expert.spec, dtype)
        if config.repair:
            move_aside(found.damaged)
        elif found.damaged:
            remain |= found.damaged
        compared = 0
        if config.recheck and found.clips and (config.repair or not found.damaged):
            cache = FeatureCache.of(root, name, expert, dtype)
            compared, faults = recheck(expert, cache, clips, config.recheck, config.seed)
            found.clips -= {sha for path, hashes in cache.shards() if path in faults for sha in hashes}
            found.damaged |= faults
            if config.repair:
                move_aside(faults)
            else:
                remain |= faults
        missing = sum(sha not in found.clips for sha in clips)
        lacking += missing
        again = f", {compared} encoded anew" if compared else ""
        print(
            f"{name}: {found.shards} shards, {len(found.damaged)} damaged; {len(clips) - missing} of {len(clips)} "
            f"clips sound, {missing} missing{again} ({folder})"
        )
        for path, why in found.damaged.items():
            print(f"  {path.name}: {why}{' (moved aside)' if config.repair else ''}")
    raise_if_damaged(remain)
    if lacking and not config.repair:
        raise UserError(f"{lacking} features are missing: `omnichat cache` with the same overrides makes them")
    print("next: omnichat cache, which makes what is missing" if lacking else "next: omnichat train")


def _prune(config: CacheRun, caches: Mapping[str, FeatureCache], clips: Mapping[str, Recording]) -> None:
    """Print what the config does not reach, and delete those kinds of it that `drop` names, if `yes` says so."""
    found = unreached(caches, clips.keys())
    chosen = [item for item in found if item.kind in config.drop]
    for item in found:
        kept = "" if item in chosen else f" (kept: add {item.kind} to drop)"
        print(f"{item.bytes / 1e6:9.1f} MB  {item.kind:<12}  {item.path}: {item.why}{kept}")
    size = sum(item.bytes for item in chosen) / 1e6
    if not found:
        print("nothing to prune: these experts and corpora reach all that is there")
    elif config.yes and not config.dry_run:
        print(f"deleted {len(chosen)} of {len(found)}: {remove(chosen, caches) / 1e6:.1f} MB")
    else:
        print(f"nothing was deleted; next: add yes=true to delete {len(chosen)} of {len(found)}, {size:.1f} MB")
