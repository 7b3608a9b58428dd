"""Reading a kernel's PTX."""

from __future__ import annotations

import re
from collections import Counter


def loads(ptx: str) -> str:
    """How many loads from global memory there are of how many bytes a thread, the widest first: "3 x 16, 1 x 4"."""
    widths: Counter[int] = Counter()
    for vector, bits in re.findall(r"\bld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", ptx):
        widths[int(vector or 1) * int(bits) // 8] += 1
    return ", ".join(f"{count} x {width}" for width, count in sorted(widths.items(), reverse=True))
