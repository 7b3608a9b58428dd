"""From ComfyUI's `model_sampling` to a noise schedule, and from points of it back to ComfyUI's sigmas."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.interop.plans import is_flow
from fastsample.schedules import DiscreteSchedule, EDMSchedule, FlowSchedule, NoiseSchedule
from fastsample.schedules.base import Node, require_falling_noise
from fastsample.schedules.grids import evaluation_times
from fastsample.tables.preset import OWN_WEIGHTS, Preset


def schedule_of(sampling: Any) -> NoiseSchedule:
    """The noise schedule that `sampling`, a model's `model_sampling`, stands for.

    Flow matching with its shift; the betas of a model that is told the index of a sigma; else a range of sigmas, with
    a time of log(sigma) / 4 or of atan(sigma).
    """
    sigmas = sampling.sigmas.double().cpu()
    if is_flow(sampling):
        halfway = float(sampling.percent_to_sigma(0.5))
        return FlowSchedule(halfway / (1 - halfway), float(len(sigmas)))
    if float(sampling.timestep(sampling.sigmas[-1])) == len(sigmas) - 1:
        return DiscreteSchedule((1 / (1 + sigmas**2)).numpy())
    in_angle = abs(float(sampling.timestep(torch.tensor(1.0))) - 0.5) < 1e-6
    return EDMSchedule(float(sampling.sigma_min), float(sampling.sigma_max), 1.0, "atan" if in_angle else "log")


def grid_sigmas(sampling: Any, grid: str, steps: int, denoise: float, options: dict[str, Any]) -> Tensor:
    """The sigmas of `grid` for `steps` steps down to 0, float32 [steps + 1]; none where nothing is to be denoised.

    `denoise` below 1 leaves the last `steps` of a grid of `steps / denoise`.
    Raises ValueError for unknown grids and options, and where a grid collapses.
    """
    if denoise <= 0:
        return torch.empty(0)
    schedule = schedule_of(sampling)
    times = evaluation_times(grid, schedule, steps if denoise >= 1 else int(steps / denoise), **options)
    return sigmas_at([*schedule.nodes_at(times), schedule.node(schedule.clean_time)])[-steps - 1 :]


def preset_sigmas(sampling: Any, preset: Preset, steps: int, guidance: float) -> Tensor:
    """The sigmas that `preset` was tuned to for `steps` steps at the guidance nearest to `guidance`.

    Warns where its weights were tuned too, which sigmas do not hold. Raises ValueError where it has no such table, or
    is of another kind of model.
    """
    kind = schedule_of(sampling).kind
    if kind != preset.kind:
        raise ValueError(f"preset is of a {preset.kind} model ({preset.model_name}), and this one is {kind}")
    entry = preset.at(guidance).entry(steps)
    if entry is None:
        known = sorted({own.evaluations for own in preset.entries})
        raise ValueError(f"steps = {steps}: the preset has {', '.join(map(str, known))}; use one of these")
    if entry.stage not in OWN_WEIGHTS:
        warnings.warn(
            f"preset of {steps} steps: its weights were tuned with its sigmas, which are not as good by themselves; "
            "for sigmas alone tune with --grid-only",
            stacklevel=2,
        )
    return sigmas_at([*[step.node for step in entry.table.steps], entry.table.steps[-1].target])


def sigmas_at(nodes: Sequence[Node]) -> Tensor:
    """What ComfyUI calls sigma at `nodes`: on flow models sigma, else sigma / alpha. ValueError where it rises."""
    require_falling_noise(nodes)
    flow = all(abs(node.alpha + node.sigma - 1) < 1e-9 for node in nodes)
    return torch.tensor([node.sigma if flow else node.sbar for node in nodes], dtype=torch.float32)
