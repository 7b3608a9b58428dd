"""Several processes: the rows of a denoiser's call shared among them, each with the model on a device of its own.

Start an ordinary script with `torchrun` or `accelerate launch`; every process makes the same calls and returns the
same images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
        """`call` with this process' share of every tensor and list of `rows` rows."""
        share = -(-rows // self.count)
        mine = [min(row, rows - 1) for row in range(self.rank * share, (self.rank + 1) * share)]

        def cut(value: Tensor) -> Tensor:
            return value[mine] if len(value) == rows else value

        def chosen(parts: Any) -> Any:
            return type(parts)(parts[row] for row in mine) if len(parts) == rows else parts

        return {name: _mapped(value, cut, chosen) for name, value in call.items()}

    def gather(self, output: Any, rows: int) -> Any:
        """The denoiser's output for all `rows`, from those of the processes' shares."""
        share = -(-rows // self.count)

        def collect(value: Tensor) -> Tensor:
            if len(value) != share:
                return value
            parts = [torch.empty_like(value) for _ in range(self.count)]
            torch.distributed.all_gather(parts, value.contiguous())
            return torch.cat(parts)[:rows]

        return _mapped(output, collect)

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


def _mapped(value: Any, tensor: Callable[[Tensor], Tensor], rest: Callable[[Any], Any] | None = None) -> Any:
    """`value` with `tensor` applied to what it holds of tensors, and `rest` to its sequences of other things."""
    if isinstance(value, Tensor):
        return tensor(value) if value.ndim else value
    if isinstance(value, dict):  # diffusers' outputs too
        changed = {key: _mapped(part, tensor, rest) for key, part in value.items()}
        return type(value)(**changed) if hasattr(value, "to_tuple") else changed
    if isinstance(value, (list, tuple)):
        if rest is not None and not any(isinstance(part, Tensor) for part in value):
            return rest(value)
        return type(value)(_mapped(part, tensor, rest) for part in value)
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
