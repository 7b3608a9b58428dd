"""Solvers as the sampler functions of k-diffusion: `f(model, x, sigmas, extra_args, callback, disable) -> x`.

Here x is data + sigma noise on VP, v and EDM models (their x over alpha), and (1 - sigma) data + sigma noise on flow
models. `model(x, sigma, **extra_args)` returns the data prediction, after guidance; both are the caller's to see to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastsample.interop.plans import OWN_SPLITS, Plan, is_flow, plan_of, planned
from fastsample.sampling.brownian import BrownianPath
from fastsample.sampling.executor import Runner
from fastsample.solvers import get_solver
from fastsample.tables.spans import Span

NoiseSampler = Callable[[Any, Any], Tensor]
"""`noise_sampler(sigma, sigma_next)`: standard normal noise for a step between them."""

OFFSET = 1e-4
"""The part of sampling after which ComfyUI has the first step of a flow model begin, for its samplers in log-SNR."""


def sampler(
    name: str, *, flow: bool | None = None, noise: str = "auto", s_noise: float = 1.0, **options: Any
) -> Callable[..., Tensor]:
    """The solver `name` as a sampler function of k-diffusion, with `options` of the solver.

    A name as k-diffusion and ComfyUI spell it ("dpmpp_2m_sde", "sample_dpmpp_2m_sde") or as AUTOMATIC1111 does
    ("DPM++ 2M SDE") samples as it does there, step for step, on flow models as in ComfyUI; one of fastsample's own
    ("dpmpp-2m-sde") as in its schedulers, which lower the order on long steps.

    `f(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None, **options)` takes `x` at
    `sigmas[0]` to `sigmas[-1]`, 0 or not; options given there come before these. Fewer than two sigmas give
    back `x`. `callback` gets a dict of x, i, sigma, sigma_hat and denoised at each step; `disable` hides the bar.
    `flow` says that the model is one of flow matching; None asks the model: ComfyUI's answer, others are not.
    Noise comes from `noise_sampler` where one is given, else `noise` "brownian": the increments of one path
    (:class:`fastsample.sampling.brownian.BrownianPath`), the same at any number of steps; "independent": drawn anew
    at each step; "auto": brownian where the name has "sde" in it, as in k-diffusion. Either begins from
    `extra_args["seed"]` as ComfyUI hands it over, else from PyTorch's own generator. `s_noise` multiplies it.
    Raises ValueError for unknown names and options, and on a call for sigmas that do not fall, before the model runs.
    """
    plan = plan_of(name, noise, s_noise, options)

    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
        **changed: Any,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        chosen = plan_of(name, noise, changed.pop("s_noise", s_noise), {**options, **changed}) if changed else plan
        sampling = model_sampling(model)
        flows = flow if flow is not None else sampling is not None and is_flow(sampling)
        levels = tuple(torch.as_tensor(sigmas).tolist())
        table, spans, starts = planned(
            chosen, _offset(levels, chosen, sampling, flows), flow=flows, comfyui=sampling is not None
        )
        extra = dict(extra_args or {})
        draw = _noise(chosen, x, extra.get("seed"), noise_sampler)
        amount = chosen.s_noise * float(getattr(sampling, "noise_scale", 1.0))  # some models of ComfyUI have one
        runner, ones, step = Runner(table), x.new_ones(len(x)), 0
        with torch.no_grad(), tqdm(total=len(levels) - 1, disable=disable, desc=plan.name) as bar:
            for index, (evaluation, lowered) in enumerate(zip(table.steps, table.lowered.steps, strict=True)):
                denoised = model(x, evaluation.node.sigma * ones, **extra)
                if starts[index]:
                    if callback is not None:
                        level = {"sigma": sigmas[step], "sigma_hat": sigmas[step]}
                        callback({"x": x, "i": step, **level, "denoised": denoised})
                    step += 1
                    bar.update()
                x = runner.step(index, x, denoised, amount * draw(spans[index]) if lowered.noisy else None)
        return x

    return _signed(sample, plan)


def model_sampling(model: Any) -> Any:
    """ComfyUI's `model_sampling` of a model that it hands to a sampler; None for what other programs hand over."""
    patcher = getattr(getattr(model, "inner_model", None), "model_patcher", None)
    return None if patcher is None else patcher.get_model_object("model_sampling")


def _offset(sigmas: tuple[float, ...], plan: Plan, sampling: Any, flow: bool) -> tuple[float, ...]:
    """`sigmas` beginning where ComfyUI's samplers in log-SNR begin on flow models, whose log-SNR is -inf at 1."""
    in_log_snr = plan.published and not plan.slopes and plan.name not in OWN_SPLITS
    if flow and in_log_snr and sampling is not None and sigmas[0] >= 1:
        return (float(sampling.percent_to_sigma(OFFSET)), *sigmas[1:])
    return sigmas


def _noise(plan: Plan, x: Tensor, seed: int | None, given: NoiseSampler | None) -> Callable[[Span], Tensor]:
    """What draws the noise of a span, at unit variance."""
    if given is not None:
        return lambda span: given(x.new_tensor(span[0].sigma), x.new_tensor(span[1].sigma))
    if plan.noise == "brownian":
        path = BrownianPath.drawn(len(x)) if seed is None else BrownianPath.of_seed(seed, len(x))
        return lambda span: path.noise(x, *span)
    if seed is None:
        return lambda span: torch.randn_like(x)
    # on the CPU the caller has drawn x from a generator of this seed
    generator = torch.Generator(x.device).manual_seed(seed + (x.device.type == "cpu"))
    return lambda span: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _signed(sample: Callable[..., Tensor], plan: Plan) -> Callable[..., Tensor]:
    """`sample` with a signature that names the options, which is where some programs look for them."""
    parameters = list(inspect.signature(sample).parameters.values())[:-1]
    own = {**get_solver(plan.solver).options, **dict(plan.options)}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(name, kind, default=value) for name, value in {**own, "s_noise": plan.s_noise}.items()
    ]
    sample.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    sample.__name__ = sample.__qualname__ = f"sample_{plan.name}"
    return sample
