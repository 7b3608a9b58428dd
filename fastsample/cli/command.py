"""How every command reads its options: each once, none empty, and one that does not parse is named with its value."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

MAY_BE_EMPTY = ("prompt", "negative_prompt")
"""A negative prompt that is empty means none; an empty prompt is refused with the others."""
NOUNS = {"integer": "an integer", "number": "a number", "float": "a number"}
"""What to give, by a word of click's message."""


class Interrupted(Exception):  # noqa: N818  no error
    """Ctrl-C, and in words what is kept and how to go on."""


class Command(TyperCommand):
    """A command whose wrong options are ValueErrors of one line, before it runs; Ctrl-C in it is `Interrupted`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:  # which click would take
            raise Interrupted(str(stopped) or "nothing was written; the same command begins anew") from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the shell asks for completions
            return super().parse_args(ctx, args)
        texts, _, order = self.make_parser(ctx).parse_args(args=list(args))
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except Exception as error:
            param = getattr(error, "param", None)
            if param is None or texts.get(param.name) is None:  # not of a value
                raise
            said = str(getattr(error, "message", error))
            noun = next((noun for word, noun in NOUNS.items() if word in said), "another value")
            raise ValueError(f"{flag(param)} = {shown(texts[param.name])}: give {noun}") from None
        for param in order:
            if not param.multiple and order.count(param) > 1:
                raise ValueError(f"{flag(param)} is there twice: leave one of them out")
            given = texts[param.name]
            values = given if isinstance(given, list) else [given]
            if param.name not in MAY_BE_EMPTY and any(isinstance(one, str) and not one.strip() for one in values):
                raise ValueError(f"{flag(param)} = {shown(given)}: give a value, or leave it out")
        return rest


def check_switches(
    ctx: typer.Context, needs: Mapping[str, str] = {}, excludes: Mapping[str, Collection[str]] = {}
) -> None:
    """Raise ValueError for an option on the command line that would do nothing there.

    `needs` maps options to the one that they are for; `excludes` maps one to those that mean nothing beside it.
    """
    given = {param.name: param for param in ctx.command.params if _typed(ctx, param.name)}
    for name, param in given.items():
        said = f"{flag(param)}{_value(ctx.params[name])}"
        for other, names in excludes.items():
            if name in names and ctx.params[other]:
                switch = flag(_named(ctx, other)) + _value(ctx.params[other])
                raise ValueError(f"{said} with {switch}: it does nothing there; leave one of them out")
        if name in needs and not ctx.params[needs[name]]:
            switch = flag(_named(ctx, needs[name]))
            raise ValueError(f"{said} without {switch}: it does nothing there; give {switch}, or leave it out")


@contextlib.contextmanager
def on_interrupt(kept: Callable[[], str]) -> Iterator[None]:
    """In the block, Ctrl-C says what is `kept` and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept()) from None


def flag(param: Any) -> str:
    """What an option is called on the command line; an argument's name."""
    return str(param.opts[0] if param.opts[0].startswith("-") else param.name)


def shown(given: str | Sequence[str]) -> str:
    """The text of an option, or texts, quoted."""
    return ", ".join(map(repr, [given] if isinstance(given, str) else given))


def _named(ctx: typer.Context, name: str) -> Any:
    return next(param for param in ctx.command.params if param.name == name)


def _typed(ctx: typer.Context, name: str | None) -> bool:
    source = ctx.get_parameter_source(str(name))
    return source is not None and source.name == "COMMANDLINE"


def _value(value: Any) -> str:
    """` = value` after an option; nothing after a flag."""
    if isinstance(value, bool):
        return ""
    values = value if isinstance(value, (list, tuple)) else [value]
    return f" = {', '.join(repr(str(one)) if isinstance(one, os.PathLike) else repr(one) for one in values)}"
