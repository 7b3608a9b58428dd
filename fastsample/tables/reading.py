"""Dataclasses from JSON, by their own annotations: every key and type is checked, nothing is guessed."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def read_json(kind: type[Kind], text: str) -> Kind:
    """The `kind`, a dataclass of numbers, strings, tuples, mappings and dataclasses, that `text` holds.

    Raises ValueError, in one line, when `text` is not JSON, or a key is missing, unknown, or of another type than its
    annotation says; numbers must be finite.
    """
    try:
        raw = json.loads(_checked(text, str, "text"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"text is not JSON ({error}): give what to_json returned, whole") from None
    value: Kind = _read(kind, raw, kind.__name__)
    return value


def _read(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as `kind`; `where` says what it is, for errors."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**_fields(kind, _checked(raw, dict, where), where))
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        (some,) = (argument for argument in get_args(kind) if argument is not type(None))
        return None if raw is None else _read(some, raw, where)
    if get_origin(kind) is tuple:
        items, wanted = _checked(raw, list, where), get_args(kind)
        if wanted[-1] is Ellipsis:
            wanted = (wanted[0],) * len(items)
        if len(items) != len(wanted):
            raise ValueError(f"{where} has {len(items)} values: give {len(wanted)}")
        pairs = enumerate(zip(wanted, items, strict=True))
        return tuple(_read(want, item, f"{where}[{index}]") for index, (want, item) in pairs)
    if get_origin(kind) is Mapping:
        items, (_, wanted) = _checked(raw, dict, where), get_args(kind)
        return {key: _read(wanted, item, f"{where}.{key}") for key, item in items.items()}
    return _number(raw, where) if kind is float else _checked(raw, kind, where)


def _fields(kind: type, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = _hints(kind)
    if raw.keys() != hints.keys():
        missing, unknown = sorted(hints.keys() - raw.keys()), sorted(raw.keys() - hints.keys())
        raise ValueError(f"{where}: keys missing {missing}, unknown {unknown}; give what to_json returned")
    return {key: _read(hint, raw[key], f"{where}.{key}") for key, hint in hints.items()}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked(raw: Any, kind: type, where: str) -> Any:
    if type(raw) is not kind:
        raise ValueError(f"{where} is {raw!r:.60}: give a {kind.__name__}")
    return raw


def _number(raw: Any, where: str) -> float:
    if type(raw) not in (int, float) or not abs(raw) <= 1e300:  # nor nan, nor integers beyond any float
        raise ValueError(f"{where} is {raw!r:.60}: give a finite number")
    return float(raw)
