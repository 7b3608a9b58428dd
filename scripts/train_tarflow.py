"""Train the bundled TarFlow, class-conditional handwritten digits, and its classifier from a seed.

    pip install -e '.[train]' && python scripts/train_tarflow.py all --out build/tarflow

The data are scikit-learn's `load_digits` (8x8 scans), 1500 for training and 297 held out, drawn at 16x16 with small
turns, shifts and changes of size. Stages can be run one by one: data, classifier, flow, plan. flow writes a
checkpoint every 200 steps, which the same command continues from to the same weights. The finished pipeline is
OUT/folder. On one CPU core flow takes about an hour, plan 4 minutes, the others 1. `evaluate` prints accuracy and
Frechet distance of samples of the bundled model over guidance.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fastsample.bench.metrics import frechet_distance
from fastsample.demo import digits
from fastsample.demo.classifier import DigitClassifier
from fastsample.tarflow import TarFlowModel, TarFlowPipeline, plan

TRAINED = 1500
CONFIG = dict(
    sample_size=digits.SIZE,
    in_channels=1,
    patch_size=2,
    channels=16,
    num_blocks=64,
    layers_per_block=1,
    head_dim=16,
    expansion=2,
    num_classes=10,
    noise_std=0.2,
)


def scans(held_out: bool) -> tuple[Tensor, Tensor]:
    """Scans [n, 1, 8, 8] in [-1, 1] and their labels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pick = order[TRAINED:] if held_out else order[:TRAINED]
    return torch.from_numpy(data.images).float()[pick, None] / 8 - 1, torch.from_numpy(data.target)[pick]


def save_held_out(folder: Path) -> None:
    """The held-out scans, as they were: 0 to 16 in 8 bits."""
    x, y = scans(held_out=True)
    save_file({"scans": (8 * (x[:, 0] + 1)).round().byte(), "labels": y.byte()}, folder / digits.DIGITS_FILE)


def train_classifier(folder: Path, seed: int, steps: int) -> None:
    """On drawn digits with noise of up to 0.1."""
    torch.manual_seed(seed + 10)
    x, y = scans(held_out=False)
    model = DigitClassifier()
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: cosine(step, steps))
    for _ in tqdm(range(steps), desc="classifier", mininterval=10):
        pick = torch.randint(len(x), (64,))
        images = digits.draw(x[pick]) / 2 + 0.5
        images = (images + 0.1 * torch.rand(64, 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)
        loss = F.cross_entropy(model(images), y[pick])
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(state, folder / digits.CLASSIFIER_FILE)
    model.eval()
    x, y = scans(held_out=True)
    with torch.no_grad():
        right = (model(digits.draw(x, 0.0) / 2 + 0.5).argmax(1) == y).float().mean()
    print(f"classifier: {right:.4f} on held-out digits")


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then one cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_flow(out: Path, seed: int, steps: int, batch: int) -> None:
    """Minus log-likelihood a value of noisy images; labels dropped in one image of ten; a moving average is kept."""
    torch.manual_seed(seed)
    model = TarFlowModel(**CONFIG)
    print(f"tarflow {sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters", flush=True)
    x, y = scans(held_out=False)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: cosine(step, steps))
    average, checkpoint, first = copy.deepcopy(model), out / "flow.ckpt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        schedule.load_state_dict(saved["schedule"])
        average.load_state_dict(saved["average"])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    bar = tqdm(range(first, steps), desc="tarflow", initial=first, total=steps, mininterval=10)
    smooth = 0.0
    for step in bar:
        pick = torch.randint(len(x), (batch,))
        images = digits.draw(x[pick])
        images = images + CONFIG["noise_std"] * torch.randn_like(images)
        labels = torch.where(torch.rand(batch) < 0.1, -1, y[pick])
        loss = -model.log_prob(images, labels).mean() / images[0].numel()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        smooth = loss.item() if not smooth else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "adam": adam.state_dict()}
            state |= {"schedule": schedule.state_dict(), "random": torch.get_rng_state(), "step": step + 1}
            partial = checkpoint.with_suffix(".part")
            torch.save(state, partial)
            partial.replace(checkpoint)
            TarFlowPipeline(average).save_pretrained(out / "folder")
            print(f"step {step + 1}: {held_out_loss(average):.4f} nats a value on held-out digits", flush=True)


@torch.no_grad()
def held_out_loss(model: TarFlowModel) -> float:
    """Minus log-likelihood a value, in nats, of the held-out digits with the noise of training."""
    x, y = scans(held_out=True)
    images = digits.draw(x, 0.0)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return float(-model.log_prob(images + CONFIG["noise_std"] * noise, y).mean() / images[0].numel())


def make_plan(folder: Path, seed: int) -> None:
    """For batches of 16 on this machine's CPU."""
    pipe = TarFlowPipeline.from_pretrained(folder)
    pipe.plan = plan(pipe.transformer, 1e-4, batch=16, generator=torch.Generator().manual_seed(seed), repeats=5)
    pipe.plan.save(folder)


def evaluate(count: int, seed: int) -> None:
    """Accuracy of `count` samples of each digit, and their Frechet distance to the held-out digits."""
    pipe = digits.load_pipeline()
    real, y = digits.held_out_digits()
    print(f"held-out digits: accuracy {digits.accuracy(real, y):.4f}")
    labels = torch.arange(10).repeat_interleave(count)
    for guidance in (0.0, 0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(seed)
        images = pipe(labels.tolist(), guidance=guidance, generator=generator, output_type="pt").images
        distance = frechet_distance(digits.features(images), digits.features(real))
        print(
            f"guidance {guidance}: accuracy {digits.accuracy(images, labels):.4f}, Frechet {distance:.2f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("data", "classifier", "flow", "plan", "all", "evaluate"))
    parser.add_argument("--out", type=Path, default=Path("build/tarflow"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classifier-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--count", type=int, default=100, help="Samples of each digit that evaluate draws.")
    args = parser.parse_args()
    folder = args.out / "folder"
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage in ("data", "all"):
        save_held_out(folder)
    if args.stage in ("classifier", "all"):
        train_classifier(folder, args.seed, args.classifier_steps)
    if args.stage in ("flow", "all"):
        train_flow(args.out, args.seed, args.steps, args.batch)
    if args.stage in ("plan", "all"):
        make_plan(folder, args.seed)
    if args.stage == "evaluate":
        evaluate(args.count, args.seed)


if __name__ == "__main__":
    main()
