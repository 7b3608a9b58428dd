"""The recipe to begin with for a pipeline, without a single evaluation, and the measurement that it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsample.names.recommended import recommended
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.recipe import Recipe
from fastsample.pipelines.recipe_run import RecipeRun, check_pipeline
from fastsample.pipelines.request import classifier_free_scale
from fastsample.pipelines.swap import scheduled
from fastsample.pipelines.weights import fingerprint
from fastsample.schedules import NoiseSchedule
from fastsample.schedules.config import understood
from fastsample.tables.preset import BUNDLED, Entry, Preset, read_preset

STEPS = {"vp": 20, "flow": 20, "edm": 20}
"""For calls that say no number of steps, where no preset says that fewer do."""
DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper", "tcd", "distill", "sprint", "dmd")
"""Parts of the names of models that were trained for few steps of their own scheduler."""
TYPED = ("BriaPipeline",)
"""Pipelines that sample otherwise with a scheduler of another class than their own."""
MEASURED = {
    "vp": "benchmarks/text_to_image_grids: the bundled UNet, beside all solvers on all grids",
    "edm": "benchmarks/text_to_image_grids, of a VP model: not measured on an EDM one",
    "flow": "benchmarks/flow_text_to_image: the bundled transformer, beside diffusers' schedulers",
}


def recommend(pipe: Any, *, guidance: float | None = None, steps: int | None = None) -> Recipe:
    """The recipe for `pipe`: by its model's family and name, and where a preset was tuned for its weights by that.

    `guidance` and `steps` are those of the calls to come; without, the pipeline's own guidance is meant. `print` of
    the recipe is the line that applies it, under `recipe.reason`, what it rests on. Models that no solver here is
    for (consistency models, distilled ones) keep their scheduler, and the reason says so. Raises ValueError for what
    is no pipeline, and where it has no scheduler.
    """
    if guidance is not None and (isinstance(guidance, bool) or not _is_scale(guidance)):
        raise ValueError(f"guidance = {guidance!r:.60}: give a number of at least 0, or None")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps = {steps!r:.60}: give an integer of at least 1, or None")
    check_pipeline(pipe)
    name = Path(str(pipe.config.get("_name_or_path") or "")).name.lower()
    found = next((word for word in DISTILLED if word in name), None)
    if found is not None:
        return Recipe(
            steps=steps, reason=f"{name} is a distilled model ({found}), trained for its own scheduler: kept"
        )
    own = scheduled(pipe)[0]
    if (why := _keeps_its_own(own)) is not None:
        return Recipe(steps=steps, reason=f"its own scheduler is kept: {why}")
    kind = NoiseSchedule.from_config(own.scheduler.config).kind
    if guidance is None and "guider" not in pipe.components:
        guidance = classifier_free_scale(pipe)
    setting = recommended(kind, guidance, steps)
    preset = _tuned(own, guidance, steps)
    reason = f"{kind} model: {MEASURED[kind]}"
    if preset is not None:
        entries = _gaining(preset, guidance)
        known = ", ".join(f"{entry.evaluations} at guidance {entry.guidance:g}" for entry in entries)
        reason = f"a preset tuned for these very weights ({known}); else {reason}"
        steps = steps or max(entry.evaluations for entry in entries)
    return Recipe(
        solver=setting.solver,
        grid=setting.grid,
        options=dict(setting.options),
        preset=preset,
        steps=steps or STEPS[kind],
        reason=reason,
    )


def speed_up(pipe: Any, **asked: Any) -> RecipeRun:
    """Apply what :func:`recommend` says, which `asked` is handed to; the run's `remove` undoes it."""
    return recommend(pipe, **asked).apply(pipe)


def _tuned(pipe: Any, guidance: float | None, steps: int | None) -> Preset | None:
    """The bundled preset of the pipeline's very weights, where it has tables for what is asked."""
    own = None
    for path in sorted(BUNDLED.glob("*.json")):
        preset = read_preset(path)
        own = own or fingerprint(pipe)
        if preset.model != own:
            continue
        covers = guidance is None or preset.covers(guidance)
        counts = {entry.evaluations for entry in _gaining(preset, guidance)}
        if covers and counts and (steps is None or steps in counts):
            return preset
    return None


def _gaining(preset: Preset, guidance: float | None) -> list[Entry]:
    """The entries of the nearest guidance whose tables are tuned; of all guidance scales without one."""
    kept = preset if guidance is None else preset.at(guidance)
    return [entry for entry in kept.entries if entry.stage != "untuned"]


def _keeps_its_own(pipe: Any) -> str | None:
    """Why the pipeline's own scheduler is the one for its model; None where it is not."""
    kind = class_beneath(pipe).__name__
    if kind in TYPED:
        return f"{kind} asks for its very class"
    try:
        understood(pipe.scheduler.config)
    except ValueError as error:
        return str(error)
    return None


def _is_scale(guidance: object) -> bool:
    return isinstance(guidance, (int, float)) and 0 <= guidance < float("inf")
