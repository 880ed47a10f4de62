"""Packed rows: the limit is kept, nothing is lost, and some of the rows packed again are themselves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.packing import pack_rows

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=60)


def test_longest_first_into_the_first_row_with_space() -> None:
    assert pack_rows([3, 9, 4, 6, 1], 10) == [[1, 4], [3, 2], [0]]
    assert pack_rows([3, 9, 4], 0) == [[0], [1], [2]], "0 packs nothing"
    assert pack_rows([12, 5, 5], 10) == [[0], [1, 2]], "what exceeds the limit stands alone"


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, limit=st.integers(1, 200))
def test_every_sequence_stands_once_and_the_limit_is_kept(lengths: list[int], limit: int) -> None:
    rows = pack_rows(lengths, limit)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= limit for row in rows)
    half_full = [row for row in rows if 2 * sum(lengths[index] for index in row) <= limit]
    assert len(half_full) <= 1, "two rows that are half empty would have been one"


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, limit=st.integers(1, 200), data=st.data())
def test_some_of_the_rows_packed_again_are_the_same_rows(lengths: list[int], limit: int, data: st.DataObject) -> None:
    rows = pack_rows(lengths, limit)
    some = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True, min_size=1))
    chosen = sorted((i for number in some for i in rows[number]), key=lambda i: (-lengths[i], i))
    again = [[chosen[i] for i in row] for row in pack_rows([lengths[i] for i in chosen], limit)]
    assert again == [rows[number] for number in sorted(some)]
