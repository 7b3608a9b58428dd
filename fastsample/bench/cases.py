"""What is compared: arms (a solver of ours, a diffusers class, or a recipe) and the cases that they run."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsample.bench.accelerations import Gate, Parallel
from fastsample.bench.naming import plain_name
from fastsample.bench.peers import peer_scheduler
from fastsample.names.options import parse_options
from fastsample.names.peers import peer_class, peer_names
from fastsample.names.recommended import recommended
from fastsample.names.samplers import parse_sampler_name
from fastsample.pipelines.configured import Setup, configured
from fastsample.pipelines.recipe import Recipe
from fastsample.schedulers import create_scheduler, scheduler_from_name
from fastsample.solvers import available
from fastsample.solvers.registry import nearest
from fastsample.tables.preset import read_preset


@dataclass(frozen=True)
class Arm:
    """A sampler, perhaps accelerated.

    `name` is a registered solver, a sampler of AUTOMATIC1111 or ComfyUI, or a class of diffusers (then `peer`).
    `preset` is the file of tuned tables, or the bundled model's name, for the steps that it has. A `recipe`, as JSON,
    says all of this itself, and `name` is then its file's.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    grid: str | None = None
    peer: bool = False
    gate: Gate | None = None
    parallel: Parallel | None = None
    preset: str | None = None
    tables_for: float | None = None  # the guidance whose tables of the preset are meant
    recipe: str | None = None

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        if self.recipe:
            return f"recipe {self.name} {_digest(self.recipe)}"
        options = ",".join(f"{key}={value}" for key, value in self.options)
        text = f"{self.name}({options})" if options else self.name
        text = f"{text} {self.grid}" if self.grid else text
        if self.preset:
            text = f"{text} preset {Path(self.preset).stem} {_digest(read_preset(self.preset).to_json())}"
        for acceleration in self.accelerations:
            text = f"{text} {acceleration.label}"
        return f"diffusers {text}" if self.peer else text

    @property
    def described(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "arm": self.label,
            "solver": self.name,
            "grid": self.grid,
            "options": dict(self.options),
            "gate": self.gate and self.gate.label,
            "parallel": self.parallel and self.parallel.label,
            "source": "diffusers" if self.peer else "fastsample",
        }

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return plain_name(self.described)

    @property
    def accelerations(self) -> list[Gate | Parallel]:
        """Its gate and its parallel iteration, where it has them."""
        return [added for added in (self.gate, self.parallel) if added]

    @property
    def plain(self) -> Arm:
        """The same solver without gate, cut and parallel iteration."""
        if self.recipe is None:
            return replace(self, gate=None, parallel=None)
        plain = replace(_recipe(self.recipe), tgate=None, guidance_cut=None, parallel=None)
        return replace(self, recipe=plain.to_json())

    @property
    def steps(self) -> int | None:
        """The only number of steps that it is for; None for any."""
        return _recipe(self.recipe).steps if self.recipe else None

    def at(self, guidance: float) -> Arm:
        """With the preset's tables for this guidance."""
        return self if self.preset is None else replace(self, tables_for=guidance)

    def scheduler(self, config: Mapping[str, Any]) -> Any:
        """A fresh scheduler of this arm for the model that `config` describes; None: the pipeline's own."""
        if self.recipe:
            recipe = _recipe(self.recipe)
            return recipe.scheduler_for(config, self.tables_for) if recipe.solver else None
        options = dict(self.options)
        if self.peer:
            return peer_scheduler(self.name, config, **options)
        create = create_scheduler if self.name in available() else scheduler_from_name
        made = create(self.name, config, grid=self.grid, **options)
        if self.preset is None:
            return made
        return type(made).from_config(made.config, preset=self.preset, preset_guidance=self.tables_for)

    def set_up(self, pipe: Any, guidance: float) -> contextlib.AbstractContextManager[Setup]:
        """A block in which `pipe` samples so, for calls at this guidance scale."""
        scheduler = replace(self, tables_for=guidance).scheduler(pipe.scheduler.config)
        if self.recipe:
            recipe = _recipe(self.recipe)
            gate, cut, parallel = recipe.tgate, recipe.guidance_cut, recipe.parallel
            return configured(pipe, scheduler, gate=gate, cut=cut, parallel=parallel)
        gate = self.gate.tgate(guidance) if self.gate else None
        return configured(pipe, scheduler, gate=gate, parallel=self.parallel.options if self.parallel else None)


@dataclass(frozen=True)
class Case:
    """One sampling run: an arm at a number of steps, a guidance scale and a seed."""

    arm: Arm
    steps: int
    guidance: float
    seed: int

    @property
    def key(self) -> str:
        """Names this case in a record file."""
        return json.dumps([self.arm.label, self.steps, self.guidance, self.seed])


def parse_arm(text: str, *, grid: str | None = None, peer: bool = False) -> Arm:
    """An arm from `name` or `name:key=value,key=value`, where `grid=` names its own time grid in place of `grid` and
    `preset=` a file of tuned tables. A recipe is named by its file, which ends in .json, and takes nothing more.

    With `peer` the name is a class of diffusers; else a registered solver, a sampler by the name that AUTOMATIC1111
    or ComfyUI give it, or a class of diffusers. Unknown names and options raise ValueError, and files that hold no
    recipe.
    """
    if text.strip().endswith(".json") and "=" not in text and not peer:
        return recipe_arm(Path(text.strip()))
    name, colon, tail = (part.strip() for part in text.partition(":"))
    options = dict(parse_options(tail.split(",") if colon else [], text))
    preset = options.pop("preset", None)
    peer = peer or _is_peer(name)
    if peer:
        _check_peer_options(name, options)
    else:
        grid = options.pop("grid", grid)
    if preset is not None:
        if peer:
            raise ValueError(f"preset = {preset!r}: {name} is a class of diffusers, which takes none; name a solver")
        read_preset(str(preset))
    arm = Arm(name, tuple(options.items()), None if peer else grid, peer)
    if not peer:
        try:
            arm.scheduler({})
        except TypeError as error:  # a text where a number belongs, or what is no option of a solver at all
            raise ValueError(f"solver = {text!r}: its options are of another kind ({error})") from None
    return arm if preset is None else replace(arm, preset=str(preset))


def _check_peer_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that a class of diffusers would pass over."""
    known = list(inspect.signature(peer_class(name)).parameters)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.3) or known
            raise ValueError(f"option {key} = {value} of {name}: it takes none; did you mean {', '.join(near)}?")


def recipe_arm(path: Path) -> Arm:
    """The arm of a recipe's file. Raises ValueError for a file that holds none, and for unknown names in it."""
    recipe = Recipe.load(path)
    if recipe.solver:
        try:
            replace(recipe, preset=None).scheduler_for({})
        except ValueError as error:
            raise ValueError(f"recipe = {str(path)!r}: {error}") from None
    return Arm(path.stem, recipe=recipe.to_json())


@functools.cache
def _recipe(text: str) -> Recipe:
    return Recipe.from_json(text)


@functools.cache
def _digest(text: str) -> str:
    """A hash of a preset or recipe, which names what is recorded of it."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _is_peer(name: str) -> bool:
    """Whether the name of a sampler means a class of diffusers; ValueError for a name that means nothing."""
    if name in available():
        return False
    try:
        parse_sampler_name(name)
    except ValueError:
        classes = peer_names()
        if {name, f"{name}Scheduler"} & set(classes):
            return True
        near = nearest(name, [one.removesuffix("Scheduler") for one in classes]) or nearest(name, classes)
        if near:
            raise ValueError(f"name = {name!r} is unknown: did you mean {', '.join(near)}?") from None
        raise
    return False


def recommended_arm(kind: str, guidance: float | None = None, steps: int | None = None) -> Arm:
    """What the documents recommend for models whose noise schedule is of that kind; see :func:`recommended`."""
    setting = recommended(kind, guidance, steps)
    return Arm(setting.solver, tuple(setting.options.items()), setting.grid)


def make_cases(
    arms: Sequence[Arm], steps: Sequence[int], guidances: Sequence[float], seeds: Sequence[int]
) -> list[Case]:
    """All combinations. The arms vary fastest, so that the first comparisons are complete early.

    A combination whose acceleration would change nothing is left out. A recipe that says its steps runs at these
    alone, whatever `steps` are.
    """
    for value in steps:
        if value < 1:
            raise ValueError(f"steps = {value}: give integers of at least 1")
    for guidance in guidances:
        if not math.isfinite(guidance) or guidance < 0:
            raise ValueError(f"guidance = {guidance}: give finite numbers of at least 0 (1 means none)")
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seed = {seed}: give integers of at least 0")
    own = [a.steps for a in arms if a.steps is not None]
    return [
        Case(a, n, g, s)
        for g in guidances
        for n in dict.fromkeys([*steps, *own])
        for s in seeds
        for a in arms
        if a.steps == n or (a.steps is None and n in steps)
        if all(acceleration.fits(n, g) for acceleration in a.accelerations)
    ]
