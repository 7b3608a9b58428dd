"""Running cases on a pipeline: same prompts, same noise, every arm in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.cases import Arm, Case
from fastsample.bench.context import context_of, environment, modules_of
from fastsample.bench.metrics import decode, frechet_distance, psnr, rms
from fastsample.bench.record import Record, Result
from fastsample.bench.reference import converged
from fastsample.demo.bundled import features, prompt_fidelity, real_features
from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.parallel import ParallelRun
from fastsample.pipelines.tgate import TGateSummary


@dataclass
class Bench:
    """A benchmark of a text-to-image `pipe` on `prompts`, in batches, with `repeats` timed runs per case.

    Arms are interleaved within each repeat, after one warm-up call. With `judge`, images are scored by the
    bundled classifier (prompt fidelity, Frechet distance to real held-out images).
    """

    pipe: Any
    prompts: Sequence[str]
    record: Record
    batch: int = 64
    repeats: int = 1
    judge: bool = False

    def __post_init__(self) -> None:
        missing = [name for name in ("scheduler", "vae") if getattr(self.pipe, name, None) is None]
        if missing:
            raise ValueError(
                f"model = {type(self.pipe).__name__} has no {missing[0]}: give a latent text-to-image model"
            )
        self._own = self.pipe.scheduler
        self._environment = environment(self.pipe.device)
        kind, config = type(self.pipe).__name__, sorted((key, str(value)) for key, value in self._own.config.items())
        self._context = context_of(modules_of(self.pipe), self.pipe.device, kind, config, list(self.prompts))
        self._converged: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}
        self._plain: tuple[Any, Tensor] | None = None  # the last sequential latents compared to

    def run(self, cases: Sequence[Case]) -> Iterator[Result]:
        """Run what the record does not hold yet, yielding each result once it is on disk."""
        todo = [case for case in cases if self.result(case) is None]
        if todo:
            self._sample(todo[0].arm.plain, 1, todo[0].guidance, 0)  # warm-up
        for (guidance, steps, seed), group in groupby(todo, lambda case: (case.guidance, case.steps, case.seed)):
            arms = [case.arm for case in group]
            seconds: dict[Arm, list[float]] = {arm: [] for arm in arms}
            results: dict[Arm, Result] = {}
            for repeat in range(self.repeats):
                for arm in arms:
                    latents, ledger, cost = self._sample(arm, steps, guidance, seed)
                    seconds[arm].append(ledger.seconds)
                    if repeat == 0:
                        results[arm] = (
                            self._judge(latents, guidance, seed)
                            | cost
                            | {
                                "nfe": ledger.model_evaluations,
                                "forward_calls": ledger.forward_calls,
                                "peak_memory": ledger.peak_memory,
                            }
                        )
                        if arm.accelerations:
                            name = "ungated_rms" if arm.gate else "sequential_rms"
                            results[arm][name] = self._from_plain(latents, arm, steps, guidance, seed)
                    if repeat == self.repeats - 1:
                        case = Case(arm, steps, guidance, seed)
                        result = self._describe(case) | results[arm] | {"seconds": statistics.median(seconds[arm])}
                        yield self.record.append(result)

    def result(self, case: Case) -> Result | None:
        """What the record holds of this case, run with these weights and prompts on this device."""
        return self.record.results.get(self._key(case))

    def images(self, arm: Arm, steps: int, guidance: float, seed: int) -> Tensor:
        """Decoded images of one case, for a picture grid."""
        return decode(self.pipe, self._sample(arm, steps, guidance, seed)[0])

    def trace(self, arm: Arm, steps: int, guidance: float, seed: int) -> tuple[list[Tensor], Tensor]:
        """The guess of the final latents after each sweep of a parallel `arm`, and what its solver alone makes.

        All steps at once, of the first batch of prompts: with a window the final state is not reached before the end.
        """
        assert arm.parallel is not None
        found: list[Tensor] = []
        shown = replace(self, prompts=self.prompts[: self.batch])
        options = arm.parallel.options | {"window": None}
        options["on_sweep"] = lambda fixed: found.append(fixed.trajectory[-1].clone())
        with configured(self.pipe, arm.scheduler(self._own.config), parallel=options):
            shown._latents(steps, guidance, seed)
        return found, shown._plain_latents(arm, steps, guidance, seed)

    def _key(self, case: Case) -> str:
        return f"{self._context} {case.key}"

    def _describe(self, case: Case) -> Result:
        return {
            "key": self._key(case),
            "arm": case.arm.label,
            "solver": case.arm.name,
            "grid": case.arm.grid,
            "options": dict(case.arm.options),
            "gate": case.arm.gate and case.arm.gate.label,
            "parallel": case.arm.parallel and case.arm.parallel.label,
            "source": "diffusers" if case.arm.peer else "fastsample",
            "steps": case.steps,
            "guidance": case.guidance,
            "seed": case.seed,
            "prompts_count": len(self.prompts),
            "environment": self._environment,
        }

    def _judge(self, latents: Tensor, guidance: float, seed: int) -> Result:
        finite = bool(torch.isfinite(latents).all())
        reference, exact = self._reference(guidance, seed)
        images = decode(self.pipe, latents)
        spread = float(reference.std())
        result: Result = {
            "finite": finite,
            "latent_rms": rms(latents, reference) / spread,
            "pixel_rms": rms(images, exact),
            "pixel_psnr": psnr(images, exact),
        }
        if self.judge:
            fidelity = prompt_fidelity(images, self.prompts)
            result |= {"attributes": fidelity["attributes"], "prompts": fidelity["prompts"]}
            result["frechet"] = frechet_distance(features(images), real_features()) if finite else float("inf")
        return result

    def _reference(self, guidance: float, seed: int) -> tuple[Tensor, Tensor]:
        """The converged latents and their images."""

        def sample(scheduler: Any, steps: int) -> Tensor:
            with configured(self.pipe, scheduler):
                return self._latents(steps, guidance, seed)

        if (guidance, seed) not in self._converged:
            latents = converged(self.pipe, self.prompts, seed, guidance, sample)
            self._converged[guidance, seed] = latents, decode(self.pipe, latents)
        return self._converged[guidance, seed]

    def _from_plain(self, latents: Tensor, arm: Arm, steps: int, guidance: float, seed: int) -> float:
        """RMS to the latents that the arm's solver alone makes, relative to their spread."""
        plain = self._plain_latents(arm, steps, guidance, seed)
        return rms(latents, plain) / float(plain.std())

    def _plain_latents(self, arm: Arm, steps: int, guidance: float, seed: int) -> Tensor:
        key = (arm.plain, steps, guidance, seed)
        if self._plain is None or self._plain[0] != key:
            self._plain = key, self._sample(arm.plain, steps, guidance, seed)[0]
        return self._plain[1]

    def _sample(self, arm: Arm, steps: int, guidance: float, seed: int) -> tuple[Tensor, Any, Result]:
        """Latents, the ledger, and what accelerations saved."""
        gate = arm.gate.tgate(guidance) if arm.gate else None
        parallel = arm.parallel.options if arm.parallel else None
        with (
            configured(self.pipe, arm.scheduler(self._own.config), gate=gate, parallel=parallel) as setup,
            count(self.pipe, len(self.prompts)) as ledger,
        ):
            latents = self._latents(steps, guidance, seed)
        batches = -(-len(self.prompts) // self.batch)
        savings = _savings(setup.gate.summary()) if setup.gate else {}
        return latents, ledger, savings | (_rounds(setup.run, batches) if setup.run else {})

    def _latents(self, steps: int, guidance: float, seed: int) -> Tensor:
        """Of all prompts, by the pipeline as it is set up. Each image has a generator, so all arms start alike."""
        parts = []
        for begin in range(0, len(self.prompts), self.batch):
            rows = range(begin, min(begin + self.batch, len(self.prompts)))
            parts.append(
                self.pipe(
                    prompt=[self.prompts[i] for i in rows],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=[torch.Generator().manual_seed(1_000_003 * (seed + 1) + i) for i in rows],
                    output_type="latent",
                ).images.float()
            )
        latents = torch.cat(parts)
        if latents.ndim != 4:
            shape = tuple(latents.shape)
            raise ValueError(f"model = {type(self.pipe).__name__} has latents of shape {shape}: need [n, c, h, w]")
        return latents


def _savings(summary: TGateSummary) -> Result:
    """Multiply-accumulates of a gated run, and the shares saved by dropping guidance and by caching."""
    return {
        "gmacs": (summary.macs - summary.macs_saved_by_guidance - summary.macs_saved_by_caching) / 1e9,
        "saved_by_guidance": summary.macs_saved_by_guidance / summary.macs,
        "saved_by_caching": summary.macs_saved_by_caching / summary.macs,
    }


def _rounds(run: ParallelRun, batches: int) -> Result:
    """Per batch of a parallel run: evaluations one after the other, sweeps among them, and why there were none."""
    return {"rounds": run.rounds / batches, "sweeps": run.sweeps / batches, "fallback": run.fallback}
