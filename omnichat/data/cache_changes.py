"""Why a feature cache that exists does not serve: what is different now, in plain words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WORDS = {
    "storage_dtype": "stored as {old} there, {new} now (cache.dtype)",
    "encoder.encoder": "the class is {old} there, {new} now",
    "encoder.weights": "other weights (SHA-256 {old} there, {new} now)",
    "encoder.layers": "layers={old} there, {new} now",
    "encoder.compute_dtype": "computed in {old} there, {new} now (the expert's dtype)",
    "encoder.settings.version": "made by version {old} of the expert's code there, {new} now",
    "encoder.passes": "the shape of its passes is {old} there, {new} now",
    "encoder.passes.batch_sec": "batch_sec={old} there, {new} now",
    "encoder.passes.bucket_sec": "clips padded to multiples of {old} s there, {new} s now",
}

_NOT_STATED = "not stated"  # by the version of the code that made the cache


def key_of(described: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a JSON object."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two JSON objects, by dotted name."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix.rstrip("."): (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(set(old) | set(new)):
        found |= differences(old.get(key, _NOT_STATED), new.get(key, _NOT_STATED), f"{prefix}{key}.")
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What sets the values of two caches apart, one phrase each; `old` and `new` are what their meta.json hold."""
    said = []
    for key, (before, now) in differences(dict(old), dict(new)).items():
        if key == "fingerprint":
            continue
        front_end = f"the front-end's {key.removeprefix('encoder.settings.').removeprefix('frontend.')}"
        words = _WORDS.get(key, f"{front_end} is {{old}} there, {{new}} now")
        said.append(words.format(old=_short(before), new=_short(now)))
    return said


def nearest_neighbour(metas: Mapping[Path, Mapping[str, Any]], new: Mapping[str, Any]) -> str | None:
    """One line on the existing cache that differs least from the new one; None if there is no other."""
    if not metas:
        return None
    by_folder = {folder: changes(meta, new) for folder, meta in metas.items()}
    folder = min(by_folder, key=lambda name: (len(by_folder[name]), str(name)))
    more = f" ({len(metas) - 1} more are further off)" if len(metas) > 1 else ""
    return f"{folder.name} does not serve: {'; '.join(by_folder[folder]) or 'of unknown origin'}{more}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
