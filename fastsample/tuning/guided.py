"""All cells at one guidance: the trajectories that they share, and the entries of a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.names.recommended import recommended
from fastsample.pipelines.configured import configured
from fastsample.schedulers.solver import SolverScheduler
from fastsample.tables.preset import Compared, Entry
from fastsample.tables.table import Table
from fastsample.tuning.arguments import TUNED, Arguments
from fastsample.tuning.budget import FEW, OPENED, TEACHER_STEPS, kept_back, limit
from fastsample.tuning.cell import Candidate, CellTuner
from fastsample.tuning.check import Checked, Quality, final_check
from fastsample.tuning.choose import LARGE
from fastsample.tuning.grid import Base
from fastsample.tuning.oracle import Calls, Oracle, Pair
from fastsample.tuning.pairs import Pairs
from fastsample.tuning.problem import Start
from fastsample.tuning.screen import named_lams
from fastsample.tuning.stages import Stages
from fastsample.tuning.target import Target
from fastsample.tuning.teacher import Teacher, spread, teach, teacher_nodes

WIDER = (0.7, 1.35)
"""Between these parts of its guidance a table is meant for: tuned at 3 it is fine at 2 to 4, and bad at 1 and 7.5."""
DIFFERENCE = {torch.float16: 0.15, torch.bfloat16: 0.3}
"""By how much log-SNRs are moved where rounding hides less; .03 elsewhere."""


class Guided:
    """The cells of one guidance scale; :meth:`close` ends the pipeline's calls."""

    def __init__(self, asked: Arguments, target: Target, guidance: float, stages: Stages, *, whole: bool) -> None:
        self.asked, self.target, self.guidance, self.stages, self.whole = asked, target, guidance, stages, whole
        self.problem = target.problem(whole)
        sets, calls = asked.sets, Calls(target.pipe, guidance, target.arguments)

        def oracle(pairs: Sequence[Pair]) -> Oracle:
            return Oracle(calls, pairs, asked.batch, whole=whole)

        self._sets = {"tune": sets.tune, "validation": sets.validation, "check": sets.check}
        self._oracles = {name: oracle(pairs) for name, pairs in self._sets.items()}
        self._firsts = {count: oracle(sets.tune[:count]) for count in range(1, len(sets.tune) + 1)}
        self._outputs: dict[str, Tensor] = {}  # of the first evaluations, by set
        self._calls = calls

    def close(self) -> None:
        """End the pipeline's calls."""
        for oracle in (*self._oracles.values(), *self._firsts.values()):
            oracle.close()

    def entries(self, later: int) -> list[Entry]:
        """One for each number of evaluations; `later` guidance scales are to be paid for after this one."""
        teachers = {name: self._teacher(name) for name in self._sets}
        unit = spread(teachers["tune"].final)
        pairs = {name: self._pairs(name, teacher, unit) for name, teacher in teachers.items()}
        error = self._teacher_error(pairs["tune"])
        found = []
        for index, count in enumerate(self.asked.steps):
            purse, steps = self.stages.purse, self.asked.steps
            purse.limit = limit(self.asked.sizes, purse.budget, purse.spent, steps[index:], steps, later)
            found.append(self._entry(count, pairs, teachers["tune"], error))
        return found

    # --- trajectories ------------------------------------------------------------------------------------

    def _name(self, what: str) -> str:
        return f"guidance-{self.guidance:g}-{what}"

    def _teacher(self, name: str) -> Teacher:
        """The converged trajectories of a set, which its pipeline is opened for."""
        oracle, count = self._oracles[name], len(self._sets[name])

        def make() -> dict[str, Tensor]:
            self.stages.purse.spend(count * (OPENED + TEACHER_STEPS - 1))
            start = self._started(oracle)
            made = teach(oracle, self.problem, start, self.target.last, TEACHER_STEPS, self.guidance)
            if not torch.isfinite(made.final).all():
                raise ValueError(f"guidance = {self.guidance:g}: the converged latents are not finite; lower it")
            return {"samples": torch.stack(made.samples), "data": torch.stack(made.data), "output": start.output}

        kept = self.stages.tensors(self._name(f"teacher-{name}"), make)
        nodes = teacher_nodes(self.problem, self.target.last, TEACHER_STEPS, self.guidance)
        device = self.target.pipe.device
        samples, data = (tuple(kept[key].to(device)) for key in ("samples", "data"))
        self._outputs[name] = kept["output"].to(device)
        return Teacher(nodes, samples, data)

    def _started(self, oracle: Oracle) -> Start:
        start = oracle.start()
        if abs(oracle.time - self.target.first.time) > 1e-3:
            raise ValueError(
                f"pipe begins at time {oracle.time:g}, not at the noisiest, {self.target.first.time:g}: only runs "
                "from pure noise are tuned"
            )
        return start

    def _pairs(self, name: str, teacher: Teacher, unit: float) -> Pairs:
        start = Start(teacher.samples[0], self._outputs[name])
        return Pairs(self._oracles[name], self.problem, start, teacher.final, unit, self.stages.purse)

    def _first(self, tune: Pairs, count: int) -> Pairs:
        """The first `count` of the pairs tuned on, by themselves."""
        start = Start(tune.start.sample[:count], tune.start.output[:count])
        return replace(tune, model=self._firsts[count], start=start, reference=tune.reference[:count])

    def _teacher_error(self, tune: Pairs) -> float:
        """How far the ends of a few trajectories of half the steps are off, relative to the spread."""

        def make() -> float:
            pairs = self._first(tune, min(FEW, tune.count))
            self.stages.purse.spend(pairs.count * (OPENED + TEACHER_STEPS // 2 - 1))
            steps = TEACHER_STEPS // 2
            half = teach(pairs.model, self.problem, pairs.start, self.target.last, steps, self.guidance)
            return float((half.final - pairs.reference).square().mean().sqrt()) / tune.spread

        return float(self.stages.value(self._name("teacher-error"), make))

    # --- entries -----------------------------------------------------------------------------------------

    def _entry(self, count: int, pairs: dict[str, Pairs], teacher: Teacher, error: float) -> Entry:
        purse, asked = self.stages.purse, self.asked
        spent, most = purse.spent, purse.left
        purse.limit -= kept_back(asked.sizes, count, most)
        tuner = CellTuner(
            count=count,
            given=pairs["tune"].count,
            first=partial(self._first, pairs["tune"]),
            validation=pairs["validation"],
            teacher=teacher,
            stages=self.stages,
            objective=asked.objective,
            weights=asked.weights,
            difference=DIFFERENCE.get(self.target.dtype, 0.03),
            name=self._name(f"evaluations-{count}"),
            most=purse.left,
            solver=asked.solver,
        )
        found = tuner.candidates()
        chosen = tuner.chosen(found)
        purse.limit = spent + most
        rivals = tuner.screened.untuned[: asked.sizes.rivals(count, purse.left)]
        prediction = self.target.prediction_type
        untuned = [rival.table(prediction) for rival in rivals]
        tuned = None if chosen is found[0] else chosen.table(prediction)
        known = self.stages.value(
            self._name(f"evaluations-{count}-check"),
            lambda: final_check(pairs["check"], untuned, tuned, tuner.screened.cells, self._quality(count)).to_dict(),
        )
        checked = Checked.from_dict(known)
        best = rivals[checked.best]
        table = tuned if tuned is not None and checked.kept else untuned[checked.best]
        return self._written(count, best, chosen if tuned else best, checked, table, purse.spent - spent, error)

    def _written(
        self,
        count: int,
        untuned: Candidate,
        chosen: Candidate,
        checked: Checked,
        table: Table,
        calls: int,
        error: float,
    ) -> Entry:
        """The entry of a cell with `table`: the tuned one where the check keeps it, else the best untuned one."""
        kept = chosen if checked.kept else untuned
        least, most = meant_for(self.guidance)
        return Entry(
            evaluations=count,
            guidance=float(self.guidance),
            least=least,
            most=most,
            solver=kept.cell.base.solver,
            options=kept.cell.base.written,
            grid=kept.cell.grid,
            untuned=untuned.cell.label,
            stage=kept.stage,
            tried=chosen.stage,
            tune=_compared(untuned.tune, chosen.tune),
            validation=_compared(untuned.validation, chosen.validation),
            final=_compared(checked.untuned, checked.tuned),
            upper=checked.upper,
            teacher_error=error,
            calls=calls,
            verdict=checked.verdict,
            table=table,
        )

    def _quality(self, count: int) -> Quality | None:
        """The scores of the images that the pipeline makes of the fresh pairs by a table."""
        rate = self.asked.quality
        if rate is None:
            return None

        def scores(table: Table) -> Sequence[float]:
            pairs, images = self._sets["check"], []
            self.stages.purse.spend(count * len(pairs))
            alone = self.target.preset([unmeasured(table, self.guidance, "")])
            scheduler = SolverScheduler.from_config(self.target.pipe.scheduler.config, preset=alone)
            for begin in range(0, len(pairs), self.asked.batch):
                part = pairs[begin : begin + self.asked.batch]
                with configured(self.target.pipe, scheduler):
                    call = self._calls.of(part, num_inference_steps=count, output_type="pt", return_dict=False)
                    images += list(self.target.pipe(**call)[0])
            return list(rate(images, [prompt for prompt, _ in pairs]))

        return scores


def unmeasured(table: Table, guidance: float, verdict: str) -> Entry:
    """The entry of a table of which nothing was measured."""
    least, most = meant_for(guidance)
    return Entry(
        evaluations=table.nfe,
        guidance=float(guidance),
        least=least,
        most=most,
        solver=table.solver,
        options="",
        grid="",
        untuned="",
        stage="untuned",
        tried="untuned",
        tune=None,
        validation=None,
        final=None,
        upper=None,
        teacher_error=None,
        calls=0,
        verdict=verdict,
        table=table,
    )


def untouched(target: Target, count: int, guidance: float) -> Entry:
    """The recommended sampler as it is, where too few pairs were given to tune it."""
    setting, problem = recommended(target.schedule.kind, guidance, count), target.problem(whole=False)
    lams = named_lams(problem, setting.grid, count)
    if lams is None:
        raise ValueError(f"steps = {count}: the {setting.grid} grid has no {count} different times on this model")
    table = Base(problem, setting.solver, dict(setting.options)).on(problem.nodes(lams))
    return unmeasured(table, guidance, f"untuned: fewer than {TUNED} pairs say nothing about others")


def meant_for(guidance: float) -> tuple[float, float]:
    """The guidance that a table is meant for which was tuned at `guidance`."""
    return (WIDER[0] * guidance, WIDER[1] * guidance) if guidance > 1 else (0.0, 1.0)


def _compared(untuned: NDArray[np.float64], tuned: NDArray[np.float64]) -> Compared:
    def finite(error: Any) -> float:
        return min(float(error), LARGE)

    means = [finite(np.sqrt((errors**2).mean())) for errors in (untuned, tuned)]
    medians = [finite(np.median(errors)) for errors in (untuned, tuned)]
    return Compared(len(tuned), *means, *medians)
