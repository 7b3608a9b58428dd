"""Pipelines sampled in parallel: the sequential image at tolerance 0, or the sequential image and a reason."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import diffusers
import pytest
import torch
from diffusers import guiders
from pipelines import quiet, stable_diffusion, stable_diffusion_xl
from torch import Tensor
from zoo import ZOO, picture

import fastsample as fs
from fastsample.pipelines.parallel import ParallelRun, driver, loop, pipeline, segment
from fastsample.pipelines.parallel.layout import CallLayout
from fastsample.pipelines.parallel.rounding import allowed_difference

SEQUENTIAL = {  # why these are not sampled in parallel
    "stable_diffusion_inpaint": "decides by the step: if i < len(timesteps) - 1",  # blends the image in after a step
    "stable_diffusion_xl_inpaint": "decides by the step: if i < len(timesteps) - 1",
    "flux_inpaint": "decides by the step: if i < len(timesteps) - 1",
    "animate_diff": "failed with many rows at once",  # text repeated for every frame
    "text_to_video": "the latents are not found",  # frames are moved to the batch for the step
    "dit": "a row evaluated again",  # the two guidance halves are interleaved with the batch
    "z_image": "decides by the step",
    "hidream": "failed with many rows at once",  # text of shape (layers, batch, ..)
    "ltx_condition": "has timesteps of shape",  # a time for each token
    "ltx_image_to_video": "the latents are not found",  # the first frame is put in
    "ltx_2": "decides by the step",
    "cosmos": "the latents are not found",
    "cosmos_video_to_world": "decides by the step",
    "cosmos_2": "decides by the step",
    "cosmos_2_5": "decides by the step",
    "stable_audio": "the scheduler draws from a source of its own",  # the stand-in for torchsde's does
}
ZOO_NAMES = [name for name in ZOO if name != "stable_diffusion_xl_refiner"]  # two pipelines


def close(found: Any, expected: Any, bound: float = 3e-5) -> None:
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert expected.isfinite().all()
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    pipe = ZOO[name].build()
    return pipe, pipe.scheduler


def both_ways(
    name: str, scheduler: Any = None, batch: dict[str, Any] | None = None, **options: Any
) -> tuple[Tensor, Tensor, ParallelRun]:
    """The sequential result, the parallel one, and what it cost, from the same seed."""
    pipe, own = built(name)
    pipe.scheduler = copy.deepcopy(own) if scheduler is None else scheduler
    extra = batch or {}
    torch.manual_seed(1)  # pipelines for flow models do not hand their generator to the scheduler
    expected = ZOO[name].sample(lambda **kwargs: pipe(**kwargs, **extra))
    sampler = fs.ParallelSampler(pipe, **{"tolerance": 0.0, "window": 3, **options})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="sampled sequentially")
        torch.manual_seed(1)
        return expected, ZOO[name].sample(lambda **kwargs: sampler(**kwargs, **extra)), sampler.run


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_every_pipeline_gives_its_sequential_result(name: str) -> None:
    """To rounding where it runs in parallel, to the bit where it says why it does not."""
    expected, found, run = both_ways(name)
    if name in SEQUENTIAL:
        assert SEQUENTIAL[name] in run.fallback
        assert torch.equal(found, expected)
        return
    close(found, expected)
    assert not run.fallback
    assert 0 < run.steps <= len(built(name)[0].scheduler.timesteps)  # fewer from image to image
    assert run.plain_steps == (2 if name == "wan_2_2" else 1)  # two networks, a segment each
    assert run.sweeps <= run.steps - run.plain_steps


VP_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ours ddim": fs.DDIMScheduler.from_config,
    "ours dpm": fs.DPMSolverScheduler.from_config,
    "ours sde": lambda config: fs.DPMSolverScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "ours heavy ball": lambda config: fs.HeavyBallScheduler.from_config(config, timestep_grid="quadratic"),
    "ours ghvb": fs.GHVBScheduler.from_config,
    "ours unipc": fs.UniPCScheduler.from_config,
    "ours deis": fs.DEISScheduler.from_config,
    "ours heun": lambda config: fs.create_scheduler("heun", config),
    "ddim": diffusers.DDIMScheduler.from_config,
    "ddpm": diffusers.DDPMScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "heun": diffusers.HeunDiscreteScheduler.from_config,
    "kdpm2 ancestral": diffusers.KDPM2AncestralDiscreteScheduler.from_config,
    "pndm": lambda config: diffusers.PNDMScheduler.from_config(config, skip_prk_steps=True),
    "pndm with its warm-up": lambda config: diffusers.PNDMScheduler.from_config(config, skip_prk_steps=False),
    "dpm karras": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    "dpm sde": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="sde-dpmsolver++"
    ),
    "dpm single": diffusers.DPMSolverSinglestepScheduler.from_config,
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
    "deis": diffusers.DEISMultistepScheduler.from_config,
    "sa": diffusers.SASolverScheduler.from_config,
    "lcm": diffusers.LCMScheduler.from_config,
}
FLOW_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    **{name: VP_SCHEDULERS[name] for name in VP_SCHEDULERS if name.startswith("ours") and name != "ours heun"},
    "euler": diffusers.FlowMatchEulerDiscreteScheduler.from_config,
    "euler stochastic": lambda config: diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        config, stochastic_sampling=True
    ),
}
WAN_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    **{name: FLOW_SCHEDULERS[name] for name in FLOW_SCHEDULERS if name.startswith("ours")},
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
    "dpm": diffusers.DPMSolverMultistepScheduler.from_config,
}
VP = ("stable_diffusion", "stable_diffusion_xl", "pixart_alpha")
CASES = [
    *((name, kind) for name in VP for kind in VP_SCHEDULERS),
    *((name, kind) for name in ("stable_diffusion_3", "flux", "qwen_image") for kind in FLOW_SCHEDULERS),
    *(("wan", kind) for kind in WAN_SCHEDULERS),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_scheduler_gives_its_sequential_result(name: str, kind: str) -> None:
    """Ours and diffusers', with history, two stages or noise: by their own steps."""
    own = built(name)[1].config
    choices = WAN_SCHEDULERS if name == "wan" else VP_SCHEDULERS if name in VP else FLOW_SCHEDULERS
    expected, found, run = both_ways(name, choices[kind](own), iteration="secant", window=None)
    close(found, expected, 1e-4)
    assert not run.fallback
    assert run.rounds <= run.steps


CONTINUOUS = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith(("Amused", "BlockRefinement", "Flax"))  # of tokens
)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_class_of_diffusers_gives_its_sequential_result(name: str) -> None:
    """With warm-ups, inner stages and histories of their own; or it says why it is sampled sequentially."""
    kinds = ("flux", "stable_diffusion") if "Flow" in name else ("stable_diffusion", "flux")
    for kind in kinds:
        pipe, own = built(kind)
        extra = {"skip_prk_steps": False} if name == "PNDMScheduler" else {}
        inputs = {"output_type": "latent", **ZOO[kind].inputs(), "num_inference_steps": 7}
        make = lambda sampler, inputs=inputs: torch.as_tensor(sampler(**seeded(inputs))[0])  # noqa: E731
        try:
            pipe.scheduler = getattr(diffusers, name).from_config(own.config, **extra)
            expected = make(pipe)
        except (ImportError, LookupError, TypeError, ValueError, AttributeError):
            continue  # not for this pipeline, or without torchsde
        sampler = fs.ParallelSampler(pipe, window=3, tolerance=0.0)
        close(make(sampler), expected, 1e-4)
        assert not sampler.run.fallback
        return
    pytest.skip("runs in neither pipeline")


def seeded(inputs: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(1)
    return {**inputs, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("iteration", ["picard", "replay", "secant", "anderson"])
def test_a_batch_of_prompts_with_guidance_and_several_images(iteration: str) -> None:
    """Every image from its own generator; at a tolerance in fewer rounds than steps, and near the sequential one."""
    pipe = stable_diffusion()
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)
    inputs = {"prompt": ["a small circle", "red"], "num_images_per_prompt": 2, "height": 8, "width": 8}
    inputs |= {"num_inference_steps": 20, "output_type": "latent", "guidance_scale": 3.0}
    expected = pipe(**inputs, generator=streams(4)).images
    exact = fs.ParallelSampler(pipe, iteration=iteration, window=8, tolerance=0.0)
    close(exact(**inputs, generator=streams(4)).images, expected)
    loose = fs.ParallelSampler(pipe, iteration=iteration, window=8, tolerance=0.05)
    close(loose(**inputs, generator=streams(4)).images, expected, 0.1)
    assert loose.run.rounds < exact.run.rounds <= 20
    assert loose.run.steps == 20


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


# --- what the caller sees ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd() -> Any:
    pipe = quiet(stable_diffusion())
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)
    return pipe


def arguments(**changed: Any) -> dict[str, Any]:
    base = {
        "prompt": "a small red circle",
        "num_inference_steps": 12,
        "output_type": "latent",
        "height": 8,
        "width": 8,
    }
    return {**base, "generator": torch.Generator().manual_seed(0), **changed}


@pytest.mark.parametrize("window", [4, None])
def test_callbacks_are_called_once_a_committed_step(sd: Any, window: int | None) -> None:
    """In order, with the step's timestep and its sample, as by the sequential call."""

    def recorded(seen: list[tuple[int, float, Tensor]]) -> Callable[..., dict[str, Any]]:
        def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append((step, float(timestep), tensors["latents"].clone()))
            return tensors

        return callback

    expected: list[tuple[int, float, Tensor]] = []
    found: list[tuple[int, float, Tensor]] = []
    sd(**arguments(callback_on_step_end=recorded(expected)))
    sampler = fs.ParallelSampler(sd, window=window, tolerance=0.0)
    sampler(**arguments(callback_on_step_end=recorded(found)))
    assert [seen[:2] for seen in found] == [seen[:2] for seen in expected]
    assert not sampler.run.fallback
    for (*_, one), (*_, other) in zip(found, expected, strict=True):
        close(one, other)


def test_a_callback_that_interrupts_ends_there(sd: Any) -> None:
    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 5
        return tensors

    expected = sd(**arguments(callback_on_step_end=stop)).images
    sampler = fs.ParallelSampler(sd, window=4, tolerance=0.0)
    close(sampler(**arguments(callback_on_step_end=stop)).images, expected)
    assert not sampler.run.fallback


@pytest.mark.parametrize("in_place", [True, False])
def test_a_callback_that_changes_the_latents_is_sequential(sd: Any, in_place: bool) -> None:
    def nudge(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 6:
            latents = tensors["latents"]
            tensors["latents"] = latents.add_(0.5) if in_place else latents + 0.5
        return tensors

    expected = sd(**arguments(callback_on_step_end=nudge)).images
    sampler = fs.ParallelSampler(sd, window=4, tolerance=0.0)
    with pytest.warns(UserWarning, match="sampled sequentially: the callback changes latents"):
        found = sampler(**arguments(callback_on_step_end=nudge)).images
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["stable_diffusion", "shap_e", "dit"])
def test_the_progress_bar_counts_committed_steps(name: str) -> None:
    """Pipelines that update it, and those that iterate over it, with schedulers of order 1 and 2."""
    pipe, own = built(name)
    pipe.scheduler = copy.deepcopy(own)
    counts = [_counted(name, sampler) for sampler in (pipe, fs.ParallelSampler(pipe, tolerance=0.0))]
    assert counts[0] == counts[1]


def _counted(name: str, sampler: Any) -> tuple[int, int]:
    """What the bar of a call shows in the end, and its total."""
    bars: list[Any] = []

    def bar(*args: Any, **kwargs: Any) -> Any:
        bars.append(_Bar(*args, **kwargs))
        return bars[-1]

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("diffusers.pipelines.pipeline_utils.tqdm", bar)
        ZOO[name].sample(sampler)
    return bars[-1].n, bars[-1].total


class _Bar:
    def __init__(self, iterable: Any = None, total: int | None = None, **_: Any) -> None:
        self.iterable, self.n, self.total = iterable, 0, total if iterable is None else len(iterable)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Any:
        for item in self.iterable:
            yield item
            self.n += 1

    def update(self, count: int = 1) -> None:
        self.n += count

    def close(self) -> None:
        pass


def test_parallelise_is_a_context_and_leaves_no_trace(sd: Any) -> None:
    expected = sd(**arguments()).images
    kind, held = (
        type(sd),
        {name: set(vars(part)) for name, part in sd.components.items() if hasattr(part, "__dict__")},
    )
    with fs.parallelise(sd, iteration="replay", window=6, tolerance=0.0) as run:
        assert isinstance(sd, kind)
        close(sd(**arguments()).images, expected)
        close(sd(**arguments()).images, expected)
    assert (run.steps, run.plain_steps) == (24, 2)
    assert type(sd) is kind
    assert {name: set(vars(part)) for name, part in sd.components.items() if hasattr(part, "__dict__")} == held
    assert type(sd.scheduler.timesteps) is Tensor
    assert not sd.unet._forward_pre_hooks
    assert torch.equal(sd(**arguments()).images, expected)


def test_an_error_in_the_call_leaves_no_trace(sd: Any) -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        fs.ParallelSampler(sd)(**arguments(height=13))
    assert "step" not in vars(sd.scheduler)
    assert not sd.unet._forward_pre_hooks


def test_the_default_generator_is_drawn_from_as_ever() -> None:
    """Without a generator noise comes from PyTorch's own, in the same order, and it ends in the same state."""
    pipe = quiet(stable_diffusion())
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    states = []
    for sampler in (pipe, fs.ParallelSampler(pipe, window=5, tolerance=0.0)):
        torch.manual_seed(3)
        states.append((sampler(**arguments(generator=None)).images, torch.get_rng_state()))
    close(states[1][0], states[0][0])
    assert torch.equal(states[0][1], states[1][1])


def test_compiled_denoisers_see_one_shape(sd: Any) -> None:
    """A compiled network is not compiled again: all calls after the plain step have the same number of rows."""
    rows: list[int] = []

    class Compiled(torch.nn.Module):  # as torch.compile wraps a module
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

        def __getattr__(self, name: str) -> Any:
            return (
                super().__getattr__(name) if name == "_orig_mod" else getattr(super().__getattr__("_orig_mod"), name)
            )

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            rows.append(len(kwargs["sample"] if "sample" in kwargs else args[0]))
            return self._orig_mod(*args, **kwargs)

    pipe = copy.copy(sd)
    pipe.unet = Compiled(sd.unet)
    sampler = fs.ParallelSampler(pipe, window=5, tolerance=0.02)
    sampler(**arguments())
    assert not sampler.run.fallback
    assert len(set(rows[1:])) == 1


# --- the self-checks: each is all that stands between a wrong image and the user ---------------------------


class MixingUNet(diffusers.UNet2DConditionModel):
    """Normalises over the batch."""

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(sample, timestep, *args, **kwargs)
        mixed = output[0] - output[0].mean(0, keepdim=True)
        return (mixed,) if isinstance(output, tuple) else type(output)(sample=mixed)


def mixing() -> tuple[Any, dict[str, Any]]:
    pipe = quiet(stable_diffusion())
    unet = MixingUNet.from_config(pipe.unet.config)
    unet.load_state_dict(pipe.unet.state_dict())
    pipe.unet = unet
    return pipe, arguments(guidance_scale=3.0, num_images_per_prompt=2)


def interleaved() -> tuple[Any, dict[str, Any]]:
    pipe = ZOO["dit"].build()
    inputs = {**ZOO["dit"].inputs(), "num_inference_steps": 6, "output_type": "np"}
    return pipe, {**inputs, "generator": torch.Generator().manual_seed(0)}


def time_guided() -> tuple[Any, dict[str, Any]]:
    """CogVideoX, whose guidance rises with the timestep: nothing in its calls shows it."""
    pipe = ZOO["cogvideox"].build()
    inputs = {**ZOO["cogvideox"].inputs(), "num_inference_steps": 6, "output_type": "latent"}
    inputs |= {"use_dynamic_cfg": True, "guidance_scale": 6.0}
    return pipe, {**inputs, "generator": torch.Generator().manual_seed(0)}


def inpainting() -> tuple[Any, dict[str, Any]]:
    """With a network of four channels the picture around the mask is put back after every step."""
    pipe = quiet(stable_diffusion(diffusers.StableDiffusionInpaintPipeline))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    return pipe, arguments(image=picture(1, 3, 16, 16), mask_image=mask, height=16, width=16, strength=1.0)


def own_noise() -> tuple[Any, dict[str, Any]]:
    """A scheduler that draws from a generator of its own."""
    pipe = quiet(stable_diffusion())

    class Own(diffusers.DDIMScheduler):
        source = torch.Generator().manual_seed(0)

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.source.manual_seed(0)

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
            noise = torch.randn(sample.shape, generator=self.source)
            return super().step(model_output, timestep, sample, variance_noise=noise, **{**kwargs, "eta": 1.0})

    pipe.scheduler = Own.from_config(pipe.scheduler.config)
    return pipe, arguments()


LATENTS = [(CallLayout, "check_latents"), (driver, "same_latents")]
UNCHECKED: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any]]], str, list[tuple[Any, str]]]] = {
    "mixing": (mixing, "a row evaluated again", [(segment.Segment, "_check")]),
    "interleaved": (interleaved, "a row evaluated again", [(segment.Segment, "_check"), *LATENTS]),
    "time_guided": (time_guided, "a row evaluated again", [(segment.Segment, "_check")]),
    "own_noise": (own_noise, "a step made again", [(segment.Segment, "_check_repeats")]),
    "inpainting": (inpainting, "decides by the step", [(pipeline, "step_decision"), *LATENTS]),
}


@pytest.mark.parametrize("case", UNCHECKED)
def test_what_cannot_be_batched_is_sampled_sequentially(case: str) -> None:
    make, said, _ = UNCHECKED[case]
    pipe, inputs = make()
    expected = torch.as_tensor(pipe(**fresh(inputs))[0])
    sampler = fs.ParallelSampler(pipe, window=4, tolerance=0.0)
    with pytest.warns(UserWarning, match=f"sampled sequentially: .*{said}"):
        found = torch.as_tensor(sampler(**fresh(inputs))[0])
    assert torch.equal(found, expected)


def fresh(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("case", UNCHECKED)
def test_without_its_check_the_image_would_be_wrong(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, _, checks = UNCHECKED[case]
    pipe, inputs = make()
    expected = torch.as_tensor(pipe(**fresh(inputs))[0])
    for owner, name in checks:
        monkeypatch.setattr(owner, name, lambda *_, name=name: name != "step_decision")
    # at tolerance 0 a step is final when it is the first of a window, whose timestep the pipeline sees
    sampler = fs.ParallelSampler(pipe, window=4, tolerance=0.5 if case == "time_guided" else 0.0)
    found = torch.as_tensor(sampler(**fresh(inputs))[0])
    assert not sampler.run.fallback
    assert not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_inpainting_is_seen_in_the_latents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source cannot be read, the blend after each step shows in what comes back."""
    pipe, inputs = inpainting()
    expected = pipe(**fresh(inputs))[0]
    monkeypatch.setattr(pipeline, "step_decision", lambda *_: "")
    with pytest.warns(UserWarning, match="the latents are changed between two steps"):
        found = fs.ParallelSampler(pipe, window=4, tolerance=0.0)(**fresh(inputs))[0]
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window = 0"),
        ({"window": 2.5}, "window = 2.5"),
        ({"tolerance": -0.1}, "tolerance = -0.1"),
        ({"iteration": "newton"}, "iteration = 'newton'"),
    ],
)
def test_wrong_settings_are_refused(sd: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fs.ParallelSampler(sd, **options)
    with pytest.raises(ValueError, match=said), fs.parallelise(sd, **options):
        pass


def test_caches_across_steps_are_refused(sd: Any) -> None:
    with fs.TGate(gate_step=5).apply(sd), pytest.raises(ValueError, match=r"pipe\.unet has T-GATE.*remove"):
        fs.ParallelSampler(sd)
    flux = ZOO["flux"].build()
    flux.transformer.enable_cache(diffusers.FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="another cache"):
        fs.ParallelSampler(flux)


def test_a_cache_applied_later_is_refused_before_any_evaluation(sd: Any) -> None:
    sampler = fs.ParallelSampler(sd)
    with fs.TGate(gate_step=5).apply(sd), pytest.raises(ValueError, match="T-GATE"):
        sampler(**arguments())


def test_a_guider_that_acts_on_some_steps_is_refused() -> None:
    pipe = ZOO["hunyuan_video_15"].build()
    pipe.guider = type(pipe.guider).from_config(pipe.guider.config, stop=0.5)
    with pytest.raises(ValueError, match="acts on some steps only"):
        fs.ParallelSampler(pipe)


@pytest.mark.parametrize(
    ("guider", "stepless"),
    [
        (guiders.ClassifierFreeGuidance(3.0), True),
        (guiders.TangentialClassifierFreeGuidance(3.0), True),
        (guiders.AdaptiveProjectedGuidance(3.0), True),
        (guiders.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5), False),
        (guiders.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=3), False),
        (guiders.SkipLayerGuidance(3.0, skip_layer_guidance_layers=[0]), False),
        (fs.TGateGuider(3.0, gate_step=3), False),
    ],
)
def test_guiders_that_need_the_step_are_refused(guider: Any, stepless: bool) -> None:
    """In a modular pipeline; with the others it gives its sequential result."""
    pipe, xl = diffusers.StableDiffusionXLAutoBlocks().init_pipeline(), stable_diffusion_xl()
    parts = {name: getattr(xl, name) for name in ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")}
    pipe.update_components(**parts, guider=guider, force_zeros_for_empty_prompt=False)
    inputs = {"prompt": "a red circle", "num_inference_steps": 6, "height": 16, "width": 16}
    sample = lambda sampler: sampler(**seeded(inputs), output_type="latent", output="latents")  # noqa: E731
    if not stepless:
        with pytest.raises(ValueError, match=f"{type(guider).__name__} may act on some steps only"):
            fs.ParallelSampler(pipe)
        return
    expected = sample(pipe)
    sampler = fs.ParallelSampler(pipe, window=3, tolerance=0.0)
    close(sample(sampler), expected)
    assert not sampler.run.fallback


def test_what_is_no_diffusion_pipeline_is_refused() -> None:
    with pytest.raises(ValueError, match="has no scheduler"):
        fs.ParallelSampler(ZOO["stable_diffusion_xl_refiner"].build())


@pytest.mark.parametrize(
    ("name", "neutral", "changed"),
    [
        ("stable_diffusion_controlnet", {}, {"control_guidance_end": 0.5}),
        ("stable_diffusion_3", {"skip_guidance_layers": None}, {"skip_guidance_layers": [0]}),
        ("lumina_2", {"cfg_trunc_ratio": 1.0}, {"cfg_trunc_ratio": 0.5}),
    ],
)
def test_arguments_that_act_on_some_steps(name: str, neutral: dict[str, Any], changed: dict[str, Any]) -> None:
    """The loop check passes at their neutral values only."""
    kind = type(built(name)[0])
    assert loop.step_decision(kind, neutral) == ""
    assert "decides by the step" in loop.step_decision(kind, changed)


def test_a_loop_whose_source_is_missing_is_not_trusted() -> None:
    namespace: dict[str, Any] = {}
    exec("class Hidden:\n    def __call__(self):\n        pass", namespace)
    assert "cannot be read" in loop.step_decision(namespace["Hidden"], {})


# --- the phases of a loop ----------------------------------------------------------------------------------


class OwnLoop(diffusers.DiffusionPipeline):
    """A pipeline whose loop goes its own ways."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, way: str, generator: Any = None) -> tuple[Tensor]:
        scheduler, text = self.scheduler, torch.ones(1, 5, 16)
        scheduler.set_timesteps(7)
        x = torch.randn(1, 4, 8, 8, generator=generator)
        timesteps = scheduler.timesteps
        if way == "looks first":
            assert len([float(t) for t in timesteps]) == len(list(timesteps)) == 7
        if way == "lists":
            timesteps = list(timesteps)
        for t in timesteps:
            if way == "skips" and 300 < t < 500:
                continue
            if way == "looks inside":
                assert len([float(t) for t in timesteps]) == 7
            noise = self.unet(x, t, encoder_hidden_states=text).sample
            x = scheduler.step(noise, t, x).prev_sample
            if way == "twice" and 300 < t < 500:
                x = scheduler.step(noise, t, x).prev_sample
        return (x,)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("straight", ""),
        ("looks first", ""),
        ("looks inside", ""),
        ("lists", "does not iterate over its scheduler's timesteps"),
        ("twice", "does not step once for each timestep"),
        ("skips", "went round without a step"),
    ],
)
def test_a_loop_that_goes_its_own_way(way: str, reason: str, tolerance: float) -> None:
    pipe = OwnLoop(stable_diffusion().unet, diffusers.DDIMScheduler(beta_schedule="scaled_linear"))
    run = lambda sampler: sampler(way, generator=torch.Generator().manual_seed(0))[0]  # noqa: E731
    expected = run(pipe)
    for window in (2, None):
        sampler = fs.ParallelSampler(pipe, window=window, tolerance=tolerance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(sampler)
        assert reason in sampler.run.fallback
        assert bool(sampler.run.fallback) == bool(reason)
        if reason:
            assert torch.equal(found, expected)
        else:
            close(found, expected, 3e-5 if tolerance == 0 else 0.1)
    assert torch.equal(run(pipe), expected)


CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.mark.parametrize(  # torch's older way to say it, and its newer
    ("convolutions", "key", "off", "on"),
    [(CUDNN, "allow_tf32", False, True), (CUDNN.conv, "fp32_precision", "ieee", "tf32")],
    ids=["older", "newer"],
)
def test_products_of_ten_bits_are_not_taken_for_mixed_rows(convolutions: Any, key: str, off: Any, on: Any) -> None:
    """float32 on CUDA with TF32, torch's default for convolutions, differs by 4e-4 with the size of the batch."""

    class OnCuda:
        is_cuda, dtype = True, torch.float32

        def is_floating_point(self) -> bool:
            return True

    cpu, cuda = torch.zeros(1), cast(Tensor, OnCuda())
    assert allowed_difference(cpu) < 4e-4 < allowed_difference(cuda) < 0.05
    assert allowed_difference(cpu, [cpu.half(), torch.zeros(1, dtype=torch.long)]) == allowed_difference(cpu.half())
    before = getattr(convolutions, key), getattr(MATMUL, key)
    try:
        setattr(convolutions, key, off)
        assert allowed_difference(cuda) == allowed_difference(cpu)
        setattr(MATMUL, key, on)
        assert allowed_difference(cuda) > 4e-4
    finally:
        for backend, value in zip((convolutions, MATMUL), before, strict=True):
            setattr(backend, key, value)
