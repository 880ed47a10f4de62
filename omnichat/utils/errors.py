"""The one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NAMED = 60  # choices that a message lists


class UserError(ValueError):
    """A mistake in the user's input: a config value, a path, a line of a manifest.

    The command line prints its message on one line, without a stack trace, and exits with code 2.
    The message names the culprit (key, file or line) and says what would be right.
    """


def one_of(key: str, value: object, choices: Iterable[object]) -> UserError:
    """Return the error for `key=value` when only `choices` are valid, with the nearest choice suggested.

    Choices may come out of a file (its columns): whatever they hold, the message is one line and not endless.
    """
    names = [_printable(str(choice)) for choice in choices]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    listed = ", ".join(names[:_NAMED]) + (f", ... ({len(names)} in all)" if len(names) > _NAMED else "")
    return UserError(f"{key}={shown} is not valid{hint}; choose one of: {listed}")


def _printable(name: str) -> str:
    short = name if len(name) <= 60 else f"{name[:57]}..."
    return short if short.isprintable() else repr(short)[1:-1]
