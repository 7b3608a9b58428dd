"""One block of a TarFlow: an affine map of each token whose scale and shift follow from the earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fastsample.sampling.backend import accumulation_dtype
from fastsample.tarflow.layers import WHOLE, AttentionBlock, KeyValues, Pass


class Flow(Protocol):
    """What decoding knows of a :class:`fastsample.TarFlowModel`: its blocks, and one pass of a block's network."""

    blocks: Sequence[FlowBlock]
    var: Tensor

    def __call__(
        self,
        tokens: Tensor,
        condition: Tensor | None = None,
        *,
        block: int,
        now: Pass,
        kept: Sequence[KeyValues] = (),
    ) -> Tensor:
        """(a, b) [B, n, 2 C] of block number `block` at `tokens` [B, n, C]; see :meth:`FlowBlock.outputs`."""
        ...


class FlowBlock(nn.Module):
    """`z_0 = x_0`, `z_{i+1} = (x_{i+1} - b_i) exp(-a_i)` with (a_i, b_i) a causal transformer's output at token i.

    Tokens are [B, T, C]; every other block of a model takes them in reverse order (`flip`). Zhai et al. 2024,
    arXiv:2412.06329, equations 3 to 5. Parameters are named as in the authors' checkpoints.
    """

    def __init__(
        self,
        token_dim: int,
        num_tokens: int,
        channels: int,
        num_layers: int,
        head_dim: int,
        expansion: int,
        num_classes: int,
        flip: bool,
    ) -> None:
        super().__init__()
        self.flip, self.head_dim = flip, head_dim
        self.proj_in = nn.Linear(token_dim, channels)
        self.pos_embed = nn.Parameter(torch.randn(num_tokens, channels) * 1e-2)
        self.class_embed = nn.Parameter(torch.randn(num_classes, 1, channels) * 1e-2) if num_classes else None
        self.attn_blocks = nn.ModuleList(AttentionBlock(channels, head_dim, expansion) for _ in range(num_layers))
        self.proj_out = nn.Linear(channels, 2 * token_dim)
        nn.init.zeros_(self.proj_out.weight)  # the untrained block is nearly the identity

    def ordered(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, C] from the image's order to this block's, or back: the two are each other's inverse."""
        return tokens.flip(1) if self.flip else tokens

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """What is added to every token: the class embeddings [B, 1, channels], their mean for labels below 0.

        Without labels the mean [1, 1, channels]; without classes None.
        """
        if self.class_embed is None:
            return None
        mean = self.class_embed.mean(0, keepdim=True)
        if labels is None:
            return mean
        return torch.where((labels < 0)[:, None, None], mean, self.class_embed[labels.clamp(min=0)])

    def empty_cache(self, like: Tensor, batch: int) -> list[KeyValues]:
        """Room for the keys and values of `batch` rows of tokens, one entry per layer."""
        heads, length = self.pos_embed.shape[1] // self.head_dim, len(self.pos_embed)
        return [KeyValues.empty(like, batch, heads, length, self.head_dim) for _ in self.attn_blocks]

    def outputs(
        self, tokens: Tensor, condition: Tensor | None, now: Pass = WHOLE, kept: Sequence[KeyValues] = ()
    ) -> Tensor:
        """(a, b) [B, n, 2 C] at the tokens from `now.begin` on, in this block's order."""
        positions = self.pos_embed.flip(0) if self.flip else self.pos_embed
        hidden = self.proj_in(tokens) + positions[now.begin : now.begin + tokens.shape[1]]
        if condition is not None:
            hidden = hidden + condition
        for index, layer in enumerate(self.attn_blocks):
            hidden = layer(hidden, now, kept[index] if kept else None)
        result: Tensor = self.proj_out(hidden)
        return result

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z [B, T, C] of `tokens`, and `log |det dz/dx|` [B] in float32 or wider."""
        x = self.ordered(tokens)
        a, b = self.outputs(x[:, :-1], self.condition(labels)).chunk(2, -1)
        wide = a.to(accumulation_dtype(a.dtype))
        z = torch.cat([x[:, :1], (x[:, 1:] - b) * (-wide).exp().to(x.dtype)], 1)
        return self.ordered(z), -wide.sum((1, 2))
