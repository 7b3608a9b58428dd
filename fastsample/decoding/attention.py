"""Who sees whom: 4-D attention masks as booleans, True where a token sees another."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal(mask: Tensor, prompt: int, width: int) -> Tensor:
    """bool [B, 1, L, L]: a token sees its own block of `width` positions and the ones before (block diffusion).

    Blocks are counted from the end of the prompt, both ways; `mask` [B, L] is 0 for padding.
    """
    block = (torch.arange(mask.shape[1], device=mask.device) - prompt).div(width, rounding_mode="floor")
    return (block[None, :] <= block[:, None])[None, None] & mask[:, None, None].bool()


def with_shadows(visible: Tensor, at: Tensor, *, mutual: bool) -> Tensor:
    """bool [B, 1, L + S, L + S] from `visible` [B, 1, L, L], with S shadows of the positions `at` [B, S] behind.

    A shadow sees what the token at its position sees, but for that token itself; instead it sees itself, and with
    `mutual` the other shadows. Nothing else sees it.
    """
    length, extra = visible.shape[-1], at.shape[1]
    seen = visible.gather(2, at[:, None, :, None].expand(-1, 1, -1, length))
    seen = seen & (torch.arange(length, device=at.device) != at[..., None])[:, None]
    among = torch.eye(extra, dtype=torch.bool, device=at.device) | mutual
    upper = torch.nn.functional.pad(visible, (0, extra))
    lower = torch.cat([seen, among.expand(len(at), 1, extra, extra)], -1)
    return torch.cat([upper, lower], 2)
