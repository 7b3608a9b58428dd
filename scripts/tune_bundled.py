"""Tune the bundled models, and prove what that gives: presets, and tables of errors beside all untuned samplers.

    python scripts/tune_bundled.py --out results/tuning [--models text_to_image] [--cells 3:5,3:8,1:5] [--device cuda]
    python scripts/tune_bundled.py --out again --models text_to_image --preset tuned-text_to_image.json --draw 1
    python scripts/tuning_report.py results/tuning again --out benchmarks/tuning --presets presets

Tuned on scenes of the training and on held-out ones, checked by `tune` on other held-out ones. Then every
deterministic solver of ours on every grid, and the tuned table, on four more sets of held-out prompts with two seeds
each, no prompt or seed in two sets. On the first, "choice", it is decided what ships: the tuned table that passed
`tune`'s own check, which no fall of prompts right passes, where it is no worse than the best untuned cell of all and
at most one prompt fewer is right, else that best cell. The other three only report; a tuned table above WORSE of the
best untuned on any of them does not ship either. Errors are root mean square distances to 200 steps from the same
noise, relative to their spread.

An interrupted run goes on from what --out holds; --preset measures tables tuned before instead of tuning.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from numpy.typing import NDArray

import fastsample
from fastsample.bench.context import hardware
from fastsample.bench.metrics import decode
from fastsample.demo.bundled import MODELS, load_pipeline, prompt_fidelity
from fastsample.demo.scenes import all_scenes, sample_scenes
from fastsample.pipelines.configured import configured
from fastsample.tables.preset import Entry, Preset
from fastsample.tuning.choose import upper_ratio
from fastsample.tuning.linear import Linear, linear_of
from fastsample.tuning.oracle import Calls, Oracle
from fastsample.tuning.pairs import Pairs, Purse
from fastsample.tuning.problem import Start
from fastsample.tuning.screen import Cell, cells, screen
from fastsample.tuning.target import LONG_RUN, target_of
from fastsample.tuning.teacher import spread, teach

Array = NDArray[np.float64]
CELLS = "3:5,3:8,1:5,7.5:8,3:6,3:10,1:8,7.5:5,1:6,7.5:10,1:10,7.5:6"
"""The most valuable first."""
CALL: dict[str, dict[str, Any]] = {"text_to_image": {}, "flow_text_to_image": {"max_sequence_length": 16}}
"""Further arguments of the calls: the text tokens that are there, without the padding, take a quarter of the time."""
PEERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
MATCHED = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
"""Steps of diffusers' DPM++ 2M among which the one as good as a tuned table is looked for."""
SETS = ("choice", "A", "B", "C")
"""The set that decides, and the three that report."""
SEEDS = 2
CHECKED = 24
"""Held-out prompts of tune's own final check."""
LEAST = 48
"""Prompts given to tune, at least: half of them are scenes of the training, half held-out ones."""
LOOKS = ((1, 120), (4, 24))
"""Pairs of each set on which untuned cells are run, all of them at first, and how many of the best go on."""
FEWER = 0.04
"""The share of prompts right that a tuned table may lose on the set that decides: one of its 32 images."""
WORSE = 1.02
"""The ratio on a fresh set above which a tuned table does not ship."""


def main(
    out: Annotated[Path, typer.Option(help="Folder of presets, results and stages.")] = Path("results/tuning"),
    models: Annotated[str, typer.Option(help="Bundled models, comma-separated.")] = ",".join(MODELS),
    cells: Annotated[str, typer.Option(help="guidance:evaluations, comma-separated.")] = CELLS,
    preset: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Measure this file's tables instead of tuning.")
    ] = None,
    prompts: Annotated[
        int, typer.Option(help="Prompts given to tune 5 evaluations; fewer for more, which cost more.")
    ] = 64,
    fresh: Annotated[int, typer.Option(help="Prompts of each set that is measured on, with two seeds each.")] = 16,
    budget: Annotated[int, typer.Option(help="Guided evaluations a cell.")] = 20_000,
    objective: Annotated[str, typer.Option(help="What tune lowers: rms, or huber.")] = "rms",
    solver: Annotated[str | None, typer.Option(help="The one to tune; without it the best of all.")] = None,
    draw: Annotated[int, typer.Option(help="Which prompts and seeds: another number, other sets.")] = 0,
    batch: Annotated[int, typer.Option(help="Images evaluated at once.")] = 2048,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    seconds: Annotated[float, typer.Option(help="After these no other cell is begun.")] = 1e9,
) -> None:
    """Write tuned-<model>.json, preset-<model>.json of what ships, and results.json."""
    started = time.monotonic()
    torch.backends.cudnn.allow_tf32 = False  # differences are what is measured
    out.mkdir(parents=True, exist_ok=True)
    record = out / "results.json"
    results: list[dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else []
    wanted = [(float(scale), int(count)) for scale, count in (cell.split(":") for cell in cells.split(","))]
    names = models.split(",")
    asked = Asked(out, preset, prompts, fresh, budget, objective, solver, draw, batch, device)
    benches = {name: Bench(name, asked) for name in names}
    for (scale, count), name in itertools.product(wanted, names):
        key = {"model": name, "guidance": scale, "evaluations": count}
        if any(key.items() <= known.items() for known in results) or time.monotonic() - started > seconds:
            continue
        begun = time.monotonic()
        found = benches[name].cell(scale, count)
        if found is None:
            continue
        results.append({**key, **found})
        record.write_text(json.dumps(results, indent=1))
        print(summary(results[-1]), f"{time.monotonic() - begun:.1f} s", flush=True)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of :func:`main` that say what is tuned and measured."""

    out: Path
    preset: Path | None
    prompts: int
    fresh: int
    budget: int
    objective: str
    solver: str | None
    draw: int
    batch: int
    device: str


class Bench:
    """A bundled model, the prompts that it is tuned and measured on, and the entries so far."""

    def __init__(self, name: str, asked: Asked) -> None:
        self.name, self.asked, prompts, fresh = name, asked, asked.prompts, asked.fresh
        self.pipe = load_pipeline(device=asked.device, name=name)
        self.target = target_of(self.pipe, CALL[name])
        training = list(dict.fromkeys(scene.caption for scene in sample_scenes(4 * prompts, 31 + asked.draw)))
        held_out = [scene.caption for scene in all_scenes(held_out=True)]
        held_out = [held_out[i] for i in np.random.default_rng(5 + asked.draw).permutation(len(held_out))]
        sizes = [CHECKED, *[fresh] * len(SETS), prompts // 2]
        if sum(sizes) > len(held_out):
            raise typer.BadParameter(f"{sum(sizes)} held-out prompts are needed, there are {len(held_out)}")
        ends = np.cumsum(sizes)
        self.check, *sets, own = (held_out[end - size : end] for size, end in zip(sizes, ends, strict=True))
        self.prompts = [prompt for both in zip(training, own, strict=False) for prompt in both]
        self.sets = dict(zip(SETS, sets, strict=True))
        self.known = None if asked.preset is None else Preset.from_json(asked.preset.read_text())

    def cell(self, scale: float, count: int) -> dict[str, Any] | None:
        """Tune one cell, or look it up, decide what ships, and measure; None where the given preset has none."""
        entry = self.tuned(scale, count)
        if entry is None:
            return None
        shipped, found = self.measured(scale).compare(entry)
        self.keep("tuned", entry)
        self.keep("preset", shipped)
        made = {"objective": self.asked.objective, "solver": self.asked.solver, "draw": self.asked.draw}
        return {**made, "machine": hardware(torch.device(self.asked.device)), **found}

    def keep(self, kind: str, entry: Entry) -> None:
        """Put an entry into one of the files: all that was tuned, and what ships."""
        path = self.asked.out / f"{kind}-{self.name}.json"
        known = Preset.from_json(path.read_text()).entries if path.is_file() else ()
        others = [one for one in known if (one.guidance, one.evaluations) != (entry.guidance, entry.evaluations)]
        self.target.preset(sorted([*others, entry], key=lambda one: (one.guidance, one.evaluations))).save(path)

    def tuned(self, scale: float, count: int) -> Entry | None:
        """The entry of a cell by `tune`, or of the preset that is measured."""
        if self.known is not None:
            return next((e for e in self.known.entries if (e.guidance, e.evaluations) == (scale, count)), None)
        preset = fastsample.tune(
            self.pipe,
            self.prompts[: max(LEAST, len(self.prompts) * 5 // count)],
            steps=(count,),
            guidance=(scale,),
            budget=self.asked.budget,
            objective=self.asked.objective,
            solver=self.asked.solver,
            check_prompts=self.check,
            quality=whole_prompts,
            call=CALL[self.name],
            batch=self.asked.batch,
            folder=self.asked.out / "stages",
            report=lambda text: print("  ", text, flush=True),
        )
        return preset.entries[0]

    @functools.cache  # noqa: B019  one bench a run
    def measured(self, scale: float) -> Measured:
        """The measured pairs at a guidance."""
        return Measured(self, scale)

    @functools.cache  # noqa: B019
    def untuned(self, count: int) -> list[Cell]:
        """All cells of so many evaluations."""
        return list(cells(self.target.problem(whole=False), count))


class Measured:
    """The pairs of all sets at one guidance, where they end once converged, and how near samplers come."""

    def __init__(self, bench: Bench, scale: float) -> None:
        self.bench, self.calls = bench, Calls(bench.pipe, scale, CALL[bench.name])
        self.prompts = [prompt for own in bench.sets.values() for _ in range(SEEDS) for prompt in own]
        each = SEEDS * len(bench.sets["A"])
        seeds = [
            7001 + 1000 * bench.asked.draw + 100 * (place // each) + place % each // (each // SEEDS)
            for place in range(len(self.prompts))
        ]
        pairs = list(zip(self.prompts, seeds, strict=True))
        problem = bench.target.problem(whole=False)
        fewer = [slice(None, None, each // look) for look, _ in LOOKS]
        self.oracles = [
            Oracle(self.calls, pairs[few], bench.asked.batch, whole=False) for few in (slice(None), *fewer)
        ]
        start = self.oracles[0].start()
        reference = teach(self.oracles[0], problem, start, bench.target.last, LONG_RUN, scale).final
        self.pairs = Pairs(self.oracles[0], problem, start, reference, spread(reference), Purse(10**9))
        self.looked = [
            dataclasses.replace(
                self.pairs,
                model=oracle,
                start=Start(start.sample[few], start.output[few]),
                reference=reference[few],
            )
            for few, oracle in zip(fewer, self.oracles[1:], strict=True)
        ]
        self.peers: dict[tuple[str, int], Array] = {}

    def compare(self, entry: Entry) -> tuple[Entry, dict[str, Any]]:
        """The entry that ships, and what was measured: the tuned table beside all untuned cells, and diffusers'."""
        found = ranked = self.bench.untuned(entry.evaluations)
        for pairs, (_, kept) in zip(self.looked, LOOKS, strict=True):
            ranked = screen(ranked, pairs, "rms", lambda text: None)[:kept]
        finalists = screen(ranked, self.pairs, "rms", lambda text: None)
        tuned, right = self.of(linear_of(entry.table))
        best = {name: min(finalists, key=lambda cell: rms(self.by_set(cell.errors)[name])) for name in SETS}
        before = {name: self.of(best[name].linear)[1][name] for name in SETS}
        self.close()  # a pipeline has one guidance at a time
        sets = {}
        for name in SETS:
            own, untuned = self.by_set(tuned)[name], self.by_set(best[name].errors)[name]
            seeds = zip(np.split(own, SEEDS), np.split(untuned, SEEDS), strict=True)
            sets[name] = {
                "best untuned": best[name].label,
                "untuned": rms(untuned),
                "tuned": rms(own),
                "ratio": rms(own) / rms(untuned),
                "upper": upper_ratio(own, untuned),
                "ratio by seed": [rms(one) / rms(other) for one, other in seeds],
                "median ratio": float(np.median(own) / np.median(untuned)),
                "prompts right": [before[name], right[name]],
                "diffusers": {peer: rms(self.by_set(self.peer(peer, entry.evaluations))[name]) for peer in PEERS},
            }
        shipped = decided(entry, best["choice"], sets, len(found))
        reported = rms(np.concatenate([self.by_set(tuned)[name] for name in SETS[1:]]))
        return shipped, {
            "ships": shipped.stage,
            "stage": entry.stage,
            "tried": entry.tried,
            "base": f"{entry.solver}{f'({entry.options})' if entry.options else ''} {entry.grid}",
            "cells": len(found),
            "sets": sets,
            "as good as DPM++ 2M of": next((n for n in MATCHED if self.matches(n, reported)), None),
            "calls": entry.calls,
            "check": [entry.final.tuned / entry.final.untuned if entry.final else None, entry.upper],
            "nodes": {
                "tuned": [float(step.node.lam) for step in entry.table.steps[1:]],
                "untuned": [float(lam) for lam in best["choice"].lams],
            },
            "verdict": entry.verdict,
        }

    def close(self) -> None:
        """Give the pipeline back; what is measured next opens it again."""
        for oracle in self.oracles:
            oracle.close()

    def matches(self, steps: int, error: float) -> bool:
        """Whether diffusers' DPM++ 2M of so many steps is as near, on the sets that report."""
        own = self.by_set(self.peer(PEERS[0], steps))
        return rms(np.concatenate([own[name] for name in SETS[1:]])) <= error

    def by_set(self, values: Array) -> dict[str, Array]:
        """Values [P] of the pairs by set."""
        return dict(zip(SETS, np.split(values, len(SETS)), strict=True))

    def of(self, linear: Linear) -> tuple[Array, dict[str, float]]:
        """The errors of a table, and the share of prompts that its images have wholly right, by set."""
        final = self.pairs.roll_out([linear]).final
        images = decode(self.bench.pipe, final[0])
        places = np.split(np.arange(len(self.prompts)), len(SETS))
        shares = {
            name: whole_prompts(images[torch.from_numpy(own)], [self.prompts[i] for i in own])[0]
            for name, own in zip(SETS, places, strict=True)
        }
        return self.pairs.distances(final)[0], shares

    def peer(self, name: str, steps: int) -> Array:
        """The errors of a diffusers class, run by the pipeline."""
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
                call = self.calls.of(self.oracles[0].pairs, num_inference_steps=steps, output_type="latent")
                latents = self.bench.pipe(**call).images
            self.peers[name, steps] = self.pairs.distances(latents[None].to(self.pairs.reference))[0]
        return self.peers[name, steps]


def decided(entry: Entry, best: Cell, sets: dict[str, dict[str, Any]], cells: int) -> Entry:
    """What ships: the tuned entry where it holds on the set that decides and on the fresh ones, else `best`."""
    choice, worst = sets["choice"], max(sets[name]["ratio"] for name in SETS[1:])
    said = f"on further prompts {choice['ratio']:.2f} of the error of the best of {cells} untuned cells"
    before, after = choice["prompts right"]
    if entry.stage == "untuned":
        why = entry.verdict
    elif choice["ratio"] > 1 or after < before - FEWER:
        why = (
            f"untuned: tuned it was {said}, at most {choice['upper']:.2f}, {after:.0%} right where {before:.0%} were"
        )
    elif worst > WORSE:
        why = f"untuned: tuned it was {said}, but {worst:.2f} on one of three fresh sets"
    else:
        return dataclasses.replace(entry, verdict=f"{entry.verdict}; {said}, at most {choice['upper']:.2f}")
    base, prediction = best.base, entry.table.prediction_type
    nodes = base.problem.nodes(best.lams)
    table = base.on(nodes)
    assert table.prediction_type == prediction
    return dataclasses.replace(
        entry,
        solver=base.solver,
        options=base.written,
        grid=best.grid,
        untuned=best.label,
        stage="untuned",
        verdict=why,
        table=table,
    )


def whole_prompts(images: Any, prompts: Sequence[str]) -> list[float]:
    """The share of images whose prompt the classifier finds wholly right."""
    stacked = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
    return [prompt_fidelity(stacked, prompts)["prompts"]]


def rms(errors: Array) -> float:
    return float(np.sqrt((errors**2).mean()))


def summary(result: dict[str, Any]) -> str:
    """A measured cell in one line."""
    sets = result["sets"]
    ratios = ", ".join(f"{name} {sets[name]['ratio']:.2f}" for name in SETS)
    shares = ", ".join("{:.0%} {:.0%}".format(*sets[name]["prompts right"]) for name in SETS)
    cell = f"{result['model']} ({result['guidance']:g}, {result['evaluations']})"
    return (
        f"{cell}: tried {result['tried']} of {result['base']}, ships {result['ships']}; {ratios}; right {shares}; "
        f"as DPM++ 2M of {result['as good as DPM++ 2M of']}; {result['calls']} calls; {result['verdict']}"
    )


if __name__ == "__main__":
    typer.run(main)
