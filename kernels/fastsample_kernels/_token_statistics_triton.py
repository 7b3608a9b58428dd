"""token_statistics' kernels: a scan of one part of a row, and where rows are split, their parts' combination.

Exponentials are in base 2: with y = logits log2(e) / temperature and the largest y so far, `base`, a part is
s = sum 2^(y - base) and w = sum 2^(y - base) (y - base); then logsumexp = ln 2 (base + log2 s) and the entropy is
ln 2 (log2 s - w / s), two terms of one sign. The arg-max and the sums stay by lane until the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsample_kernels._bound import Launcher
from fastsample_kernels._device import processors
from fastsample_kernels._random_triton import gumbels
from fastsample_kernels.blocks import block_config
from fastsample_kernels.counter_random import rows_per_seed

LAST = tl.constexpr(2**31 - 1)
FIELDS, INDICES = 6, 2  # of a part: top1, top2, base, s, w, score; token, sample


@triton.jit  # type: ignore[untyped-decorator]
def _lowest(values, places, largest):  # type: ignore[no-untyped-def]
    """The lowest place of the largest value."""
    return tl.min(tl.where(values == largest, places, LAST))


@triton.jit  # type: ignore[untyped-decorator]
def _leaders(best, second, token, score, sample, nan, s):  # type: ignore[no-untyped-def]
    """By lane to one each: largest and second largest value, place of the largest, and of the largest score.

    Where there is a NaN, at the place `nan`, values are the sum `s`, which is NaN too, and both places are its own.
    """
    top1 = tl.max(best)
    lowest = _lowest(best, token, top1)
    top2 = tl.max(tl.where(token == lowest, second, best))
    chosen = _lowest(score, sample, tl.max(score))
    broken = nan != LAST
    return (
        tl.where(broken, s, top1),
        tl.where(broken, s, top2),
        tl.where(broken, nan, lowest),
        tl.where(broken, nan, chosen),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _first_nan(row, begin, end, excluded, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    found = tl.full([], LAST, tl.int32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < end, other=0.0).to(tl.float32)
        found = tl.minimum(found, tl.min(tl.where((x != x) & (at != excluded), at, LAST)))
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    values, indices, logits_row, row, rows, top1, top2, base, s, w, token, sample, excluded, GUMBEL: tl.constexpr
):
    """A row's results from its sums."""
    log_s = tl.log2(s)
    logsumexp = tl.where(top1 == float("inf"), top1, 0.6931471805599453 * (base + log_s))
    entropy = 0.6931471805599453 * (log_s - w / s)
    tl.store(values + row, top1)
    tl.store(values + rows + row, top2)
    tl.store(values + 2 * rows + row, logsumexp)
    tl.store(values + 3 * rows + row, tl.maximum(entropy, 0.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(indices + row, token.to(tl.int64))
    if GUMBEL:
        drawn = tl.load(logits_row + sample).to(tl.float32)
        tl.store(values + 4 * rows + row, tl.where(sample == excluded, float("-inf"), drawn))
        tl.store(indices + rows + row, sample.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _row_of(logits, row, inner, outer_stride, inner_stride):  # type: ignore[no-untyped-def]
    return logits + (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride


@triton.jit(do_not_specialize=["rows", "inner", "per_seed", "excluded"])  # type: ignore[untyped-decorator]
def _scan_kernel(  # type: ignore[no-untyped-def]
    values,
    indices,
    logits,
    temperature,
    gumbel_temperature,
    seed,
    offset,
    rows,
    vocabulary,
    chunk,
    splits,
    inner,
    outer_stride,
    inner_stride,
    temperature_stride,
    gumbel_stride,
    seed_stride,
    offset_stride,
    per_seed,
    excluded,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    GUMBEL: tl.constexpr = seed is not None
    row = tl.program_id(0) // splits
    begin = (tl.program_id(0) % splits) * chunk
    end = tl.minimum(begin + chunk, vocabulary)
    logits_row = _row_of(logits, row, inner, outer_stride, inner_stride)
    scale = 1.4426950408889634
    if temperature is not None:
        scale = scale / tl.load(temperature + row * temperature_stride).to(tl.float32)
    if GUMBEL:
        key = tl.load(seed + row * seed_stride)
        word = tl.load(offset + row * offset_stride)
        heat = tl.load(gumbel_temperature + row * gumbel_stride).to(tl.float32)
        place = row % per_seed

    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    second = best
    score = best
    token = begin + lanes
    sample = token
    largest = float("-inf")
    base = 0.0
    s = tl.zeros([BLOCK], tl.float32)
    w = tl.zeros([BLOCK], tl.float32)
    loaded = tl.load(logits_row + token, mask=token < end, other=float("-inf"))
    for start in range(begin, end, BLOCK):
        at = start + lanes
        x = tl.where(at == excluded, float("-inf"), loaded.to(tl.float32))
        following = at + BLOCK
        loaded = tl.load(logits_row + following, mask=following < end, other=float("-inf"))
        above = x > best
        second = tl.maximum(second, tl.minimum(x, best))
        best = tl.where(above, x, best)
        token = tl.where(above, at, token)
        if GUMBEL:
            drawn = x + heat * gumbels(key, start, key * 0, word, place, BLOCK)
            sample = tl.where(drawn > score, at, sample)
            score = tl.maximum(score, drawn)
        y = x * scale
        block_largest = tl.max(y)
        if block_largest > largest:
            shift = tl.where(largest == float("-inf"), 0.0, largest - block_largest)
            factor = tl.exp2(shift)
            w = factor * (w + s * shift)
            s = factor * s
            largest = block_largest
            base = block_largest
        # the floor keeps 0 (-inf) out of w, at a value whose power is 0; NaN passes
        d = tl.maximum(y - base, -200.0, propagate_nan=tl.PropagateNan.ALL)
        e = tl.exp2(d)
        s += e
        w += d * e

    total_s = tl.sum(s)
    total_w = tl.sum(w)
    nan = tl.full([], LAST, tl.int32)
    if total_s != total_s:  # NaN or +inf among them: only then the row is read again
        nan = _first_nan(logits_row, begin, end, excluded, BLOCK)
    top1, top2, lowest, chosen = _leaders(best, second, token, score, sample, nan, total_s)
    if SPLIT:
        part = tl.program_id(0).to(tl.int64)
        tl.store(values + part * 6, top1)
        tl.store(values + part * 6 + 1, top2)
        tl.store(values + part * 6 + 2, base)
        tl.store(values + part * 6 + 3, total_s)
        tl.store(values + part * 6 + 4, total_w)
        tl.store(values + part * 6 + 5, tl.max(score))
        tl.store(indices + part * 2, lowest)
        tl.store(indices + part * 2 + 1, chosen)
    else:
        _finish(
            values,
            indices,
            logits_row,
            row,
            rows,
            top1,
            top2,
            base,
            total_s,
            total_w,
            lowest,
            chosen,
            excluded,
            GUMBEL,
        )


@triton.jit(do_not_specialize=["rows", "splits", "inner", "excluded"])  # type: ignore[untyped-decorator]
def _combine_kernel(  # type: ignore[no-untyped-def]
    values,
    indices,
    partial,
    places,
    logits,
    rows,
    splits,
    inner,
    outer_stride,
    inner_stride,
    excluded,
    GUMBEL: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    inside = lanes < splits
    part = partial + (row.to(tl.int64) * splits + lanes) * 6
    best = tl.load(part, mask=inside, other=float("-inf"))
    second = tl.load(part + 1, mask=inside, other=float("-inf"))
    base = tl.load(part + 2, mask=inside, other=0.0)
    s = tl.load(part + 3, mask=inside, other=0.0)
    w = tl.load(part + 4, mask=inside, other=0.0)
    score = tl.load(part + 5, mask=inside, other=float("-inf"))
    place = places + (row.to(tl.int64) * splits + lanes) * 2
    token = tl.load(place, mask=inside, other=LAST)
    sample = tl.load(place + 1, mask=inside, other=LAST)

    empty = s == 0.0  # a part of -inf alone, whose base says nothing
    largest = tl.max(tl.where(empty, float("-inf"), base))
    common = tl.where(largest == float("-inf"), 0.0, largest)
    shift = tl.where(empty, 0.0, base - common)
    factor = tl.exp2(shift)
    total_w = tl.sum(factor * (w + s * shift))
    total_s = tl.sum(factor * s)
    nan = tl.min(tl.where(best != best, token, LAST))
    top1, top2, lowest, chosen = _leaders(best, second, token, score, sample, nan, total_s)
    logits_row = _row_of(logits, row, inner, outer_stride, inner_stride)
    _finish(
        values, indices, logits_row, row, rows, top1, top2, common, total_s, total_w, lowest, chosen, excluded, GUMBEL
    )


_scan, _combine = Launcher(_scan_kernel), Launcher(_combine_kernel)


def launch(
    values: Tensor,
    indices: Tensor,
    logits: Tensor,
    temperature: Tensor | None,
    gumbel_temperature: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    excluded: int | None,
) -> None:
    """One launch where there are rows enough for the device, else two. No row is empty."""
    shape = logits.shape[:-1]
    rows, vocabulary = shape.numel(), logits.shape[-1]
    logits, inner, strides = _rows(logits)
    config = block_config("token_statistics", logits.device)
    splits, chunk = _split(rows, vocabulary, config, processors(logits.device))
    of_rows = [
        values_ if values_ is None or values_.numel() == 1 else values_.expand(shape).reshape(-1)
        for values_ in (temperature, gumbel_temperature, seed, offset)
    ]
    of_rows_strides = [0 if values_ is None or values_.numel() == 1 else values_.stride(0) for values_ in of_rows]
    left_out = -1 if excluded is None else excluded
    partial, places = values, indices
    if splits > 1:
        partial = values.new_empty(rows * splits, FIELDS)
        places = indices.new_empty(rows * splits, INDICES, dtype=torch.int32)
    per_seed = 1 if seed is None else rows_per_seed(seed, shape)
    numbers = (rows, vocabulary, chunk, splits, inner, *strides, *of_rows_strides, per_seed, left_out)
    scan = (partial, places, logits, *of_rows, *numbers, splits > 1, config["block"])
    _scan(logits.device, rows * splits, scan, warps=config["warps"])
    if splits > 1:
        numbers = (rows, splits, inner, *strides, left_out, seed is not None, triton.next_power_of_2(splits))
        _combine(logits.device, rows, (values, indices, partial, places, logits, *numbers), warps=1)


def _split(rows: int, vocabulary: int, config: dict[str, int], multiprocessors: int) -> tuple[int, int]:
    """Programs a row and logits a program: about four programs a multiprocessor, none below the configured chunk."""
    block = config["block"]
    splits = min(triton.cdiv(4 * multiprocessors, rows), triton.cdiv(vocabulary, config["chunk"]))
    chunk = triton.cdiv(triton.cdiv(vocabulary, splits), block) * block
    return triton.cdiv(vocabulary, chunk), chunk


def _rows(logits: Tensor) -> tuple[Tensor, int, tuple[int, int]]:
    """The logits (copied where need be), with rows as `inner` of them at one stride, repeated at another."""
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    groups: list[tuple[int, int]] = []
    for size, stride in zip(logits.shape[:-1], logits.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    if len(groups) > 2:
        return _rows(logits.contiguous())
    (_, outer), (inner, stride) = [(1, 0), (1, 0), *groups][-2:]
    return logits, inner, (outer, stride)
