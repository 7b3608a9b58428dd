"""Running cases on a pipeline: same prompts, same noise, every arm in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.album import Album, reference_key
from fastsample.bench.cases import Arm, Case
from fastsample.bench.context import command, context_of, environment, modules_of, weights_digest
from fastsample.bench.metrics import frechet_distance, psnr, rms
from fastsample.bench.record import Record, Result
from fastsample.bench.reference import STEPS, converged, reference_path, reference_scheduler
from fastsample.demo.bundled import features, prompt_fidelity, real_features
from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.drawing import Drawing, LastSample, draw
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.parallel import ParallelRun
from fastsample.pipelines.rehearsal import rehearse
from fastsample.pipelines.request import Request, check_draws
from fastsample.pipelines.tgate import TGateSummary
from fastsample.sampling.ledger import Ledger
from fastsample.schedules import NoiseSchedule

FEW = 2
"""Steps of a short run: some pipelines take a single step in another way."""


@dataclass
class Bench:
    """A benchmark of a text-to-image or text-to-video `pipe` on `prompts`, with `repeats` timed runs per case.

    Errors are RMS distances to the converged solution of the same pipeline from the same noise, of the latents as the
    pipeline's decoder gets them, relative to their spread. Arms are interleaved within each repeat, after a warm-up.
    `request` is what the pipeline is asked for beside prompts. With `judge`, images are scored by the bundled
    classifier (prompt fidelity, Frechet distance to real held-out images). An `album` keeps pictures of every case.
    Raises ValueError for a pipeline that draws nothing from prompts.
    """

    pipe: Any
    prompts: Sequence[str]
    record: Record
    batch: int = 64
    repeats: int = 1
    judge: bool = False
    request: Request = field(default_factory=Request)
    album: Album | None = None

    def __post_init__(self) -> None:
        check_draws(self.pipe)
        self._own = self.pipe.scheduler
        self._environment = environment(self.pipe._execution_device)
        kind, config = class_beneath(self.pipe).__name__, sorted((k, str(v)) for k, v in self._own.config.items())
        modules, self._settings = modules_of(self.pipe), (kind, config, self.request, list(self.prompts))
        self._context = context_of(modules, self.pipe._execution_device, *self._settings)
        self._weights = weights_digest(modules)
        self._converged: dict[tuple[float, int], Drawing] = {}
        self._plain: tuple[Any, Tensor] | None = None  # the last sequential latents compared to
        self._warm = False

    @property
    def kind(self) -> str:
        """The kind of the model's noise schedule; ValueError for a model that none of our schedulers is for."""
        return NoiseSchedule.from_config(self._own.config).kind

    def check(self, arm: Arm, steps: int, guidance: float) -> None:
        """Raise ValueError, before any evaluation, where the pipeline cannot be called so, or has no reference."""
        reference_scheduler(self._own.config)
        with arm.set_up(self.pipe, guidance):
            rehearse(self.pipe, self._call(range(len(self.prompts))[: self.batch], steps, guidance, 0))

    def expected(self, cases: Sequence[Case]) -> list[float]:
        """Seconds that each of `cases` will take, by those of a step at its guidance scale, references included."""
        found = []
        firsts = {case.guidance: case for case in reversed(cases)}
        a_step = {guidance: self._warm_up(case) for guidance, case in firsts.items()}
        known: set[tuple[float, int]] = set()
        for case in cases:
            steps, noise = case.steps * self.repeats, (case.guidance, case.seed)
            if noise not in known and not self._reference_path(*noise).exists():
                steps += STEPS
            known.add(noise)
            found.append(steps * a_step[case.guidance])
        return found

    def run(self, cases: Sequence[Case]) -> Iterator[Result]:
        """Run what the record does not hold yet, yielding each result once it is on disk."""
        todo = [case for case in cases if self.result(case) is None]
        if todo and not self._warm:
            self._warm_up(todo[0])
        for (guidance, steps, seed), group in groupby(todo, lambda case: (case.guidance, case.steps, case.seed)):
            arms = [case.arm for case in group]
            seconds: dict[Arm, list[float]] = {arm: [] for arm in arms}
            results: dict[Arm, Result] = {}
            for repeat in range(self.repeats):
                for arm in arms:
                    drawing, ledger, cost = self._sample(arm, steps, guidance, seed)
                    seconds[arm].append(ledger.seconds)
                    if repeat == 0:
                        self.keep_pictures(Case(arm, steps, guidance, seed), drawing.stills)
                        results[arm] = (
                            self._judge(drawing, guidance, seed)
                            | cost
                            | {
                                "nfe": ledger.model_evaluations,
                                "forward_calls": ledger.forward_calls,
                                "peak_memory": ledger.peak_memory,
                            }
                        )
                        if arm.accelerations:
                            name = "ungated_rms" if arm.gate else "sequential_rms"
                            results[arm][name] = self._from_plain(drawing.latents, arm, steps, guidance, seed)
                    if repeat == self.repeats - 1:
                        case = Case(arm, steps, guidance, seed)
                        result = self._describe(case) | results[arm] | {"seconds": statistics.median(seconds[arm])}
                        yield self.record.append(result)

    def result(self, case: Case) -> Result | None:
        """What the record holds of this case, run with these weights and prompts on this device."""
        return self.record.results.get(self._key(case))

    def images(self, arm: Arm, steps: int, guidance: float, seed: int) -> Tensor:
        """The pictures [n, 3, h, w] of one case, the middle frames of videos."""
        return self._sample(arm, steps, guidance, seed)[0].stills

    def converged_images(self, guidance: float, seed: int) -> Tensor:
        """Those of the converged solution."""
        return self._reference(guidance, seed).stills

    def trace(self, arm: Arm, steps: int, guidance: float, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """The guess of the scheduler's last sample after each sweep of a parallel `arm`, and its solver's alone.

        All steps at once, of the first batch of prompts: with a window the final state is not reached before the end.
        Then the first prompt's pictures [sweeps + 1, 3, h, w] of these, by the pipeline's own decoding.
        """
        assert arm.parallel is not None
        found: list[Tensor] = []
        shown = replace(self, prompts=self.prompts[: self.batch])
        options = arm.parallel.options | {"window": None}
        options["on_sweep"] = lambda fixed: found.append(fixed.trajectory[-1].clone())
        with configured(self.pipe, arm.at(guidance).scheduler(self._own.config), parallel=options):
            shown._draw(steps, guidance, seed)
        last = LastSample()
        with last.of(scheduler := arm.at(guidance).scheduler(self._own.config)), configured(self.pipe, scheduler):
            shown._draw(steps, guidance, seed)
        first = replace(self, prompts=self.prompts[:1])
        pictures = [first._picture(arm, sample[:1], guidance, seed) for sample in [*found, last.sample]]
        return found, last.sample, torch.cat(pictures)

    def _key(self, case: Case) -> str:
        """What the record and the album call a case, run with these weights and prompts on this device."""
        return f"{self._context} {case.key}"

    def pictured(self, case: Case) -> bool:
        """Whether the album has pictures of a case and of its reference; True where there is no album."""
        album, reference = self.album, reference_key(self._context, case.guidance, case.seed)
        return album is None or (self._key(case) in album and reference in album)

    def keep_pictures(self, case: Case, stills: Tensor) -> None:
        """Put the pictures of a case into the album, with those of the converged solution from the same noise."""
        if self.album is None:
            return
        told = {"guidance": case.guidance, "seed": case.seed}
        self.album.keep(self._key(case), stills, self.prompts, arm=case.arm.label, steps=case.steps, **told)
        reference = reference_key(self._context, case.guidance, case.seed)
        if reference not in self.album:
            stills = self.converged_images(case.guidance, case.seed)
            self.album.keep(reference, stills, self.prompts, arm="reference", **told)

    def _describe(self, case: Case) -> Result:
        return {
            "key": self._key(case),
            **case.arm.described,
            "steps": case.steps,
            "guidance": case.guidance,
            "seed": case.seed,
            "kind": self.kind,
            "prompts_count": len(self.prompts),
            "command": command(),
            "environment": self._environment,
        }

    def _judge(self, drawing: Drawing, guidance: float, seed: int) -> Result:
        exact, images = self._reference(guidance, seed), drawing.pixels
        result: Result = {
            "finite": drawing.finite,
            "latent_rms": rms(drawing.latents, exact.latents) / float(exact.latents.std()),
            "pixel_rms": rms(images, exact.pixels),
            "pixel_psnr": psnr(images, exact.pixels),
        }
        if self.judge:
            fidelity = prompt_fidelity(images, self.prompts)
            result |= {"attributes": fidelity["attributes"], "prompts": fidelity["prompts"]}
            result["frechet"] = (
                frechet_distance(features(images), real_features()) if drawing.finite else float("inf")
            )
        return result

    def _reference(self, guidance: float, seed: int) -> Drawing:
        """The converged solution."""

        def sample(scheduler: Any, steps: int) -> Drawing:
            with configured(self.pipe, scheduler):
                return self._draw(steps, guidance, seed)

        if (guidance, seed) not in self._converged:
            path = self._reference_path(guidance, seed)
            self._converged[guidance, seed] = converged(path, self._own.config, sample)
        return self._converged[guidance, seed]

    def _reference_path(self, guidance: float, seed: int) -> Path:
        return reference_path(self._weights, self._settings, float(guidance), seed)

    def _from_plain(self, latents: Tensor, arm: Arm, steps: int, guidance: float, seed: int) -> float:
        """RMS to the latents that the arm's solver alone makes, relative to their spread."""
        plain = self._plain_latents(arm, steps, guidance, seed)
        return rms(latents, plain) / float(plain.std())

    def _plain_latents(self, arm: Arm, steps: int, guidance: float, seed: int) -> Tensor:
        key = (arm.plain, steps, guidance, seed)
        if self._plain is None or self._plain[0] != key:
            self._plain = key, self._sample(arm.plain, steps, guidance, seed)[0].latents
        return self._plain[1]

    def _warm_up(self, case: Case) -> float:
        """Seconds of one step, once everything is loaded."""
        for _ in range(2):
            _, ledger, _ = self._sample(case.arm.plain, FEW, case.guidance, 0)
        self._warm = True
        return ledger.seconds / FEW

    def _sample(self, arm: Arm, steps: int, guidance: float, seed: int) -> tuple[Drawing, Ledger, Result]:
        """What was drawn, the ledger, and what accelerations saved."""
        with arm.set_up(self.pipe, guidance) as setup, count(self.pipe, len(self.prompts)) as ledger:
            drawing = self._draw(steps, guidance, seed, ledger)
        batches = -(-len(self.prompts) // self.batch)
        saved = _savings(setup.gate.summary()) if setup.gate else {}
        if setup.gate or setup.cut:
            saved["dropped"] = ledger.dropped / len(self.prompts)
        if setup.run:
            saved |= _rounds(setup.run, batches)
        elif arm.recipe:
            saved["rounds"] = ledger.forward_calls / batches
        return drawing, ledger, saved

    def _draw(self, steps: int, guidance: float, seed: int, ledger: Ledger | None = None) -> Drawing:
        """Of all prompts, by the pipeline as it is set up. Each image has a generator, so all arms start alike."""
        rows = range(len(self.prompts))
        parts = [
            draw(self.pipe, self._call(rows[begin : begin + self.batch], steps, guidance, seed), ledger)
            for begin in rows[:: self.batch]
        ]
        return Drawing(torch.cat([part.latents for part in parts]), torch.cat([part.pixels for part in parts]))

    def _call(self, rows: Sequence[int], steps: int, guidance: float, seed: int) -> dict[str, Any]:
        """The pipeline's arguments for the prompts of numbers `rows`."""
        prompts, seeds = [self.prompts[i] for i in rows], [1_000_003 * (seed + 1) + i for i in rows]
        return self.request.call(self.pipe, prompts, steps, guidance, seeds)

    def _picture(self, arm: Arm, sample: Tensor, guidance: float, seed: int) -> Tensor:
        """The picture of a sample as the scheduler leaves it, by a short run whose steps all end on it."""
        scheduler = arm.at(guidance).scheduler(self._own.config)
        with LastSample(sample).of(scheduler), configured(self.pipe, scheduler):
            return self._draw(FEW, guidance, seed).stills


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
