"""Train the bundled text-to-image model from a seed: VAE, classifier, then text encoder and UNet.

    python scripts/train_text_to_image.py all --out build/text_to_image

Stages can be run one by one (vae, classifier, unet); each writes its part, and unet also a checkpoint that
it continues from. The finished pipeline is OUT/folder. On 2 CPU cores the stages take about 12, 3 and 30
minutes. `evaluate` prints prompt fidelity of the bundled model over guidance scales.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from scene_training import (
    LENGTH,
    cosine,
    latents_of,
    make_tokenizer,
    millions,
    print_fidelity,
    tokens_of,
    training_images,
    write_pipeline,
)
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from fastsample.demo import bundled
from fastsample.demo.classifier import AttributeClassifier
from fastsample.demo.scenes import ATTRIBUTES, render_batch, sample_scenes

SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def optimiser(parameters: list[nn.Parameter], rate: float, steps: int) -> tuple[torch.optim.Optimizer, object]:
    adam = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: cosine(step, steps))


def edge_weights(images: Tensor) -> Tensor:
    """1 in flat regions, up to 5 where the image changes: thin strokes must survive the VAE."""
    across = F.pad((images[..., 1:] - images[..., :-1]).abs().amax(1, True), (0, 1))
    down = F.pad((images[..., 1:, :] - images[..., :-1, :]).abs().amax(1, True), (0, 0, 0, 1))
    return 1 + 4 * F.max_pool2d(torch.maximum(across, down), 3, 1, 1).clamp(0, 1)


def train_vae(out: Path, seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[24, 40, 56],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    ).to(memory_format=torch.channels_last)
    print(f"vae {millions(vae)}")
    images = 2 * training_images(12000, seed)[1] - 1
    adam, schedule = optimiser(list(vae.parameters()), 2e-3, steps)
    bar = tqdm(range(steps), desc="vae", mininterval=10)
    for _ in bar:
        x = images[torch.randint(len(images), (32,))].contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()
        z = z + 0.05 * z.detach().std() * torch.randn_like(z)  # sampled latents are never exact
        error = vae.decode(z).sample - x
        loss = (edge_weights(x) * (error.abs() + 2 * error**2)).mean() + 1e-4 * posterior.kl().mean() / z[0].numel()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    vae.eval()
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mean for part in images[:2000].split(250)])
        vae.register_to_config(scaling_factor=float(1 / z.std()))
        test = 2 * torch.from_numpy(render_batch(sample_scenes(500, seed + 1, held_out=True), seed + 1)) - 1
        mse = F.mse_loss(vae.decode(vae.encode(test).latent_dist.mean).sample / 2, test / 2)
    print(
        f"vae PSNR on held-out scenes {-10 * math.log10(mse):.2f} dB, scaling factor {vae.config.scaling_factor:.4f}"
    )
    vae.to(memory_format=torch.contiguous_format).save_pretrained(out / "vae")


def train_classifier(out: Path, seed: int, steps: int) -> None:
    """On real images and their VAE reconstructions, with noise and shifts of colour."""
    torch.manual_seed(seed + 10)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    _, images, labels = training_images(12000, seed + 2)
    with torch.no_grad():
        parts = [vae.decode(vae.encode(2 * p - 1).latent_dist.sample()).sample / 2 + 0.5 for p in images.split(250)]
    images, labels = torch.cat([images, torch.cat(parts).clamp(0, 1)]), torch.cat([labels, labels])
    model = AttributeClassifier()
    adam, schedule = optimiser(list(model.parameters()), 3e-3, steps)
    for _ in tqdm(range(steps), desc="classifier", mininterval=10):
        pick = torch.randint(len(images), (64,))
        x = (images[pick] + 0.04 * torch.rand(64, 1, 1, 1) * torch.randn(64, 3, 32, 32)).clamp(0, 1)
        logits = model(x)
        loss = sum(F.cross_entropy(logits[name], labels[pick, i]) for i, name in enumerate(ATTRIBUTES))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
    model.eval()
    scenes = sample_scenes(2000, seed + 3, held_out=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(render_batch(scenes, seed + 3)))
    truth = torch.tensor([scene.labels for scene in scenes])
    for i, name in enumerate(ATTRIBUTES):
        print(f"classifier {name}: {(logits[name].argmax(1) == truth[:, i]).float().mean():.4f} on held-out scenes")
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(state, out / "classifier.safetensors")


def train_unet(out: Path, seed: int, steps: int, batch: int) -> None:
    """Text encoder and UNet together; noise prediction with min-SNR weights (arXiv:2303.09556, gamma 5)."""
    torch.manual_seed(seed + 20)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    tokenizer = make_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=96,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    both = nn.ModuleList([text, unet])
    print(f"unet {millions(unet)}, text encoder {millions(text)}")
    captions, images, _ = training_images(24000, seed + 4)
    mean, std = latents_of(vae, images)
    tokens = tokens_of(tokenizer, captions)
    empty = tokens_of(tokenizer, [""])[0]
    noising = DDPMScheduler(**SCHEDULE)
    snr = noising.alphas_cumprod / (1 - noising.alphas_cumprod)
    adam, schedule = optimiser(list(both.parameters()), 1.5e-3, steps)
    ema = {key: value.detach().clone() for key, value in both.state_dict().items()}
    checkpoint, first = out / "unet.ckpt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        schedule.load_state_dict(saved["schedule"])
        ema, first = saved["ema"], saved["step"]
    bar = tqdm(range(first, steps), desc="unet", initial=first, total=steps, mininterval=10)
    smooth = 0.0
    for step in bar:
        pick = torch.randint(len(mean), (batch,))
        x = mean[pick] + std[pick] * torch.randn(batch, 4, 8, 8)
        ids = torch.where(torch.rand(batch, 1) < 0.1, empty, tokens[pick])
        noise, t = torch.randn_like(x), torch.randint(1000, (batch,))
        hidden = text(ids).last_hidden_state
        output = unet(noising.add_noise(x, noise, t), t, hidden).sample
        weight = snr[t].clamp(max=5) / snr[t]
        loss = (weight * ((output - noise) ** 2).mean((1, 2, 3))).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        adam.step()
        schedule.step()
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for key, value in both.state_dict().items():
                ema[key].lerp_(value, 1 - decay) if value.is_floating_point() else ema[key].copy_(value)
        smooth = loss.item() if not smooth else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"model": both.state_dict(), "ema": ema, "adam": adam.state_dict(), "step": step + 1}
            torch.save({**state, "schedule": schedule.state_dict()}, checkpoint)
            live = {key: value.detach().clone() for key, value in both.state_dict().items()}
            both.load_state_dict(ema)
            export(out, vae, text, tokenizer, unet)
            both.load_state_dict(live)


def export(
    out: Path,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    unet: UNet2DConditionModel,
) -> None:
    """The diffusers folder, with the classifier."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(
            **SCHEDULE, timestep_spacing="linspace", skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = out / "folder"
    write_pipeline(pipe, folder, ("unet", "vae"))
    shutil.copyfile(out / "classifier.safetensors", folder / "classifier.safetensors")
    config = folder / "scheduler" / "scheduler_config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps({**known, "clip_sample": False}, indent=2) + "\n")


@torch.no_grad()
def evaluate(count: int, seed: int, steps: int, picture: Path | None) -> None:
    """Fidelity of the bundled model with DDIM over guidance; a picture of held-out prompts at guidance 3."""
    pipe = bundled.load_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    print_fidelity(pipe, (1.0, 2.0, 3.0, 5.0, 7.5), count, seed, steps, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "classifier", "unet", "all", "evaluate"))
    parser.add_argument("--out", type=Path, default=Path("build/text_to_image"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=3800)
    parser.add_argument("--classifier-steps", type=int, default=2500)
    parser.add_argument("--unet-steps", type=int, default=4200)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--count", type=int, default=256, help="evaluate: prompts of each kind")
    parser.add_argument("--picture", type=Path, help="evaluate: where to write a grid of images")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.stage == "evaluate":
        evaluate(arguments.count, arguments.seed + 1000, 50, arguments.picture)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    stages = ("vae", "classifier", "unet") if arguments.stage == "all" else (arguments.stage,)
    if "vae" in stages:
        train_vae(arguments.out, arguments.seed, arguments.vae_steps)
    if "classifier" in stages:
        train_classifier(arguments.out, arguments.seed, arguments.classifier_steps)
    if "unet" in stages:
        train_unet(arguments.out, arguments.seed, arguments.unet_steps, arguments.batch)
    print(f"{arguments.stage}: {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
