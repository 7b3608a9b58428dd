"""Tune the bundled models and measure what that gives: presets, and tables of errors beside all untuned samplers.

    python scripts/tune_bundled.py --out results/tuning [--models text_to_image] [--cells 3:5,3:8,1:5] [--device cuda]

Tuned on training scenes, checked on held-out ones, and measured on other held-out scenes with two seeds: root mean
square distance to 200 steps from the same noise, relative to its spread, and the prompts that the classifier finds
wholly right. Beside it: every deterministic solver of ours on every grid, and diffusers' DPM++ 2M, UniPC and DEIS.
An interrupted run goes on from what --out holds; after --seconds no other cell is begun.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from numpy.typing import NDArray

import fastsample
from fastsample.bench.metrics import decode
from fastsample.demo.bundled import MODELS, load_pipeline, prompt_fidelity
from fastsample.demo.scenes import all_scenes, sample_scenes
from fastsample.pipelines.configured import configured
from fastsample.schedules.grids import GRIDS
from fastsample.solvers.registry import available
from fastsample.tables.preset import Entry
from fastsample.tuning.linear import Linear, linear_of
from fastsample.tuning.oracle import Calls, Oracle
from fastsample.tuning.pairs import Pairs, Purse
from fastsample.tuning.screen import cells
from fastsample.tuning.target import LONG_RUN, target_of
from fastsample.tuning.teacher import spread, teach

Array = NDArray[np.float64]
CELLS = "3:5,3:8,1:5,7.5:8,3:6,3:10,1:8,7.5:5,1:6,7.5:10,1:10,7.5:6"
"""The most valuable first."""
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ghvb": [{"order": order, "weights": weights} for order in (1, 2, 3, 4) for weights in ("fixed", "variable")],
    "unipc": [{"order": order} for order in (1, 2, 3)],
    "deis": [{"order": 2}, {"order": 3}],
    "ipndm": [{"order": order} for order in (2, 3, 4)],
    "adams": [{"order": 2}, {"order": 3}],
}
"""Variants of solvers that stand in the untuned table, beside their defaults."""
PEERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
MATCHED = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
"""Steps of diffusers' DPM++ 2M among which the one as good as a tuned table is looked for."""
SEEDS = (7001, 7002)


def main(
    out: Annotated[Path, typer.Option(help="Folder of presets, results and stages.")] = Path("results/tuning"),
    models: Annotated[str, typer.Option(help="Bundled models, comma-separated.")] = ",".join(MODELS),
    cells: Annotated[str, typer.Option(help="guidance:evaluations, comma-separated.")] = CELLS,
    prompts: Annotated[int, typer.Option(help="Training prompts given to tune.")] = 72,
    fresh: Annotated[int, typer.Option(help="Held-out prompts measured on, with two seeds each.")] = 48,
    budget: Annotated[int, typer.Option(help="Guided evaluations a cell.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Images evaluated at once.")] = 1024,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    seconds: Annotated[float, typer.Option(help="After these no other cell is begun.")] = 1e9,
) -> None:
    """Write preset-<model>.json and results.json."""
    started = time.monotonic()
    torch.backends.cudnn.allow_tf32 = False  # differences are what is measured
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(float(scale), int(count)) for scale, count in (cell.split(":") for cell in cells.split(","))]
    names = models.split(",")
    benches = {name: Bench(name, out, prompts, fresh, budget, batch, device) for name in names}
    results: list[dict[str, Any]] = []
    for scale, count in wanted:
        for name in names:
            if time.monotonic() - started > seconds:
                continue
            begun = time.monotonic()
            results.append({"model": name, **benches[name].cell(scale, count)})
            print(json.dumps(results[-1]), f"{time.monotonic() - begun:.1f} s", flush=True)
            (out / "results.json").write_text(json.dumps(results, indent=1))
            benches[name].save()


class Bench:
    """A bundled model, the pairs that it is measured on, and the entries tuned so far."""

    def __init__(self, name: str, out: Path, prompts: int, fresh: int, budget: int, batch: int, device: str) -> None:
        self.name, self.out, self.budget, self.batch = name, out, budget, batch
        self.pipe = load_pipeline(device=device, name=name)
        self.target = target_of(self.pipe, {})
        training = dict.fromkeys(scene.caption for scene in sample_scenes(4 * prompts, 31))
        held_out = [scene.caption for scene in all_scenes(held_out=True)]
        held_out = [held_out[i] for i in np.random.default_rng(5).permutation(len(held_out))]
        self.prompts, self.check, self.fresh = list(training)[:prompts], held_out[:24], held_out[24 : 24 + fresh]
        self.entries: list[Entry] = []
        self.measured: dict[float, Measured] = {}

    def cell(self, scale: float, count: int) -> dict[str, Any]:
        """Tune one cell, and measure it."""
        preset = fastsample.tune(
            self.pipe,
            self.prompts,
            steps=(count,),
            guidance=(scale,),
            budget=self.budget,
            check_prompts=self.check,
            quality=whole_prompts,
            batch=self.batch,
            folder=self.out / "stages",
            report=lambda text: print("  ", text, flush=True),
        )
        self.entries += preset.entries
        if scale not in self.measured:
            self.measured[scale] = Measured(self, scale)
        return {"guidance": scale, "evaluations": count, **self.measured[scale].compare(preset.entries[0])}

    def save(self) -> None:
        """Write the preset of all entries so far."""
        ordered = sorted(self.entries, key=lambda entry: (entry.guidance, entry.evaluations))
        self.target.preset(ordered).save(self.out / f"preset-{self.name}.json")


class Measured:
    """The fresh pairs at one guidance, where they end once converged, and how near samplers come."""

    def __init__(self, bench: Bench, scale: float) -> None:
        self.bench, self.calls = bench, Calls(bench.pipe, scale, {})
        self.pairs = [(prompt, seed) for seed in SEEDS for prompt in bench.fresh]
        self.problem = bench.target.problem(whole=False)
        self.oracle = oracle = Oracle(self.calls, self.pairs, bench.batch, whole=False)
        start = oracle.start()
        reference = teach(oracle, self.problem, start, bench.target.last, LONG_RUN).final
        self.set = Pairs(oracle, self.problem, start, reference, spread(reference), Purse(10**9))
        self.peers: dict[tuple[str, int], float] = {}

    def compare(self, entry: Entry) -> dict[str, Any]:
        """The entry beside all untuned cells, and beside diffusers'."""
        best, untuned = self.best_untuned(entry.evaluations)
        tuned, images = self.of(linear_of(entry.table))
        _, before = self.of(best)
        self.oracle.close()  # a pipeline has one guidance at a time
        peers = {peer: self.peer(peer, entry.evaluations) for peer in PEERS}
        as_good = next((n for n in MATCHED if self.peer(PEERS[0], n) <= rms(tuned)), None)
        halves = np.split(tuned, len(SEEDS)), np.split(untuned["errors"], len(SEEDS))
        return {
            "stage": entry.stage,
            "tried": entry.tried,
            "base": f"{entry.solver} {entry.options} {entry.grid}",
            "best untuned": untuned["label"],
            "untuned": rms(untuned["errors"]),
            "tuned": rms(tuned),
            "ratio": rms(tuned) / rms(untuned["errors"]),
            "ratio by seed": [rms(one) / rms(other) for one, other in zip(*halves, strict=True)],
            "median ratio": float(np.median(tuned) / np.median(untuned["errors"])),
            "prompts right": [float(np.mean(before)), float(np.mean(images))],
            "diffusers": peers,
            "as good as DPM++ 2M of": as_good,
            "calls": entry.calls,
            "check": [entry.final.tuned / entry.final.untuned if entry.final else None, entry.upper],
            "verdict": entry.verdict,
        }

    def of(self, linear: Linear) -> tuple[Array, list[float]]:
        """The errors of a table, and which prompts its images have wholly right."""
        final = self.set.roll_out([linear]).final
        return self.set.distances(final)[0], whole_prompts(self.decoded(final[0]), [p for p, _ in self.pairs])

    def best_untuned(self, count: int) -> tuple[Linear, dict[str, Any]]:
        """The best of all deterministic solvers on all grids, on these very pairs, which favours it."""
        solvers = tuple(
            (name, options)
            for name, solver in available().items()
            if not solver.stochastic and not solver.stages
            for options in OPTIONS.get(name, [{}])
        )
        found = cells(self.problem, count, solvers=solvers, grids=tuple(GRIDS))
        few = 64
        errors = np.concatenate(
            [self.set.errors([cell.linear for cell in found[i : i + few]]) for i in range(0, len(found), few)]
        )
        best = int(np.argmin(np.sqrt((errors**2).mean(1))))
        return found[best].linear, {"label": found[best].label, "errors": errors[best], "cells": len(found)}

    def peer(self, name: str, steps: int) -> float:
        """The error of a diffusers class, run by the pipeline."""
        if (name, steps) not in self.peers:
            config = self.bench.pipe.scheduler.config
            flow = {
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "flow_shift": config.get("shift", 1),
            }
            more = flow if self.bench.target.schedule.kind == "flow" else {}
            scheduler = getattr(diffusers, name).from_config(config, **more)
            with configured(self.bench.pipe, scheduler):
                call = self.calls.of(self.pairs, num_inference_steps=steps, output_type="latent")
                latents = self.bench.pipe(**call).images
            self.peers[name, steps] = rms(self.set.distances(latents[None].to(self.set.reference))[0])
        return self.peers[name, steps]

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        return decode(self.bench.pipe, latents)


def whole_prompts(images: Any, prompts: list[str]) -> list[float]:
    """1 for each image whose prompt the classifier finds wholly right, else 0."""
    stacked = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
    return [prompt_fidelity(image[None], [prompt])["prompts"] for image, prompt in zip(stacked, prompts, strict=True)]


def rms(errors: Array) -> float:
    return float(np.sqrt((errors**2).mean()))


if __name__ == "__main__":
    typer.run(main)
