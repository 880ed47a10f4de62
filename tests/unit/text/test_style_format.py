"""The style prefix: what is written is read back, and junk is told from a style."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.text.style_format import format_reply, format_style, parse_reply

WORDS = st.text(max_size=60).map(str.strip).filter(bool)
STYLES = [Style(*values) for values in product((None, *PITCHES), (None, *SPEEDS), (None, *EMOTIONS))]
# "normal" alone cannot say whether it is pitch or speed; no corpus knows exactly one of the two.
CLEAR = [s for s in STYLES if s and {s.pitch, s.speed} != {None, "normal"}]


@pytest.mark.parametrize("style", CLEAR, ids=format_style)
def test_every_style_is_read_back(style: Style) -> None:
    assert parse_reply("".join(format_reply(style, "Yes, [he] said."))) == (style, "Yes, [he] said.")


@settings(max_examples=100, deadline=None)
@given(style=st.sampled_from(CLEAR), words=WORDS)
def test_words_are_read_back_whatever_they_are(style: Style, words: str) -> None:
    assert parse_reply("".join(format_reply(style, words))) == (style, words)


@settings(max_examples=60, deadline=None)
@given(words=WORDS.filter(lambda w: not w.startswith("[")))
def test_words_without_a_style_have_none(words: str) -> None:
    assert format_reply(Style(), words) == ("", words)
    assert parse_reply(words) == (None, words)


@pytest.mark.parametrize(
    "prefix",
    [
        "[]",
        "[,]",
        "[cheerful]",
        "[normal, normal, cheerful]",
        "[happy, normal, normal]",
        "[slow, low, sad]",
        "[sad, sad]",
        "[normal, normal, normal]",
        "[low, slow, sad, sad]",
        "[low slow sad]",
        "[normal, happy]",
    ],
)
def test_junk_in_brackets_is_no_style_but_is_no_word_either(prefix: str) -> None:
    assert parse_reply(f"{prefix} Well.") == (None, "Well.")


@pytest.mark.parametrize("text", ["[low, slow, sad Well.", "low, slow, sad] Well.", "", "Well [low, slow, sad].", "["])
def test_broken_brackets_are_words(text: str) -> None:
    assert parse_reply(text) == (None, text.strip())


def test_case_and_blanks_do_not_matter() -> None:
    assert parse_reply("  [ Low ,SLOW,  sad]Well. ") == (Style("low", "slow", "sad"), "Well.")


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("[], lownrmasdhpy\n"), max_size=40))
def test_any_text_gives_a_style_or_none_and_keeps_the_words(text: str) -> None:
    style, words = parse_reply(text)
    assert style is None or style, "a style that says nothing is no style"
    assert text.rstrip().endswith(words)
