"""The forward process and what training reads: at the timesteps passed, as fast as a lookup, compiled or not."""

from __future__ import annotations

import statistics
import time
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from model_families import FAMILIES, FLOW, SD, make, network
from peers import peer
from torch import Tensor

import fastsample as fs

EVERY = pytest.mark.parametrize("family", FAMILIES)
U = 2.0**-22  # a few roundings in float32


def times_of(scheduler: Any, count: int) -> Tensor:
    """Times of training, spread over all of it."""
    schedule = scheduler.schedule
    low, high = sorted((schedule.first_time, schedule.noise_time))
    spread = torch.linspace(low, high, count, dtype=torch.float64)
    return spread.round().long() if schedule.kind == "vp" else spread.float()


def marginals(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """What multiplies data and noise, a time at a time in float64."""
    nodes = [scheduler.schedule.node_of(float(t)) for t in times]
    alpha = torch.tensor([node.alpha for node in nodes], dtype=torch.float64) / scheduler.schedule.data_scale
    return alpha, torch.tensor([node.sigma for node in nodes], dtype=torch.float64)


def noised(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors as `add_noise` applies them."""
    zero, one = torch.zeros(len(times), 1), torch.ones(len(times), 1)
    return scheduler.add_noise(one, zero, times)[:, 0].double(), scheduler.add_noise(zero, one, times)[:, 0].double()


def before(scheduler: Any) -> None:
    pass


def after_a_run(scheduler: Any) -> None:
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]


def within_a_run(scheduler: Any) -> None:
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]


def after_image_to_image(scheduler: Any) -> None:
    scheduler.set_begin_index(3)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]


@EVERY
@pytest.mark.parametrize(
    "state", [before, within_a_run, after_a_run, after_image_to_image, lambda s: s.set_begin_index(2)]
)
@pytest.mark.parametrize("name", ["ddim", "dpm-2"])
def test_rows_of_times_are_noised_as_trained_whatever_was_run(name: str, state: Any, family: str) -> None:
    for steps in (None, 20) if state is before else (20,):
        scheduler = make(name, family, steps)
        state(scheduler)
        for count in (2, 3, 1000):
            times = times_of(scheduler, count)
            for got, want in zip(noised(scheduler, times), marginals(scheduler, times), strict=True):
                torch.testing.assert_close(
                    got, want, rtol=8 * U * (20 if scheduler.schedule.kind == "edm" else 1), atol=U
                )


@EVERY
def test_one_time_after_a_run_is_as_trained(family: str) -> None:
    scheduler = make("dpm-2", family, 20)
    told = scheduler.timesteps.clone()
    after_a_run(scheduler)
    for t in told[::4]:
        for got, want in zip(noised(scheduler, t[None]), marginals(scheduler, t[None]), strict=True):
            torch.testing.assert_close(got, want, rtol=200 * U, atol=U)


@EVERY
@pytest.mark.parametrize("begin", [0, 3, 7])
@pytest.mark.parametrize("rows", [1, 3])
def test_image_to_image_starts_at_the_point_of_its_run(begin: int, rows: int, family: str) -> None:
    """Which on grids placed by noise level lies between two timesteps; after the first step it is the coming one."""
    scheduler = make("dpm-2", family, 10)
    scheduler.set_begin_index(begin)
    layout = scheduler.state().laid.layout
    zero, one = torch.zeros(rows, 4), torch.ones(rows, 4)
    for index in (begin, begin + 1):
        t = scheduler.timesteps[index : index + 1].repeat(rows)
        got = scheduler.add_noise(zero, one, t)
        torch.testing.assert_close(got, torch.full_like(got, layout.nodes[index].sigma), rtol=200 * U, atol=U)
        assert torch.equal(scheduler.scale_noise(zero, t, one), got)
        scheduler.step(one, scheduler.timesteps[index], one)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_vp_is_diffusers(name: str, dtype: torch.dtype) -> None:
    theirs = peer(name)
    ours = fs.DPMSolverScheduler.from_config(theirs.config)
    data, noise = torch.randn(2, 64, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    times = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(0))
    tolerance = 1e-2 if dtype == torch.float16 else 1e-4
    for method in ("add_noise", "get_velocity"):
        want = getattr(theirs, method)(data, noise, times)
        got = getattr(ours, method)(data, noise, times)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        of_one = getattr(ours, method)(data[:1], noise, times)
        assert torch.equal(of_one, getattr(ours, method)(data[:1].expand(64, 4, 3), noise, times))


def test_flow_velocity_is_noise_minus_data_and_edm_is_scaled() -> None:
    data, noise = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    for family in ("flow", "flow-dynamic", "flow-inverted"):
        flow = make("ghvb", family, None)
        assert torch.equal(
            flow.get_velocity(data, noise, torch.tensor([1.0, 300.0, 500.0, 999.5, 1000.0])), noise - data
        )
    edm = make("ddim", "edm", 5)
    for t in edm.timesteps:
        node = edm.schedule.node_of(float(t))
        x, velocity = edm.add_noise(data, noise, t), edm.get_velocity(data, noise, t)
        size = (node.alpha**2 + node.sigma**2) ** 0.5
        torch.testing.assert_close(
            (node.alpha * x / size - node.sigma * velocity) / size * node.alpha, data, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("family", ["vp", "zero-snr", "vp-karras"])
def test_between_two_timesteps_vp_levels_are_those_of_the_schedule(family: str) -> None:
    scheduler = make("ddim", family, None)
    times = torch.cat(
        [torch.rand(500, generator=torch.Generator().manual_seed(0)) * 999, torch.tensor([998.5, 999.0, 0.0])]
    )
    for got, want in zip(noised(scheduler, times), marginals(scheduler, times), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["vp", "zero-snr", "flow", "flow-inverted"])
@pytest.mark.parametrize("wrong", [[1400], [-20], [5, -1], [1001, 3], [500.5, float("nan")]])
def test_times_beyond_training_are_refused(wrong: list[float], family: str) -> None:
    scheduler = make("ddim", family, None)
    x = torch.ones(len(wrong), 2)
    for method in (scheduler.add_noise, scheduler.get_velocity, lambda a, b, t: scheduler.scale_noise(a, t, b)):
        with pytest.raises(ValueError, match=r"^timesteps from .* was trained at") as caught:
            method(x, x, torch.tensor(wrong))
        assert "\n" not in str(caught.value)


@EVERY
def test_a_token_may_have_a_time_of_its_own(family: str) -> None:
    scheduler = make("ddim", family, None)
    times = times_of(scheduler, 6).reshape(2, 3)
    data, noise = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    got = scheduler.add_noise(data, noise, times)
    rows = scheduler.add_noise(data.reshape(6, 4), noise.reshape(6, 4), times.reshape(6)).reshape(2, 3, 4)
    assert torch.equal(got, rows)
    with pytest.raises(ValueError, match=r"timesteps has shape \(3,\)"):
        scheduler.add_noise(data, noise, times[0])


@EVERY
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_it_compiles_in_one_graph(method: str, family: str) -> None:
    scheduler = make("dpm-2", family, None)
    times = times_of(scheduler, 16)
    data, noise = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    want = getattr(scheduler, method)(data, noise, times)
    torch._dynamo.reset()
    compiled = torch.compile(getattr(scheduler, method), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(data, noise, times), want)
    fresh = make("unipc", family, 5)  # whose tables nobody has asked for yet
    torch.testing.assert_close(
        torch.compile(getattr(fresh, method), backend="eager", fullgraph=True)(data, noise, times), want
    )


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_no_row_is_looked_at(family: str) -> None:
    """As many operations for 8192 rows as for 2, none of which reads a value but the check of times on the host."""
    scheduler = make("ddim", family, 10)
    counts = []
    for rows in (2, 8192):
        calls: list[str] = []

        class Count(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                calls.append(str(func))  # noqa: B023
                return func(*args, **(kwargs or {}))

        x, times = torch.zeros(rows, 2), times_of(scheduler, rows)
        scheduler.add_noise(x, x, times)
        with Count():
            scheduler.add_noise(x, x, times)
        counts.append(len(calls))
        assert sum("_local_scalar_dense" in call for call in calls) <= 2
    assert counts[0] == counts[1] <= 20


def test_it_takes_no_longer_than_diffusers() -> None:
    """Medians of interleaved calls; the goal is 1.5 times, with room for a busy machine."""
    ours, theirs = fs.DDIMScheduler(**SD), diffusers.DDIMScheduler(**SD)
    x, times = torch.zeros(8192, 64), torch.randint(0, 1000, (8192,), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(40):
        for name, scheduler in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            scheduler.add_noise(x, x, times)
            seconds[name].append(time.perf_counter() - start)
    assert statistics.median(seconds["ours"]) < 3 * statistics.median(seconds["theirs"])


# --- what others read ---------------------------------------------------------------------------------------


def test_tables_of_betas_are_diffusers() -> None:
    for config in (
        {},
        {"timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ):
        theirs = peer("DDIMScheduler", **config)
        ours = fs.DPMSolverScheduler.from_config(theirs.config)
        with torch.inference_mode():
            assert not ours.alphas_cumprod.is_inference()  # it is kept, for training too
        for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=2e-5)
        assert float(ours.one) == 1.0
        ours.alphas_cumprod = ours.alphas_cumprod.double()  # moved, as training scripts do
        assert ours.alphas_cumprod.dtype == torch.float64
        with pytest.raises(ValueError, match="alphas_cumprod: the tables follow from the config"):
            ours.alphas_cumprod = ours.alphas_cumprod * 0.9
    flow = fs.DDIMScheduler.from_config(FLOW().config)
    assert not hasattr(flow, "betas")
    assert not hasattr(flow, "alphas_cumprod")


def test_variance_and_the_timestep_before_are_diffusers() -> None:
    theirs, ddpm = (
        peer("DDIMScheduler", timestep_spacing="trailing"),
        peer("DDPMScheduler", timestep_spacing="trailing"),
    )
    ours = fs.DDIMScheduler.from_config(theirs.config)
    assert ours.previous_timestep(500) == ddpm.previous_timestep(500) == 499
    for scheduler in (ours, theirs, ddpm):
        scheduler.set_timesteps(10)
    times = theirs.timesteps.tolist()
    for now, then in zip(times, [*times[1:], -1], strict=True):
        assert int(ours.previous_timestep(now)) == int(ddpm.previous_timestep(now)) == then
        torch.testing.assert_close(ours._get_variance(now), theirs._get_variance(now, then), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            ours._get_variance(now, then), theirs._get_variance(now, then), rtol=1e-4, atol=1e-6
        )
    rows = torch.tensor(times)
    want = torch.stack([theirs._get_variance(now, then) for now, then in zip(times, [*times[1:], -1], strict=True)])
    torch.testing.assert_close(ours._get_variance(rows, torch.tensor([*times[1:], -1])), want, rtol=1e-4, atol=1e-6)


@EVERY
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_the_index_of_each_timestep(name: str, family: str) -> None:
    scheduler = make(name, family, 6)
    times = scheduler.timesteps
    for index in range(0, len(times), scheduler.order):
        assert scheduler.index_for_timestep(times[index]) == index
        assert scheduler.index_for_timestep(times[index], times[: index + 1]) == index
        scheduler._init_step_index(times[index])  # as FlowEdit
        assert scheduler.step_index == index
    scheduler.set_begin_index(2)
    scheduler._init_step_index(times[0])
    assert scheduler.step_index == scheduler.begin_index == 2
    scheduler._step_index = scheduler._begin_index = None  # as programs that begin a run anew
    assert scheduler.step_index is scheduler.begin_index is None
    x = torch.ones(1, 4)
    scheduler.step(x, times[0], x)
    assert scheduler.step_index == 1
    with pytest.raises(ValueError, match=r"none of the"):
        scheduler.index_for_timestep(-1e5)


@pytest.mark.parametrize(
    "config", [{"shift": 3.0}, {"shift": 1.0}, {"use_dynamic_shifting": True}, {"shift": 12.0}], ids=str
)
def test_flow_grids_before_any_run_are_diffusers(config: dict[str, Any]) -> None:
    theirs = FLOW(**config)
    for kind in (fs.DDIMScheduler, fs.DPMSolverScheduler, fs.GHVBScheduler):
        ours = kind.from_config(theirs.config)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(ours.sigmas[:1000], theirs.sigmas, rtol=1e-5, atol=1e-6)


def test_vp_grids_before_any_run_go_with_each_other() -> None:
    for family in ("vp", "vp-v", "zero-snr"):
        scheduler = make("dpm-2", family, None)
        assert scheduler.timesteps.tolist() == list(range(999, -1, -1))
        assert len(scheduler.sigmas) in (1000, 1001)
        cumprod = scheduler.alphas_cumprod.double()
        for index in (1, 400, 999):
            square = cumprod[scheduler.timesteps[index]]
            assert float(scheduler.sigmas[index]) == pytest.approx(float(((1 - square) / square).sqrt()), rel=1e-3)
        scheduler.set_timesteps(4)
        assert not torch.signbit(scheduler.sigmas).any()  # 0 at the end, not -0


def test_set_shift_is_that_of_diffusers() -> None:
    theirs = FLOW(shift=3.0)
    ours = fs.DDIMScheduler.from_config(theirs.config)
    for shift in (7.0, 1.0, 2.5):
        theirs.set_shift(shift)
        ours.set_shift(shift)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6).tolist())
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)
        assert ours.shift == theirs.shift == shift
    set_by_hand = fs.DDIMScheduler.from_config(FLOW(shift=3.0).config)
    set_by_hand.shift = shift
    set_by_hand.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6).tolist())
    assert torch.equal(set_by_hand.sigmas, ours.sigmas)
    assert not hasattr(make("ddim", "vp", None), "shift")
    for scheduler, shift in (
        (make("ddim", "vp", None), 3.0),
        (make("ddim", "flow-dynamic", None), 3.0),
        (ours, -1.0),
    ):
        with pytest.raises(ValueError, match=r"^shift = "):
            scheduler.set_shift(shift)
