"""Which sequences share a row of a batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """First-fit decreasing: the indices of the sequences in each row, whose lengths sum to at most `limit`.

    A sequence longer than `limit` has a row of its own; `limit` 0 gives every sequence one. Equal lengths keep their
    order, so that some of the rows, packed again by themselves, are the same rows: the plan packs a whole pool, the
    collator the few rows of a batch, and neither has to tell the other.
    """
    if limit == 0:
        return [[index] for index in range(len(lengths))]
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, space in enumerate(free):
            if lengths[index] <= space:
                rows[row].append(index)
                free[row] -= lengths[index]
                break
        else:
            rows.append([index])
            free.append(limit - lengths[index])
    return rows
