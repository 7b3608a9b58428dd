"""Train the bundled flow-matching text-to-image model from a seed: two text encoders and a joint transformer.

    python scripts/train_flow.py train --out build/flow --compile [--device cuda]
    python scripts/train_flow.py evaluate --folder build/flow/folder

The VAE and the scenes are the first bundled model's. `train` writes OUT/checkpoint.pt every 250 steps, from which
the same command continues to the same weights, and the pipeline to OUT/folder. One thread of a CPU beside other work
made 2.5 steps a second with --compile, 1.2 without. `evaluate` prints prompt fidelity over guidance scales, through
the pipeline at its defaults; `shifts` the error of Euler steps by the scheduler's shift. Both are of the bundled
model without --folder, and compute in float32.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from flow_model import (
    SHIFT,
    ZEROS,
    QuickPipeline,
    TextEncoders,
    WeightedLastToken,
    assemble,
    make_transformer,
    print_shifts,
)
from safetensors.torch import load_file, save_file
from scene_training import (
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
from transformers import PreTrainedTokenizerFast

from fastsample.demo import bundled

IMAGES = 24000
RATES = (1e-2, 2e-3)
"""Learning rates of Muon and AdamW before warm-up and cosine."""


@dataclass
class Run:
    """All that a training goes on from; `average` is the moving average of `model`, [TextEncoders, transformer]."""

    model: nn.ModuleList
    average: nn.ModuleList
    optimisers: list[torch.optim.Optimizer]
    generator: torch.Generator
    step: int = 0

    @classmethod
    def start(cls, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Run:
        torch.manual_seed(seed + 30)
        model = nn.ModuleList([TextEncoders(vocabulary), make_transformer()]).to(device)
        model[1].set_attn_processor(WeightedLastToken())
        average = copy.deepcopy(model).eval()
        return cls(model, average, make_optimisers(*model), torch.Generator(device).manual_seed(seed + 31))

    def save(self, file: Path) -> None:
        """By way of a second file, so that a run ended while writing leaves the last one whole."""
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step}
        state |= {"optimisers": [own.state_dict() for own in self.optimisers]}
        torch.save(state | {"generator": self.generator.get_state()}, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)

    def load(self, file: Path) -> None:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]

    def descend(self, loss: Tensor, factor: float) -> None:
        """One step of the optimisers at `factor` of their full rates, and of the moving average."""
        for optimiser, full in zip(self.optimisers, RATES, strict=True):
            optimiser.param_groups[0]["lr"] = full * factor
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        decay = min(0.998, self.step / (self.step + 19))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)


def make_optimisers(text: TextEncoders, transformer: SD3Transformer2DModel) -> list[torch.optim.Optimizer]:
    """Muon (Jordan, 2024) on the matrices of attention and feed-forward layers, AdamW on all else."""
    matrices = {
        id(p): p
        for name, p in transformer.transformer_blocks.named_parameters()
        if p.ndim == 2 and (".attn." in name or ".ff" in name)
    }
    rest = [p for p in [*text.parameters(), *transformer.parameters()] if id(p) not in matrices]
    return [
        torch.optim.Muon(list(matrices.values()), lr=RATES[0], weight_decay=0.01),
        torch.optim.AdamW(rest, lr=RATES[1], betas=(0.9, 0.99), weight_decay=1e-4),
    ]


def sigmas_of(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of a batch: logit-normal moved by SHIFT for four rows in five, else uniform; stratified."""
    device = generator.device
    within = torch.rand(count, generator=generator, device=device)
    spread = ((torch.arange(count, device=device) + within) / count).clamp(1e-4, 1 - 1e-4)
    shifted = torch.sigmoid(torch.special.ndtri(spread) + math.log(SHIFT))
    return torch.where(torch.rand(count, generator=generator, device=device) < 0.2, spread, shifted)


def counts_of(count: int, generator: torch.Generator) -> Tensor:
    """Zero tokens a row: the default for three in four, else 1 to 512, so that other lengths do little harm."""
    device = generator.device
    other = torch.exp(math.log(512) * torch.rand(count, generator=generator, device=device))
    return torch.where(torch.rand(count, generator=generator, device=device) < 0.25, other, float(ZEROS))


def training_data(out: Path, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Tensor]:
    """Token ids and latent moments of the training scenes; kept in OUT."""
    file = out / "latents.safetensors"
    if not file.exists():
        captions, images, _ = training_images(IMAGES, seed + 4)
        mean, std = latents_of(vae, images)
        save_file({"ids": tokens_of(tokenizer, captions), "mean": mean, "std": std}, file)
    return load_file(file)


def flow_loss(
    model: nn.ModuleList, predict: Callable[..., tuple[Tensor]], batch: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Mean square error of the velocity noise - x_0, asked for at (1 - sigma) x_0 + sigma noise and 1000 sigma.

    A `batch` holds the ids of captions, and mean and std of latents, on the device of model and generator; `predict`
    is the model's transformer, which computes in bfloat16, perhaps compiled.
    """
    count, device = len(batch["ids"]), generator.device
    x, noise = (torch.randn(batch["mean"].shape, generator=generator, device=device) for _ in range(2))
    x = batch["mean"] + batch["std"] * x
    dropped = torch.rand(count, 1, generator=generator, device=device) < 0.1
    text, transformer = model
    context, pooled = text(torch.where(dropped, batch["empty"], batch["ids"]))
    sigma, counts = sigmas_of(count, generator), counts_of(count, generator)
    for processor in transformer.attn_processors.values():
        processor.counts = counts
    level = sigma[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        (velocity,) = predict((1 - level) * x + level * noise, context, pooled, 1000 * sigma, return_dict=False)
    return ((velocity.float() - (noise - x)) ** 2).mean()


def train(out: Path, seed: int, steps: int, batch: int, every: int, compiled: bool, device: torch.device) -> None:
    """From the start or the checkpoint in OUT, on one caption in ten empty, to a cosine's end at `steps`."""
    out.mkdir(parents=True, exist_ok=True)
    vae, tokenizer = bundled.load_pipeline(device=device).vae, make_tokenizer()
    known = {name: values.to(device) for name, values in training_data(out, vae, tokenizer, seed).items()}
    empty = tokens_of(tokenizer, [""]).to(device)
    run, checkpoint = Run.start(len(tokenizer), seed, device), out / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    print(
        f"transformer {millions(run.model[1])}, text encoders {millions(run.model[0])}, step {run.step}", flush=True
    )
    predict = torch.compile(run.model[1]) if compiled else run.model[1]
    began, first, total = time.perf_counter(), run.step, torch.zeros((), device=device)
    while run.step < steps:
        pick = torch.randint(len(known["ids"]), (batch,), generator=run.generator, device=device)
        rows = {name: values[pick] for name, values in known.items()}
        loss = flow_loss(run.model, predict, rows | {"empty": empty}, run.generator)
        run.descend(loss, cosine(run.step, steps))
        total += loss.detach()  # read every 50 steps, so that the host stays ahead of a GPU
        if run.step % 50 == 0:
            mean, seconds = total.item() / 50, time.perf_counter() - began
            print(f"step {run.step} loss {mean:.4f} {(run.step - first) / seconds:.2f} steps/s", flush=True)
            total.zero_()
        if run.step % every == 0 or run.step == steps:
            run.save(checkpoint)
            pipe = assemble(vae, tokenizer, *run.average).to(device)
            write_pipeline(pipe, out / "folder", ("transformer", "vae"))
            print(f"step {run.step}", end=" ")
            print_fidelity(QuickPipeline.of(pipe), (3.0,), 64, seed + 1, 20, None, kinds=(True,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "evaluate", "shifts"))
    parser.add_argument("--out", type=Path, default=Path("build/flow"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=250, help="train: steps from one checkpoint to the next")
    parser.add_argument("--compile", action="store_true", help="train: compile the transformer, minutes once")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--folder", type=Path, help="evaluate: the pipeline; default: the bundled one")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 7.0])
    parser.add_argument("--count", type=int, default=128, help="evaluate: prompts of each kind")
    parser.add_argument("--inference-steps", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="evaluate: one zero token for all, the same images")
    parser.add_argument("--picture", type=Path, help="evaluate: where to write a grid of images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage == "train":
        train(
            arguments.out,
            arguments.seed,
            arguments.steps,
            arguments.batch,
            arguments.every,
            arguments.compile,
            arguments.device,
        )
        return
    torch.backends.cudnn.allow_tf32 = False  # images are compared: float32 is float32
    folder = arguments.folder or bundled.model_path("flow_text_to_image")
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    if arguments.stage == "shifts":
        print_shifts(pipe, (1.0, 1.5, 2.0, 3.0), 16, arguments.seed + 1000)
        return
    print_fidelity(
        QuickPipeline.of(pipe) if arguments.quick else pipe,
        tuple(arguments.guidance),
        arguments.count,
        arguments.seed + 1000,
        arguments.inference_steps,
        arguments.picture,
    )


if __name__ == "__main__":
    main()
