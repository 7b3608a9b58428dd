"""The one diffusers adapter: config in, table out, `step` applies a row. Families only name their solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype, combine
from fastsample.sampling.executor import Runner
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.schedulers.config import check_config, read_config
from fastsample.schedulers.edm import EDMInterface
from fastsample.schedulers.grid import GridRequest, make_nodes, training_grid, whole_timesteps
from fastsample.schedulers.noising import Noising
from fastsample.schedulers.run import Run, RunPerThread
from fastsample.schedulers.threshold import threshold
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.solvers import build_table_on_nodes, get_solver
from fastsample.tables.step import Step
from fastsample.tables.table import Table


@dataclass
class TableSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """`prev_sample`: the next sample; `pred_original_sample`: this step's data prediction."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class TableScheduler(EDMInterface, Noising, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler that applies a solver's coefficient table.

    VP (discrete betas), flow-matching and EDM configs are understood. Subclasses say which solver the config
    means in :meth:`solver`. All state is of one run in one thread: `set_timesteps` starts it anew.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + ["FlowMatchEulerDiscreteScheduler"]
    order = 1
    _leading_from_zero = False

    def solver(self) -> tuple[str, dict[str, Any]]:
        """The registered solver and its options that the config means; ValueError when it means none."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers, from any scheduler's config; what it says of its model is kept, defaults too."""
        if isinstance(config, Mapping):
            config, kwargs = read_config(cls, config, kwargs)
        made = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        # only now the config has the keys of other classes, such as flow matching's shift
        scheduler._runs = RunPerThread({"latest": scheduler._before_any_run()})
        return made

    def _prepare(self) -> None:
        """Checks the config and sets the state before any `set_timesteps`: the training timesteps."""
        self._schedule = NoiseSchedule.from_config(self.config)
        check_config(self.config, self._schedule.kind)
        solver = get_solver(self.solver()[0])
        # evaluations of one step of the grid, as pipelines of order-2 schedulers expect
        self.order = solver.evaluations if solver.whole_steps else 1
        start, end = self._schedule.noise_time, self._schedule.clean_time
        inner = [end + part * (start - end) for part in (0.9, 0.6, 0.3)]
        self._build_table(self._schedule.nodes(inner))  # wrong options die here
        if self._schedule.kind == "vp":
            training = torch.arange(self._schedule.train_steps, dtype=torch.float64)
            self.alphas_cumprod = torch.from_numpy(self._schedule.alpha(training.numpy()) ** 2).float()
        self._runs = RunPerThread({"latest": self._before_any_run()})

    def _before_any_run(self) -> Run:
        """The timesteps and sigmas of training."""
        times, sigmas = training_grid(self._schedule, self.config)
        dtype = torch.int64 if self._schedule.kind == "vp" else torch.float32
        return Run(torch.tensor(times, dtype=dtype), torch.tensor(sigmas, dtype=torch.float32))

    @property
    def _run(self) -> Run:
        """The state of this thread's run."""
        return self._runs.current

    # --- what pipelines call -----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Lay out the grid: `num_inference_steps` model evaluations, or explicit `timesteps` or `sigmas`.

        `sigmas` are sigma on flow and EDM models and sigma / alpha on VP models; `mu` is the dynamic shift of flow
        configs with `use_dynamic_shifting`. `timesteps` become int64 on VP models and with `use_flow_sigmas` (as
        diffusers' DPM-Solver and UniPC), else float32.
        Raises ValueError on values that make no grid, before any model evaluation.
        """
        request = GridRequest(num_inference_steps, timesteps, sigmas, mu, self._leading_from_zero)
        grid = make_nodes(self._schedule, self.config, request)
        table = self._build_table(grid)
        nodes = (*(step.node for step in table.steps), grid[-1])
        times = [node.time for node in nodes[:-1]]
        whole = whole_timesteps(self._schedule, self.config) and not any(time % 1 for time in times)
        dtype = torch.int64 if whole else torch.float32
        self._runs.begin(
            Run(
                timesteps=torch.tensor(times, dtype=dtype, device=device),
                sigmas=torch.tensor([self._schedule.level(node) for node in nodes], dtype=torch.float32),
                grid=grid,
                nodes=nodes,
                num_inference_steps=len(grid) - 1,
                table=table,
            )
        )

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        pred_original_sample: Tensor | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> TableSchedulerOutput | tuple[Tensor, ...]:
        """The next sample, in `sample`'s dtype, from the model's output at `timestep`.

        Noise of stochastic solvers comes from `generator` (a list: one an image), or is `variance_noise`.
        `pred_original_sample`, a prediction of the clean sample, takes the place of the one in the output.
        With `per_token_timesteps` (LTX's conditioning) the output is data - noise, as diffusers has it there; all
        tokens step as `timestep` says. Without `return_dict` a tuple, which on EDM models also holds that
        prediction, as diffusers' does.
        Raises ValueError before `set_timesteps`, after the last step, and when shapes differ.
        """
        current, index, runner = self._current_step(timestep)
        if per_token_timesteps is not None:
            model_output = -model_output
        if model_output.shape != sample.shape:
            model_output = _without_variance(model_output, sample)
        if pred_original_sample is not None or self._clips_data():
            model_output = self._output_for(current, model_output, sample, pred_original_sample)
        self._keep_for_retake(sample)
        noise = variance_noise
        if current.next.noise and noise is None:
            noise = draw_noise(sample, generator)
        prev_sample = runner.step(index, sample, model_output, noise)
        self._run.advance()
        if not return_dict and self._schedule.kind != "edm":
            return (prev_sample,)
        data = self._data(current, model_output, sample).to(sample.dtype)
        if not return_dict:
            return prev_sample, data
        return TableSchedulerOutput(prev_sample=prev_sample, pred_original_sample=data)

    @property
    def timesteps(self) -> Tensor:
        """The times that the model is called with; before `set_timesteps` those of training."""
        return self._run.timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._run.timesteps = value

    @property
    def sigmas(self) -> Tensor:
        """sigma (flow) or sigma / alpha at each evaluation and at the end."""
        return self._run.sigmas

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        self._run.sigmas = value

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the grid; None before `set_timesteps`."""
        return self._run.num_inference_steps

    @property
    def step_index(self) -> int | None:
        """Index of the coming step; None before the first."""
        return self._run.step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where a pipeline has set one."""
        return self._run.begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start from step `begin_index` (image-to-image)."""
        self._run.begin_index = int(begin_index)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # --- inner -------------------------------------------------------------------------------------------

    def _build_table(self, grid: Sequence[Node]) -> Table:
        name, options = self.solver()
        solver = get_solver(name)
        return build_table_on_nodes(
            name,
            grid,
            schedule=self._schedule if solver.whole_steps else None,
            prediction_type=self._schedule.output_type(self.config.prediction_type),
            lower_final=self.config.lower_order_final and solver.lower_final,
            dualfast=self.config.dualfast,
            **options,
        )

    def _current_step(self, timestep: float | Tensor) -> tuple[Step, int, Runner]:
        """The coming step, its place in the run's table, and what runs it."""
        run = self._run
        if not run.nodes:
            raise ValueError("num_inference_steps = None: call set_timesteps before step")
        if run.step_index is None:
            run.step_index = self._index_of(timestep) if run.begin_index is None else run.begin_index
            run.table_start = run.step_index
        if run.step_index >= len(run.nodes) - 1:
            raise ValueError(
                f"timestep = {timestep}: all {len(run.nodes) - 1} steps are done; call set_timesteps again"
            )
        if run.runner is None:  # a start inside the grid warms up there, so the table begins there
            if run.table is None or run.table_start:
                run.table = self._build_table(run.grid[self._first_step() :])
            run.runner = Runner(run.table)
        assert run.table is not None
        index = run.step_index - run.table_start
        return run.table.steps[index], index, run.runner

    def _first_step(self) -> int:
        """The step of the grid at whose start the first evaluation is."""
        step, stage = divmod(self._run.table_start, self.order)
        if stage:
            raise ValueError(
                f"begin_index = {self._run.table_start} is a stage: start at a multiple of order = {self.order}"
            )
        return step

    def _index_of(self, timestep: float | Tensor) -> int:
        """The evaluation that starts a step and whose model time is `timestep`, or the nearest one."""
        value = float(timestep)
        distances = [abs(node.time - value) for node in self._run.nodes[: -1 : self.order]]
        return distances.index(min(distances)) * self.order

    def _clips_data(self) -> bool:
        return bool(self.config.thresholding)

    def _data(self, step: Step, output: Tensor, sample: Tensor) -> Tensor:
        """The clean sample that `output` predicts, on the caller's scale."""
        return combine(self._data_weights(step), (sample, output), accumulation_dtype(sample.dtype))

    def _output_for(self, step: Step, output: Tensor, sample: Tensor, data: Tensor | None) -> Tensor:
        """The output that says `data` (default: what `output` says), thresholded, so that any row can follow."""
        a, b = self._data_weights(step)
        data = self._data(step, output, sample) if data is None else data
        data = self._clip_data(data) if self._clips_data() else data
        return (data - a * sample.to(accumulation_dtype(sample.dtype))) / b

    def _clip_data(self, data: Tensor) -> Tensor:
        return threshold(data, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)


def _without_variance(model_output: Tensor, sample: Tensor) -> Tensor:
    """The first half of the channels, where the model also predicts a variance."""
    if sample.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
        output = model_output[:, : sample.shape[1]]
        if output.shape == sample.shape:
            return output
    raise ValueError(
        f"model_output has shape {tuple(model_output.shape)} for a sample of shape {tuple(sample.shape)}: they must "
        "be equal (or the output have twice the channels, the second half a learned variance)"
    )
