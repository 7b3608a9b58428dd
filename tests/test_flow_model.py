"""The bundled flow-matching model: loads offline, is small, reads its text, and draws what the prompt asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from landing import TOLERANCE, install
from torch import Tensor

import fastsample as fs
from fastsample.demo import bundled
from fastsample.demo.scenes import all_scenes, sample_scenes

NAME = "flow_text_to_image"
PROMPTS = [scene.caption for scene in sample_scenes(3, 11, held_out=True)]


@pytest.fixture(scope="module")
def loaded() -> StableDiffusion3Pipeline:
    return bundled.load_pipeline(name=NAME)


@pytest.fixture
def pipe(loaded: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    """A pipeline of its own over the shared networks, so that a test may replace parts."""
    own = StableDiffusion3Pipeline(**loaded.components)
    own.scheduler = type(loaded.scheduler).from_config(loaded.scheduler.config)
    own.set_progress_bar_config(disable=True)
    return own


def sample(pipe: Any, prompts: list[str], steps: int, seed: int = 0, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    settings = {"guidance_scale": 3.0, "output_type": "pt", "generator": generator, **settings}
    return pipe(prompts, num_inference_steps=steps, **settings).images


def test_plain_from_pretrained_gives_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = StableDiffusion3Pipeline.from_pretrained(bundled.model_path(NAME))
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


def test_folder_is_small_and_names_no_path() -> None:
    files = [file for file in bundled.model_path(NAME).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8e6
    for file in files:
        if file.suffix == ".json":
            assert "_name_or_path" not in file.read_text(), file


def test_both_models_have_one_vae() -> None:
    weights = Path("vae") / "diffusion_pytorch_model.safetensors"
    assert (
        len({hashlib.sha256((bundled.model_path(name) / weights).read_bytes()).digest() for name in bundled.MODELS})
        == 1
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("text_to_image", StableDiffusionPipeline), (NAME, StableDiffusion3Pipeline)]
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_door_gives_each_model_in_the_dtype_asked_for(name: str, kind: type, dtype: torch.dtype | None) -> None:
    pipe = bundled.load_pipeline(dtype, name=name)
    assert type(pipe) is kind
    parameters = [
        p for part in pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()
    ]
    assert {p.dtype for p in parameters} == {dtype or torch.float32}


@pytest.mark.parametrize("name", ["", "sd3", "../text_to_image", "flow_text_to_image/"])
def test_an_unknown_model_is_refused_in_a_line(name: str) -> None:
    for door in (bundled.model_path, lambda name: bundled.load_pipeline(name=name)):
        with pytest.raises(
            ValueError, match="no bundled model, use one of text_to_image, flow_text_to_image"
        ) as caught:
            door(name)
        assert "\n" not in str(caught.value)


def test_every_caption_has_tokens(pipe: StableDiffusion3Pipeline) -> None:
    for held_out in (False, True):
        for scene in all_scenes(held_out):
            for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
                assert tokenizer.unk_token_id not in tokenizer(scene.caption).input_ids


@pytest.mark.parametrize("length", [16, 77, 256])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS, ["", "a cat"]])
def test_the_stub_gives_what_no_t5_gives(pipe: StableDiffusion3Pipeline, length: int, prompts: list[str]) -> None:
    settings = dict(prompt=prompts, prompt_2=prompts, prompt_3=prompts, max_sequence_length=length)
    with_stub = pipe.encode_prompt(**settings)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    without = pipe.encode_prompt(**settings)
    for ours, plain in zip(with_stub, without, strict=True):
        assert torch.equal(ours, plain)
    words = with_stub[0]
    assert words.shape == (len(prompts), 16 + length, pipe.transformer.config.joint_attention_dim)
    assert not words[:, 16:].any()


@pytest.mark.parametrize("count", [1, 2, 37, 256])
@pytest.mark.parametrize("level", [0.02, 0.5, 1.0])
def test_one_weighted_zero_token_stands_for_many(
    pipe: StableDiffusion3Pipeline, count: int, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training relies on. Both sides round a softmax over up to 336 float32 terms, in each of the blocks."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    from flow_model import WeightedLastToken, make_transformer

    words, _, pooled, _ = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, max_sequence_length=16)
    words = torch.nn.functional.pad(words[:, :16], (0, 0, 0, count))
    x = torch.randn(len(PROMPTS), 4, 8, 8, generator=torch.Generator().manual_seed(count))
    time = torch.full((len(PROMPTS),), 1000 * level)
    weighted = make_transformer().eval()
    weighted.load_state_dict(pipe.transformer.state_dict())
    attention = WeightedLastToken()
    attention.counts = torch.tensor([float(count)])
    weighted.set_attn_processor(attention)
    with torch.no_grad():
        many = pipe.transformer(x, words, pooled, time).sample
        one = weighted(x, words[:, :17], pooled, time).sample
    blocks = len(pipe.transformer.transformer_blocks)
    assert (one - many).abs().max() <= blocks * 336 * 2**-24 * many.abs().max()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_quick_pipeline_gives_the_pipelines_images(
    pipe: StableDiffusion3Pipeline, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    from flow_model import QuickPipeline

    settings = {"steps": 3, "guidance_scale": guidance}
    plain, quick = sample(pipe, PROMPTS, **settings), sample(QuickPipeline.of(pipe), PROMPTS, **settings)
    assert (plain - quick).abs().max() <= 1e-3


@pytest.mark.parametrize(
    "kind", [fs.DDIMScheduler, fs.DPMSolverScheduler, fs.UniPCScheduler, fs.GHVBScheduler, fs.HeavyBallScheduler]
)
@pytest.mark.parametrize("steps", [3, 8])
def test_our_schedulers_land_on_it(pipe: StableDiffusion3Pipeline, kind: Any, steps: int) -> None:
    probe = install(pipe, kind.from_config(pipe.scheduler.config))
    sample(pipe, PROMPTS[:1], steps, output_type="latent", max_sequence_length=16)
    assert probe.steps == steps
    assert probe.landed_error < TOLERANCE


def test_ddim_is_the_pipelines_own_euler(pipe: StableDiffusion3Pipeline) -> None:
    theirs = sample(pipe, PROMPTS, 4, max_sequence_length=16, output_type="latent")
    pipe.scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config)
    ours = sample(pipe, PROMPTS, 4, max_sequence_length=16, output_type="latent")
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_held_out_prompts_are_followed_at_the_defaults(pipe: StableDiffusion3Pipeline) -> None:
    prompts = [scene.caption for scene in sample_scenes(16, 7, held_out=True)]
    score = bundled.prompt_fidelity(sample(pipe, prompts, 10), prompts)
    assert score["attributes"] >= 0.96
    assert score["prompts"] >= 0.87


@pytest.mark.parametrize("length", [4, 77])
def test_other_text_lengths_do_little_harm(pipe: StableDiffusion3Pipeline, length: int) -> None:
    """Fewer zero tokens than the default are cheaper."""
    prompts = [scene.caption for scene in sample_scenes(12, 8, held_out=True)]
    score = bundled.prompt_fidelity(sample(pipe, prompts, 10, max_sequence_length=length), prompts)
    assert score["attributes"] >= 0.95


def test_guidance_follows_the_prompt_and_not_its_absence(pipe: StableDiffusion3Pipeline) -> None:
    """An empty prompt's images are of no one scene; those of a prompt are, and of its own."""
    prompts = [scene.caption for scene in sample_scenes(16, 9)]
    free = bundled.prompt_fidelity(sample(pipe, [""] * len(prompts), 12, max_sequence_length=16), prompts)
    asked = bundled.prompt_fidelity(sample(pipe, prompts, 12, max_sequence_length=16), prompts)
    assert free["prompts"] <= 0.2 < 0.8 <= asked["prompts"]
