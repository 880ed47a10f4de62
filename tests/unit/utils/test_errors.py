"""The line that a user reads, whatever is in the file that it speaks of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omnichat.utils.errors import one_of


@given(value=st.text(), choices=st.lists(st.text(max_size=300), max_size=300))
def test_the_choices_of_a_file_stay_on_one_line(value: str, choices: list[str]) -> None:
    line = str(one_of("column", value, choices))
    assert line.isprintable() and len(line) < 60 * 300


def test_the_nearest_choice_is_suggested() -> None:
    error = one_of("column", "capton", ["file", "caption"])
    assert str(error) == "column='capton' is not valid (did you mean 'caption'?); choose one of: file, caption"
