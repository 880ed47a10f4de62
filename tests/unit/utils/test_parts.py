"""Parts: a constructor is the schema of its config node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.readers.base import Reader
from omnichat.fusion.base import Fusion
from omnichat.fusion.stack import Stack
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part, check_part, fits

STACK = {
    "_target_": "omnichat.fusion.stack.Stack",
    **{"window_sec": 0.34, "queries": 1, "parts": 2, "width": 8, "hidden": 16, "dropout": 0.0},
}
GIVEN = ("specs", "out_width", "out_rms")


def test_a_whole_node_passes_and_is_built() -> None:
    from omnichat.encoders.base import StreamSpec

    check_part(STACK, "fusion", Fusion, GIVEN)
    part = build_part(STACK, "fusion", Fusion, specs={"one": StreamSpec(4, 1, 50.0)}, out_width=8, out_rms=0.1)
    assert isinstance(part, Stack) and part.queries == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": None}, "must be a part with a _target_"),
        ({"_target_": "os.system"}, "is not allowed"),
        ({"_target_": "omnichatevil.fusion.Stack"}, "is not allowed"),
        ({"_target_": "omnichat.fusion.stack.Stac"}, "cannot be imported"),
        ({"_target_": "omnichat.nothing.Stack"}, "cannot be imported"),
        ({"_target_": "omnichat.fusion.stack.annotations"}, "is not a Fusion"),
        ({"_target_": "omnichat.fusion.stack.os.system"}, "cannot be imported"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"specs": {}}, "'specs' is not valid"),
        ({"width": "8"}, "fusion.width='8' must be of type int"),
        ({"width": True}, "fusion.width=True must be of type int"),
        ({"width": 8.0}, "fusion.width=8.0 must be of type int"),
        ({"dropout": float("nan")}, "must be finite"),
        ({"dropout": float("inf")}, "must be finite"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_part({**STACK, **change}, "fusion", Fusion, GIVEN)
    assert str(error.value).startswith("fusion")


def test_a_missing_setting_is_named() -> None:
    node = {"_target_": "omnichat.data.readers.dailytalk.DailyTalk"}
    with pytest.raises(UserError, match=r"source\.path is missing: DailyTalk needs it"):
        check_part(node, "source", Reader)


def test_a_part_inside_a_part_may_not_point_outside() -> None:
    node = {"_target_": "omnichat.synthesis.checks.suite.CheckSuite", "checks": {"a": {"_target_": "os.system"}}}
    with pytest.raises(UserError, match=r"checks\.checks\.a\._target_='os.system' is not allowed"):
        check_part(node, "checks", object)


@pytest.mark.parametrize(
    ("value", "hint", "fitting"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ((1.0, 2), Sequence[float], True),
        ("ab", Sequence[str], False),
        ({"a": 1}, Mapping[str, int], True),
        ({"a": "b"}, Mapping[str, int], False),
        (3, Mapping[str, int], False),
    ],
)
def test_fits(value: Any, hint: Any, fitting: bool) -> None:
    assert fits(value, hint) is fitting


@settings(max_examples=60, deadline=None)
@given(st.integers() | st.floats(allow_nan=False) | st.text() | st.none() | st.booleans() | st.lists(st.integers()))
def test_fits_agrees_with_the_language(value: Any) -> None:
    assert fits(value, Any)
    assert fits(value, str) == isinstance(value, str)
    assert fits(value, int) == (type(value) is int)
    assert fits(value, bool) == isinstance(value, bool)
    assert fits(value, int | str | None) == (value is None or type(value) in (int, str))
    assert fits(value, list[int]) == isinstance(value, list)
