"""The causal transformer of a TarFlow block, with keys and values of earlier tokens kept where asked."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fastsample.sampling.backend import accumulation_dtype


@dataclass
class KeyValues:
    """Keys and values [B, heads, T, head_dim] of one layer; a pass reads those of the tokens before its own."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, like: Tensor, batch: int, heads: int, length: int, head_dim: int) -> KeyValues:
        """Room for `length` tokens, in the dtype and on the device of `like`."""
        keys, values = (like.new_empty(batch, heads, length, head_dim) for _ in range(2))
        return cls(keys, values)

    def extend(self, begin: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write those of the tokens from `begin` on; all up to the last one written."""
        end = begin + keys.shape[2]
        self.keys[:, :, begin:end], self.values[:, :, begin:end] = keys, values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True)
class Pass:
    """One pass over the tokens from `begin` on: what all layers share.

    `mask` [n, begin + n] is added to the attention's logits; None where a token sees all (one token), or those up to
    itself (`begin` 0). `temperature` divides the attention's logits: one number, or one an item [B, 1, 1, 1].
    """

    begin: int = 0
    mask: Tensor | None = None
    temperature: float | Tensor = 1.0


WHOLE = Pass()
"""A pass over all tokens, as in training."""


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32 or wider, returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        normal = F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return normal.to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention of tokens [B, n, channels], layer norm first."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = channels // head_dim, head_dim
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, now: Pass, kept: KeyValues | None = None) -> Tensor:
        batch, count, channels = x.shape
        heads = self.qkv(self.norm(x)).view(batch, count, 3, self.heads, self.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if not isinstance(now.temperature, float) or now.temperature != 1.0:
            query = query / now.temperature
        if kept is not None:
            key, value = kept.extend(now.begin, key, value)
        causal = now.begin == 0 and count > 1
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if causal else now.mask, is_causal=causal
        )
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, channels))
        return result


class MLP(nn.Module):
    """Two linear maps with a GELU between, layer norm first."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.main = nn.Sequential(
            nn.Linear(channels, expansion * channels), nn.GELU(), nn.Linear(expansion * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.main(self.norm(x))
        return result


class AttentionBlock(nn.Module):
    """Attention, then MLP, each added to its input."""

    def __init__(self, channels: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.attention = Attention(channels, head_dim)
        self.mlp = MLP(channels, expansion)

    def forward(self, x: Tensor, now: Pass, kept: KeyValues | None = None) -> Tensor:
        x = x + self.attention(x, now, kept)
        result: Tensor = x + self.mlp(x)
        return result
