"""A scheduler's config, assignments to which take effect, and its hashable form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.configuration_utils import FrozenDict


class Key:
    """A mapping that can be hashed: equal where all values, and their types, are equal."""

    __slots__ = ("_hash", "frozen", "values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.frozen = tuple((name, frozen(value)) for name, value in self.values.items() if name not in UNREAD)
        self._hash = hash(self.frozen)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.frozen == other.frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> Key:
        return self  # never changed

    def __reduce__(self) -> tuple[Any, ...]:
        return Key, (self.values,)


UNREAD = ("_use_default_values",)


def frozen(value: Any) -> Any:
    """`value` as something that can be hashed, and that differs where True and 1 do."""
    if isinstance(value, (np.ndarray, np.generic)):
        return frozen(value.tolist())
    if isinstance(value, Mapping):
        return tuple((name, frozen(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return type(value), value


class LiveConfig(FrozenDict):  # type: ignore[misc]
    """A config in which a key and the attribute of its name are one, so that assigning either takes effect.

    In diffusers `scheduler.config.flow_shift = 7` sets an attribute that the mapping does not know of, so that it
    depends on the reader whether it counts. Here it counts from the next `set_timesteps` on (what a step reads, such
    as `prediction_type`, from the next step on). Raises AttributeError for a key that the config does not have.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.__dict__["_sealed"] = True
        self.__dict__["_key"] = None

    def key(self) -> Key:
        """The same object as long as nothing was assigned or changed within a value."""
        known: Key | None = self.__dict__["_key"]
        if known is not None and all(frozen(value) == was for value, was in self.__dict__["_nested"]):
            return known
        known = self.__dict__["_key"] = Key(self)
        # the lists and dicts among the values, with what they held: they may be changed in place
        nested = [value for name, value in self.items() if _is_nested(name, value)]
        self.__dict__["_nested"] = [(value, frozen(value)) for value in nested]
        return known

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or "_sealed" not in self.__dict__:
            super().__setattr__(name, value)
        else:
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if "_sealed" in self.__dict__:
            if name not in self and not name.startswith("_"):
                near = difflib.get_close_matches(name, self, n=3) or ["one of its keys"]
                raise AttributeError(f"config.{name} = {value!r}: this config has no such key; use {', '.join(near)}")
            self.__dict__[name] = value
            self.__dict__["_key"] = None
        super().__setitem__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return LiveConfig, (dict(self),)


def _is_nested(name: str, value: Any) -> bool:
    return isinstance(value, (list, dict, np.ndarray)) and name not in UNREAD
