"""Which split an item belongs to where its source does not say: decided by its name alone.

An item keeps its split when others are added or taken away, so a later corpus of the same source trains on nothing that
an earlier one tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import derive_seed

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def check_shares(key: str, shares: Mapping[str, float]) -> None:
    """Raise UserError, naming `key`, unless `shares` maps splits to numbers >= 0 that sum to 1."""
    for split, share in shares.items():
        if split not in SPLITS:
            raise one_of(key, split, SPLITS)
        if not share >= 0:
            raise UserError(f"{key}.{split} must be >= 0, got {share}")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"{key} must sum to 1, got {sum(shares.values()):g}")


def hash_split(names: Iterable[str], shares: Mapping[str, float] = SHARES) -> dict[str, str]:
    """Return name -> split, by the hash of the name and the shares.

    Every split with a share above zero gets a name where there are as many names as such splits: one that the hashes
    leave empty takes the nearest of the largest. With fewer names, nothing is split: the caller must look.
    """
    place = {name: derive_seed(0, "split", name) / 2**63 for name in names}
    wanted = [split for split in SPLITS if shares.get(split, 0) > 0]
    splits = {name: _at(where, shares, wanted) for name, where in place.items()}
    for split in wanted:
        if split in splits.values() or len(place) < len(wanted):
            continue
        sizes = {other: [name for name in place if splits[name] == other] for other in wanted}
        largest = max(wanted, key=lambda other: (len(sizes[other]), -SPLITS.index(other)))
        splits[max(sizes[largest], key=lambda name: (place[name], name))] = split
    return splits


def _at(where: float, shares: Mapping[str, float], wanted: list[str]) -> str:
    """The split at a place in [0, 1) when the splits lie side by side in their order."""
    edge = 0.0
    for split in wanted:
        edge += shares[split]
        if where < edge:
            return split
    return wanted[-1]
