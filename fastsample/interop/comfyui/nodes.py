"""Nodes of ComfyUI that give out its own types, SAMPLER and SIGMAS, so that they work in anyone's workflow."""

from __future__ import annotations

import functools
from typing import Any

from fastsample.interop.comfyui.levels import grid_sigmas, preset_sigmas
from fastsample.interop.k_diffusion import sampler
from fastsample.interop.plans import NOISES
from fastsample.names.options import parse_options
from fastsample.names.samplers import COMFYUI, RES4LYF
from fastsample.schedules.grids import grid_names
from fastsample.solvers import available
from fastsample.tables.preset import read_preset

CATEGORY = "sampling/custom_sampling/fastsample"
OPTIONS = ("STRING", {"default": "", "tooltip": "key=value, key=value"})
STEPS = ("INT", {"default": 12, "min": 1, "max": 10000})


class Sampler:
    """Any solver with its options, as a SAMPLER."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "build"
    CATEGORY = CATEGORY
    DESCRIPTION = "A solver of fastsample, or a sampler by ComfyUI's own name. Options: `fastsample solvers NAME`."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The inputs, as ComfyUI asks for them."""
        noise = {
            "tooltip": "brownian: the same path of noise at any number of steps; auto: so where ComfyUI has it so"
        }
        return {
            "required": {
                "solver": (solver_names(), {"default": "dpmpp-2m"}),
                "noise": (list(NOISES), noise),
                "s_noise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01, "round": False}),
                "options": OPTIONS,
            }
        }

    def build(self, solver: str, noise: str, s_noise: float, options: str) -> tuple[Any]:
        """ComfyUI's own KSAMPLER around the solver. Raises ValueError for options that it does not have."""
        from comfy.samplers import KSAMPLER  # only ComfyUI has it

        return (KSAMPLER(sampler(solver, noise=noise, s_noise=s_noise, **_options(options))),)


class GridSigmas:
    """Any time grid, as SIGMAS."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "build"
    CATEGORY = CATEGORY
    DESCRIPTION = "Where along the model's noise schedule to evaluate it: a grid of fastsample with its options."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "grid": (grid_names(), {"default": "quadratic"}),
                "steps": STEPS,
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "options": OPTIONS,
            }
        }

    def build(self, model: Any, grid: str, steps: int, denoise: float, options: str) -> tuple[Any]:
        """The sigmas, on the CPU."""
        sampling = model.get_model_object("model_sampling")
        return (grid_sigmas(sampling, grid, steps, denoise, _options(options)),)


class PresetSigmas:
    """The time grid of a tuned preset, as SIGMAS."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "build"
    CATEGORY = CATEGORY
    DESCRIPTION = "The grid that `fastsample tune` found for a model, from its file."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "preset": ("STRING", {"default": "", "tooltip": "path of the preset's file"}),
                "steps": STEPS,
                "guidance": ("FLOAT", {"default": 7.5, "min": 1.0, "max": 100.0, "step": 0.1}),
            }
        }

    def build(self, model: Any, preset: str, steps: int, guidance: float) -> tuple[Any]:
        """The sigmas, on the CPU. Raises ValueError where the preset has none for so many steps."""
        sampling = model.get_model_object("model_sampling")
        return (preset_sigmas(sampling, read_preset(preset), steps, guidance),)


NODE_CLASS_MAPPINGS = {
    "FastsampleSampler": Sampler,
    "FastsampleGridSigmas": GridSigmas,
    "FastsamplePresetSigmas": PresetSigmas,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FastsampleSampler": "Sampler (fastsample)",
    "FastsampleGridSigmas": "Sigmas of a grid (fastsample)",
    "FastsamplePresetSigmas": "Sigmas of a preset (fastsample)",
}


@functools.cache
def solver_names() -> list[str]:
    """fastsample's solvers, then ComfyUI's names for samplers, each where a sampler can be made of it."""
    names = [*available(), *sorted({*COMFYUI, *RES4LYF} - available().keys())]
    return [name for name in names if _makes_sampler(name)]


def _makes_sampler(name: str) -> bool:
    try:
        sampler(name)
    except ValueError:
        return False
    return True


def _options(text: str) -> dict[str, Any]:
    return dict(parse_options([part for part in text.split(",") if part.strip()], text))
