"""The streams of counter_random inside Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def uniform(word):  # type: ignore[no-untyped-def]
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.999999940395355224609375)


@triton.jit  # type: ignore[untyped-decorator]
def interleaved(a, b, c, d, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """a0 b0 c0 d0 a1 ..: four blocks of SIZE / 4 as one."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [SIZE])


@triton.jit  # type: ignore[untyped-decorator]
def words(seed, first, c1, c2, c3, GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four blocks of words, counters `first`, `first` + 1, ..; the other counter words are scalars."""
    c0 = (first + tl.arange(0, GROUPS)).to(tl.uint32)
    zero = c0 * 0
    return tl.philox(seed, c0, zero + c1.to(tl.uint32), zero + c2.to(tl.uint32), zero + c3.to(tl.uint32))


@triton.jit  # type: ignore[untyped-decorator]
def gumbels(seed, start, c1, c2, c3, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Standard Gumbels of elements `start` .. `start` + SIZE - 1; both are multiples of 4."""
    w0, w1, w2, w3 = words(seed, start // 4, c1, c2, c3, SIZE // 4)
    u = uniform(interleaved(w0, w1, w2, w3, SIZE))
    series = u * (1.0 + u * (0.5 + u * 0.3333333333333333))
    return -tl.log(tl.where(u < 0.00390625, series, -tl.log(1.0 - u)))
