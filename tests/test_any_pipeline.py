"""Drawing by any pipeline: pictures by its own decoding, latents as its decoder gets them, refusals before all."""

from __future__ import annotations

import functools
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from refusal import check_refused
from told import DRAWING, REFUSED, TOLD, build
from torch import nn
from zoo import flux_transformer

import fastsample as fs
from fastsample.bench import reference, runner
from fastsample.bench.cases import make_cases, parse_arm
from fastsample.bench.context import weights_digest
from fastsample.bench.peers import DEFAULT, peer_scheduler
from fastsample.bench.record import Record
from fastsample.bench.runner import Bench
from fastsample.pipelines.counting import count
from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.drawing import LastSample, draw
from fastsample.pipelines.rehearsal import rehearse
from fastsample.pipelines.request import Request, check_draws, default_guidance, guidance_argument

PROMPTS = ["a red circle", "a circle"]


@functools.cache
def built(name: str) -> Any:
    return build(name)


def request(name: str, **more: Any) -> Request:
    told = TOLD[name]
    return Request(**told.size, frames=told.frames, extra=told.extra, **more)


def call_of(name: str, pipe: Any, prompts: list[str] = PROMPTS, steps: int = 2) -> dict[str, Any]:
    return request(name).call(pipe, prompts, steps, default_guidance(pipe), list(range(len(prompts))))


@pytest.mark.parametrize("name", DRAWING)
def test_pixels_are_the_pipelines_own(name: str) -> None:
    """Of latents that are neither packed nor normalised any more; and an image does not depend on its batch."""
    pipe = built(name)
    check_draws(pipe)
    rehearse(pipe, call_of(name, pipe))
    drawing = draw(pipe, call_of(name, pipe))
    plain = np.stack(pipe(**call_of(name, pipe))[0])  # as anybody calls it
    np.testing.assert_array_equal(drawing.pixels.movedim(-3, -1).numpy(), plain)
    assert drawing.pixels.ndim == (4 if TOLD[name].frames is None else 5)
    assert drawing.stills.shape == drawing.pixels.shape[:1] + drawing.pixels.shape[-3:]
    if name not in ("deepfloyd_if", "kandinsky_3", "sana"):  # of the others' latents: decoded by hand they are these
        with torch.no_grad():
            decoded = pipe.vae.decode(drawing.latents).sample
        decoded = decoded if decoded.ndim == 4 else decoded.movedim(1, 2)
        shown = (decoded / 2 + 0.5).clamp(0, 1).reshape(drawing.pixels.shape)
        torch.testing.assert_close(shown, drawing.pixels, atol=1e-4, rtol=0)
    alone = draw(pipe, call_of(name, pipe, PROMPTS[:1]))
    if name != "latte":  # which leaves out the padding that its prompts share
        torch.testing.assert_close(alone.pixels[0], drawing.pixels[0], atol=2e-3, rtol=0)


def test_pixels_are_the_latents_where_there_is_no_decoder() -> None:
    pipe = built("deepfloyd_if")
    drawing = draw(pipe, call_of("deepfloyd_if", pipe))
    assert drawing.latents is drawing.pixels


@pytest.mark.parametrize("name", REFUSED)
def test_what_draws_nothing_from_a_prompt_is_refused(name: str) -> None:
    """In one line, with the reason, and without an evaluation of any network that samples or decodes."""
    pipe = built(name)
    ran: list[nn.Module] = []
    hooks = [one.component.register_forward_hook(lambda module, *_: ran.append(module)) for one in denoisers(pipe)]

    def start() -> None:
        check_draws(pipe)
        rehearse(pipe, call_of(name, pipe, PROMPTS[:1]))

    check_refused(start, f"model = {type(pipe).__name__} ")
    reasons = ("image", "sound", "prompt", "no height")
    with pytest.raises(ValueError, match="|".join(reasons)):
        start()
    for hook in hooks:
        hook.remove()
    assert not ran


@pytest.mark.parametrize("name", DRAWING)
def test_it_is_benchmarked(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours beside the model's own scheduler; the reference of few steps, to be fast."""
    for module in (reference, runner):
        monkeypatch.setattr(module, "STEPS", 8)
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(tmp_path))
    pipe = built(name)
    bench = Bench(pipe, PROMPTS[:1], Record(tmp_path / "r.jsonl"), batch=1, request=request(name))
    own = type(pipe.scheduler).__name__
    cases = make_cases([parse_arm("dpmpp-2m"), parse_arm(own, peer=True)], [2], [default_guidance(pipe)], [0])
    for case in cases:
        bench.check(case.arm, case.steps, case.guidance)
    results = list(bench.run(cases))
    assert [result["finite"] for result in results] == [True, True]
    assert all(0 < result["latent_rms"] < 1.5 for result in results), results
    again = Bench(pipe, PROMPTS[:1], Record(tmp_path / "r.jsonl"), batch=1, request=request(name))
    assert all(again.result(case) is not None for case in cases)
    other = Bench(pipe, PROMPTS[:1], Record(tmp_path / "r.jsonl"), batch=1, request=Request(height=48))
    assert all(other.result(case) is None for case in cases)


def test_the_last_sample_is_watched_and_replaced() -> None:
    pipe = built("flux")
    pipe.scheduler, own = fs.DDIMScheduler.from_config(pipe.scheduler.config), pipe.scheduler
    last = LastSample()
    with last.of(pipe.scheduler):
        drawing = draw(pipe, call_of("flux", pipe))
    with LastSample(last.sample).of(pipe.scheduler):
        again = draw(pipe, call_of("flux", pipe, steps=1))
    pipe.scheduler = own
    assert last.sample.ndim == 3  # packed
    torch.testing.assert_close(again.pixels, drawing.pixels)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"height": 13, "width": 16}, "divisible by 4"),  # Flux warns, and would draw another size
        ({"height": 16, "width": 18}, "divisible by 4"),
    ],
)
def test_a_size_that_would_be_changed_is_refused(size: dict[str, int], words: str) -> None:
    pipe = built("flux")
    check_refused(lambda: rehearse(pipe, Request(**size).call(pipe, PROMPTS, 2, 1.0, [0, 1])), words)


def test_frames_that_would_be_changed_are_refused() -> None:
    pipe = built("wan")
    check_refused(lambda: rehearse(pipe, Request(16, 16, 6).call(pipe, PROMPTS, 2, 1.0, [0, 1])), "divisible by 4")
    check_refused(lambda: rehearse(pipe, Request(20, 16, 5).call(pipe, PROMPTS, 2, 1.0, [0, 1])), "divisible by 16")
    check_refused(lambda: Request(frames=5).call(built("flux"), PROMPTS, 2, 1.0, [0, 1]), "makes images, not videos")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder_2"])
def test_missing_parts_are_named(part: str) -> None:
    pipe = build("flux")
    setattr(pipe, part, None)
    check_refused(lambda: rehearse(pipe, call_of("flux", pipe)), f"has no {part}: save it with them")
    pipe.vae = None
    check_refused(lambda: check_draws(pipe), "has no vae")


def test_guidance_goes_where_the_pipeline_has_it() -> None:
    """Classifier-free where the network is not told a scale, true guidance beside a negative prompt."""
    assert guidance_argument(built("stable_diffusion_xl")) == "guidance_scale"
    assert guidance_argument(built("qwen_image")) == "true_cfg_scale"
    assert guidance_argument(built("flux")) == "true_cfg_scale"
    distilled = build("flux")
    distilled.transformer = flux_transformer(guidance_embeds=True)
    assert guidance_argument(distilled) == "guidance_scale"
    assert guidance_argument(distilled, "a circle") == "true_cfg_scale"
    assert default_guidance(distilled) == 3.5
    call = Request(negative_prompt="a circle").call(distilled, PROMPTS, 2, 4.0, [0, 1])
    assert (call["true_cfg_scale"], call["negative_prompt"]) == (4.0, ["a circle"] * 2)
    assert "guidance_scale" not in call


@pytest.mark.parametrize("name", ["flux", "qwen_image", "stable_diffusion_xl", "z_image", "wan", "hunyuan_video"])
def test_guidance_is_never_ignored(name: str) -> None:
    """Twice the evaluations, and another picture."""
    pipe = built(name)
    pictures = {}
    none = 0.0 if name == "z_image" else 1.0  # whose scale is one less than others'
    for scale in (none, 4.0):
        with count(pipe, 1) as ledger:
            pictures[scale] = draw(pipe, request(name).call(pipe, PROMPTS[:1], 2, scale, [0])).pixels
        told = guidance_argument(pipe) == "guidance_scale" and name == "hunyuan_video"  # distilled: told the scale
        assert ledger.model_evaluations == (2 if scale == none or told else 4)
    assert not torch.equal(pictures[none], pictures[4.0])


def test_what_a_pipeline_cannot_be_asked_is_refused() -> None:
    class Unguided(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: Any, height: int, width: int, num_inference_steps: int, generator: Any) -> Any:
            raise AssertionError

    unguided = Unguided(**built("stable_diffusion").components, requires_safety_checker=False)
    check_refused(lambda: Request().call(unguided, PROMPTS, 2, 3.0, [0, 1]), "takes no guidance scale")
    assert default_guidance(unguided) == 1
    assert "guidance_scale" not in Request().call(unguided, PROMPTS, 2, 1.0, [0, 1])
    check_refused(lambda: Request(negative_prompt="a").call(unguided, PROMPTS, 2, 1.0, [0, 1]), "takes none")
    pipe = built("stable_diffusion")
    useless = Request(negative_prompt="a")
    check_refused(lambda: useless.call(pipe, PROMPTS, 2, 1.0, [0, 1]), "does nothing without guidance")
    unknown = Request(extra=(("clip_skp", 1),))
    check_refused(lambda: unknown.call(pipe, PROMPTS, 2, 3.0, [0, 1]), "did you mean clip_skip")
    own = Request(extra=(("height", 16),))
    check_refused(lambda: own.call(pipe, PROMPTS, 2, 3.0, [0, 1]), "has an option of its own")


@pytest.mark.parametrize("name", ["flux", "wan", "stable_diffusion_3"])
def test_peers_are_told_the_flow(name: str) -> None:
    """As by hand, from the config of a class that knows no flow option, and back."""
    config = built(name).scheduler.config
    shift = config.get("flow_shift") or config.get("shift")
    for peer in DEFAULT["flow"]:
        scheduler = peer_scheduler(peer, config)
        assert fs.NoiseSchedule.from_config(scheduler.config).kind == "flow"
        assert (scheduler.config.get("flow_shift") or scheduler.config.get("shift")) == shift
    check_refused(lambda: peer_scheduler("DDIM", config), "is not for flow-matching models")
    check_refused(lambda: peer_scheduler("UniPCMultistep", {**config, "invert_sigmas": True}), "invert_sigmas")


def test_peers_are_for_their_kind_of_model() -> None:
    vp = built("stable_diffusion").scheduler.config
    check_refused(lambda: peer_scheduler("FlowMatchEulerDiscrete", vp), "is for flow-matching models")
    consistency = diffusers.LCMScheduler().config
    assert peer_scheduler("LCMScheduler", consistency).config == consistency
    edm = built("playground").scheduler.config
    learned = built("deepfloyd_if").scheduler.config
    check_refused(lambda: peer_scheduler("UniPCMultistep", learned), "knows no variance_type")
    assert peer_scheduler("DPMSolverMultistep", learned).config.variance_type == "learned_range"
    check_refused(lambda: peer_scheduler("DDIM", edm), "continuous ones (EDM)")
    assert peer_scheduler("EDMEuler", edm).config.sigma_data == edm.sigma_data


def test_weights_elsewhere_have_the_same_digest() -> None:
    """With sequential offload, where the modules hold no values: here from the CPU to the CPU."""
    own = build("flux").transformer
    digest = weights_digest([own])
    offloaded = accelerate.cpu_offload(own, execution_device=torch.device("cpu"))
    assert any(value.is_meta for value in offloaded.state_dict().values())
    assert weights_digest([offloaded]) == digest
