"""The task of the bundled language model: five numbers of three digits, added column by column in writing.

    123+045+678+901+234=0+3=03+5=08+8=16+1=17+4=21;2+2=04+4=08+7=15+0=15+3=18;1+1=02+0=02+6=08+9=17+2=19;answer:1981

Every column starts with the carry and adds a digit of each number to what there is so far; the ones come first. Each
sum follows from what stands before it, so the text has steps that can be wrong, and an answer that can be checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS, DIGITS = 5, 3
PROMPT_LENGTH = NUMBERS * DIGITS + NUMBERS
"""Tokens: the digits, the signs between the numbers, and the = at the end."""
RESPONSE_LENGTH = 96
"""Tokens of the response with the end tokens that fill it."""
END = "<|end|>"
VOCABULARY = (*"0123456789+=;", "answer:", END, "<|mask|>")
TEST_SHARE = 16
"""One problem in so many is of the test split."""


@dataclass(frozen=True)
class Sum:
    """A problem: the numbers to add."""

    numbers: tuple[int, ...]

    @classmethod
    def from_text(cls, text: str) -> Sum:
        """The problem that a text such as `123+45+678+901+234` states, with or without `=`; else ValueError."""
        numbers = text.replace(" ", "").removesuffix("=").split("+")
        if len(numbers) != NUMBERS or not all(part.isdecimal() and len(part) <= DIGITS for part in numbers):
            raise ValueError(
                f"prompt = {text!r}: the bundled model adds {NUMBERS} numbers of up to {DIGITS} digits, "
                "as in 123+45+678+901+234"
            )
        return cls(tuple(map(int, numbers)))

    @property
    def prompt(self) -> str:
        """The problem as the model reads it."""
        return "+".join(f"{number:0{DIGITS}d}" for number in self.numbers) + "="

    @property
    def answer(self) -> int:
        """The sum."""
        return sum(self.numbers)

    @property
    def response(self) -> str:
        """The columns and the answer, without end tokens."""
        text, total = "", 0
        for column in range(DIGITS):
            total //= 10  # the carry
            text += f"{total}"
            for number in self.numbers:
                digit = number // 10**column % 10
                total += digit
                text += f"+{digit}={total:02d}"
            text += ";"
        return f"{text}answer:{self.answer:0{DIGITS + 1}d}"

    def judge(self, text: str) -> tuple[bool, bool]:
        """Whether the answer of a decoded response is right, and whether all of it is, up to its first end token."""
        written = text.partition(END)[0]
        return read_answer(written) == self.answer, written == self.response

    @property
    def is_test(self) -> bool:
        """Whether the problem is of the test split, which no training problem is."""
        return hash_of(self.numbers) % TEST_SHARE == 0


def hash_of(numbers: tuple[int, ...]) -> int:
    """A fixed hash (FNV-1a on the numbers), the same in every process."""
    value = 2166136261
    for number in numbers:
        value = (value ^ number) * 16777619 % 2**32
    return value >> 8


def problems(seed: int, *, test: bool) -> Iterator[Sum]:
    """Endless random problems of one split."""
    draw = random.Random(seed)
    while True:
        problem = Sum(tuple(draw.randrange(10**DIGITS) for _ in range(NUMBERS)))
        if problem.is_test == test:
            yield problem


def read_answer(response: str) -> int | None:
    """The number after `answer:`; None where there is none."""
    _, found, digits = response.partition("answer:")
    return int(digits) if found and digits.isdigit() else None
