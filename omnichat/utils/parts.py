"""Parts: `_target_` nodes of the config, checked against the signature of the class they name, then built.

A part's constructor is its schema: no registry, no second list of its fields.
"""

from __future__ import annotations

import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from omnichat.utils.errors import UserError, one_of

ALLOWED = ("omnichat.",)  # a config from a stranger must not call what it likes


def build_part(node: Mapping[str, Any], key: str, base: type, **given: Any) -> Any:
    """Build the part that `node` describes.

    Args:
        node: plain mapping with `_target_` and the part's own settings.
        key: where it stands in the config, for messages.
        base: class that the part must be a subclass of.
        given: constructor arguments that come from the program and not from the config.

    Raises:
        UserError: no or forbidden target, unknown, missing or mistyped settings; each names the key.
    """
    check_part(node, key, base, tuple(given))
    settings = {name: _build_inner(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    return part_class(node, key, base)(**settings, **given)


def part_class(node: Mapping[str, Any], key: str, base: type) -> type:
    """The class that a part's `_target_` names."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise UserError(f"{key} must be a part with a _target_, e.g. chosen from configs/; got {node!r}")
    if not target.startswith(ALLOWED):
        raise UserError(f"{key}._target_={target!r} is not allowed; it must lie inside: {', '.join(ALLOWED)}")
    module_name, _, class_name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}._target_={target!r} cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{key}._target_={target!r} is not a {base.__name__}")
    return cls


def check_part(node: Mapping[str, Any], key: str, base: type, given: tuple[str, ...] = ()) -> None:
    """Check a part's settings against its constructor without building it; see `build_part` for the errors."""
    cls = part_class(node, key, base)
    parameters = dict(inspect.signature(cls).parameters)
    hints = typing.get_type_hints(inspect.getattr_static(cls, "__init__"))
    open_names = [name for name in parameters if name not in given]
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in open_names:
            raise one_of(f"{key}: setting", name, open_names)
        _check_inner(value, f"{key}.{name}")
        if name in hints and not fits(value, hints[name]):
            raise UserError(f"{key}.{name}={value!r} must be of type {_type_name(hints[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}.{name}={value!r} must be finite")
    for name in open_names:
        if parameters[name].default is inspect.Parameter.empty and name not in node:
            raise UserError(f"{key}.{name} is missing: {cls.__name__} needs it")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain config value has the type of an annotation (an int is a float; anything fits Any)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or _is_part(value):  # a part inside a part is checked against its own class
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(v, args[1]) for v in value.values())
    if origin is not None:  # list, tuple, Sequence: the elements' type
        return isinstance(value, list | tuple) and all(fits(v, args[0]) for v in value if args)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _check_inner(value: Any, key: str) -> None:
    if _is_part(value):
        check_part(value, key, object)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _check_inner(inner, f"{key}.{name}")


def _build_inner(value: Any, key: str) -> Any:
    """Build the parts inside a part's settings; everything else stays as it is."""
    if _is_part(value):
        return build_part(value, key, object)
    if isinstance(value, Mapping):
        return {name: _build_inner(inner, f"{key}.{name}") for name, inner in value.items()}
    return value


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
