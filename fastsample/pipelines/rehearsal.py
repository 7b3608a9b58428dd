"""A pipeline's call up to its first evaluation: what it refuses by itself is found before anything is spent on it."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastsample.pipelines.apart import apart
from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.layers import EVALUATED, Layer, layered
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.request import sources

CHANGES = re.compile("ignored|divisible|resized|multiples of|rounding|one of", re.IGNORECASE)
"""In warnings of pipelines that do something else than what they are asked for."""

_HEARING = threading.RLock()  # held while the handlers of diffusers' logger are others: one rehearsal at a time


class _ReachedError(BaseException):
    """The first evaluation is due: no exception that a pipeline could catch."""


def rehearse(pipe: Any, call: Mapping[str, Any]) -> None:
    """Run `pipe(**call)` up to its first evaluation: inputs checked, prompts encoded, timesteps set.

    Raises ValueError, in one line, for what fails on the way, and where the pipeline warns that it will do something
    else than it is asked for: another size, another number of frames, no guidance.
    """
    warned: list[str] = []
    try:
        with _stopped(pipe), _heard(warned), apart(pipe):
            pipe(**call)
    except _ReachedError:
        pass
    except Exception as error:  # whatever a pipeline makes of missing parts and wrong arguments
        raise ValueError(_reason(pipe, error)) from None
    else:
        raise ValueError(f"model = {class_beneath(pipe).__name__} evaluates no network in its call")
    changed = [text for text in warned if CHANGES.search(text)]
    if changed:
        raise ValueError(" ".join(changed[0].split()))


@contextlib.contextmanager
def _stopped(pipe: Any) -> Iterator[None]:
    """In the block, calls of its denoisers by this thread end the pipeline's."""
    thread = threading.current_thread()

    def stop(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is thread:
            raise _ReachedError
        return beneath(*args, **kwargs)

    with contextlib.ExitStack() as undo:
        for denoiser in denoisers(pipe):
            undo.enter_context(layered(denoiser.component, Layer("rehearsal", stop, depth=EVALUATED)))
        yield


class _Listening(logging.Handler):
    """In the place of a logger's handlers: keeps this thread's warnings, and hands on those of others."""

    def __init__(self, into: list[str], level: int, handlers: list[logging.Handler]) -> None:
        super().__init__(logging.NOTSET)
        self._into, self._level, self._others = into, level, handlers
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            if record.levelno >= logging.WARNING:
                self._into.append(record.getMessage())
        elif record.levelno >= self._level:
            for handler in self._others:
                if record.levelno >= handler.level:
                    handler.handle(record)


@contextlib.contextmanager
def _heard(into: list[str]) -> Iterator[None]:
    """In the block, diffusers' warnings to this thread are collected, not printed, whatever its verbosity."""
    logger = logging.getLogger("diffusers")
    with _HEARING:
        level, handlers = logger.level, logger.handlers
        shown = logger.getEffectiveLevel()
        logger.handlers = [_Listening(into, shown, handlers)]
        logger.setLevel(min(shown, logging.WARNING))
        try:
            yield
        finally:
            logger.handlers = handlers
            logger.setLevel(level)


def _reason(pipe: Any, error: Exception) -> str:
    """Why the call failed: a part that is missing, a picture that is, or what the pipeline says."""
    kind, said = class_beneath(pipe).__name__, " ".join(str(error).split())
    text = said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}".rstrip(": ")
    if isinstance(error, NameError):
        return f"model = {kind} needs the package {error.name}: install it"
    absent = [name for name, part in pipe.components.items() if part is None]
    missing = [name for name in absent if name not in pipe._optional_components]
    missing = missing or [name for name in absent if name.startswith(("text_encoder", "tokenizer"))]
    if missing and "NoneType" in text:
        return f"model = {kind} has no {', '.join(missing)}: save it with them ({text})"
    asked = sources(pipe)
    if asked and not re.search("height|width|divisible", text):
        return f"model = {kind} starts from {', '.join(asked)}: give a text-to-image or text-to-video one ({text})"
    return text if isinstance(error, ValueError) else f"model = {kind} cannot be called so: {text}"
