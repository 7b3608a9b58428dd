"""Everything that makes a pipeline faster, chosen together, applied together and undone together."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.guidance import GuidanceCut
from fastsample.pipelines.layers import unlayered
from fastsample.pipelines.overlay import class_beneath, overlaid
from fastsample.pipelines.swap import scheduled, swapped
from fastsample.pipelines.tgate import TGate
from fastsample.sampling.ledger import Ledger
from fastsample.schedulers.solver import SolverScheduler
from fastsample.tables.preset import Preset, read_preset

GUIDANCE = ("guidance_scale", "true_cfg_scale")
"""What pipelines call their guidance."""
PLACED = ("num_inference_steps", "timesteps", "sigmas")
"""Arguments of a call that say how many steps it makes."""


@dataclass(frozen=True)
class Recipe:
    """How a pipeline is to sample: `with recipe.apply(pipe) as run: pipe(prompt)`.

    `solver` with its `options` on the time grid `grid` (None: the pipeline's own scheduler), `preset` with tuned
    tables for some numbers of evaluations, `steps` for calls that say none, a `guidance_cut`, a `tgate`, and
    `parallel`, the options of :func:`fastsample.parallelise`. `reason` says what it rests on. What goes together:
    solver, grid, preset and steps with all; the cut with parallel sampling; T-GATE with neither of these.
    Raises ValueError for what does not, and for values out of range.
    """

    solver: str | None = None
    grid: str | None = None
    preset: Preset | str | os.PathLike[str] | None = None
    steps: int | None = None
    guidance_cut: GuidanceCut | None = None
    tgate: TGate | None = None
    parallel: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        if self.preset is not None:
            object.__setattr__(self, "preset", read_preset(self.preset))
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(f"steps = {self.steps!r}: give an integer of at least 1, or None")
        if self.solver is None and (self.grid or self.options or self.preset):
            raise ValueError("solver = None with a grid, options or a preset: name the solver, such as 'dpmpp-2m'")
        if self.tgate is not None and self.guidance_cut is not None:
            raise ValueError("tgate and guidance_cut: both say when guidance is dropped; use one of them")
        if self.tgate is not None and self.parallel is not None:
            raise ValueError("tgate and parallel: T-GATE counts sequential steps; use guidance_cut, which knows each")

    @property
    def tables(self) -> Preset | None:
        """The preset, read."""
        return self.preset if isinstance(self.preset, Preset) else None

    def scheduler(self, pipe: Any) -> SolverScheduler | None:
        """A scheduler of this for the pipeline's model; None where it keeps its own."""
        if self.solver is None:
            return None
        tables = self.tables
        scheduler: SolverScheduler = SolverScheduler.from_config(
            scheduled(pipe)[0].scheduler.config,
            solver_name=self.solver,
            solver_options=dict(self.options),
            timestep_grid=self.grid,
            preset=tables,
            preset_guidance=None if tables is None else tables.guidances[0],
        )
        return scheduler

    def apply(self, pipe: Any) -> RecipeRun:
        """Set `pipe` up, until the run's `remove` or the end of a `with`; ValueError where it cannot be."""
        return RecipeRun(self, pipe)

    def to_json(self) -> str:
        """This as JSON text; :meth:`from_json` gives an equal recipe back."""
        values = {name: getattr(self, name) for name in ("solver", "grid", "steps", "reason")}
        values |= {"options": dict(self.options), "parallel": None if self.parallel is None else dict(self.parallel)}
        for name in ("guidance_cut", "tgate"):
            values[name] = None if getattr(self, name) is None else asdict(getattr(self, name))
        values["preset"] = None if self.tables is None else json.loads(self.tables.to_json())
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that :meth:`to_json` wrote; ValueError, in one line, on any other text."""
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError, TypeError) as error:
            raise ValueError(f"text is not JSON ({error}): give what to_json returned, whole") from None
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            keys = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"text holds no recipe: give an object with the keys {keys}")
        for name, kind in (("guidance_cut", GuidanceCut), ("tgate", TGate)):
            if values[name] is not None:
                try:
                    values[name] = kind(**values[name])
                except TypeError as error:
                    raise ValueError(f"{name} = {values[name]!r:.60}: {error}") from None
        if values["preset"] is not None:
            values["preset"] = Preset.from_json(json.dumps(values["preset"]))
        return cls(**values)


@dataclass(frozen=True)
class RecipeSummary:
    """What calls under a recipe cost, all of them together.

    `evaluations` of the denoiser, each row of a batch once; `dropped` with guidance, and not made; `rounds` of them
    one after the other; `plain_seconds` and `plain_evaluations` of one call without the recipe, where
    :meth:`RecipeRun.measure_plain` made one.
    """

    calls: int
    evaluations: int
    dropped: int
    rounds: int
    seconds: float
    plain_seconds: float | None = None
    plain_evaluations: int | None = None

    def __str__(self) -> str:
        text = (
            f"{self.calls} calls: {self.evaluations} evaluations in {self.rounds} rounds, {self.dropped} dropped "
            f"with guidance; {self.seconds:.2f} s"
        )
        if self.plain_seconds is None or not self.calls:
            return text
        each = self.seconds / self.calls
        return (
            f"{text}, {each:.2f} s a call where a plain one took {self.plain_seconds:.2f} s and "
            f"{self.plain_evaluations} evaluations"
        )


class RecipeRun:
    """A pipeline under a recipe, in every thread; parallel sampling is for the thread that applied it.

    Leave the `with`, or call :meth:`remove`, and the pipeline is what it was.
    """

    def __init__(self, recipe: Recipe, pipe: Any) -> None:
        self.recipe, self.pipe = recipe, pipe
        self._lock = threading.Lock()
        self._costs, self._rounds = Ledger(), 0
        self._calls, self._plain = 0, Plain()
        self._scheduler = recipe.scheduler(pipe)
        self._own = None if self._scheduler is None else scheduled(pipe)[0].scheduler
        with contextlib.ExitStack() as undo:
            if self._scheduler is not None:
                undo.enter_context(swapped(pipe, self._scheduler))
            self._setup = undo.enter_context(configured(pipe, gate=recipe.tgate, parallel=recipe.parallel))
            self._cut = undo.enter_context(recipe.guidance_cut.apply(pipe)) if recipe.guidance_cut else None
            undo.enter_context(overlaid(pipe, everywhere=True, __call__=self._call))
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Leave the pipeline as it was before."""
        self._undo.close()

    def measure_plain(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline returns without the recipe, whose time and evaluations the summary then compares."""
        call = class_beneath(self.pipe).__call__
        with configured(self.pipe, self._own), unlayered(), count(self.pipe, 1) as ledger:
            result = call(self.pipe, *args, **kwargs)
        self._plain = Plain(ledger.seconds, ledger.rows)
        return result

    def summary(self) -> RecipeSummary:
        """What the calls since the recipe was applied cost; `str` of it says so in words."""
        costs = self._costs
        return RecipeSummary(
            self._calls, costs.rows, self._dropped, self._rounds, costs.seconds, self._plain.seconds, self._plain.rows
        )

    def __enter__(self) -> RecipeRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _call(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call, with the recipe's steps and the tables of its guidance, counted."""
        signature = inspect.signature(beneath)
        given = signature.bind_partial(*args, **kwargs).arguments
        steps = self.recipe.steps
        if steps is not None and not any(given.get(name) is not None for name in PLACED):
            kwargs["num_inference_steps"] = steps
        run = self._setup.run
        rounds = run.rounds if run is not None else 0
        # the call's scheduler stays, whoever removes the recipe meanwhile
        with configured(self.pipe, self._scheduler_for(signature, given)), count(self.pipe, 1) as ledger:
            result = beneath(*args, **kwargs)
        with self._lock:
            self._calls += 1
            self._costs.rows += ledger.rows
            self._costs.seconds += ledger.seconds
            swept = run.rounds - rounds if run is not None else 0
            self._rounds += swept or ledger.forward_calls
        return result

    def _scheduler_for(self, signature: inspect.Signature, given: Mapping[str, Any]) -> SolverScheduler | None:
        """The recipe's scheduler, told the call's guidance; warns where the preset is not for it."""
        preset, name = self.recipe.tables, next((name for name in GUIDANCE if name in signature.parameters), None)
        if preset is None or name is None or self._scheduler is None:
            return self._scheduler
        guidance = float(given.get(name, signature.parameters[name].default))
        if not preset.covers(guidance):
            known = ", ".join(f"{one:g}" for one in preset.guidances)
            warnings.warn(f"preset: guidance {guidance:g} is far from those it was tuned for ({known})", stacklevel=4)
        told: SolverScheduler = self._scheduler.from_config(self._scheduler.config, preset_guidance=guidance)
        return told

    @property
    def _dropped(self) -> int:
        handles = [handle for handle in (self._cut, self._setup.gate) if handle is not None]
        return sum(handle.summary().dropped for handle in handles)


@dataclass(frozen=True)
class Plain:
    """What a call without the recipe took; None where there was none."""

    seconds: float | None = None
    rows: int | None = None
