"""What a run must agree on with the checkpoint that it continues, and the changes that a user may allow by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.training.speed import EXACT
from omnichat.utils.errors import UserError, one_of

FAMILIES = ("data", "experts", "config", "llm")  # of changes, see `family`
FAMILY_OF = {"experts_order": "experts", "tokenizer": "llm"}  # of keys that do not begin with their family's name
Flat = dict[str, Any]
_NO_RESULT = (  # settings, or groups of them, that change no figure of a run: where things lie, how often one looks
    "name", "runs", "resume", "resume_despite", "tracking", "launch", "loader.workers", "loader.prefetch",
    "mixture.index_dir", *(f"trainer.speed.{name}" for name in EXACT), "trainer.watch", "trainer.preflight",
    "trainer.log_every", "trainer.dev_every", "trainer.checkpoint_every", "trainer.keep_last", "trainer.max_skips",
)  # fmt: skip
_CACHE_RESULT = "cache.dtype"  # all that counts of the cache: where and how features are kept does not change them


def sets_result(key: str) -> bool:
    """Whether a setting of a training run, by its dotted key, sets what comes out of it."""
    if key.partition(".")[0] == "cache":
        return key in ("cache", _CACHE_RESULT)
    return not any(key == name or key.startswith(f"{name}.") for name in _NO_RESULT)


def result_settings(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A run's config, as nested dicts, without what does not set its result."""
    kept = {name: value for name, value in plain.items() if sets_result(f"{prefix}{name}")}
    return {
        name: result_settings(value, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in kept.items()
    }


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs between a checkpoint and the run that would continue it."""

    key: str
    saved: Any  # None where the checkpoint has no such key
    now: Any

    @property
    def family(self) -> str:
        """The word that allows it."""
        return family(self.key)


def family(key: str) -> str:
    """The family of a key of the identity: data, experts, llm (fingerprints and their own settings), else config."""
    parts = key.split(".")
    if key in FAMILY_OF:
        return FAMILY_OF[key]
    if parts[0] in ("data", "experts", "llm"):
        return parts[0]
    if parts[0] == "config" and parts[1:3] == ["mixture", "sources"]:
        return "data"
    if parts[0] == "config" and parts[1:2] in (["experts"], ["llm"]):
        return parts[1]
    return "config"


def check_despite(despite: Sequence[str]) -> None:
    """Raise UserError for a word that is no family of changes."""
    for word in despite:
        if word not in FAMILIES:
            raise one_of("resume_despite", word, FAMILIES)


def changes(saved: dict[str, Any], current: dict[str, Any]) -> list[Change]:
    """All values that differ, in the order of their keys."""
    old, new = _flatten(saved), _flatten(current)
    return [Change(k, old.get(k), new.get(k)) for k in sorted(set(old) | set(new)) if old.get(k) != new.get(k)]


def refuse_changes(
    saved: dict[str, Any], current: dict[str, Any], path: Path, despite: Sequence[str] = ()
) -> list[Change]:
    """Return the changes that `despite` allows.

    Raises:
        UserError: there are others; it names the first with both values, and the words that would allow all of them.
    """
    found = changes(saved, current)
    refused = [change for change in found if change.family not in despite]
    if not refused:
        return found
    first = refused[0]
    words = [word for word in FAMILIES if word in despite or any(change.family == word for change in refused)]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    raise UserError(
        f"{path}: made with {first.key}={first.saved!r}, this run has {first.now!r}{more}; put it back, start under "
        f"another name= (or resume=never), or say that the change is meant: resume_despite=[{','.join(words)}]"
    )


def refuse_other_parts(identity: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise UserError naming the first frozen part that is not the one that a checkpoint was trained with.

    Args:
        identity: of the checkpoint.
        now: fingerprints as they are, "llm" and "experts" by name; what it leaves out is not asked.
    """
    if found := changes({name: identity[name] for name in now}, now):
        first = found[0]
        raise UserError(
            f"{path}: trained with {first.key}={first.saved!r}, found {first.now!r}: put back the weights and the "
            "front-end that it was trained with"
        )


def _flatten(config: dict[str, Any], prefix: str = "") -> Flat:
    """Nested dict -> {"a.b": value}."""
    flat: Flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
