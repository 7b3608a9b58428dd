"""Train the bundled text-to-image model's Picard consistency model, and compare it with Picard's and secant's sweeps.

    python scripts/train_picard.py train --device cuda --steps 1500
    python scripts/train_picard.py evaluate --weights build/picard --out benchmarks/picard

That of So et al. 2025 (arXiv:2503.19731), but on states of its own: every step samples images one step after the
other, makes the sweeps that a call makes, with the changed weights' share falling from 1 to 0, and goes back through
all of them from the errors of their states. `train` goes on from its checkpoint in OUT; OUT/consistency.safetensors
is what `ParallelSampler(pipe, consistency=OUT)` takes. `evaluate` draws held-out prompts through the pipeline.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from scene_training import cosine
from torch import Tensor, nn
from torch.func import functional_call

import fastsample as fs
from fastsample.demo import bundled
from fastsample.demo.scenes import all_scenes
from fastsample.pipelines.parallel.consistency import (
    CHANGE,
    DOWN,
    FILE,
    NORMS,
    SWEEPS,
    UP,
    changed_names,
    delta,
    norms,
)

GUIDANCE = bundled.GUIDANCE
ROWS = 32 * 25
"""Rows of a sweep in training: images times steps."""
STEPS = range(25, 51)
"""Steps of the trajectories."""
POOL = 8
"""Batches of one draw of trajectories, made together since they are made one step after the other."""
PLAIN_SWEEPS = 1
"""Sweeps of the denoiser itself in training, after those with a share of the changes."""


@dataclass(frozen=True)
class Grid:
    """DDIM's steps: `x_i = first[i] x_0 + sum_j outputs[i, j] u_j`, and of each step the factors of x and u."""

    times: Tensor
    first: Tensor
    outputs: Tensor
    step: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, pipe: Any, steps: int, device: str) -> Grid:
        scheduler: Any = fs.DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        schedule = scheduler.schedule
        table = fs.build_table("ddim", schedule, [*scheduler.timesteps.tolist(), schedule.clean_time])
        form = table.unroll()
        factors = [[step.next.sample for step in table.steps], [step.next.output for step in table.steps]]
        first, outputs, of_x, of_u = (
            torch.as_tensor(part, dtype=torch.float32, device=device) for part in (form.a, form.b, *factors)
        )
        return cls(scheduler.timesteps.to(device), first, outputs, (of_x, of_u))

    def replayed(self, x: Tensor, outputs: Tensor) -> Tensor:
        """All N + 1 states from the first and the outputs [N, B, ..]."""
        own = self.outputs @ outputs.flatten(1)
        return own.reshape(-1, *x.shape) + along(self.first, own.reshape(-1, *x.shape)) * x

    def picard(self, states: Tensor, outputs: Tensor) -> Tensor:
        """All N + 1 states by Picard's sweep: the sum of the steps' increments."""
        of_x, of_u = (along(part, outputs) for part in self.step)
        moved = (of_x - 1) * states[:-1] + of_u * outputs
        return torch.cat([states[:1], states[:1] + moved.cumsum(0)])


def along(factors: Tensor, states: Tensor) -> Tensor:
    """One factor a row."""
    return factors.reshape(-1, *[1] * (states.ndim - 1))


class Guided(nn.Module):
    """The guided denoiser on rows of images; `state` are changed weights, whose `share` is in the call's."""

    def __init__(self, pipe: Any, device: str) -> None:
        super().__init__()
        self.unet = pipe.unet.to(device).eval().requires_grad_(False)
        self.weights = dict(self.unet.named_parameters())

    def forward(self, state: dict[str, Tensor], share: float, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Outputs [R, B, ..] of x [R, B, ..] at times t [R], for texts [2, B, ..], without and with the prompt."""
        rows, items = x.shape[:2]
        weights = self.weights
        if share:
            weights = {name: value + share * delta(state, name, value) for name, value in weights.items()}
        inputs = x.flatten(0, 1).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        times = t.repeat_interleave(items).repeat(2)
        texts = text[:, None].expand(-1, rows, *text.shape[1:]).flatten(0, 2)
        output = functional_call(self.unet, weights, (inputs, times, texts)).sample.float()
        without, given = output.reshape(2, *x.shape)
        return without + GUIDANCE * (given - without)


def new_state(unet: nn.Module, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """No change of any parameter: low-rank factors, or all of it where that is less."""
    state = {}
    for name, value in unet.named_parameters():
        out, into = len(value), value[0].numel()
        if rank * (out + into) < out * into:
            state[name + UP] = torch.zeros(out, rank)
            state[name + DOWN] = torch.randn(rank, into, generator=generator) / into**0.5
        else:
            state[name + CHANGE] = torch.zeros_like(value, device="cpu")
    return state


def share_of(sweep: int, sweeps: int) -> float:
    """As :meth:`fastsample.pipelines.parallel.consistency.Consistency.share`."""
    return max(0.0, 1.0 - sweep / sweeps)


@torch.no_grad()
def trajectories(network: Guided, grid: Grid, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The states [N + 1, B, ..] of sequential sampling from x [B, ..], and the first output."""
    states, outputs = [x], []
    for index, t in enumerate(grid.times):
        outputs.append(network({}, 0.0, states[-1][None], t[None], text)[0])
        of_x, of_u = (part[index] for part in grid.step)
        states.append(of_x * states[-1] + of_u * outputs[-1])
    return torch.stack(states), outputs[0]


def rollout(
    network: Guided, state: dict[str, Tensor], grid: Grid, x: Tensor, first: Tensor, text: Tensor, shares: list[float]
) -> Iterator[Tensor]:
    """The states [N + 1, B, ..] after each sweep, from x and its output `first`, as a call of the pipeline makes them.

    Sweeps with a share replay the steps with their outputs; the others are Picard's.
    """
    states = grid.replayed(x, first.expand(len(grid.times), *first.shape))
    for share in shares:
        made = network(state, share, states[1:-1], grid.times[1:], text)
        outputs = torch.cat([first[None], made])
        states = grid.replayed(x, outputs) if share else grid.picard(states, outputs)
        yield states


def errors(states: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """RMS of the last state, and of all, over each image [B], relative to the images' spread."""
    off = (states - exact).square().flatten(2).mean(2)
    spread = exact[-1].std()
    return off[-1].sqrt() / spread, off.mean(0).sqrt() / spread


@dataclass
class Scenes:
    """Draws of the scenes that the model was trained on, or of those held out: noise, and texts without and with."""

    texts: Tensor
    empty: Tensor
    generator: torch.Generator

    @classmethod
    def of(cls, pipe: Any, held_out: bool, seed: int) -> Scenes:
        captions = [scene.caption for scene in all_scenes(held_out)]
        device = pipe.unet.device
        with torch.no_grad():
            texts, empty = pipe.encode_prompt(captions, device, 1, True, negative_prompt=[""] * len(captions))
        return cls(texts, empty[:1], torch.Generator(device).manual_seed(seed))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Noise [B, 4, 8, 8] and texts [2, B, ..]."""
        options: Any = {"generator": self.generator, "device": self.texts.device}
        x = torch.randn(count, 4, 8, 8, **options)
        texts = self.texts[torch.randint(len(self.texts), (count,), **options)]
        return x, torch.stack([self.empty.expand_as(texts), texts])


def batches(network: Guided, pipe: Any, seed: int, rows: int, device: str) -> Iterator[tuple[Any, ...]]:
    """Endless `(grid, exact states, first output, texts)` of fresh trajectories, of a random number of steps each."""
    scenes, choice = Scenes.of(pipe, False, seed), torch.Generator().manual_seed(seed)
    while True:
        steps = STEPS[int(torch.randint(len(STEPS), (), generator=choice))]
        grid, count = Grid.of(pipe, steps, device), max(1, rows // steps)
        x, text = scenes.draw(POOL * count)
        exact, first = trajectories(network, grid, x, text)
        for part in range(POOL):
            own = slice(part * count, (part + 1) * count)
            yield grid, exact[:, own], first[own], text[:, own]


def train(args: argparse.Namespace) -> None:
    """From the checkpoint where there is one; ends after the steps, or after the seconds."""
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    args.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = bundled.load_pipeline(device=args.device)
    network = Guided(pipe, args.device)
    made = new_state(pipe.unet, args.rank, torch.Generator().manual_seed(args.seed))
    state = {name: value.to(args.device).requires_grad_() for name, value in made.items()}
    average = {name: value.detach().clone() for name, value in state.items()}
    optimiser = torch.optim.Adam(state.values(), lr=args.rate, betas=(0.9, 0.99))
    checkpoint, start, spent = args.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=args.device)
        start, spent, average = saved["step"], saved["seconds"], saved["average"]
        optimiser.load_state_dict(saved["optimiser"])
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(saved["state"][name])
    shares = [share_of(sweep, args.sweeps) for sweep in range(args.sweeps + PLAIN_SWEEPS)]
    source = batches(network, pipe, args.seed + start, args.rows, args.device)
    began = said = time.perf_counter()
    for step in range(start, args.steps):
        seconds = spent + time.perf_counter() - began
        progress = max(step / args.steps, seconds / args.seconds if args.seconds else 0.0)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 20) * cosine(int(1000 * progress), 1000, 0)
        grid, exact, first, text = next(source)
        loss = exact.new_zeros(())
        for states in rollout(network, state, grid, exact[0], first, text, shares):
            last, every = errors(states, exact)
            loss = loss + (last.mean() + every.mean()).log()  # each sweep's error counts by its ratio
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.values(), 1.0)
        optimiser.step()
        with torch.no_grad():
            decay = min(0.99, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(state.values()), 1 - decay)
        now = time.perf_counter()
        if now - said > args.every or step + 1 == args.steps:
            said = now
            save(args, network.unet, state, average, optimiser, step + 1, spent + now - began)
            found = " ".join(f"{error:.4f}" for error in validate(network, average, pipe, shares, args.device))
            print(f"step {step + 1} {spent + now - began:.0f} s loss {loss.item():.3f} errors {found}", flush=True)
    save(args, network.unet, state, average, optimiser, step + 1, spent + time.perf_counter() - began)
    found = " ".join(f"{error:.4f}" for error in validate(network, average, pipe, shares, args.device))
    print(f"end, errors {found}", flush=True)


def save(
    args: argparse.Namespace, unet: nn.Module, state: dict[str, Tensor], average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer, step: int, seconds: float,
) -> None:  # fmt: skip
    """The checkpoint, and the averaged weights in float16."""
    whole = {"state": {name: value.detach() for name, value in state.items()}, "average": average}
    torch.save({**whole, "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds}, args.out / "checkpoint.pt")
    names = changed_names(average)
    halved = {name: value.cpu().half().contiguous() for name, value in average.items()}
    save_file({**halved, NORMS: norms(unet, names), SWEEPS: torch.tensor(args.sweeps)}, args.out / FILE)


@torch.no_grad()
def validate(
    network: Guided, state: dict[str, Tensor], pipe: Any, shares: list[float], device: str, count: int = 32
) -> list[float]:
    """Mean errors of held-out images after each sweep, and after two more of the denoiser itself."""
    grid = Grid.of(pipe, STEPS[0], device)
    x, text = Scenes.of(pipe, True, 1).draw(count)
    exact, first = trajectories(network, grid, x, text)
    shares = [*shares, 0.0, 0.0]
    return [errors(states, exact)[0].mean().item() for states in rollout(network, state, grid, x, first, text, shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "evaluate"])
    parser.add_argument("--out", type=Path, default=Path("build/picard"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, help="train no longer than this; the rate falls by it too")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a sweep: images times steps")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--sweeps", type=int, default=2, help="over which the share falls from 1 to 0")
    parser.add_argument("--every", type=float, default=30, help="seconds between checkpoints")
    args = parser.parse_args()
    if args.stage == "train":
        train(args)


if __name__ == "__main__":
    main()
