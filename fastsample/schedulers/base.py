"""The one diffusers adapter: config in, table out, `step` applies a row. Families only name their solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype, combine
from fastsample.sampling.noise import Generators
from fastsample.schedulers.advance import after_rows, drawn, ready, refuse_with_rows, stepped, towards, with_eta
from fastsample.schedulers.config import read_config
from fastsample.schedulers.edm import EDMInterface
from fastsample.schedulers.grids.request import GridRequest
from fastsample.schedulers.layout import laid, lay_out
from fastsample.schedulers.locate import located
from fastsample.schedulers.noising import Noising
from fastsample.schedulers.readings import Readings
from fastsample.schedulers.remaining import Remaining
from fastsample.schedulers.rows import apart, one_time, serves, step_rows
from fastsample.schedulers.run import Evaluation, Run
from fastsample.schedulers.setup import Setup
from fastsample.schedulers.threshold import threshold
from fastsample.tables.step import Step


@dataclass
class TableSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """`prev_sample`: the next sample; `pred_original_sample`: this step's data prediction."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class TableScheduler(Readings, EDMInterface, Noising, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler that applies a solver's coefficient table.

    VP (discrete betas), flow-matching and EDM configs are understood. Subclasses say which solver the config
    means in :meth:`solver`. All state is of one run in one thread: `set_timesteps` starts it anew.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + ["FlowMatchEulerDiscreteScheduler"]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers, from any scheduler's config; what it says of its model is kept, defaults too."""
        if isinstance(config, Mapping):
            config, kwargs = read_config(cls, config, kwargs)
        made = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        scheduler._setup  # noqa: B018  only now the config has the keys of other classes: wrong ones die here
        return made

    # --- what pipelines call -----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
        *,
        original_inference_steps: int | None = None,
    ) -> None:
        """Lay out the grid: `num_inference_steps` model evaluations, or explicit `timesteps` or `sigmas`.

        `sigmas` are sigma on flow and EDM models and sigma / alpha on VP models; `mu` is the dynamic shift of flow
        configs with `use_dynamic_shifting`. `timesteps` become int64 on VP models and with `use_flow_sigmas` (as
        diffusers' DPM-Solver and UniPC), else float32. Grids, tables and programs of equal configs and requests are
        made once. Raises ValueError on values that make no grid, before any model evaluation.
        """
        if original_inference_steps is not None:
            raise ValueError(
                f"original_inference_steps = {original_inference_steps}: the grid that a consistency model was "
                "distilled on; use LCMScheduler or TCDScheduler on a VP model, or leave it out"
            )
        setup = self._setup
        times, levels = _floats("timesteps", timesteps), _floats("sigmas", sigmas)
        shift = None if mu is None else float(mu)
        layout = lay_out(setup, GridRequest(num_inference_steps, times, levels, shift, setup.leading_from_zero))
        if setup.preset is not None and not layout.tuned:
            _say_untuned(setup, len(layout))
        self._run = Run(laid(setup, layout, device))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        *,
        use_clipped_model_output: bool = False,
        prev_timestep: float | Tensor | None = None,
        pred_original_sample: Tensor | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> TableSchedulerOutput | tuple[Tensor, ...]:
        """The next sample, in `sample`'s dtype, from the model's output at `timestep`.

        Which step is made is `timestep`'s to say, see :func:`fastsample.schedulers.locate.located`; it may be one a
        row [B] or a token [B, T], see :func:`fastsample.schedulers.rows.step_rows`. `prev_timestep` is where to go,
        by default the next of the grid. Noise of stochastic solvers comes from `generator` (a list: one an image), or
        is `variance_noise`; `eta` is DDIM's, other solvers have theirs in the config. `pred_original_sample`, a
        prediction of the clean sample, takes the place of the one in the output. Where data predictions are clipped,
        `use_clipped_model_output` makes DDIM's noise prediction follow; other solvers read the clipped one alone.
        With `per_token_timesteps` (LTX's conditioning) tokens at another time than `timestep` step from their own,
        and the output is data - noise, as diffusers has it there.
        Without `return_dict` a tuple: the next sample, and what diffusers' class for it also gives there.
        Raises ValueError before `set_timesteps`, after the last step, and when shapes differ.
        """
        if per_token_timesteps is not None:
            model_output = -model_output
        if model_output.shape != sample.shape:
            model_output = _without_variance(model_output, sample)
        run = self._run
        time = one_time(timestep, run)
        tokens = per_token_timesteps
        if time is None or (tokens is not None and serves(run)):
            refuse_with_rows(run, eta=eta, prev_timestep=prev_timestep, pred_original_sample=pred_original_sample)
            times = torch.as_tensor(timestep) if tokens is None else tokens
            run = run if time is None else located(run, time)
            prev_sample, clean, history = step_rows(run, times, sample, model_output, self._clip())
            last = Evaluation.of((0.0, 0.0), sample, model_output, clean)
            self._run = after_rows(run, history, last, counted=time is not None)
            return self._result(prev_sample, clean, return_dict)
        run = located(run, time, sample)
        if prev_timestep is not None:
            run = towards(run, prev_timestep)
        if eta != run.eta:
            run = with_eta(run, eta)
        run, lane, runner, current = ready(run, sample)
        index = (run.step_index or 0) - run.start
        output, clips = model_output, self._clips_data()
        if pred_original_sample is not None or (clips and (use_clipped_model_output or not self._keeps_noise)):
            output = self._output_for(current, model_output, sample, pred_original_sample)
        noise, path = variance_noise, lane.path
        if runner.lowered.steps[index].noisy and noise is None:
            path, noise = drawn(run, lane, sample, generator)
        prev_sample = runner.step(index, sample, output, noise)
        data: Tensor | None = None
        if clips and output is model_output:
            raw = self._data(current, model_output, sample)
            data = self._clip_data(raw)
            onto = current.target.alpha / run.laid.setup.schedule.data_scale
            prev_sample = (prev_sample + onto * (data - raw)).to(sample.dtype)
        if data is None and (return_dict or tokens is not None or self._returns_data()):
            data = self._data(current, output, sample)
        own = None
        if tokens is not None:
            own = apart(run, time, tokens, sample)
            alone, clean, _ = step_rows(run, tokens, sample, model_output, self._clip())
            prev_sample = torch.where(own, alone, prev_sample)
            data = None if data is None else torch.where(own, clean, data)
        last = Evaluation.of(self._data_weights(current), sample, output, data)
        self._run = stepped(run, lane, runner, last, prev_sample, path, own)
        return self._result(prev_sample, data, return_dict)

    def remaining(
        self,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        *,
        use_clipped_model_output: bool = False,
        prev_timestep: float | Tensor | None = None,
        pred_original_sample: Tensor | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> Remaining | None:
        """The steps that follow the last one, which gave `sample`, as a table; None where they are more than that.

        The other arguments are those that :meth:`step` had and will have. A table says nothing of clipping, of noise
        and predictions that are given, and of rows or tokens at times of their own.
        """
        run = self._run
        given = (variance_noise, prev_timestep, pred_original_sample, per_token_timesteps)
        if self._clips_data() or any(value is not None for value in given):
            return None
        made, prediction = run.step_index is not None and eta == run.eta, self.pred_original_sample
        if not made or prediction is None or run.rows is not None or len(run.lanes) != 1:
            return None
        lane = run.lanes[0]
        fits = lane.shape in ((), sample.shape) and prediction.shape == sample.shape
        return Remaining(run, lane, sample, prediction, generator) if fits else None

    @property
    def pred_original_sample(self) -> Tensor | None:
        """The clean sample that the last step's model output predicts, on the caller's scale and in its dtype.

        Made when it is asked for, of tensors that the step was given: nothing is copied or computed before. None
        before the first step. After an inner stage of a solver it is that stage's.
        """
        last = self._run.last
        if last is None:
            return None
        data = last.data
        if data is None:
            data = combine(last.weights, (last.sample, last.output), accumulation_dtype(last.sample.dtype))
        return data.to(last.sample.dtype)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    # --- inner -------------------------------------------------------------------------------------------

    _keeps_noise = False  # whether clipping leaves the noise prediction as it is, unless the caller says otherwise
    _clips = False  # whether the config's `clip_sample` and `clip_sample_range` count
    _distilled = False  # whether it is for consistency models alone, whose configs other classes refuse
    _pair = False  # whether a tuple also holds the data prediction, on VP models

    def _result(
        self, prev_sample: Tensor, data: Tensor | None, return_dict: bool
    ) -> TableSchedulerOutput | tuple[Tensor, ...]:
        data = None if data is None else data.to(prev_sample.dtype)
        if return_dict:
            return TableSchedulerOutput(prev_sample=prev_sample, pred_original_sample=data)
        return (prev_sample, data) if data is not None and self._returns_data() else (prev_sample,)

    def _returns_data(self) -> bool:
        """Whether a tuple holds the data prediction too, as those of diffusers' classes for this model do."""
        kind = self.schedule.kind
        return kind == "edm" or (self._pair and kind == "vp") or "original_inference_steps" in self.config

    def _clips_data(self) -> bool:
        return bool(self.config["thresholding"] or (self._clips and self.config["clip_sample"]))

    def _data_weights(self, step: Step) -> tuple[float, float]:
        """`(a, b)` such that the caller's clean sample is predicted as `a * sample + b * output`."""
        scale = self.schedule.data_scale
        return step.data[0] * scale, step.data[1] * scale

    def _data(self, step: Step, output: Tensor, sample: Tensor) -> Tensor:
        """The clean sample that `output` predicts, on the caller's scale."""
        return combine(self._data_weights(step), (sample, output), accumulation_dtype(sample.dtype))

    def _output_for(self, step: Step, output: Tensor, sample: Tensor, data: Tensor | None) -> Tensor:
        """The output that says `data` (default: what `output` says), thresholded, so that any row can follow."""
        a, b = self._data_weights(step)
        data = self._data(step, output, sample) if data is None else data
        data = self._clip_data(data) if self._clips_data() else data
        return (data - a * sample.to(accumulation_dtype(sample.dtype))) / b

    def _clip(self) -> Callable[[Tensor], Tensor] | None:
        return self._clip_data if self._clips_data() else None

    def _clip_data(self, data: Tensor) -> Tensor:
        if not self.config["thresholding"]:
            limit = self.config["clip_sample_range"]
            return torch.clamp(data, -limit, limit)
        return threshold(data, self.config["dynamic_thresholding_ratio"], self.config["sample_max_value"])


def _say_untuned(setup: Setup, evaluations: int) -> None:
    assert setup.preset is not None
    tuned = ", ".join(str(entry.evaluations) for entry in setup.preset.entries)
    warnings.warn(
        f"preset: {evaluations} evaluations are sampled untuned, by {setup.name!r}; it has tables of {tuned}, for "
        "runs without timesteps or sigmas of their own",
        stacklevel=3,
    )


def _floats(name: str, values: Any) -> tuple[float, ...] | None:
    """A list, array or tensor of any dtype as a tuple of floats. Raises ValueError where it is no list of numbers."""
    if values is None:
        return None
    array = np.asarray(values.tolist() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: give a list of numbers")
    return tuple(array.tolist())


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
