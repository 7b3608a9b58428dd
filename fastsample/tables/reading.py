"""Dataclasses from JSON, by their own annotations: every key and type is checked, nothing is guessed."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
Reader = Callable[[Any, str], Any]


def read_json(kind: type[Kind], text: str) -> Kind:
    """The `kind`, a dataclass of numbers, strings, tuples, mappings and dataclasses, that `text` holds.

    Raises ValueError, in one line, when `text` is not JSON, or a key is missing, unknown, or of another type than its
    annotation says; numbers must be finite.
    """
    try:
        raw = json.loads(_checked(text, str, "text"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"text is not JSON ({error}): give what to_json returned, whole") from None
    annotation: Any = kind
    value: Kind = _reader(annotation)(raw, kind.__name__)
    return value


@functools.cache
def _reader(kind: Any) -> Reader:
    """What makes a value of the annotation `kind` out of a raw one; its second argument says where, for errors."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # X | None
        (some,) = (argument for argument in arguments if argument is not type(None))
        read_some = _reader(some)
        return lambda raw, where: None if raw is None else read_some(raw, where)
    if origin is tuple:
        return _tuple_reader(arguments)
    if origin is Mapping:
        read_item = _reader(arguments[1])
        return lambda raw, where: {
            key: read_item(item, f"{where}.{key}") for key, item in _checked(raw, dict, where).items()
        }
    return _number if kind is float else lambda raw, where: _checked(raw, kind, where)


def _dataclass_reader(kind: type) -> Reader:
    readers = {key: _reader(hint) for key, hint in get_type_hints(kind).items()}

    def read(raw: Any, where: str) -> Any:
        if _checked(raw, dict, where).keys() != readers.keys():
            missing, unknown = sorted(readers.keys() - raw.keys()), sorted(raw.keys() - readers.keys())
            raise ValueError(f"{where}: keys missing {missing}, unknown {unknown}; give what to_json returned")
        return kind(**{key: reader(raw[key], f"{where}.{key}") for key, reader in readers.items()})

    return read


def _tuple_reader(kinds: Sequence[Any]) -> Reader:
    readers = [_reader(kind) for kind in kinds if kind is not Ellipsis]
    any_length = kinds[-1] is Ellipsis

    def read(raw: Any, where: str) -> Any:
        wanted = readers * len(_checked(raw, list, where)) if any_length else readers
        if len(raw) != len(wanted):
            raise ValueError(f"{where} has {len(raw)} values: give {len(wanted)}")
        return tuple(
            [reader(item, f"{where}[{i}]") for i, (reader, item) in enumerate(zip(wanted, raw, strict=True))]
        )

    return read


def _checked(raw: Any, kind: type, where: str) -> Any:
    if type(raw) is not kind:
        raise ValueError(f"{where} is {raw!r:.60}: give a {kind.__name__}")
    return raw


def _number(raw: Any, where: str) -> float:
    if type(raw) not in (int, float) or not abs(raw) <= 1e300:  # nor nan, nor integers beyond any float
        raise ValueError(f"{where} is {raw!r:.60}: give a finite number")
    return float(raw)
