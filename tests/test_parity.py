"""Ours against diffusers' classes and against the papers' recursions written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peers import SD, peer

import fastsample as fs
from fastsample.solvers import build_table_on_nodes
from fastsample.testing import run_scheduler

VP = fs.NoiseSchedule.linear_vp()


def model(x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """A smooth made-up network."""
    return 0.9 * torch.tanh(x) + 0.1 * torch.sin(torch.as_tensor(t, dtype=torch.float64) / 100).to(x.dtype)


def run(scheduler: Any, steps: int, scale: float = 1.0, **grid: Any) -> torch.Tensor:
    """A whole trajectory; `scale` takes the first sample to the scheduler's own scale."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scale
    return run_scheduler(scheduler, model, x, steps, **grid)


def assert_alike(got: torch.Tensor, want: torch.Tensor, tolerance: float = 5e-5) -> None:
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


GRIDS: list[dict[str, Any]] = [
    {},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: "-".join(g) or "linspace")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_diffusers(order: int, grid: dict[str, Any]) -> None:
    """Left out, as defects there: bh1 onto sigma = 0 is NaN, and karras grids repeat the last sigma."""
    options: list[dict[str, Any]] = [{"prediction_type": p} for p in ("epsilon", "v_prediction", "sample")]
    options += [{"disable_corrector": [0, 2]}]
    if "use_karras_sigmas" not in grid:
        ends: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
        options += [ends | {"solver_type": kind, "predict_x0": x0} for kind in ("bh1", "bh2") for x0 in (True, False)]
    for extra, steps in itertools.product(options, (3, 8, 20)):
        config = {"solver_order": order, **grid, **extra}
        theirs, ours = peer("UniPCMultistepScheduler", **config), fs.UniPCScheduler(**SD, **config)
        want, got = run(theirs, steps), run(ours, steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert_alike(got, want)


@pytest.mark.parametrize("config", [{"solver_type": "bh1"}, {"solver_order": 2, "lower_order_final": False}])
def test_unipc_onto_sigma_zero_is_finite_here_alone(config: dict[str, Any]) -> None:
    assert torch.isfinite(run(fs.UniPCScheduler(**SD, **config), 8)).all()
    assert not torch.isfinite(run(peer("UniPCMultistepScheduler", **config), 8)).any()


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_diffusers(order: int, spacing: str) -> None:
    """On its final sigma, the least trained one; theirs knows no other."""
    for prediction_type, steps in itertools.product(("epsilon", "v_prediction", "sample"), (6, 20)):
        config = {"solver_order": order, "timestep_spacing": spacing, "prediction_type": prediction_type}
        theirs = peer("DEISMultistepScheduler", **config)
        ours = fs.DEISScheduler(**SD, **config, final_sigmas_type="sigma_min")
        # theirs sums its third-order weights in float32, where they cancel
        assert_alike(run(ours, steps), run(theirs, steps), 2e-4 if order == 3 else 5e-5)


@pytest.mark.parametrize(("solver", "theirs"), [("heun", "HeunDiscrete"), ("euler", "EulerDiscrete")])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_variance_exploding_classes_are_ours_in_other_scales(solver: str, theirs: str, prediction_type: str) -> None:
    """k-diffusion's "normal" grid on both sides; theirs samples x / alpha, ours x."""
    wanted = peer(f"{theirs}Scheduler", prediction_type=prediction_type, timestep_spacing="linspace")
    for steps in (3, 8, 20):
        wanted.set_timesteps(steps)
        times = np.linspace(999, 0, steps)
        ours = fs.create_scheduler(solver, {**SD, "prediction_type": prediction_type})
        got = run(ours, None, timesteps=times)
        assert ours.order == wanted.order
        torch.testing.assert_close(ours.timesteps.float(), wanted.timesteps, rtol=1e-5, atol=1e-3)
        scale = float((1 + wanted.sigmas[0].double() ** 2).sqrt())
        # theirs interpolates sigma between timesteps, ours log alpha
        assert_alike(got, run(wanted, steps, scale), 5e-5 if (999 / (steps - 1)).is_integer() else 2e-3)


def test_heun_on_flow_models_is_diffusers() -> None:
    theirs = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    ours = fs.create_scheduler("heun", theirs.config)
    for steps in (2, 5, 12):
        assert_alike(run(ours, steps), run(theirs, steps))
        torch.testing.assert_close(ours.timesteps, theirs.timesteps)


def test_dpm2_is_k_diffusions_recursion() -> None:
    """sample_dpm_2 in x / alpha: an Euler step to the geometric mean, then one with the slope found there."""
    times = [0.95, 0.7, 0.4, 0.2, 0.05]
    sbar = np.exp(-VP.lam(times))
    bar = torch.full((1, 1), 0.7, dtype=torch.float64) / float(VP.alpha(times[0]))

    def slope(bar: torch.Tensor, level: float) -> torch.Tensor:
        t = float(VP.time(-math.log(level)))
        return model(bar * float(VP.alpha(t)), t)

    for start, end in itertools.pairwise(sbar):
        middle = math.sqrt(start * end)
        bar = bar + (end - start) * slope(bar + (middle - start) * slope(bar, start), middle)
    table = fs.build_table("dpm2", VP, times)
    got = fs.integrate(table, model, torch.full((1, 1), 0.7, dtype=torch.float64))
    torch.testing.assert_close(got, bar * float(VP.alpha(times[-1])), rtol=1e-10, atol=1e-12)


def test_deterministic_2s_ancestral_is_dpmpp_2s() -> None:
    times = np.linspace(0.95, 0.05, 7)
    x = torch.randn(2, 3, dtype=torch.float64)
    results = [
        fs.integrate(fs.build_table(name, VP, times, **options), model, x)
        for name, options in (("dpmpp-2s-ancestral", {"eta": 0.0}), ("dpmpp-2s", {}))
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_third_order_sde_is_k_diffusions_formula(eta: float) -> None:
    """sample_dpmpp_3m_sde's coefficients of d, d1, d2; diffusers 0.42.1 has the sign of d2's the other way."""
    lam = np.array([-1.2, -0.7, -0.4, 0.3])
    nodes = VP.nodes(VP.time(lam))
    last = build_table_on_nodes("dpmpp-3m-sde", nodes, prediction_type="sample", eta=eta).steps[2].next
    h, older, oldest = lam[3] - lam[2], lam[2] - lam[1], lam[1] - lam[0]
    eta_h = h * (eta + 1)
    r0, r1 = older / h, oldest / h
    phi2 = math.expm1(-eta_h) / eta_h + 1
    phi3 = phi2 / eta_h - 0.5

    def update(d0: float, d1: float, d2: float) -> float:
        first, second = (d0 - d1) / r0, (d1 - d2) / r1
        difference = (first - second) / (r0 + r1)
        slope = first + (first - second) * r0 / (r0 + r1)
        return nodes[3].alpha * (-math.expm1(-eta_h) * d0 + phi2 * slope - phi3 * difference)

    got = (last.output, *last.history)
    assert got == pytest.approx([update(*unit) for unit in np.eye(3)], rel=1e-11)
    assert last.sample == pytest.approx(nodes[3].sigma / nodes[2].sigma * math.exp(-h * eta), rel=1e-12)
    assert last.noise == pytest.approx(nodes[3].sigma * math.sqrt(-math.expm1(-2 * h * eta)), rel=1e-12)


def test_the_sign_that_diffusers_has_wrong() -> None:
    """Its third-order SDE step differs from the formula above by twice phi3 d2, and by nothing else."""
    noise = torch.zeros(1, 1, 1, 1)
    theirs = peer("DPMSolverMultistepScheduler", solver_order=3, algorithm_type="sde-dpmsolver++")
    ours = fs.DPMSolverScheduler.from_config(theirs.config)
    assert ours.config.solver_order == 3
    outputs = torch.randn(20, 1, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    x = torch.ones(1, 1, 1, 1)
    for index, t in enumerate(theirs.timesteps[:3]):
        want = theirs.step(outputs[index], t, x, variance_noise=noise).prev_sample
        got = ours.step(outputs[index], t, x, variance_noise=noise).prev_sample
        if index < 2:
            assert_alike(got, want)
        else:
            assert float((got - want).abs()) > 1e-2
        x = want


@pytest.mark.parametrize("last", [0.05, 0.0])
def test_accelerated_ode_is_the_papers_update(last: float) -> None:
    """x_next = DDIM + K (eps_prev - eps), with K as printed."""
    times = [0.95, 0.9, 0.7, 0.5, 0.3, 0.1, last]
    bars = VP.alpha(times) ** 2

    def s(a: float) -> float:
        return math.sqrt((1 - a) / a)

    x, previous = torch.full((1, 1), 0.7, dtype=torch.float64), None
    for n in range(len(times) - 1):
        eps, a, following = model(x, times[n]), bars[n], bars[n + 1]
        moved = math.sqrt(following) * (x / math.sqrt(a) + (s(following) - s(a)) * eps)
        if previous is not None:
            bracket = a * s(following) + math.asin(math.sqrt(following)) - a * s(a) - math.asin(math.sqrt(a))
            moved = moved + math.sqrt(following) / (a - bars[n - 1]) * bracket * (previous - eps)
        x, previous = moved, eps
    got = fs.integrate(fs.build_table("accelerated", VP, times), model, torch.full((1, 1), 0.7, dtype=torch.float64))
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-12)


def test_accelerated_sde_is_the_papers_update() -> None:
    """With both draws of a step given, theirs merged into ours: Z1 of this step and Z2 of the next."""
    times = [0.95, 0.7, 0.4, 0.1]
    bars = VP.alpha(times) ** 2
    ratios = [bars[n] / bars[n + 1] for n in range(3)]
    draws = torch.randn(3, 2, dtype=torch.float64)  # Z2 before, Z1 after each step
    draws[0, 0] = draws[2, 1] = 0
    y = torch.tensor(0.7, dtype=torch.float64)
    table = fs.build_table("accelerated-sde", VP, times)
    ours = y.clone()
    for n, step in enumerate(table.steps):
        half = [math.sqrt((1 - ratio) / 2) for ratio in ratios]
        y = y + half[n] * draws[n, 0]
        y = (y - (1 - ratios[n]) * model(y, times[n]) / math.sqrt(1 - bars[n])) / math.sqrt(ratios[n])
        y = y + half[n] * draws[n, 1]
        c = step.next
        following = half[n + 1] * draws[n + 1, 0] if n < 2 else 0.0
        merged = (half[n] * draws[n, 1] + following) / c.noise if c.noise else 0.0
        ours = c.sample * ours + c.output * model(ours, times[n]) + c.noise * merged
        torch.testing.assert_close(ours, y + following, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.4, 0.8])
def test_variable_ghvb_is_fixed_ghvb_on_its_grid_and_exact_off_it(order: int, beta: float) -> None:
    sbar = np.linspace(4.0, 1.0, 61)
    tables = [
        fs.build_table("ghvb", VP, VP.time(-np.log(sbar)), order=order, beta=beta, weights=weights).steps[-1].next
        for weights in ("fixed", "variable")
    ]
    np.testing.assert_allclose(tables[0].history, tables[1].history, rtol=1e-5)  # the start is forgotten
    uneven = np.cumsum(np.linspace(0.3, 1.7, 12))[::-1]
    times = VP.time(-np.log(uneven))
    table = fs.build_table("ghvb", VP, times, order=order, beta=beta, weights="variable")
    x = float(VP.alpha(times[0])) * uneven[0] ** order / order
    got = fs.integrate(table, _Power(order - 1), torch.full((1, 1), x, dtype=torch.float64))
    start = _ab_error(uneven, order)
    want = float(VP.alpha(times[-1])) * (uneven[-1] ** order / order + start)
    assert float(got) == pytest.approx(want, rel=1e-9)


class _Power:
    """eps = (sigma / alpha)^k, whose exact solution is x / alpha = (sigma / alpha)^(k + 1) / (k + 1)."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.full_like(x, float(np.exp(-VP.lam(t))) ** self.k)


def _ab_error(grid: np.ndarray, order: int) -> float:
    """What the lower-order start leaves: variable-step Adams-Bashforth of orders 1 .. order - 1 on s^(order - 1)."""
    error = 0.0
    for n in range(order - 1):
        points = grid[: n + 1]
        fit = np.polynomial.polynomial.Polynomial.fit(points, points ** (order - 1), n) if n else None
        integral = fit.integ() if fit else None
        made = (
            integral(grid[n + 1]) - integral(grid[n])
            if integral
            else (grid[n + 1] - grid[n]) * points[0] ** (order - 1)
        )
        error += made - (grid[n + 1] ** order - grid[n] ** order) / order
    return error


def test_dualfast_replaces_the_noise_of_the_first_order_term() -> None:
    """DDIM with eps' = (1 + c) eps - c eps_first, c rising with the signal, written out."""
    times, strength = [0.95, 0.8, 0.5, 0.2, 0.05], 0.4
    alpha, sigma = VP.alpha(times), VP.sigma(times)
    level = sigma / (alpha + sigma)
    x = torch.full((1, 1), 0.7, dtype=torch.float64)
    first = None
    for n in range(4):
        eps = model(x, times[n])
        first = eps if first is None else first
        c = strength * (1 - level[n] / level[0])
        eps = (1 + c) * eps - c * first
        x = alpha[n + 1] * (x - sigma[n] * eps) / alpha[n] + sigma[n + 1] * eps
    table = fs.build_table("ddim", VP, times, dualfast=strength)
    got = fs.integrate(table, model, torch.full((1, 1), 0.7, dtype=torch.float64))
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpm-3m", "unipc", "ghvb"])
def test_dualfast_is_the_same_correction_in_every_solver(name: str) -> None:
    """Against the undressed table it adds c (sigma_t - alpha_t sigma_s / alpha_s) (eps_s - eps_first) each step."""
    times = np.linspace(0.95, 0.05, 6)
    plain, dressed = (fs.build_table(name, VP, times, dualfast=strength) for strength in (0.0, 0.3))
    level = VP.sigma(times) / (VP.alpha(times) + VP.sigma(times))
    for n, (one, two) in enumerate(zip(plain.steps, dressed.steps, strict=True)):
        c = 0.3 * (1 - level[n] / level[0])
        weight = c * (one.target.sigma - one.target.alpha * one.node.sbar)
        assert two.next.output - one.next.output == pytest.approx(weight, abs=1e-12)
        if n:
            assert two.next.states["anchor"] == pytest.approx(-weight, abs=1e-12)


@pytest.mark.parametrize("name", ["dpmpp-2s", "heun", "dpmpp-2m-sde"])
def test_dualfast_refuses_other_tables(name: str) -> None:
    with pytest.raises(ValueError, match=r"dualfast = 0\.3 needs a deterministic multistep solver"):
        fs.build_table(name, VP, [0.9, 0.5, 0.1], dualfast=0.3)
