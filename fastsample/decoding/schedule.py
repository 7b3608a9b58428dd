"""How many tokens a block commits at each of its steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["even", "dream"]
FINAL_TIME = 1e-3
"""Dream's last time, of a grid that falls from 1."""


def quota_and_share(
    schedule: Schedule, total: Tensor, left: Tensor, step: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Tokens due (int64 [B]) and their share of what is left (float64 [B]) at `step` [B], from 0, of `steps` a block.

    "even": `total` // steps, and one more in the first total % steps (LLaDA's). "dream": the part 1 - s / t of what
    is `left`, rounded down, with times t, s of a grid from 1 to 0.001. At the last step, all that is left.
    """
    if schedule == "even":
        quota = torch.minimum(total // steps + (step < total % steps), left)
        share = quota.double() / left.clamp(min=1)
    else:
        slope = (1 - FINAL_TIME) / steps
        share = slope / (1 - slope * step.double())  # 1 - s / t
        quota = (left * share).floor().long()
    last = step >= steps - 1
    return torch.where(last, left, quota), share.masked_fill(last, 1.0)
