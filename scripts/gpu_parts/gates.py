"""T-GATE, and guidance alone cut, on a Stable Diffusion pipeline of published size with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import diffusers
import torch

import fastsample as fs
from gpu_parts import Part, Record, Setting
from gpu_parts.networks import SIZES, SMOKE, make, random
from gpu_parts.timing import DEVICE, seconds, spread

STEPS = 25
GATES: dict[str, Any] = {
    "none": None,
    "guidance cut after step 10": fs.TGate(gate_step=10, cache=False),
    "T-GATE after step 10": fs.TGate(gate_step=10),
    "T-GATE after step 10, self-attention every 5": fs.TGate(gate_step=10, sp_interval=5, warm_up=2),
}


def pipeline(smoke: bool, dtype: torch.dtype) -> Any:
    """Stable Diffusion 1.5's, without text encoders; its VAE is not run."""
    size = (SMOKE if smoke else SIZES)[0]
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32, 32, 32), norm_num_groups=8).to(DEVICE, dtype)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=make(size, dtype),
        scheduler=fs.DPMSolverScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gates(setting: Setting) -> Iterator[Record]:
    """Seconds of a run of 25 steps at guidance 7.5, by gate and images."""
    dtype = torch.float32 if setting.smoke else torch.bfloat16
    pipe = pipeline(setting.smoke, dtype)
    width = pipe.unet.config.cross_attention_dim
    for images in (1,) if setting.smoke else (1, 4):
        call = {
            "prompt_embeds": random(images, 77, width, dtype=dtype),
            "negative_prompt_embeds": random(images, 77, width, dtype=dtype),
            "num_inference_steps": 12 if setting.smoke else STEPS,
            "guidance_scale": 7.5,
            "output_type": "latent",
        }
        plain = 0.0
        for name, gate in GATES.items():
            with nullcontext() if gate is None else gate.apply(pipe):
                found = spread(seconds(lambda: pipe(**call), 1 if setting.smoke else 2), "s", 4)  # noqa: B023
            plain = plain or found["s"]
            yield {"images": images, "gate": name, **found, "times_faster": round(plain / found["s"], 2)}


PART = Part(
    "gates",
    "How much wall time do T-GATE and cutting guidance save on an SD1.5-sized UNet, 25 steps?",
    25,
    gates,
    ("images", "gate", "s", "times_faster"),
)
