"""How many tokens a block commits at each of its steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["even", "dream"]
DREAM_TIMES = 1000
"""Dream's times fall evenly from 1 to one part in so many."""


def quota_and_share(
    schedule: Schedule, total: Tensor, left: Tensor, step: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Tokens due (int64 [B]) and their share of what is left (float32 [B]) at `step` [B], from 0, of `steps` a block.

    "even": `total` // steps, and one more in the first total % steps (LLaDA's). "dream": the part 1 - s / t of what
    is `left`, rounded down, with times t, s of a grid from 1 to 0.001. At the last step, all that is left.
    """
    if schedule == "even":
        quota = torch.minimum(total // steps + (step < total % steps), left)
        share = quota.float() / left.clamp(min=1)
    else:
        # 1 - s / t as a fraction of integers: exact, and without float64, which not every device has
        part, whole = DREAM_TIMES - 1, DREAM_TIMES * steps - (DREAM_TIMES - 1) * step
        quota = left * part // whole
        share = torch.full_like(whole, part, dtype=torch.float32) / whole
    last = step >= steps - 1
    return torch.where(last, left, quota), share.masked_fill(last, 1.0)
