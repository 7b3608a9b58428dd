"""Progress on stderr: a bar with the time left on a terminal, a plain line for each thing done elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastsample.bench.estimate import in_words

Item = TypeVar("Item")


def following(
    items: Iterable[Item], *, total: int, describe: Callable[[Item], str], done: int = 0, timed: bool = False
) -> Iterator[Item]:
    """`items` as they come, each told once it is there; `done` of `total` are there already.

    With `timed` the description says itself what time is left.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, completed=done)
            for item in items:
                bar.update(task, advance=1, description=describe(item))
                yield item
        return
    began = time.perf_counter()
    for number, item in enumerate(items, done + 1):
        left = (time.perf_counter() - began) / (number - done) * (total - number)
        rest = "" if timed or number == total else f"; {in_words(left)} left"
        print(f"{number}/{total}  {describe(item)}{rest}", file=sys.stderr, flush=True)
        yield item


def counting(measure: Callable[[Callable[[str], None]], Item]) -> Item:
    """What `measure(tell)` finds, which tells what it has done; nobody knows how much is left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return measure(lambda text: print(text, file=sys.stderr, flush=True))
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("")
        return measure(lambda text: bar.update(task, description=text))
