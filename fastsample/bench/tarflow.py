"""A TarFlow decoded in several ways, side by side: seconds, work and residual; then the quality of samples."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.context import context_of, environment
from fastsample.bench.metrics import frechet_distance
from fastsample.bench.record import Record, Result
from fastsample.bench.report import markdown_table
from fastsample.demo import digits
from fastsample.pipelines.counting import count
from fastsample.sampling.ledger import clock
from fastsample.tarflow import BlockPlan, DecodeReport, Plan, TarFlowPipeline
from fastsample.tarflow import plan as make_plan
from fastsample.tarflow.planner import relative_residual

Score = Callable[[Tensor, Tensor], dict[str, float]]
"""Metrics of images in [0, 1] and their labels."""


@dataclass(frozen=True)
class Decoding:
    """One way of decoding: a method, with its plan."""

    label: str
    method: str
    plan: Plan | BlockPlan | None = None


@dataclass
class FlowBench:
    """A benchmark of a pipeline's decoding at a target residual, sequential against parallel.

    What `record` holds of these weights, settings and threads is taken from there; results are on disk as they come,
    with `named` added to each.
    """

    pipe: TarFlowPipeline
    record: Record
    residual: float = 1e-4
    guidance: float = 0.0
    seed: int = 0
    named: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.pipe.transformer
        self._context = context_of([model], model.device, self.residual, self.guidance, self.seed)
        self._environment = environment(model.device)

    def plan(self, batch: int, on_block: Callable[[int], None] | None = None) -> Plan:
        """The automatic plan for batches of that size."""
        key = f"{self._context} plan {batch}"
        if key not in self.record.results:
            made = make_plan(
                self.pipe.transformer,
                self.residual,
                batch=batch,
                guidance=self.guidance,
                generator=torch.Generator().manual_seed(self.seed + 1),
                on_block=on_block,
            )
            self.record.append({"key": key, "plan": made.to_json()})
        return Plan.from_json(self.record.results[key]["plan"])

    def arms(self, batch: int) -> list[Decoding]:
        """Sequential decoding, both iterations the same for all blocks, and the plan."""
        return [
            Decoding("sequential", "sequential"),
            Decoding("Jacobi", "jacobi", BlockPlan(tolerance=self.residual)),
            Decoding("GS-Jacobi, 8 chunks", "gs-jacobi", BlockPlan(chunks=8, tolerance=self.residual)),
            Decoding("plan", "gs-jacobi", self.plan(batch)),
        ]

    def speed(self, batch: int, repeats: int) -> list[Result]:
        """One result per way of decoding: all decode the same noise in turn, `repeats` times after a warm-up.

        It holds seconds, work, and quartiles of the speed-up: sequential seconds over its own in each repeat.
        """
        arms, kind = self.arms(batch), f"speed {batch} x {repeats}"
        if (known := self._known(kind, arms)) is not None:
            return known
        z, labels = self._noise(batch, self.seed)
        decoded, passes = [], []
        for arm in arms:  # the warm-up
            with count(self.pipe, batch) as ledger:
                decoded.append(self._decode(arm, z, labels))
            passes.append(ledger.forward_calls)
        seconds: list[list[float]] = [[] for _ in arms]
        for _ in range(repeats):
            for arm, own in zip(arms, seconds, strict=True):
                began = clock(self.pipe.transformer.device)
                self._decode(arm, z, labels)
                own.append(clock(self.pipe.transformer.device) - began)
        exact = decoded[0][0]
        results = []
        for arm, own, (images, report), calls in zip(arms, seconds, decoded, passes, strict=True):
            ratios = [first / each for first, each in zip(seconds[0], own, strict=True)]
            values = {
                "batch": batch,
                "seconds": statistics.median(own),
                "speedup": _quartiles(ratios),
                "repeats": repeats,
                "passes": calls,
                "sweeps": report.sweeps,
                "tokens": report.evaluations / batch / (len(report.blocks) * len(self.pipe.transformer.var)),
                "residual": relative_residual(images, exact),
                "substituted": sum(map(len, report.substituted.values())),
            }
            results.append(self._append(kind, arm, values))
        return results

    def quality(self, images: int, batch: int, seeds: int, score: Score) -> Iterator[Result]:
        """Per seed one result of sequential decoding, and one of the plan for `batch`.

        The metrics of `images` samples, denoised, and the largest residual to the sequential ones.
        """
        sequential, *_, planned = self.arms(batch)
        arms = [sequential, planned]
        for seed in range(seeds):
            kind = f"quality {seed} of {images} by {batch}"
            if (known := self._known(kind, arms)) is not None:
                yield from known
                continue
            exact: Tensor | None = None
            for arm in arms:
                parts = []
                z, labels = self._noise(images, seed)
                for own_z, own_labels in zip(z.split(batch), labels.split(batch), strict=True):
                    made = self.pipe(
                        own_labels.tolist(),
                        latents=own_z,
                        guidance=self.guidance,
                        method=arm.method,
                        plan=arm.plan,
                        output_type="pt",
                    )
                    parts.append(made.images)
                samples = torch.cat(parts)
                exact = samples if exact is None else exact
                values = score(samples, labels) | {"residual": relative_residual(samples, exact)}
                yield self._append(kind, arm, {"images": images, "seed": seed, **values})

    def _noise(self, images: int, seed: int) -> tuple[Tensor, Tensor]:
        model = self.pipe.transformer
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
        z = torch.randn(images, *model.var.shape, generator=generator)
        labels = torch.arange(images) % max(1, model.config.num_classes)
        return z.to(model.device, model.dtype), labels.to(model.device)

    def _decode(self, arm: Decoding, z: Tensor, labels: Tensor) -> tuple[Tensor, DecodeReport]:
        model = self.pipe.transformer
        own = labels if model.config.num_classes else None
        images, report = model.decode(z, own, method=arm.method, plan=arm.plan, guidance=self.guidance)
        return images, report

    def _key(self, kind: str, arm: Decoding) -> str:
        return f"{self._context} {kind} {arm.label}"

    def _known(self, kind: str, arms: Sequence[Decoding]) -> list[Result] | None:
        """What the record holds, if that is all: arms are compared within one run."""
        keys, results = [self._key(kind, arm) for arm in arms], self.record.results
        return [results[key] for key in keys] if results.keys() >= set(keys) else None

    def _append(self, kind: str, arm: Decoding, values: dict[str, Any]) -> Result:
        shared = {"arm": arm.label, "guidance": self.guidance, **self.named, "environment": self._environment}
        return self.record.append({"key": self._key(kind, arm), **shared, **values})


def digit_score(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, and Frechet distance to the held-out digits, as the bundled classifier sees them."""
    real = digits.features(digits.held_out_digits()[0])
    distance = frechet_distance(digits.features(images), real)
    return {"accuracy": digits.accuracy(images, labels), "frechet": distance}


SPEED: dict[str, Callable[[Result], str]] = {
    "batch": lambda result: str(result["batch"]),
    "decoding": lambda result: result["arm"],
    "seconds": lambda result: f"{result['seconds']:.3f}",
    "times faster (quartiles)": lambda result: "{1:.2f} ({0:.2f} to {2:.2f})".format(*result["speedup"]),
    "passes": lambda result: str(result["passes"]),
    "tokens": lambda result: f"{result['tokens']:.2f}",
    "largest residual": lambda result: f"{result['residual']:.1e}",
    "redone": lambda result: str(result["substituted"]),
}
"""The columns of the table of speed."""


def markdown(results: Sequence[Result]) -> str:
    """Two tables: speed, and quality as mean and standard deviation over seeds."""
    timed = [result for result in results if "speedup" in result]
    tables = [markdown_table(list(SPEED), [[text(result) for text in SPEED.values()] for result in timed])]
    judged: dict[str, list[Result]] = defaultdict(list)
    for result in (result for result in results if "accuracy" in result):
        judged[result["arm"]].append(result)
    if judged:
        rows = [
            [
                label,
                *(_spread([result[name] for result in own]) for name in ("accuracy", "frechet")),
                f"{max(result['residual'] for result in own):.1e}",
            ]
            for label, own in judged.items()
        ]
        tables.append(markdown_table(["decoding", "accuracy", "Frechet", "largest residual"], rows))
    return "\n".join(tables)


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return values * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
