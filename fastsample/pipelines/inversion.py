"""Inversion: the noise from which a pipeline makes a given picture, by its own loop run from clean to noisy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastsample.pipelines.configured import configured
from fastsample.pipelines.latents import encode
from fastsample.schedulers.inverse import SolverInverseScheduler


def invert(
    pipe: Any,
    image: Any,
    prompt: Any = None,
    *,
    num_inference_steps: int = 50,
    solver: str = "ddim",
    solver_options: Mapping[str, Any] | None = None,
    grid: str | None = None,
    guidance_scale: float = 1.0,
    **call: Any,
) -> Tensor:
    """The latents from which `pipe(prompt, latents=..)` makes `image` again, the better the more steps and order.

        noise = fastsample.invert(pipe, image, "a photo of a cat")
        again = pipe("a photo of a cat", latents=noise, guidance_scale=1.0, num_inference_steps=50).images[0]

    `image` is a PIL image, a list of them, or a tensor in [0, 1] [B, 3, H, W]; `prompt` one for all, or one each.
    `solver` is any that draws no noise, with `solver_options`, best the one that samples afterwards: "ddim" evaluates
    at the times of that run, turned round; those of higher order begin at the least noisy time of training. `grid`
    names a time grid, by default the config's. Guidance magnifies what inversion misses: leave `guidance_scale` at 1,
    but for models distilled with one. What else is given goes to the pipeline. The latents are what its `latents`
    argument takes.
    Raises ValueError, before the network runs, for pipelines that take no latents or have no autoencoder of pictures.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    _check(pipe, accepted)
    options: dict[str, Any] = {"solver_name": solver, "solver_options": dict(solver_options or {})}
    options |= {"preset": None, "preset_guidance": None}  # tuned tables have no way back
    options |= {} if grid is None else {"timestep_grid": grid}
    scheduler = SolverInverseScheduler.from_config(pipe.scheduler.config, **options)
    latents, height, width = encode(pipe, image)
    given = {"prompt": prompt, "height": height, "width": width, "guidance_scale": guidance_scale}
    if isinstance(prompt, str) and len(latents) > 1:
        given["prompt"] = [prompt] * len(latents)
    known = {key: value for key, value in given.items() if key in accepted and value is not None}
    with configured(pipe, scheduler):
        result = pipe(
            latents=latents, num_inference_steps=num_inference_steps, output_type="latent", **{**known, **call}
        )
    noise: Tensor = result[0]
    return noise


def _check(pipe: Any, accepted: Mapping[str, Any]) -> None:
    """Raise ValueError for pipelines that start from no noise of the caller's, or from a picture of their own."""
    name = type(pipe).__name__
    if "latents" not in accepted or "output_type" not in accepted:
        raise ValueError(f"pipe = {name} takes no latents, so that nothing could start from its noise")
    own = (
        "strength" in accepted
        or "mask_image" in accepted
        or ("controlnet" in pipe.components and "image" in accepted)
    )
    if own:
        raise ValueError(f"pipe = {name} is called with a picture of its own: invert by its text-to-image sibling")
