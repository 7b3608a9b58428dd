"""The drop-in contract of `step` and `set_timesteps`: what is accepted is honoured, or refused in one line."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from model_families import FAMILIES, FLOW, SCHEDULERS, SD, lay_out, make, network, point
from peers import peer
from torch import Tensor

import fastsample as fs
from fastsample.schedulers.threshold import quantile, threshold
from fastsample.tables.table import output_of

EVERY = pytest.mark.parametrize("family", FAMILIES)
CLASS = pytest.mark.parametrize("name", SCHEDULERS)
FIRST_ORDER_OR_ONE_ENTRY = ("ddim", "dpm-2")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- arguments ----------------------------------------------------------------------------------------------


@EVERY
@CLASS
def test_arguments_that_pipelines_pass_are_named_and_neutral_ones_change_nothing(name: str, family: str) -> None:
    signature = inspect.signature(type(make(name, family, None)).step).parameters
    assert {"generator", "eta", "prev_timestep", "use_clipped_model_output"} <= set(signature)
    x, results = noise(2, 4), []
    neutral = {"eta": 0.0, "prev_timestep": None, "use_clipped_model_output": False, "per_token_timesteps": None}
    for extra in ({}, neutral):
        scheduler = make(name, family, None)
        scheduler.set_timesteps(5, original_inference_steps=None, **FAMILIES[family][1])
        y = x
        for t in scheduler.timesteps:
            generator = torch.Generator().manual_seed(1)
            y = scheduler.step(network(y, t), t, y, generator=generator, **extra).prev_sample
        results.append(y)
    assert torch.equal(*results)
    scheduler = make(name, family)
    refused(lambda: scheduler.set_timesteps(5, original_inference_steps=50), "^original_inference_steps = 50")
    if name != "ddim":
        refused(lambda: scheduler.step(x, scheduler.timesteps[0], x, eta=0.5), "^eta = 0.5")
    else:
        refused(lambda: scheduler.step(x, scheduler.timesteps[0], x, eta=2.0), "^eta = 2.0")


@EVERY
@pytest.mark.parametrize("name", ["ddim", "dpm-2", "unipc", "ghvb"])
def test_prev_timestep_is_where_a_step_goes(name: str, family: str) -> None:
    """The grid's next, another of its points, one between, and the end: exactly there, along an exact trajectory."""
    data, start = noise(2, 3), noise(2, 3, seed=1)
    kind = make(name, family, None)
    kind = kind.schedule.output_type(kind.config.prediction_type)
    for source, target in ((0, 1), (1, 3), (2, 6), (0, 2.5)):
        scheduler = make(name, family, 6)
        schedule, times = scheduler.schedule, scheduler.timesteps
        layout = scheduler.state().laid.layout
        x = point(scheduler, source, data, start)
        if target == 6:
            then, node = None, layout.nodes[-1]
        elif target == 2.5:
            then = float(times[2].double() + times[3].double()) / 2
            then = float(round(then)) if schedule.kind == "vp" else then
            node = schedule.node_of(then)
        else:
            then, node = times[target], layout.nodes[target]
        if then is None:
            then = -1 if schedule.kind == "vp" else schedule.clean_time - 1
            then = None if family == "flow-inverted" else then
            if then is None:
                continue
        output = output_of(layout.nodes[source], kind, data / schedule.data_scale, start)
        made = scheduler.step(output, times[source], x, prev_timestep=then).prev_sample
        want = node.alpha / schedule.data_scale * data + node.sigma * start
        torch.testing.assert_close(made, want, rtol=1e-3, atol=2e-5 * max(1.0, float(x.abs().max())))
    scheduler = make(name, family, 6)
    noisier = scheduler.timesteps[1]
    refused(lambda: scheduler.step(x, scheduler.timesteps[3], x, prev_timestep=noisier), "^prev_timestep = ")


CLIPS = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"thresholding": True, "sample_max_value": 2.0},
]


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipping_is_that_of_diffusers(
    use_clipped: bool, eta: float, prediction_type: str, clip: dict[str, Any]
) -> None:
    config = {"clip_sample": False, "prediction_type": prediction_type, "timestep_spacing": "trailing", **clip}
    theirs = peer("DDIMScheduler", **config)
    ours = fs.DDIMScheduler.from_config(theirs.config)
    x, variance = 3 * noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=3)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    for t in theirs.timesteps:
        given = {"eta": eta, "use_clipped_model_output": use_clipped, "variance_noise": variance if eta else None}
        output = network(x, t)
        want, got = theirs.step(output, t, x, **given), ours.step(output, t, x, **given)
        torch.testing.assert_close(got.pred_original_sample, want.pred_original_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.prev_sample, want.prev_sample, rtol=2e-4, atol=2e-4)
        x = want.prev_sample


REPLACED = [
    (fs.DDIMScheduler, diffusers.DDIMScheduler, {}),
    (fs.DDIMScheduler, diffusers.EDMEulerScheduler, {}),
    (fs.DDIMScheduler, FLOW, {}),
    (fs.DPMSolverScheduler, diffusers.DPMSolverMultistepScheduler, {}),
    (fs.DPMSolverScheduler, FLOW, {}),
    (fs.UniPCScheduler, diffusers.UniPCMultistepScheduler, {}),
    (fs.DEISScheduler, diffusers.DEISMultistepScheduler, {}),
]


@pytest.mark.parametrize(("ours", "theirs", "config"), REPLACED, ids=lambda c: getattr(c, "__name__", ""))
def test_a_tuple_has_as_many_values_as_that_of_the_class_it_replaces(ours: Any, theirs: Any, config: Any) -> None:
    own = theirs(**config)
    x, lengths = noise(1, 4, 2, 2), []
    for scheduler in (own, ours.from_config(own.config)):
        scheduler.set_timesteps(4)
        made = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
        lengths.append(len(made))
    assert lengths[0] == lengths[1]
    if lengths[1] == 2:
        scheduler.set_timesteps(4)
        full = scheduler.step(x, scheduler.timesteps[0], x)
        assert torch.equal(made[0], full.prev_sample)
        assert torch.equal(made[1], full.pred_original_sample)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_construction_under_any_default_device(name: str) -> None:
    for family in ("vp", "zero-snr", "flow", "edm"):
        want = make(name, family, 5)
        with torch.device("meta"):
            scheduler = make(name, family, None)
            scheduler.set_timesteps(5, device="cpu", **FAMILIES[family][1])
            sigmas = scheduler.sigmas
        assert scheduler.timesteps.device.type == sigmas.device.type == "cpu"
        assert torch.equal(scheduler.timesteps, want.timesteps)
        assert torch.equal(sigmas, want.sigmas)
        if hasattr(want, "betas"):
            with torch.device("meta"):
                fresh = make(name, family, None)
                assert fresh.alphas_cumprod.device.type == fresh.final_alpha_cumprod.device.type == "cpu"
            assert torch.equal(fresh.alphas_cumprod, want.alphas_cumprod)


# --- thresholding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_quantile_is_that_of_torch(size: int, ratio: float) -> None:
    rows = noise(3, size).abs()
    torch.testing.assert_close(
        quantile(rows, ratio), torch.quantile(rows, ratio, dim=1, keepdim=True), rtol=1e-6, atol=1e-7
    )


def test_more_values_than_torch_takes() -> None:
    size = 2**24 + 3
    rows = torch.linspace(0, 3, size).flip(0)[None]
    with pytest.raises(RuntimeError):
        torch.quantile(rows, 0.995, dim=1)
    got = float(quantile(rows, 0.995))
    assert got == pytest.approx(float(np.quantile(rows.double().numpy(), 0.995)), rel=1e-6)
    assert float(threshold(rows, 0.995, 5.0).max()) == pytest.approx(1.0)


# --- rows and tokens at times of their own ------------------------------------------------------------------


def alone(name: str, family: str, x: Tensor, steps: int = 6) -> list[Tensor]:
    scheduler, samples = make(name, family, steps), [x]
    for t in scheduler.timesteps:
        samples.append(scheduler.step(network(samples[-1], t), t, samples[-1]).prev_sample)
    return samples


@EVERY
@pytest.mark.parametrize("name", FIRST_ORDER_OR_ONE_ENTRY)
@pytest.mark.parametrize("tokens", [False, True], ids=["rows", "tokens"])
def test_each_steps_on_its_own_as_if_alone(tokens: bool, name: str, family: str) -> None:
    """Diffusion forcing: every row, or token, one step behind the one before it; those that wait or are done stay."""
    count, steps = 4, 6
    x = noise(count, 3)
    want = [alone(name, family, x[i : i + 1]) for i in range(count)]
    scheduler = make(name, family, steps)
    times = scheduler.timesteps
    state = x.clone()
    for call in range(steps + count - 1):
        index = [min(max(call - i, 0), steps - 1) for i in range(count)]
        told = times[index]
        output = torch.cat([network(state[i : i + 1], told[i]) for i in range(count)])
        if tokens:
            made = scheduler.step(output[None], told[None], state[None]).prev_sample[0]
        else:
            made = scheduler.step(output, told, state).prev_sample
        active = torch.tensor([0 <= call - i < steps for i in range(count)])
        state = torch.where(active[:, None], made, state)
    for i in range(count):
        tolerance = 2e-5 * max(1.0, float(want[i][-1].abs().max()))
        torch.testing.assert_close(state[i : i + 1], want[i][-1], rtol=1e-3, atol=10 * tolerance)


@EVERY
@CLASS
def test_one_time_for_each_row_that_all_share_is_one_time(name: str, family: str) -> None:
    results = []
    for spread in (lambda t: t, lambda t: t.expand(2), lambda t: t.repeat(2)):
        scheduler, x = make(name, family, 5), noise(2, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), spread(t), x, generator=torch.Generator().manual_seed(0)).prev_sample
        results.append(x)
    assert torch.equal(results[0], results[1])
    # from noise of up to 80 by other operations: a few roundings of that
    torch.testing.assert_close(results[0], results[2], rtol=1e-4, atol=1e-4)


@EVERY
@CLASS
def test_other_solvers_and_shapes_say_so(name: str, family: str) -> None:
    scheduler, x = make(name, family, 5, stable_guidance=None), noise(2, 3, 4)
    times = scheduler.timesteps[[0, 2 * scheduler.order]]
    if name in ("dpm-sde", "dpm-single", "unipc", "ghvb", "heavy-ball", "heun", "dualfast"):
        refused(lambda: scheduler.step(x, times, x), "^timestep has a value for each row or token, and")
    elif name in FIRST_ORDER_OR_ONE_ENTRY:
        refused(lambda: scheduler.step(x, scheduler.timesteps[[0, 1, 2]], x), "^timestep has ")
        refused(lambda: scheduler.step(x, times.repeat(3), x), "^timestep has ")


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction", "minus_flow", "flow_v"])
def test_rows_between_the_points_of_the_grid_read_every_prediction(kind: str) -> None:
    told = {"minus_flow": "flow_prediction", "flow_v": "v_prediction"}.get(kind, kind)
    config = {"prediction_type": told, "invert_sigmas": kind == "minus_flow", "use_flow_sigmas": "flow" in kind}
    scheduler = fs.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(10)
    assert scheduler._setup.output_type == kind
    times, data, random = torch.tensor([850.5, 333.3]), noise(2, 3), noise(2, 3, seed=1)
    nodes = [scheduler.schedule.node_of(float(t)) for t in times]
    x = torch.stack([node.alpha * data[i] + node.sigma * random[i] for i, node in enumerate(nodes)])
    output = torch.stack([output_of(node, kind, data[i], random[i]) for i, node in enumerate(nodes)])
    torch.testing.assert_close(scheduler.step(output, times, x).pred_original_sample, data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 9])
def test_token_times_are_those_of_diffusers(steps: int, shift: float) -> None:
    """On the grid, between its points, clean, and at other times from call to call."""
    theirs = FLOW(shift=shift)
    ours = fs.DDIMScheduler.from_config(theirs.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    x = noise(2, 5, 3)
    for call, t in enumerate(theirs.timesteps):
        free = 1000 * torch.rand(2, generator=torch.Generator().manual_seed(call))
        times = torch.stack([t, theirs.timesteps[-1], torch.tensor(0.0), *free]).expand(2, 5)
        output = network(x, t)
        want = theirs.step(output, t, x, per_token_timesteps=times).prev_sample
        got = ours.step(output, t, x, per_token_timesteps=times).prev_sample
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert torch.equal(got[:, 2], x[:, 2])
        assert ours.step_index == call + 1
        x = want


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("heun", "dpm-sde")])
@pytest.mark.parametrize("family", ["flow", "vp"])
def test_conditioned_tokens_of_any_solver_stay_and_the_others_are_as_without(name: str, family: str) -> None:
    """LTX's image to video: the given frames are clean; where they are freed later they join by first-order steps."""
    data, start = noise(1, 4, 3), noise(1, 4, 3, seed=1)
    plain, scheduler = make(name, family, 6), make(name, family, 6)
    clean = 0.0 if family == "flow" else -1.0
    x = point(plain, 0, data, start)
    y = torch.cat([data[:, :2], x[:, 2:]], dim=1)
    for t in plain.timesteps:
        x = plain.step(network(x, t), t, x).prev_sample
        times = torch.where(torch.arange(4) < 2, torch.tensor(clean), t.float())[None]
        y = scheduler.step(-network(y, t), t, y, per_token_timesteps=times).prev_sample
        assert torch.equal(y[:, :2], data[:, :2])
    torch.testing.assert_close(y[:, 2:], x[:, 2:], rtol=1e-4, atol=1e-4)


# --- set-up is kept -----------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("name", ["ddim", "dpm-2", "unipc", "heun"])
def test_equal_configs_and_requests_are_laid_out_once(name: str, family: str) -> None:
    one, two = make(name, family, 7), make(name, family, 7)
    first = one.state().laid.layout
    assert two.state().laid.layout is first
    lay_out(one, family, 5)
    lay_out(one, family, 7)
    assert one.state().laid.layout is first
    assert one.timesteps.data_ptr() != two.timesteps.data_ptr()  # each has tensors of its own
    one.config.steps_offset = 3
    lay_out(one, family, 7)
    assert one.state().laid.layout is not first


def test_requests_are_compared_with_their_types() -> None:
    scheduler = fs.DDIMScheduler(**SD)
    scheduler.set_timesteps(1)
    scheduler.set_timesteps(2)
    for wrong in (2.0, True, 2.5, "2"):
        refused(lambda: scheduler.set_timesteps(wrong), "^num_inference_steps = ")  # noqa: B023
    assert fs.GHVBScheduler(order=1)
    refused(lambda: fs.GHVBScheduler(order=True), "order = True")


def test_what_is_kept_is_bounded() -> None:
    from fastsample.schedulers import layout, rows, setup

    scheduler = fs.DDIMScheduler(**SD)
    for steps, eta in itertools.product(range(2, 60), (0.1, 0.2)):
        scheduler.set_timesteps(steps)
        x = noise(1, 4)
        scheduler.step(
            x, scheduler.timesteps[0], x, eta=eta + steps / 1e3, generator=torch.Generator().manual_seed(0)
        )
    for kept in (layout.lay_out, layout.compiled, setup.setup_of, rows.row_tables):
        info = kept.cache_info()
        assert info.maxsize is not None
        assert info.currsize <= info.maxsize <= 64
