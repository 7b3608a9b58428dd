"""How each block is decoded: a plan, saved as JSON beside the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastsample.cache import replacing
from fastsample.fixed_point.iterations import check_extent
from fastsample.tarflow.system import STARTS
from fastsample.wording import counted

PLAN_FILE = "gs_jacobi_plan.json"


@dataclass(frozen=True)
class BlockPlan:
    """One block: its tokens in `chunks` solved in turn, each by at most `max_sweeps` Jacobi sweeps from `start`.

    `start` is "z", "zeros" or "affine", see :data:`fastsample.tarflow.system.STARTS`. A chunk is done once its tokens
    move by at most `tolerance` of the image's z (RMS).
    As many chunks as tokens is sequential decoding.
    """

    start: str = "z"
    chunks: int = 1
    max_sweeps: int | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start = {self.start!r}: use one of {', '.join(STARTS)}")
        check_extent(None, self.tolerance)
        for name, value in (("chunks", self.chunks), ("max_sweeps", self.max_sweeps)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} = {value!r}: give 1 or more")

    def ends(self, tokens: int) -> list[int]:
        """The last token of each chunk, as even as possible; a chunk of the first token alone needs no solving."""
        if self.chunks > tokens:
            raise ValueError(
                f"chunks = {self.chunks}: a block has {counted(tokens, 'token')}, give at most as many chunks"
            )
        ends = (tokens * (chunk + 1) // self.chunks - 1 for chunk in range(self.chunks))
        return [end for end in ends if end > 0]


@dataclass(frozen=True)
class Plan:
    """A :class:`BlockPlan` for each block, in the model's order, and what was measured in making it."""

    blocks: tuple[BlockPlan, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    def check(self, blocks: int, tokens: int) -> None:
        """Raise ValueError unless the plan is for that many blocks, with at most as many chunks as `tokens`."""
        if len(self.blocks) != blocks:
            raise ValueError(
                f"plan has {counted(len(self.blocks), 'block')} and the model {blocks}: plan for this model"
            )
        for block in self.blocks:
            block.ends(tokens)

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of :meth:`to_json`'s text. Raises ValueError for anything else."""
        try:
            data = json.loads(text)
            return cls(tuple(BlockPlan(**block) for block in data["blocks"]), data["measured"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"plan is not one that fastsample saved ({error}): make it again") from None

    def save(self, folder: str | Path) -> Path:
        """Write it beside a model's files."""
        path = Path(folder) / PLAN_FILE
        with replacing(path) as partial:
            partial.write_text(self.to_json())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Plan:
        """The plan saved in a model's folder. Raises ValueError when there is none."""
        path = Path(folder) / PLAN_FILE
        if not path.is_file():
            raise ValueError(f"plan: there is no {PLAN_FILE} in {folder}: make one with `fastsample tarflow plan`")
        return cls.from_json(path.read_text())
