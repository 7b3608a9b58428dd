"""A pipeline as the model that is tuned: its guided denoiser on pairs of a prompt and a seed, opened when asked."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.serving import Served, serve
from fastsample.schedulers.ddim import DDIMScheduler
from fastsample.tuning.problem import Start

PROMPTS = ("prompt", "class_labels")
"""What pipelines call what their images are of."""
GUIDANCE = ("guidance_scale", "true_cfg_scale")
"""What they call their guidance."""

Pair = tuple[Any, int]
"""A prompt and a seed: the image of `pipe(prompt, generator=torch.Generator().manual_seed(seed))`.

A prompt is a text, a class, or a mapping of arguments of the call (prompt_embeds, ..), each for one image.
"""


@dataclass(frozen=True, eq=False)
class Calls:
    """How a pipeline is called for pairs: the names of its arguments, and those that are the same in every call."""

    pipe: Any
    guidance: float
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._name(GUIDANCE)
        for name in self.arguments:
            if name in ("generator", "latents", "num_inference_steps", "output_type", self._name(GUIDANCE)):
                raise ValueError(f"call has {name!r}, which is tune's to say: leave it out")

    def of(self, pairs: Sequence[Pair], **more: Any) -> dict[str, Any]:
        """The arguments of a call for `pairs`."""
        prompts = [prompt for prompt, _ in pairs]
        asked = _joined(prompts) if isinstance(prompts[0], Mapping) else {self._name(PROMPTS): prompts}
        return {
            **self.arguments,
            **asked,
            self._name(GUIDANCE): self.guidance,
            "generator": [torch.Generator().manual_seed(seed) for _, seed in pairs],
            **more,
        }

    def _name(self, names: Sequence[str]) -> str:
        own: Any = class_beneath(self.pipe)
        known = inspect.signature(own.__call__).parameters
        found = next((name for name in names if name in known), None)
        if found is None:
            raise ValueError(f"pipe = {own.__name__} takes neither {' nor '.join(names)}: it cannot be tuned")
        return found


class Oracle:
    """The model of some pairs: outputs for samples [R, P, ..]. The pipeline is called when it is first asked.

    `batch` is the most images that a denoiser is given at once. Closed by :meth:`close`.
    """

    def __init__(self, calls: Calls, pairs: Sequence[Pair], batch: int, *, whole: bool) -> None:
        self.calls, self.pairs, self.batch, self.whole = calls, list(pairs), batch, whole
        self._open = contextlib.ExitStack()
        self._served: list[Served] = []

    def start(self) -> Start:
        """Where the pipeline's own runs of the pairs start, in float32 or wider."""
        served = self._serving()
        samples, outputs = (torch.cat(parts) for parts in zip(*((s.sample, s.output) for s in served), strict=True))
        dtype = torch.promote_types(samples.dtype, torch.float32)
        return Start(samples.to(dtype), outputs.to(dtype))

    def __call__(self, samples: Tensor, times: Sequence[float]) -> Tensor:
        served, begin, parts = self._serving(), 0, []
        for own in served:
            end = begin + len(own.sample)
            parts.append(own(samples[:, begin:end], times))
            begin = end
        return torch.cat(parts, 1)

    @property
    def time(self) -> float:
        """The timestep of the start."""
        return self._serving()[0].time

    def close(self) -> None:
        """End the pipeline's calls; they are made again when it is asked again."""
        self._served = []
        self._open.close()

    def _serving(self) -> list[Served]:
        if not self._served:
            # two steps of our own at the times that every VP and flow model starts and ends at
            for begin in range(0, len(self.pairs), self.batch):
                part = self.pairs[begin : begin + self.batch]
                scheduler = plain_scheduler(self.calls.pipe, timestep_grid="normal")
                call = self.calls.of(part, num_inference_steps=2, output_type="latent")
                rows = max(1, self.batch // len(part))
                served = serve(self.calls.pipe, scheduler, call, rows=rows, whole=self.whole)
                self._served.append(self._open.enter_context(served))
        return self._served


def _joined(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for the images that each of `prompts` has arguments for."""
    return {
        name: torch.cat([prompt[name] for prompt in prompts])
        if isinstance(value, Tensor)
        else [part for prompt in prompts for part in prompt[name]]
        if isinstance(value, list)
        else value
        for name, value in prompts[0].items()
    }


def plain_scheduler(pipe: Any, **options: Any) -> DDIMScheduler:
    """A scheduler of the pipeline's model, without a preset that its own may have."""
    scheduler: DDIMScheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, preset=None, preset_guidance=None, **options
    )
    return scheduler
