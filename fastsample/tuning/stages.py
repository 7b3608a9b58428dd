"""What has been found, on disk as it comes: an interrupted run goes on from there, and ends with the same result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastsample.cache import alone, replacing
from fastsample.pipelines.parallel.distributed import process_state
from fastsample.tuning.pairs import Purse


class Stages:
    """Results of stages in `folder`, each with what had been spent when it was done.

    In processes that a launcher started the first one reads and writes for all.
    """

    def __init__(self, folder: Path, purse: Purse, report: Callable[[str], None]) -> None:
        self.folder, self.purse, self.report = folder, purse, report
        self._main = process_state() is None or bool(process_state().is_main_process)
        if self._main:
            folder.mkdir(parents=True, exist_ok=True)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """In the block no other run has the folder; ValueError where one has it."""
        return alone(self.folder, "folder") if self._main else contextlib.nullcontext()

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, as JSON gives it back; from disk where it was made before."""
        known = _from_first(lambda: self._read(name))
        if known is None:
            self.report(f"{name} ..")
            made = make()
            known = {"spent": self.purse.spent, "value": json.loads(json.dumps(made))}
            self._write(name, known)
        self.purse.spent = int(known["spent"])
        return known["value"]

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The same for tensors, which come back on the CPU."""
        path = self.folder / f"{name}.safetensors"
        made: dict[str, Tensor] = {}

        def save() -> bool:
            made.update({key: value.detach().cpu().contiguous() for key, value in make().items()})
            if self._main:
                with replacing(path) as partial:
                    save_file(made, partial)
            return True

        def load() -> Any:
            try:
                return load_file(path)
            except SafetensorError as error:
                raise ValueError(f"{path} cannot be read ({error}): remove its folder, and begin anew") from None

        self.value(name, save)
        return made or _from_first(load)

    def _read(self, name: str) -> Any:
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError:  # a crash of the machine has cut it: it is made again
            return None

    def _write(self, name: str, known: Any) -> None:
        if self._main:
            with replacing(self.folder / f"{name}.json") as partial:
                partial.write_text(json.dumps(known))


def _from_first(read: Callable[[], Any]) -> Any:
    """What the first process reads, in every one."""
    state = process_state()
    if state is None:
        return read()
    held = [read() if state.is_main_process else None]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]
