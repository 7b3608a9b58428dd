"""Threads that take turns, so that an order of events is forced and not left to chance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0  # seconds until a test that hangs fails


def elsewhere(job: Callable[[], Any]) -> Any:
    """What `job` returns, or raises, run to its end in another thread while this one waits."""
    return together(job)[0]


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """What the jobs return, each run in a thread of its own; the first exception of theirs."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:  # given to the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


class Turns:
    """`count` threads of which one runs at a time; `pass_on` lets the next go on and waits for the own turn."""

    def __init__(self, count: int) -> None:
        self._waiting = threading.Condition()
        self._order = list(range(count))
        self._turn = 0

    def take_part(self, number: int, job: Callable[[], Any]) -> Callable[[], Any]:
        """`job` as the thread of that number, which starts when its turn comes."""

        def run() -> Any:
            self._wait(number)
            try:
                return job()
            finally:
                with self._waiting:
                    place = self._order.index(number)
                    self._order.remove(number)
                    if self._order:
                        self._turn = self._order[place % len(self._order)]
                    self._waiting.notify_all()

        return run

    def pass_on(self, number: int) -> None:
        """To the next thread that is not done."""
        with self._waiting:
            place = self._order.index(number)
            self._turn = self._order[(place + 1) % len(self._order)]
            self._waiting.notify_all()
        self._wait(number)

    def _wait(self, number: int) -> None:
        with self._waiting:
            assert self._waiting.wait_for(lambda: self._turn == number, PATIENCE), "no turn came"
