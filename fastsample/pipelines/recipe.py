"""Everything that makes a pipeline faster, chosen together, applied together and undone together."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastsample.cache import replacing
from fastsample.fixed_point.iterations import check_settings
from fastsample.pipelines.composition import check_composition
from fastsample.pipelines.guidance import GuidanceCut
from fastsample.pipelines.parallel import parallelise
from fastsample.pipelines.parallel.pipeline import resolved
from fastsample.pipelines.recipe_run import RecipeRun
from fastsample.pipelines.swap import scheduled
from fastsample.pipelines.tgate import TGate
from fastsample.schedulers.solver import SolverScheduler
from fastsample.tables.preset import BUNDLED, Preset, read_preset

KINDS: dict[str, type] = {
    "solver": str,
    "grid": str,
    "steps": int,
    "guidance_cut": GuidanceCut,
    "tgate": TGate,
    "parallel": Mapping,
    "options": Mapping,
    "reason": str,
}
"""What the parts of a recipe are; those that may be left out are None then."""


@dataclass(frozen=True, repr=False)
class Recipe:
    """How a pipeline is to sample: `with recipe.apply(pipe) as run: pipe(prompt)`.

    `solver` with its `options` on the time grid `grid` (None: the pipeline's own scheduler), `preset` with tuned
    tables for some numbers of evaluations, `steps` for calls that say none, a `guidance_cut`, a `tgate`, and
    `parallel`, the options of :func:`fastsample.parallelise`. `reason` says what it rests on; `print(recipe)` is the
    line that applies it. What goes together is :func:`fastsample.composition`. Raises ValueError for what does not,
    and for values out of range.
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
        for name, kind in KINDS.items():
            self._check_kind(name, kind)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps = {self.steps}: give an integer of at least 1, or None")
        if self.solver is None and (self.grid or self.options or self.preset):
            raise ValueError("solver = None with a grid, options or a preset: name the solver, such as 'dpmpp-2m'")
        if self.parallel is not None:
            _check_parallel(self.parallel)
        check_composition([name for name in self._given if name in KINDS or name == "preset"])

    def _check_kind(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        optional = type(self).__dataclass_fields__[name].default is None
        if (value is None and optional) or (isinstance(value, kind) and not isinstance(value, bool)):
            return
        raise ValueError(f"{name} = {value!r:.60}: give a {kind.__name__}{', or None' if optional else ''}")

    @property
    def _given(self) -> dict[str, Any]:
        """The parts that are not left out."""
        return {own.name: value for own in fields(self) if (value := getattr(self, own.name)) not in (None, {}, "")}

    @property
    def tables(self) -> Preset | None:
        """The preset, read."""
        return self.preset if isinstance(self.preset, Preset) else None

    def scheduler(self, pipe: Any, guidance: float | None = None) -> SolverScheduler | None:
        """A scheduler of this for the pipeline's model; None where it keeps its own.

        Of a preset with tables for several guidance scales it takes those for `guidance` (None: the lowest).
        """
        if self.solver is None:
            return None
        return self.scheduler_for(scheduled(pipe)[0].scheduler.config, guidance)

    def scheduler_for(self, config: Mapping[str, Any], guidance: float | None = None) -> SolverScheduler:
        """The same for the model that the config of a scheduler describes. Raises ValueError without a solver."""
        if self.solver is None:
            raise ValueError("solver = None: the recipe keeps the pipeline's own scheduler")
        tables = self.tables
        if tables is not None and guidance is None:
            guidance = tables.guidances[0]
        scheduler: SolverScheduler = SolverScheduler.from_config(
            config,
            solver_name=self.solver,
            solver_options=dict(self.options),
            timestep_grid=self.grid,
            preset=tables,
            preset_guidance=None if tables is None else guidance,
        )
        return scheduler

    def apply(self, pipe: Any) -> RecipeRun:
        """Set `pipe` up, until the run's `remove` or the end of a `with`; ValueError where it cannot be."""
        return RecipeRun(self, pipe)

    def __repr__(self) -> str:
        """The expression that makes it again, without `reason`; a preset of one's own is only named."""
        parts = {name: repr(value) for name, value in self._given.items() if name != "reason"}
        for name in parts.keys() & {"guidance_cut", "tgate"}:
            parts[name] = f"fastsample.{parts[name]}"
        if self.tables is not None:
            parts["preset"] = repr(_bundled_name(self.tables) or f"<{self.tables.model_name or 'preset'}>")
        return f"fastsample.Recipe({', '.join(f'{name}={text}' for name, text in parts.items())})"

    def __str__(self) -> str:
        """The reason, and the line of Python that applies it to `pipe`."""
        own = self.tables is not None and _bundled_name(self.tables) is None
        made = f"fastsample.Recipe.from_json({self.to_json()!r})" if own else repr(self)
        reason = f"# {' '.join(self.reason.split())}\n" if self.reason else ""
        return f"{reason}run = {made}.apply(pipe)"

    def to_json(self) -> str:
        """This as JSON text; :meth:`from_json` gives an equal recipe back. ValueError for what JSON cannot hold."""
        values = {name: getattr(self, name) for name in ("solver", "grid", "steps", "reason")}
        values |= {"options": dict(self.options), "parallel": None if self.parallel is None else dict(self.parallel)}
        for name in ("guidance_cut", "tgate"):
            values[name] = None if getattr(self, name) is None else asdict(getattr(self, name))
        values["preset"] = None if self.tables is None else json.loads(self.tables.to_json())
        try:
            return json.dumps(values, indent=1)
        except TypeError as error:
            raise ValueError(f"the recipe cannot be written as JSON ({error}): leave that out") from None

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that :meth:`to_json` wrote; ValueError, in one line, on any other text."""
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError, TypeError) as error:
            raise ValueError(f"text is not JSON ({error}): give what to_json returned, whole") from None
        known = cls.__dataclass_fields__.keys()
        if not isinstance(values, dict):
            raise ValueError(f"text holds no recipe: give an object with the keys {', '.join(known)}")
        if values.keys() != known:
            missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
            hint = "it is a preset, which a recipe may hold" if "entries" in values else "give what to_json returned"
            raise ValueError(f"text holds no recipe, its keys miss {missing} and have {unknown}: {hint}")
        for name, kind in (("guidance_cut", GuidanceCut), ("tgate", TGate)):
            if values[name] is not None:
                try:
                    values[name] = kind(**values[name])
                except TypeError as error:
                    raise ValueError(f"{name} = {values[name]!r:.60}: {error}") from None
        if values["preset"] is not None:
            values["preset"] = Preset.from_json(json.dumps(values["preset"]))
        if isinstance(values["parallel"], dict) and isinstance(values["parallel"].get("strides"), list):
            values["parallel"]["strides"] = tuple(values["parallel"]["strides"])
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, whole or not at all."""
        with replacing(Path(path)) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """The recipe of a file that :meth:`save` wrote; ValueError, in one line that names it, where it is none."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror
        except ValueError as error:  # text of another encoding, too
            reason = str(error)
        raise ValueError(f"recipe = {os.fspath(path)!r}: {reason}")


def _check_parallel(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that `parallelise` does not have, and values out of range."""
    known = {name: one.default for name, one in inspect.signature(parallelise).parameters.items() if name != "pipe"}
    if unknown := [name for name in options if name not in known]:
        raise ValueError(
            f"parallel = {dict(options)!r:.60}: {unknown[0]!r} is none of its options, {', '.join(known)}"
        )
    chosen = known | dict(options)
    few_rounds = chosen["consistency"] is not None or chosen["rounds"] is not None
    window, strides = resolved(chosen["window"], chosen["strides"], few_rounds)
    try:
        check_settings(chosen["iteration"], window, chosen["tolerance"], strides)
    except TypeError as error:
        raise ValueError(f"parallel = {dict(options)!r:.60}: {error}") from None


def _bundled_name(preset: Preset) -> str | None:
    """The name of the bundled preset that this is; None where it is another."""
    return next((path.stem for path in sorted(BUNDLED.glob("*.json")) if read_preset(path) == preset), None)
