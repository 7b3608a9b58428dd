"""A TarFlow decoded in several ways, side by side: seconds, work and residual; then the quality of samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.metrics import frechet_distance
from fastsample.bench.record import Record, Result, environment
from fastsample.sampling.ledger import clock, count
from fastsample.tarflow import BlockPlan, DecodeReport, Plan, TarFlowPipeline
from fastsample.tarflow.planner import relative_residual

Score = Callable[[Tensor, Tensor], dict[str, float]]
"""Metrics of images in [0, 1] and their labels."""


@dataclass(frozen=True)
class Arm:
    """One way of decoding."""

    label: str
    method: str
    plan: Plan | BlockPlan | None = None


def arms(plan: Plan, tolerance: float) -> list[Arm]:
    """Sequential decoding, both iterations the same for all blocks, and the plan."""
    return [
        Arm("sequential", "sequential"),
        Arm("Jacobi", "jacobi", BlockPlan(tolerance=tolerance)),
        Arm("GS-Jacobi, 8 chunks", "gs-jacobi", BlockPlan(chunks=8, tolerance=tolerance)),
        Arm("plan", "gs-jacobi", plan),
    ]


@dataclass
class FlowBench:
    """Decodes the same noise by every arm in turn, `repeats` times after a warm-up, and appends to `record`."""

    pipe: TarFlowPipeline
    record: Record
    guidance: float = 0.0
    seed: int = 0

    def speed(self, arms: Sequence[Arm], batch: int, repeats: int) -> Iterator[Result]:
        """A result an arm: seconds, work, and the first arm's seconds over its own in each repeat (quartiles)."""
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
        for arm, own, (images, report), calls in zip(arms, seconds, decoded, passes, strict=True):
            ratios = [first / each for first, each in zip(seconds[0], own, strict=True)]
            yield self._append(
                f"speed {batch}",
                arm,
                {
                    "batch": batch,
                    "seconds": statistics.median(own),
                    "speedup": _quartiles(ratios),
                    "repeats": repeats,
                    "passes": calls,
                    "sweeps": report.sweeps,
                    "tokens": report.evaluations / batch / (len(report.blocks) * len(self.pipe.transformer.var)),
                    "residual": relative_residual(images, exact),
                    "substituted": sum(map(len, report.substituted.values())),
                },
            )

    def quality(self, arms: Sequence[Arm], images: int, batch: int, seeds: int, score: Score) -> Iterator[Result]:
        """A result an arm and seed: the metrics of `images` samples, denoised, and their residual to the first's."""
        for seed in range(seeds):
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
                yield self._append(f"quality {seed}", arm, {"images": images, "seed": seed, **values})

    def _noise(self, images: int, seed: int) -> tuple[Tensor, Tensor]:
        model = self.pipe.transformer
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
        z = torch.randn(images, *model.var.shape, generator=generator)
        labels = torch.arange(images) % max(1, model.config.num_classes)
        return z.to(model.device, model.dtype), labels.to(model.device)

    def _decode(self, arm: Arm, z: Tensor, labels: Tensor) -> tuple[Tensor, DecodeReport]:
        model = self.pipe.transformer
        own = labels if model.config.num_classes else None
        images, report = model.decode(z, own, method=arm.method, plan=arm.plan, guidance=self.guidance)
        return images, report

    def _append(self, kind: str, arm: Arm, values: dict[str, Any]) -> Result:
        shared = {"arm": arm.label, "guidance": self.guidance, "environment": environment()}
        return self.record.append({"key": f"{kind} {self.guidance} {arm.label}", **shared, **values})


def digit_score(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, and Frechet distance to the held-out digits, in the bundled classifier's eyes."""
    from fastsample.demo import digits

    real = digits.features(digits.held_out_digits()[0])
    distance = frechet_distance(digits.features(images), real)
    return {"accuracy": digits.accuracy(images, labels), "frechet": distance}


def markdown(results: Sequence[Result]) -> str:
    """Two tables: speed, and quality as mean and standard deviation over seeds."""
    lines = [
        "| batch | decoding | seconds | times faster (quartiles) | passes | tokens | largest residual | redone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in (result for result in results if "batch" in result):
        low, middle, high = result["speedup"]
        cells = [
            str(result["batch"]),
            result["arm"],
            f"{result['seconds']:.3f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            str(result["passes"]),
            f"{result['tokens']:.2f}",
            f"{result['residual']:.1e}",
            str(result["substituted"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    judged = [result for result in results if "accuracy" in result]
    if judged:
        lines += ["", "| decoding | accuracy | Frechet | largest residual |", "|---|---|---|---|"]
    for label in dict.fromkeys(result["arm"] for result in judged):
        own = [result for result in judged if result["arm"] == label]
        accuracy, distance = (_spread([result[name] for result in own]) for name in ("accuracy", "frechet"))
        residual = max(result["residual"] for result in own)
        lines.append(f"| {label} | {accuracy} | {distance} | {residual:.1e} |")
    return "\n".join(lines) + "\n"


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return values * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
