"""The landing check: a pipeline whose network knows one clean sample must end on it, whatever its scheduler.

`install` replaces what the network says, where a scheduler's `step` receives it, by the exact prediction of one
fixed clean sample. What exact means is read off the pipeline's own diffusers scheduler alone, so that a candidate
which reads a config, a time or a scale in another way misses the clean sample.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 0.02


class Oracle:
    """What the network of a pipeline with the scheduler `original` outputs if it knows the data."""

    def __init__(self, original: Any) -> None:
        self._original, self._config = original, original.config

    def lay_out(self, *args: Any, **kwargs: Any) -> None:
        """Follow a `set_timesteps`: a flow-matching model may be told other times than its noise levels are."""
        if self._is_flow:
            self._original.set_timesteps(*args, **kwargs)

    def output(self, seen: Tensor, timestep: float, clean: Tensor) -> Tensor:
        """The output for the network's input `seen` at `timestep`, in the original's parameterisation."""
        alpha, sigma = self.marginal(timestep)
        noise = (seen - alpha * clean) / sigma
        if self._explodes:
            return noise
        if self._is_flow:
            return clean - noise if self._config.get("invert_sigmas") else noise - clean
        if self._is_edm:
            return self._edm_output(seen, timestep, clean)
        velocity = alpha * noise - sigma * clean
        return {"epsilon": noise, "v_prediction": velocity, "sample": clean}[self._config.prediction_type]

    def marginal(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma such that the network's input at `timestep` is alpha data + sigma noise."""
        if self._is_flow:
            sigma = self._flow_level(timestep)
            return 1.0 if self._explodes else 1 - sigma, sigma
        if self._is_edm:
            sigma, norm = self._edm_level(timestep)
            return 1 / norm, sigma / norm
        return self._vp_marginal(timestep)

    @property
    def _is_flow(self) -> bool:
        flow_class = type(self._original).__name__.startswith("FlowMatch")
        return flow_class or bool(self._config.get("use_flow_sigmas"))

    @property
    def _is_edm(self) -> bool:
        return not self._is_flow and (
            "sigma_data" in self._config or self._config.get("timestep_type") == "continuous"
        )

    @property
    def _explodes(self) -> bool:
        """Whether a flow-matching scheduler is used on data + sigma noise with sigma beyond 1 (Cosmos 2)."""
        return self._is_flow and float(self._config.get("sigma_max") or 0) > 1 and "sigma_data" in self._config

    def _flow_level(self, timestep: float) -> float:
        """sigma at `timestep`: the original's own there, if it has laid it out, else the timestep's."""
        times = self._original.timesteps.tolist()
        distance, index = min((abs(time - timestep), index) for index, time in enumerate(times))
        if distance < 1e-3 and len(self._original.sigmas) == len(times) + 1:
            level = float(self._original.sigmas[index])
        else:
            level = timestep / self._config.num_train_timesteps
        return max(1 - level if self._config.get("invert_sigmas") else level, 1e-6)

    def _edm_level(self, timestep: float) -> tuple[float, float]:
        """sigma, of which the network is told, and the root mean square of data + sigma noise."""
        cosine = type(self._original).__name__.startswith("Cosine")  # Stable Audio's
        sigma = math.tan(timestep * math.pi / 2) if cosine else math.exp(4 * timestep)
        return sigma, math.hypot(sigma, self._config.get("sigma_data", 1.0))

    def _edm_output(self, seen: Tensor, timestep: float, clean: Tensor) -> Tensor:
        """F of clean = c_skip x + c_out F, where seen = c_in x (arXiv:2206.00364, eq. 7 and table 1)."""
        sigma, norm = self._edm_level(timestep)
        data = self._config.get("sigma_data", 1.0)
        c_out = sigma * data / norm * (-1 if self._config.prediction_type == "v_prediction" else 1)
        return (clean - (data / norm) ** 2 * (seen * norm)) / c_out

    def _vp_marginal(self, timestep: float) -> tuple[float, float]:
        """alpha and sigma of the training timestep; between two of them log(sigma / alpha) is linear."""
        cumprod = self._original.alphas_cumprod.double().numpy()
        if timestep == int(timestep):
            square = float(cumprod[int(timestep)])
            return math.sqrt(square), math.sqrt(1 - square)
        levels = 0.5 * np.log((1 - cumprod) / np.maximum(cumprod, 2.0**-24))
        level = math.exp(np.interp(timestep, np.arange(len(levels)), levels))
        return 1 / math.hypot(1, level), level / math.hypot(1, level)


@dataclass
class Probe:
    """What the steps of a scheduler lead to.

    `drift` is how far, at most, the network's inputs were from the straight mixture of the clean sample and the first
    noise that they are on the exact trajectory, relative to their root mean square there.
    """

    oracle: Oracle = field(repr=False)
    steps: int = 0
    drift: float = 0.0
    clean: Tensor | None = field(default=None, repr=False)
    noise: Tensor | None = field(default=None, repr=False)
    last: Tensor | None = field(default=None, repr=False)

    @property
    def landed_error(self) -> float:
        """How far the last sample is from the clean one, relative to the latter's root mean square."""
        assert self.clean is not None
        assert self.last is not None, "no step was made"
        return _distance(self.last, self.clean)

    def start(self, seen: Tensor, timestep: float, clean: Tensor | None = None) -> None:
        """Begin the trajectory from the network's input `seen` to `clean`, by default a random sample.

        That is one for the whole batch, which guidance may double, and within the range that some schedulers clip to.
        """
        generator = torch.Generator().manual_seed(77)
        self.clean = 2 * torch.rand(1, *seen.shape[1:], generator=generator) - 1 if clean is None else clean
        alpha, sigma = self.oracle.marginal(timestep)
        self.noise = (seen - alpha * self.clean) / sigma

    def exact_output(self, model_output: Tensor, timestep: float, seen: Tensor) -> Tensor:
        """`model_output` with as many channels as the network's input `seen` exact; a learned variance stays."""
        assert self.clean is not None
        assert self.noise is not None
        alpha, sigma = self.oracle.marginal(timestep)
        paired = min(len(seen), len(self.noise))
        self.drift = max(self.drift, _distance(seen[:paired], alpha * self.clean + sigma * self.noise[:paired]))
        exact = self.oracle.output(seen, timestep, self.clean)
        return torch.cat([exact, model_output[:, seen.shape[1] :].float()], dim=1).to(model_output.dtype)


def _distance(value: Tensor, target: Tensor) -> float:
    """Root mean square of the difference, relative to that of `target`."""
    return float((value - target).square().mean().sqrt() / target.square().mean().sqrt())


def install(pipe: Any, candidate: Any) -> Probe:
    """Make `candidate` the scheduler of `pipe`, with a network that is exact for the scheduler it had before.

    Of the copies that a pipeline may make of it, for the sound of a video, the networks stay as they are.
    """
    probe = Probe(Oracle(pipe.scheduler))
    kind = type(candidate)
    signature = inspect.signature(kind.step)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not candidate:
            return kind.step(self, *args, **kwargs)
        call = signature.bind(self, *args, **kwargs)
        output, time, sample = (call.arguments[name] for name in ("model_output", "timestep", "sample"))
        seen = self.scale_model_input(sample, time) if hasattr(self, "scale_model_input") else sample
        known = call.arguments.get("pred_original_sample")  # Cosmos gives it, with the frames that it was given
        if probe.clean is None or (known is not None and probe.steps == 1):
            probe.start(seen.float(), float(time), known)
        exact = probe.exact_output(output, float(time), seen.float())
        per_token = call.arguments.get("per_token_timesteps") is not None  # there diffusers takes data - noise
        call.arguments["model_output"] = -exact if per_token else exact
        result = kind.step(*call.args, **call.kwargs)
        probe.steps += 1
        probe.last = result[0].float()
        return result

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        probe.oracle.lay_out(*args, **kwargs)

    candidate.step = types.MethodType(step, candidate)  # methods, so that a copy's are its own
    candidate.set_timesteps = types.MethodType(set_timesteps, candidate)
    pipe.scheduler = candidate
    return probe
