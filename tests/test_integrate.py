"""Tables run in torch by `integrate`: as computed on the host, with the noise of generators, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from host_runs import run

import fastsample as fs
from fastsample.sampling import Runner, run_step
from fastsample.sampling.executor import BLOCK
from fastsample.solvers import available
from fastsample.tables.gaussian import gaussian_spread
from fastsample.tables.lower import lower
from fastsample.tables.step import Combination, Step
from fastsample.testing import measured_order

SOLVERS = available()
MIXTURE = fs.GaussianMixture.random(components=3, dims=2, std=0.6, seed=1)
VP = fs.NoiseSchedule.linear_vp()
FLOW = fs.NoiseSchedule.flow()


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if not solver.stochastic])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_integrate_is_the_table_run_on_the_host(name: str, schedule: fs.NoiseSchedule) -> None:
    """At every order, with one call of the model a row of the table."""
    times = [0.95, 0.9, 0.7, 0.62, 0.5, 0.3, 0.22, 0.1, 0.02]
    for order in SOLVERS[name].orders or (None,):
        table = fs.build_table(name, schedule, times, **({"order": order} if order else {}))
        count = [0]

        def model(x: torch.Tensor, t: float, count: list[int] = count) -> torch.Tensor:
            count[0] += 1
            return torch.sin(3 * x) + 0.2 * float(t)

        want = run(table, lambda x, node: math.sin(3 * x) + 0.2 * node.time, 0.7)
        assert float(fs.integrate(table, model, torch.tensor([[0.7]], dtype=torch.float64))) == pytest.approx(
            want, rel=1e-10
        )
        assert count[0] == table.nfe


def test_the_measured_order_is_that_of_fixed_weights() -> None:
    assert measured_order("plms", VP, order=3) >= 2.8
    assert measured_order("ghvb", VP, order=3, beta=0.9) >= 2.8


@pytest.mark.parametrize("name", SOLVERS)
def test_one_point_data_is_solved_exactly_onto_sigma_zero(name: str) -> None:
    """A model that always predicts the same data ends on it, from pure noise, on VP and flow."""
    clean = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    ztsnr = fs.NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
    for schedule in (ztsnr, FLOW) if SOLVERS[name].flow else (ztsnr,):
        times = fs.time_grid("trailing", schedule, 7)
        table = fs.build_table(name, schedule, times, prediction_type="sample")
        x = torch.randn(1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        got = fs.integrate(table, lambda x, t: clean, x, generator=generator)
        torch.testing.assert_close(got, clean, rtol=1e-9, atol=1e-9)


def test_noise_is_drawn_as_computed() -> None:
    """Samples: mean 0, variance 1 within five standard errors and the steps' bias, apart from their start."""
    count = 40000
    mixture = fs.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.0]], [1.0], [1.0])))
    table = fs.build_table("dpmpp-2m-sde", VP, VP.time(np.linspace(VP.lam(1.0), VP.lam(0.01), 61)))
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = fs.integrate(table, mixture.model(VP), x, generator=torch.Generator().manual_seed(1))
    assert abs(float(got.mean())) < 5 / math.sqrt(count)
    assert abs(float(got.var()) - gaussian_spread(table, 1.0) ** 2) < 5 * math.sqrt(2 / count)
    assert float((got * x).mean().abs()) < 0.2


def test_a_list_of_generators_makes_images_independent_of_their_batch() -> None:
    table = fs.build_table("dpmpp-2m-sde", VP, np.linspace(1, 0.05, 6))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def run(rows: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(10 + row) for row in rows]
        return fs.integrate(table, MIXTURE.model(VP), x[rows], generator=generators)

    torch.testing.assert_close(run([0, 1, 2])[1:2], run([1]))
    with pytest.raises(ValueError, match="generator has 1 entry for a batch of 3"):
        fs.integrate(table, MIXTURE.model(VP), x, generator=[torch.Generator()])


def test_integration_never_leaves_float64() -> None:
    table = fs.build_table("hb", VP, np.linspace(0.9, 0.1, 6))
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            seen.extend(t.dtype for t in (*args, out) if isinstance(t, torch.Tensor))
            return out

    x = torch.randn(4, 2, dtype=torch.float64)
    with Watch():
        fs.integrate(table, lambda x, t: -x, x)
    assert seen
    assert set(seen) == {torch.float64}


@pytest.mark.parametrize("size", [64, 4 * BLOCK * torch.get_num_threads()])
def test_a_state_of_nothing_is_zero_in_half_precision(size: int) -> None:
    """However large: large steps on the CPU are made block by block, into tensors that held anything."""
    first, last = VP.nodes([0.9, 0.1])
    data = (1.0, 0.0)
    steps = [
        Step(first, last, Combination(1.0, 0.5), data, states={"nothing": Combination()}),
        Step(first, last, Combination(1.0, states={"nothing": 1.0}), data),
    ]
    sample, stored = torch.ones(size, dtype=torch.bfloat16), lower(steps).empty
    for step in lower(steps).steps:
        sample, stored = run_step(step, sample, torch.ones_like(sample), stored)
    assert torch.equal(sample, torch.full_like(sample, 1.5))


def test_a_term_alone_has_a_gradient_in_half_precision() -> None:
    first, last = VP.nodes([0.9, 0.1])
    lowered = lower([Step(first, last, Combination(2.0), (1.0, 0.0))])
    x = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    run_step(lowered.steps[0], x, x.detach(), lowered.empty)[0].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


def test_integrate_checks_shapes() -> None:
    table = fs.build_table("ddim", VP, [0.9, 0.1])
    with pytest.raises(ValueError, match="model output has shape"):
        fs.integrate(table, lambda x, t: x[:1], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="noise = None"):
        Runner(fs.build_table("dpmpp-2m-sde", VP, [0.9, 0.1])).step(0, torch.zeros(1, 1), torch.zeros(1, 1))
