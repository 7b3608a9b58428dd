"""What is asked of every refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def check_refused(call: Callable[[], object], words: str) -> None:
    """`call` raises ValueError with `words` in one line."""
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
