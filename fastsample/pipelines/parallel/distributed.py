"""Several processes: the rows of a denoiser's call shared among them, each with the model on a device of its own.

Start an ordinary script with `torchrun` or `accelerate launch`; every process makes the same calls and returns the
same images.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastsample.pipelines.guidance.rows import Rows


def process_state() -> Any:
    """accelerate's PartialState, which joins the processes that a launcher started; None in a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState  # only in a process that a launcher started

    state = PartialState(cpu=not torch.cuda.is_available())
    return state if state.num_processes > 1 else None


class RowShares:
    """Each process' share of the rows of a call: consecutive ones, as many for each, the last one's repeated.

    Raises ValueError in a process that was started alone.
    """

    def __init__(self) -> None:
        state = process_state()
        if state is None:
            raise ValueError(
                "distributed = True in a single process: start the script with torchrun or accelerate launch"
            )
        self.rank, self.count = int(state.process_index), int(state.num_processes)

    def take(self, call: dict[str, Any], rows: int) -> dict[str, Any]:
        """A denoiser's `call` of `rows` rows with this process' share of everything that has one for each."""
        share = -(-rows // self.count)
        mine = [min(row, rows - 1) for row in range(self.rank * share, (self.rank + 1) * share)]
        return Rows(mine, rows).cut((), call)[1]

    def gather(self, output: Any, rows: int) -> Any:
        """The denoiser's output for all `rows`, from those of the processes' shares."""
        share = -(-rows // self.count)

        def collect(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.ndim or len(value) != share:
                return value
            parts = [torch.empty_like(value) for _ in range(self.count)]
            torch.distributed.all_gather(parts, value.contiguous())
            return torch.cat(parts)[:rows]

        return tree_map(collect, output)

    def check_agreement(self, tensors: list[Tensor]) -> None:
        """ValueError, in every process, unless all have the same tensors, by their sums."""
        own = torch.stack([tensor.detach().double().sum() for tensor in tensors])
        sums = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(sums, own)
        if not all(torch.allclose(each, sums[0], rtol=1e-3, atol=1e-3) for each in sums):
            raise ValueError(
                "the processes sample different images: give the same prompt, and a generator with the same seed, "
                "in every one"
            )

    def broadcast(self, value: Tensor) -> Tensor:
        """The first process' `value`, so that rounding on other devices leads nobody astray."""
        value = value.contiguous()
        torch.distributed.broadcast(value, src=0)
        return value


def own_share(jobs: list[Any]) -> list[Any]:
    """This process' part of `jobs`, which every process has: each a stretch of them; all of them in a single one."""
    state = process_state()
    if state is None:
        return jobs
    share = -(-len(jobs) // state.num_processes)
    return jobs[state.process_index * share : (state.process_index + 1) * share]


def collected(results: list[Any]) -> list[Any] | None:
    """The results of all processes' shares in order, in the first process; None in the others."""
    state = process_state()
    if state is None:
        return results
    shares: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(shares, results)
    return [result for share in shares for result in share] if state.is_main_process else None
