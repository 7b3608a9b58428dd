"""The recipe to begin with for a pipeline, without a single evaluation, and the measurement that it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsample.names.recommended import recommended
from fastsample.pipelines.recipe import Recipe
from fastsample.pipelines.recipe_run import RecipeRun
from fastsample.pipelines.swap import scheduled
from fastsample.pipelines.weights import fingerprint
from fastsample.schedules import NoiseSchedule
from fastsample.tables.preset import BUNDLED, Preset, read_preset

STEPS = {"vp": 20, "flow": 20, "edm": 20}
"""For calls that say no number of steps, where no preset says that fewer do."""
DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper", "tcd", "distill", "sprint", "dmd")
"""Parts of the names of models that were trained for few steps of their own scheduler."""
MEASURED = {
    "vp": "benchmarks/text_to_image_grids: the bundled UNet, beside all solvers on all grids",
    "edm": "benchmarks/text_to_image_grids, of a VP model: not measured on an EDM one",
    "flow": "benchmarks/flow_text_to_image: the bundled transformer, beside diffusers' schedulers",
}


def recommend(pipe: Any, *, guidance: float | None = None, steps: int | None = None) -> Recipe:
    """The recipe for `pipe`: by its model's family and name, and where a preset was tuned for its weights by that.

    `guidance` and `steps` are those of the calls to come. `recipe.reason` says what it rests on. Raises ValueError
    where the pipeline has no scheduler, or one whose model is not understood.
    """
    if guidance is not None and not (isinstance(guidance, (int, float)) and 0 <= guidance < float("inf")):
        raise ValueError(f"guidance = {guidance!r}: give a number of at least 0, or None")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps = {steps!r}: give an integer of at least 1, or None")
    name = Path(str(pipe.config.get("_name_or_path") or "")).name.lower()
    found = next((word for word in DISTILLED if word in name), None)
    if found is not None:
        return Recipe(
            steps=steps, reason=f"{name} is a distilled model ({found}), trained for its own scheduler: kept"
        )
    own = scheduled(pipe)[0]
    kind = NoiseSchedule.from_config(own.scheduler.config).kind
    setting = recommended(kind, guidance)
    preset = _tuned(own, guidance, steps)
    reason = f"{kind} model: {MEASURED[kind]}"
    if preset is not None:
        known = ", ".join(f"{entry.evaluations} at guidance {entry.guidance:g}" for entry in preset.entries)
        reason = f"a preset tuned for these very weights ({known}); else {reason}"
    asked = steps
    if steps is None and preset is not None:
        asked = max(entry.evaluations for entry in preset.entries)
    return Recipe(
        solver=setting.solver,
        grid=setting.grid,
        options=dict(setting.options),
        preset=preset,
        steps=asked or STEPS[kind],
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
        kept = preset if guidance is None else preset.at(guidance)
        covers = guidance is None or preset.covers(guidance)
        if covers and (steps is None or any(entry.evaluations == steps for entry in kept.entries)):
            return kept
    return None
