"""A pipeline's call up to its first evaluation: what it refuses by itself is found before anything is spent on it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.request import sources

CHANGES = re.compile("ignored|divisible|resized|multiples of|rounding|one of", re.IGNORECASE)
"""In warnings of pipelines that do something else than what they are asked for."""


class _ReachedError(BaseException):
    """The first evaluation is due: no exception that a pipeline could catch."""


def rehearse(pipe: Any, call: Mapping[str, Any]) -> None:
    """Run `pipe(**call)` up to its first evaluation: inputs checked, prompts encoded, timesteps set.

    Raises ValueError, in one line, for what fails on the way, and where the pipeline warns that it will do something
    else than it is asked for: another size, another number of frames, no guidance.
    """
    warned: list[str] = []
    try:
        with _stopped(pipe), _heard(warned):
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
    """In the block, calls of its denoisers end the pipeline's."""

    def stop(*given: Any) -> NoReturn:
        raise _ReachedError

    with contextlib.ExitStack() as undo:
        for denoiser in denoisers(pipe):
            undo.callback(denoiser.component.register_forward_pre_hook(stop).remove)
        yield


@contextlib.contextmanager
def _heard(into: list[str]) -> Iterator[None]:
    """In the block, diffusers' warnings are collected, not printed, whatever its verbosity."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            into.append(record.getMessage())

    logger = logging.getLogger("diffusers")
    level, handlers = logger.level, logger.handlers
    logger.handlers = [Collector(logging.WARNING)]
    logger.setLevel(logging.WARNING)
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
