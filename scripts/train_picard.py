"""Train the bundled text-to-image model's Picard consistency model, and compare it with Picard's and secant's sweeps.

    python scripts/train_picard.py train --device cuda --steps 1500
    python scripts/train_picard.py evaluate --weights build/picard --out benchmarks/picard

That of So et al. 2025 (arXiv:2503.19731), but on states of its own: every step samples images one step after the
other, makes the sweeps that a call makes, with the changed weights' share falling from 1 to 0, and goes back through
all of them from the errors of their states. `train` goes on from its checkpoint in OUT; OUT/consistency.safetensors
is what `ParallelSampler(pipe, consistency=OUT)` takes. `evaluate` samples held-out prompts through the pipeline, and
`picture` shows some by the number of rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from picard_report import evaluate, picture
from safetensors.torch import load_file, save_file
from scene_training import cosine
from torch import Tensor, nn
from torch.func import functional_call

import fastsample as fs
from fastsample.demo import bundled
from fastsample.demo.scenes import all_scenes
from fastsample.fixed_point.trajectory import noise_scales
from fastsample.fixed_point.updates import Secant
from fastsample.pipelines.parallel.consistency import (
    CHANGE,
    DOWN,
    FILE,
    NORMS,
    SLOPES,
    SWEEPS,
    UP,
    changed_names,
    delta,
    norms,
    share_of,
)

GUIDANCE = bundled.GUIDANCE
ROWS = 32 * 25
"""Rows of a sweep in training: images times steps."""
STEPS = (25, 36, 50)
"""Steps of the trajectories, one of them in each draw."""
POOL = 16
"""Batches of one draw of trajectories, made together since they are made one step after the other."""
WHOLE = 0.3
"""The rate of changes that are no factors, over that of factors."""
HELD_OUT = 32
"""Images of held-out scenes that are watched."""
PLAIN_SWEEPS = 1
"""Sweeps of the denoiser itself in training, after those with a share of the changes."""


@dataclass(frozen=True)
class Grid:
    """DDIM's steps `x_{i+1} = of_x[i] x_i + of_u[i] u_i`; noise scales of its states, a tolerance's unit; lambdas."""

    times: Tensor
    of_x: Tensor
    of_u: Tensor
    scales: Tensor
    lam: Tensor

    @classmethod
    def of(cls, pipe: Any, steps: int, device: str) -> Grid:
        scheduler: Any = fs.DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        schedule = scheduler.schedule
        table = fs.build_table("ddim", schedule, [*scheduler.timesteps.tolist(), schedule.clean_time])
        nodes = [table.steps[0].node, *(step.target for step in table.steps)]
        factors = [[step.next.sample for step in table.steps], [step.next.output for step in table.steps]]
        parts = [torch.as_tensor(part, dtype=torch.float32) for part in (*factors, noise_scales(nodes))]
        of_x, of_u, scales = (part.reshape(-1, 1, 1, 1, 1).to(device) for part in parts)
        lam = torch.tensor([node.lam for node in nodes[:-1]], dtype=torch.float32)
        return cls(scheduler.timesteps.to(device), of_x, of_u, scales, lam)

    def replay(self, x: Tensor, outputs: Tensor) -> Tensor:
        """All N + 1 states from x [B, ..] by the steps with these outputs."""
        states = [x]
        for of_x, moved in zip(self.of_x, self.of_u * outputs, strict=True):
            states.append(of_x * states[-1] + moved)
        return torch.stack([state.reshape(x.shape) for state in states])

    def picard(self, states: Tensor, outputs: Tensor) -> Tensor:
        """All N + 1 states by Picard's sweep: the sum of the steps' increments."""
        moved = (self.of_x - 1) * states[:-1] + self.of_u * outputs
        return torch.cat([states[:1], states[:1] + moved.cumsum(0)])

    def secant(self, states: Tensor, outputs: Tensor, slopes: Tensor) -> Tensor:
        """All N + 1 states one after the other, with outputs that follow them by `slopes` [N, 1, ..]."""
        factors, made = (self.of_x + self.of_u * slopes).clamp(0, Secant().largest), [states[0]]
        plain = self.of_x * states[:-1] + self.of_u * outputs
        for next_state, factor, state in zip(plain, factors, states, strict=False):
            made.append(next_state + factor * (made[-1] - state))
        return torch.stack(made)


class Guided:
    """The guided denoiser of a pipeline, on rows of images."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet.eval().requires_grad_(False)
        own = dict(unet.named_parameters())
        self.names, self.weights = list(own), list(own.values())

    def changed(self, deltas: list[Tensor], share: float) -> dict[str, Tensor]:
        """The weights with a share of the changes, of all parameters in order."""
        weights = torch._foreach_add(self.weights, deltas, alpha=share) if share else self.weights
        return dict(zip(self.names, weights, strict=True))

    def deltas(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The changes of all parameters in order."""
        return [delta(state, name, value) for name, value in zip(self.names, self.weights, strict=True)]

    def __call__(self, weights: dict[str, Tensor], x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Outputs [R, B, ..] of x [R, B, ..] at times t [R], for texts [2, B, ..], without and with the prompt."""
        rows, items = x.shape[:2]
        texts = text[:, None].expand(-1, rows, *text.shape[1:]).flatten(0, 2)
        inputs = (x.flatten(0, 1).repeat(2, 1, 1, 1), t.repeat_interleave(items).repeat(2), texts)
        output: Tensor = functional_call(self.unet, weights, inputs).sample
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
            state[name + CHANGE] = torch.zeros(value.shape)
    return state


@dataclass(frozen=True)
class Exact:
    """Sequential sampling of a batch: states [N + 1, B, ..] and outputs [N, B, ..] along a grid, for texts."""

    grid: Grid
    states: Tensor
    outputs: Tensor
    text: Tensor

    def of(self, items: slice) -> Exact:
        """Some of the images."""
        return Exact(self.grid, self.states[:, items], self.outputs[:, items], self.text[:, items])


@torch.no_grad()
def trajectories(network: Guided, grid: Grid, x: Tensor, text: Tensor) -> Exact:
    """Sequential sampling from x [B, ..]."""
    states, outputs, weights = [x], [], network.changed([], 0.0)
    for t, of_x, of_u in zip(grid.times, grid.of_x, grid.of_u, strict=True):
        outputs.append(network(weights, states[-1][None], t[None], text)[0])
        states.append(of_x * states[-1] + of_u * outputs[-1])
    return Exact(grid, torch.stack(states), torch.stack(outputs), text)


def rollout(network: Guided, deltas: list[Tensor], exact: Exact, shares: list[float]) -> Iterator[Rolled]:
    """Each sweep from the first state and its output, as a call of the pipeline makes them.

    The first guess goes on with the first output. Sweeps with a share are Picard's; those without are secant's with
    the slopes from the states to the exact ones, which are of all images: what it has to start with.
    """
    grid, first = exact.grid, exact.outputs[:1]
    states = grid.replay(exact.states[0], first.expand(len(grid.times), *first.shape[1:]))
    for share in shares:
        before = states
        made = network(network.changed(deltas, share), before[1:-1], grid.times[1:], exact.text)
        outputs = torch.cat([first, made])
        slopes = slopes_to(exact, before, outputs)
        states = grid.picard(before, outputs) if share else grid.secant(before, outputs, slopes)
        yield Rolled(states, slopes)


@dataclass(frozen=True)
class Rolled:
    """The states [N + 1, B, ..] after a sweep, and the slopes [N, 1, ..] of its outputs."""

    states: Tensor
    slopes: Tensor


@torch.no_grad()
def slopes_to(exact: Exact, states: Tensor, outputs: Tensor) -> Tensor:
    """`<dx, du> / <dx, dx>` of each step from where the outputs were made to the exact states, over all images."""
    dx, du = states[:-1] - exact.states[:-1], outputs - exact.outputs
    dots = [(dx * part).flatten(1).sum(1).reshape(-1, *[1] * (dx.ndim - 1)) for part in (du, dx)]
    return (dots[0] / dots[1]).nan_to_num(0.0)


def errors(states: Tensor, exact: Exact) -> tuple[Tensor, Tensor]:
    """Of each image [B]: RMS of the last state over the images' spread, and of all states in the tolerance's unit."""
    off = states - exact.states
    last = off[-1].square().flatten(1).mean(1).sqrt() / exact.states[-1].std()
    return last, (off / exact.grid.scales).square().flatten(2).mean((0, 2)).sqrt()


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


def batches(network: Guided, pipe: Any, seed: int, rows: int, device: str) -> Iterator[Exact]:
    """Endless batches of fresh trajectories, of a random number of steps each."""
    scenes, choice = Scenes.of(pipe, False, seed), torch.Generator().manual_seed(seed)
    while True:
        steps = STEPS[int(torch.randint(len(STEPS), (), generator=choice))]
        grid, count = Grid.of(pipe, steps, device), max(1, rows // steps)
        x, text = scenes.draw(POOL * count)
        exact = trajectories(network, grid, x, text)
        for part in range(POOL):
            yield exact.of(slice(part * count, (part + 1) * count))


class Training:
    """The changes, their average and their optimiser, and how far they have come."""

    def __init__(self, unet: nn.Module, args: argparse.Namespace) -> None:
        self.unet, self.args = unet, args
        made = new_state(unet, args.rank, torch.Generator().manual_seed(args.seed))
        if args.weights:
            given = load_file(args.weights / FILE)
            made = {name: given[name].float() for name in made}
        self.state = {name: value.to(args.device).requires_grad_() for name, value in made.items()}
        self.average = {name: value.detach().clone() for name, value in self.state.items()}
        whole = [value for name, value in self.state.items() if name.endswith(CHANGE)]
        factors = [value for name, value in self.state.items() if not name.endswith(CHANGE)]
        groups = [{"params": factors, "scale": 1.0}, {"params": whole, "scale": WHOLE}]
        self.optimiser = torch.optim.Adam(groups, lr=args.rate, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self._file = args.out / "checkpoint.pt"
        if self._file.exists():
            self._load()

    def update(self, loss: Tensor, progress: float) -> None:
        """One step down the loss, at the rate of this part of the whole training."""
        for group in self.optimiser.param_groups:
            warm = min(1.0, (self.step + 1) / 20)
            group["lr"] = group["scale"] * self.args.rate * warm * cosine(int(1000 * progress), 1000, 0)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.state.values(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            decay = min(0.99, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.average.values()), list(self.state.values()), 1 - decay)
        self.step += 1

    def save(self, slopes: Tensor) -> None:
        """The checkpoint, and the averaged changes in float16, with the denoiser's slopes after them."""
        held = {name: value.detach() for name, value in self.state.items()}
        numbers = {"step": self.step, "seconds": self.seconds}
        torch.save(
            {"state": held, "average": self.average, "optimiser": self.optimiser.state_dict(), **numbers}, self._file
        )
        halved = {name: value.cpu().half() for name, value in self.average.items()}
        extra = {NORMS: norms(self.unet, changed_names(halved)), SWEEPS: torch.tensor(self.args.sweeps)}
        extra[SLOPES] = slopes
        save_file(halved | extra, self.args.out / FILE)

    def _load(self) -> None:
        saved = torch.load(self._file, weights_only=True, map_location=self.args.device)
        self.step, self.seconds, self.average = saved["step"], saved["seconds"], saved["average"]
        self.optimiser.load_state_dict(saved["optimiser"])
        with torch.no_grad():
            for name, value in self.state.items():
                value.copy_(saved["state"][name])


def train(args: argparse.Namespace) -> None:
    """From the checkpoint where there is one; ends after the steps, or after the seconds."""
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    args.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = bundled.load_pipeline(device=args.device)
    network, training = Guided(pipe.unet), Training(pipe.unet, args)
    shares = [share_of(sweep, args.sweeps) for sweep in range(args.sweeps + PLAIN_SWEEPS)]
    averaged = network, training.average, pipe, shares
    source = batches(network, pipe, args.seed + training.step, args.rows, args.device)
    began, said = time.perf_counter() - training.seconds, 0.0
    while training.step < args.steps and not (args.seconds and training.seconds > (args.stop or args.seconds)):
        exact = next(source)
        loss = exact.states.new_zeros(())
        for sweep, rolled in enumerate(rollout(network, network.deltas(training.state), exact, shares)):
            last, every = errors(rolled.states, exact)
            weight = 1.0 if sweep else args.first
            loss = loss + weight * (last.mean().log() + every.mean().log())  # a sweep's errors count by their ratios
        spent = training.seconds / args.seconds if args.seconds else 0.0
        training.update(loss, max(training.step / args.steps, min(1.0, spent)))
        training.seconds = time.perf_counter() - began
        if training.seconds - said > args.every:
            said = training.seconds
            training.save(measured_slopes(*averaged))
            print(f"step {training.step} {said:.0f} s {report(*averaged)}", flush=True)
    training.save(measured_slopes(*averaged))
    print(f"end {training.step} {report(*averaged)}", flush=True)


@torch.no_grad()
def report(network: Guided, state: dict[str, Tensor], pipe: Any, shares: list[float]) -> str:
    """The mean errors of held-out images after each sweep, and after two more of the denoiser itself."""
    exact = trajectories(network, Grid.of(pipe, STEPS[0], pipe.unet.device), *Scenes.of(pipe, True, 1).draw(HELD_OUT))
    rolled = rollout(network, network.deltas(state), exact, [*shares, 0.0, 0.0])
    found = [errors(each.states, exact)[0].mean().item() for each in rolled]
    return "errors " + " ".join(f"{error:.4f}" for error in found)


@torch.no_grad()
def measured_slopes(network: Guided, state: dict[str, Tensor], pipe: Any, shares: list[float]) -> Tensor:
    """The denoiser's slopes in its first sweep, [2, N]: lambda of each step, and the slope, on training scenes."""
    grid = Grid.of(pipe, STEPS[0], pipe.unet.device)
    exact = trajectories(network, grid, *Scenes.of(pipe, False, 1).draw(HELD_OUT))
    rolled = list(rollout(network, network.deltas(state), exact, shares))
    slopes = rolled[shares.index(0.0)].slopes.flatten()
    return torch.stack([grid.lam, slopes.cpu()])[:, 1:].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "evaluate", "picture"])
    parser.add_argument("--out", type=Path, default=Path("build/picard"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seconds", type=float, help="train no longer than this; the rate falls by it too")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a sweep: images times steps")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--sweeps", type=int, default=3, help="over which the share falls from 1 to 0")
    parser.add_argument("--first", type=float, default=1.0, help="what the first sweep's errors count over another's")
    parser.add_argument("--every", type=float, default=30, help="seconds between checkpoints")
    parser.add_argument("--stop", type=float, help="end after so many of the seconds; to be gone on with")
    parser.add_argument("--weights", type=Path, help="a folder of train: to evaluate, or to start anew from")
    parser.add_argument("--counts", default="25,50", help="evaluate: numbers of steps")
    parser.add_argument("--seeds", type=int, default=2, help="evaluate")
    parser.add_argument("--images", type=int, default=16, help="evaluate: images a seed")
    args = parser.parse_args()
    if args.stage == "train":
        train(args)
    elif args.stage == "evaluate":
        counts = [int(count) for count in args.counts.split(",")]
        evaluate(args.weights or bundled.load_consistency(), args.out, counts, args.seeds, args.images, args.device)
    else:
        picture(args.weights or bundled.load_consistency(), args.out / "rounds.png")


if __name__ == "__main__":
    main()
