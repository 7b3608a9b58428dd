"""Guidance in some steps, elsewhere the conditional branch alone: on every guided pipeline, in windows too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from diffusers import guiders
from refusal import check_refused
from torch import Tensor
from zoo import (
    SD_SAFETY,
    SQUARE,
    ZOO,
    Entry,
    assemble,
    caption_transformer,
    drawn,
    flux_scheduler,
    flux_transformer,
    picture,
    sd_scheduler,
    shifted_vae,
    text_inputs,
    unet,
    vae,
)

import fastsample as fs
from fastsample.pipelines.counting import count
from fastsample.pipelines.overlay import overlaid

TRUE_GUIDANCE = {
    "true_cfg_scale": 4.0,
    **drawn(negative_prompt_embeds=(1, 5, 16), negative_pooled_prompt_embeds=(1, 16)),
}
GUIDED: dict[str, dict[str, Any]] = {
    "flux": TRUE_GUIDANCE,
    "flux_controlnet": TRUE_GUIDANCE,
    "flux_img2img": TRUE_GUIDANCE,
    "flux_kontext": TRUE_GUIDANCE,
    "hunyuan_video": {**TRUE_GUIDANCE, "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.int64)},
    "qwen_image": {"true_cfg_scale": 4.0},
}
"""How pipelines of the zoo are called that are not guided there."""

UNGUIDED = {
    "flux_inpaint",
    "flux_fill",
    "flux_control",
    "flux_2",
    "hunyuan_video_15",
}  # by what the zoo calls them with
COMBINED = {"stable_diffusion_xl_refiner"}  # of two pipelines
LTX_2_SCALES = ("guidance_scale", "audio_guidance_scale", "modality_scale", "audio_modality_scale")
WITHOUT: dict[str, dict[str, float]] = {
    "z_image": {"guidance_scale": 0.0},
    "ltx_2": dict.fromkeys(LTX_2_SCALES, 1.0),
    "pixart_sigma_pag": {"guidance_scale": 1.0, "pag_scale": 0.0},
}
"""How they are called without guidance, where not by a scale of 1."""


def flux_controlnet() -> Any:
    """One whose ControlNet is called once for the two calls of its network."""
    torch.manual_seed(0)
    network = flux_transformer()
    known = ("attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
    sizes = {name: network.config[name] for name in (*known, "in_channels", "axes_dims_rope")}
    control = diffusers.FluxControlNetModel(patch_size=1, num_layers=1, num_single_layers=1, **sizes)
    parts = {"vae": shifted_vae(), "transformer": network, "controlnet": control}
    return assemble(diffusers.FluxControlNetPipeline, flux_scheduler(), **parts)


def pixart_sigma_pag() -> Any:
    """One that says in a variable of its call alone that it is guided, beside perturbed attention."""
    torch.manual_seed(0)
    network = caption_transformer(diffusers.PixArtTransformer2DModel, use_additional_conditions=False)
    parts = {"vae": vae(), "transformer": network, "pag_applied_layers": ["transformer_blocks.0"]}
    return assemble(diffusers.PixArtSigmaPAGPipeline, sd_scheduler("DDIMScheduler"), **parts)


ENTRIES = ZOO | {
    own.name: own
    for own in (
        Entry("flux_controlnet", flux_controlnet, lambda: {**pipelines.flux_inputs(), "control_image": picture()}, 4),
        Entry("pixart_sigma_pag", pixart_sigma_pag, lambda: {**pipelines.pixart_inputs(), "pag_scale": 2.0}, 4),
    )
}


def run(name: str, pipe: Any, **changed: Any) -> Tensor:
    entry = ENTRIES[name]
    inputs = {"output_type": "latent", "num_inference_steps": entry.steps, **entry.inputs(), **GUIDED.get(name, {})}
    return torch.as_tensor(pipe(**{**inputs, **changed}, generator=torch.Generator().manual_seed(0))[0])


def samples_of(name: str, pipe: Any, **changed: Any) -> list[Tensor]:
    """What the scheduler was given at each step."""
    found: list[Tensor] = []

    def step(beneath: Callable[..., Any], output: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["sample"] if "sample" in kwargs else args[1])
        return beneath(output, *args, **kwargs)

    with overlaid(pipe.scheduler, step=step):
        run(name, pipe, **changed)
    return found


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - UNGUIDED - COMBINED - {"stable_video_diffusion", "shap_e"}))
def test_every_guided_pipeline_is_served(name: str) -> None:
    """Guided in its last step alone it comes to where it comes without guidance; afterwards it is what it was."""
    pipe = ENTRIES[name].build()
    guided = run(name, pipe)
    with fs.GuidanceCut(0.9, 1.0).apply(pipe) as cut:
        found = samples_of(name, pipe)
        summary = cut.summary()
    scale = "true_cfg_scale" if name in GUIDED else "guidance_scale"
    expected = samples_of(name, pipe, **WITHOUT.get(name, {scale: 1.0}))
    for one, other in zip(found, expected, strict=True):  # Cosmos doubles its latents for a while
        torch.testing.assert_close(one[: len(other)], other, rtol=0, atol=1e-4 * float(other.abs().max()))
    branches = 3 if name.endswith(("pix2pix", "ltx_2", "pag")) else 2
    assert summary.dropped == (branches - 1) * ((summary.evaluations + summary.dropped) // branches - 1) > 0
    assert torch.equal(run(name, pipe), guided)


@pytest.mark.parametrize("name", sorted(UNGUIDED))
def test_a_call_without_guidance_is_refused(name: str) -> None:
    pipe = ZOO[name].build()
    with fs.GuidanceCut(0, 2).apply(pipe):
        check_refused(lambda: run(name, pipe), "without guidance")


def test_video_diffusion_raises_its_guidance_by_frames() -> None:
    """No guidance means its scales at both ends; only the last step, of four, is guided."""
    pipe = ZOO["stable_video_diffusion"].build()
    with fs.GuidanceCut(3, 4).apply(pipe) as cut:
        found = samples_of("stable_video_diffusion", pipe)
        assert (cut.summary().evaluations, cut.summary().dropped) == (5, 3)
    expected = samples_of("stable_video_diffusion", pipe, min_guidance_scale=1.0, max_guidance_scale=1.0)
    assert all(map(torch.equal, found, expected))


# --- perturbed attention, and formulas that rescale -----------------------------------------------------------


def perturbed(**inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion with perturbed-attention guidance in its middle block, and what it is called with."""
    torch.manual_seed(0)
    pipe = assemble(
        diffusers.StableDiffusionPAGPipeline, sd_scheduler("DDIMScheduler"), vae=vae(), unet=unet(), **SD_SAFETY
    )
    pipe.set_pag_applied_layers(["mid"])
    call = {"num_inference_steps": 6, "output_type": "latent", "pag_scale": 3.0, **text_inputs(**SQUARE)}
    return pipe, {**call, "guidance_scale": 4.0, **inputs}


def seeded(pipe: Any, call: dict[str, Any], **changed: Any) -> Tensor:
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), **changed})[0]


@pytest.mark.parametrize("scale", [4.0, 0.0])
@torch.no_grad()
def test_perturbed_attention_is_cut_with_the_rest(scale: float) -> None:
    """Three branches, or two where there is no other guidance: the first steps as without any of it."""
    pipe, call = perturbed(guidance_scale=scale)
    guided, processors = seeded(pipe, call), {name: id(part) for name, part in pipe.unet.attn_processors.items()}
    branches = 3 if scale else 2
    found: list[Tensor] = []
    with fs.GuidanceCut(4, 6).apply(pipe) as cut:
        got = seeded(pipe, call, callback_on_step_end=lambda p, i, t, kept: found.append(kept["latents"]) or {})
        assert (cut.summary().evaluations, cut.summary().dropped) == (4 + 2 * branches, 4 * (branches - 1))
        parallel = fs.ParallelSampler(pipe, window=4, tolerance=0.0)
        torch.testing.assert_close(seeded(parallel, call), got, rtol=1e-4, atol=1e-5)
        assert not parallel.run.fallback
    expected: list[Tensor] = []
    plain = {**call, "pag_scale": 0.0, "guidance_scale": 0.0}
    seeded(pipe, plain, callback_on_step_end=lambda p, i, t, kept: expected.append(kept["latents"]) or {})
    torch.testing.assert_close(found[:4], expected[:4])
    assert not torch.equal(found[5], expected[5])
    assert {name: id(part) for name, part in pipe.unet.attn_processors.items()} == processors
    assert torch.equal(seeded(pipe, call), guided)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("stable_diffusion_xl", {"guidance_rescale": 0.7}),
        ("qwen_image", {}),  # norms of the prediction with and without
        ("z_image", {"cfg_normalization": 1.0}),
        ("lumina_2", {"cfg_trunc_ratio": 1.0}),
    ],
)
def test_the_pipelines_own_formula_is_the_identity(name: str, changed: dict[str, Any]) -> None:
    """Against the same pipeline whose branches are all made the conditional one."""
    pipe = ZOO[name].build()
    with fs.GuidanceCut(0, 2).apply(pipe):
        found = run(name, pipe, **changed)
    module = pipe.components.get("unet") or pipe.transformer
    calls: list[Any] = []

    def same(_: Any, __: Any, output: Any) -> Any:
        calls.append(output)
        if name in ("qwen_image", "lumina_2"):  # two calls a step
            return calls[-2] if len(calls) > 4 and len(calls) % 2 == 0 else output
        if len(calls) <= 2:
            return output
        if isinstance(output[0], list):  # the conditional one first
            return (output[0][:1] * 2,)
        return (output[0].chunk(2)[1].repeat(2, 1, 1, 1),)

    hook = module.register_forward_hook(same)
    expected = run(name, pipe, **changed)
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, run(name, pipe, **changed))


def modular(guider: Any) -> Any:
    """A modular pipeline, which a guider calls the network for."""
    pipe, xl = diffusers.StableDiffusionXLAutoBlocks().init_pipeline(), pipelines.stable_diffusion_xl()
    parts = {name: getattr(xl, name) for name in ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")}
    pipe.update_components(**parts, guider=guider, force_zeros_for_empty_prompt=False)
    return pipelines.quiet(pipe)


def smoothed(**own: Any) -> Any:
    """A guider whose third branch has smoothed attention; not in the first step."""
    layers = diffusers.hooks.SmoothedEnergyGuidanceConfig([0], fqn="mid_block.attentions.0.transformer_blocks")
    return guiders.SmoothedEnergyGuidance(3.0, seg_guidance_config=layers, **own)


@pytest.mark.parametrize(
    ("whole", "stopped", "made"),
    [
        (guiders.ClassifierFreeGuidance(3.0), guiders.ClassifierFreeGuidance(3.0, stop=0.5), 6 + 3),
        (guiders.ClassifierFreeGuidance(3.0, start=0.2), guiders.ClassifierFreeGuidance(3.0, start=0.2, stop=0.5), 8),
        (
            smoothed(seg_guidance_start=0.0, seg_guidance_stop=1.0),
            smoothed(seg_guidance_start=0.0, seg_guidance_stop=0.5, stop=0.5),
            6 + 3 + 2,
        ),
        (guiders.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5), None, 0),
    ],
    ids=["whole", "late", "three branches", "momentum"],
)
def test_guiders_are_cut_as_by_their_own_stop(whole: Any, stopped: Any, made: int) -> None:
    """One with a momentum is refused, as it would go on without guidance."""
    call = {"prompt": "a circle", "num_inference_steps": 6, **SQUARE, "output_type": "latent", "output": "latents"}
    pipe = modular(whole)
    with fs.GuidanceCut(0, 3).apply(pipe), count(pipe, 1) as ledger:
        if stopped is None:
            check_refused(lambda: pipe(**call), "momentum")
        else:
            found = pipe(**call, generator=torch.Generator().manual_seed(0))
            expected = modular(stopped)(**call, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert ledger.rows == made


# --- in parallel windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["stable_diffusion", "stable_diffusion_controlnet", "stable_diffusion_3", "wan", "lumina", "qwen_image"],
)
@pytest.mark.parametrize("window", [(0, 4), (3, 7)])
def test_rows_of_a_window_are_guided_by_their_own_steps(name: str, window: tuple[int, int]) -> None:
    """The sequential result, with fewer evaluations than without the cut, and the ledger has what was made."""
    pipe = ZOO[name].build()
    sampler = fs.ParallelSampler(pipe, window=4, tolerance=0.0)
    with count(pipe, 1) as whole:
        run(name, sampler, num_inference_steps=9)
    with fs.GuidanceCut(*window).apply(pipe) as cut:
        expected = run(name, pipe, num_inference_steps=9)
        cut.reset()
        with count(pipe, 1) as ledger:
            found = run(name, sampler, num_inference_steps=9)
        summary = cut.summary()
    assert not sampler.run.fallback
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ledger.rows == summary.evaluations < whole.rows
    assert summary.evaluations + summary.dropped == whole.rows
    assert summary.calls == 1


# --- the handle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "words"),
    [
        (-1, 4, "start = -1"),
        (0, 1.5, "stop = 1.5"),
        (0, True, "stop = True"),
        (0, "5", "stop = '5'"),
        (2, 0.5, "two fractions"),
        (0.5, 3, "two fractions"),
        (3, 3, "never be on"),
        (0.6, 0.4, "never be on"),
        (0, float("nan"), "stop = nan"),
    ],
)
def test_wrong_windows_are_one_line(start: Any, stop: Any, words: str) -> None:
    check_refused(lambda: fs.GuidanceCut(start, stop), words)


def test_a_window_is_of_steps_or_of_fractions() -> None:
    assert fs.GuidanceCut(2, 5).window(8) == (2, 5)
    assert fs.GuidanceCut(0, 0.5).window(9) == (0, 4)
    assert fs.GuidanceCut(0.25, 1.0).window(8) == (2, 8)
    with pytest.raises(ValueError, match="with 5 steps: guidance would never be on"):
        fs.GuidanceCut(0, 0.1).window(5)


def test_more_guided_steps_than_steps_are_refused_before_the_network() -> None:
    pipe = pipelines.stable_diffusion()
    with fs.GuidanceCut(0, 9).apply(pipe), count(pipe, 1) as ledger:
        check_refused(lambda: pipe("a circle", num_inference_steps=6, output_type="latent"), "stop = 9 with 6 steps")
    assert ledger.rows == 0


def test_stages_with_schedulers_of_their_own_are_refused() -> None:
    parts = dict.fromkeys(
        (
            "prior",
            "text_encoder",
            "tokenizer",
            "text_proj",
            "super_res_first",
            "super_res_last",
            "super_res_scheduler",
        )
    )
    schedulers = {name: diffusers.UnCLIPScheduler() for name in ("prior_scheduler", "decoder_scheduler")}
    pipe = diffusers.UnCLIPPipeline(decoder=unet(), **parts, **schedulers)
    for apply in (fs.GuidanceCut(0, 2).apply, fs.TGate(2).apply):
        check_refused(lambda: apply(pipe), "UnCLIPPipeline has no scheduler whose steps could be counted")  # noqa: B023


def test_two_cuts_of_one_pipeline_are_refused() -> None:
    pipe = pipelines.stable_diffusion()
    before = type(pipe.unet), set(vars(pipe.unet))
    with fs.GuidanceCut(0, 3).apply(pipe):
        check_refused(lambda: fs.GuidanceCut(0, 2).apply(pipe), "cut already")
        assert isinstance(pipe.unet, diffusers.UNet2DConditionModel)
    assert (type(pipe.unet), set(vars(pipe.unet))) == before
    check_refused(lambda: fs.GuidanceCut(0, 2).apply(object()), "no network")
