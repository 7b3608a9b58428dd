"""What the trainings of the two bundled text-to-image models share: text, images, latents, files, the measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fastsample.demo import bundled
from fastsample.demo.scenes import ATTRIBUTES, render_batch, sample_scenes

LENGTH = 16
"""Tokens of a prompt, padding included."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; begin, end and padding as CLIP's."""
    words = ["<|startoftext|>", "<|endoftext|>", "<unk>", "a", "at", "the", "on", "background"]
    words += [value for values in ATTRIBUTES.values() for value in values]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
    )


def tokens_of(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def training_images(count: int, seed: int) -> tuple[list[str], Tensor, Tensor]:
    """Captions, images in [0, 1] and labels [count, attributes]."""
    scenes = sample_scenes(count, seed)
    return (
        [scene.caption for scene in scenes],
        torch.from_numpy(render_batch(scenes, seed)),
        torch.tensor([scene.labels for scene in scenes]),
    )


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents of images in [0, 1]."""
    moments = [vae.encode(2 * part.to(vae.device) - 1).latent_dist for part in images.split(500)]
    mean, std = (
        torch.cat(parts).cpu().contiguous() for parts in zip(*((own.mean, own.std) for own in moments), strict=True)
    )
    return mean * vae.config.scaling_factor, std * vae.config.scaling_factor


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then one cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"


def write_pipeline(pipe: DiffusionPipeline, folder: Path, halved: tuple[str, ...]) -> None:
    """The diffusers folder, free of paths: the `halved` parts float16 on disk, which diffusers loads as float32.

    Text encoders stay float32 on disk, since transformers loads the dtype that it finds.
    """
    pipe.save_pretrained(folder)
    for part in halved:
        file = folder / part / "diffusion_pytorch_model.safetensors"
        save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
    for file in (folder / "model_index.json", *folder.glob("tokenizer*/tokenizer_config.json")):
        file.write_text(file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))  # transformers 4
    vae_config = folder / "vae" / "config.json"
    here = json.loads(vae_config.read_text())
    here.pop("_name_or_path", None)  # where it was trained
    vae_config.write_text(json.dumps(here, indent=2) + "\n")


@torch.no_grad()
def print_fidelity(
    pipe: DiffusionPipeline,
    guidances: tuple[float, ...],
    count: int,
    seed: int,
    steps: int,
    picture: Path | None,
    batch: int = 64,
    kinds: tuple[bool, ...] = (False, True),
) -> None:
    """A line of prompt fidelity for each guidance and kind of prompts: of seen combinations (False), held-out (True).

    `picture` is where a grid of the held-out ones at guidance 3 goes, with their prompts beside it.
    """
    for guidance in guidances:
        for held_out in kinds:
            prompts = [scene.caption for scene in sample_scenes(count, seed, held_out)]
            generator = torch.Generator().manual_seed(seed)
            parts = [
                pipe(
                    prompts[start : start + batch],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generator,
                    output_type="pt",
                ).images
                for start in range(0, count, batch)
            ]
            images = torch.cat(parts).cpu()
            score = " ".join(f"{k} {v:.3f}" for k, v in bundled.prompt_fidelity(images, prompts).items())
            print(f"guidance {guidance} {'held-out' if held_out else 'seen'} {score}", flush=True)
            if picture and held_out and guidance == 3:
                rows = images[:48].reshape(6, 8, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(192, 256, 3)
                image = Image.fromarray((255 * rows).round().byte().numpy())
                image.resize((1024, 768), Image.Resampling.NEAREST).save(picture)
                picture.with_suffix(".txt").write_text("\n".join(prompts[:48]) + "\n")
