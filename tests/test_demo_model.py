"""The bundled text-to-image model: loads offline as it is, is small, and draws what the prompt asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from fastsample.demo import bundled
from fastsample.demo.scenes import ATTRIBUTES, Scene, all_scenes, render, render_batch, sample_scenes


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return bundled.load_pipeline()


def generate(pipe: StableDiffusionPipeline, prompts: list[str], guidance: float) -> torch.Tensor:
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    images = pipe(
        prompts,
        num_inference_steps=20,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return images


def test_plain_from_pretrained_gives_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_path())
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert pipe.safety_checker is None


def test_folder_is_small() -> None:
    sizes = {file: file.stat().st_size for file in bundled.model_path().rglob("*") if file.is_file()}
    assert sum(sizes.values()) <= 8e6
    assert (bundled.model_path() / bundled.CLASSIFIER_FILE).stat().st_size < 1e6


def test_captions_round_trip_and_have_tokens(pipe: StableDiffusionPipeline) -> None:
    tokenizer = pipe.tokenizer
    for held_out in (False, True):
        for scene in all_scenes(held_out):
            assert Scene.from_caption(scene.caption) == scene
            assert tokenizer.unk_token_id not in tokenizer(scene.caption).input_ids
    assert tokenizer.model_max_length == 16


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    out, seen = all_scenes(True), all_scenes(False)
    assert 0.07 < len(out) / (len(out) + len(seen)) < 0.13
    assert not set(out) & set(seen)
    assert {scene.object for scene in out} == set(ATTRIBUTES["object"])


def test_rendering_is_reproducible() -> None:
    scene = sample_scenes(1, 5)[0]
    first, second = (render(scene, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("held_out", [False, True])
def test_classifier_on_real_images(held_out: bool) -> None:
    scenes = sample_scenes(600, 101, held_out=held_out)
    score = bundled.prompt_fidelity(torch.from_numpy(render_batch(scenes, 101)), [s.caption for s in scenes])
    assert min(score[name] for name in ATTRIBUTES) >= 0.97


def test_classifier_notices_wrong_prompts_and_broken_images() -> None:
    scenes = sample_scenes(200, 102)
    images = torch.from_numpy(render_batch(scenes, 102))
    prompts = [scene.caption for scene in scenes]
    assert bundled.prompt_fidelity(images, prompts[1:] + prompts[:1])["prompts"] < 0.1
    assert bundled.prompt_fidelity(images * torch.nan, prompts)["attributes"] == 0
    with pytest.raises(ValueError, match="one prompt an image"):
        bundled.prompt_fidelity(images, prompts[1:])


def test_features_of_real_images() -> None:
    features = bundled.real_features(200, 1)
    assert features.shape == (200, 64)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()


def test_held_out_prompts_are_followed(pipe: StableDiffusionPipeline) -> None:
    prompts = [scene.caption for scene in sample_scenes(64, 7, held_out=True)]
    score = bundled.prompt_fidelity(generate(pipe, prompts, guidance=GUIDANCE), prompts)
    assert score["attributes"] >= ATTRIBUTES_FLOOR
    assert score["prompts"] >= PROMPTS_FLOOR


GUIDANCE, ATTRIBUTES_FLOOR, PROMPTS_FLOOR = 3.0, 0.97, 0.9
