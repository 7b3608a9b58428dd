"""Every solver against exact solutions; momentum against the paper's recursion written out. All in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from host_runs import measured_order, run

from fastsample.schedules import Node, NoiseSchedule, time_grid
from fastsample.solvers import available, build_table, build_table_on_nodes
from fastsample.solvers.adams import adams_weights
from fastsample.tables.gaussian import gaussian_response

SOLVERS = available()
# a rule that has two names is asked once
DETERMINISTIC = {solver.rule: (name, solver) for name, solver in SOLVERS.items() if not solver.stochastic}
DETERMINISTIC = dict(DETERMINISTIC.values())
VP = NoiseSchedule.linear_vp()
FLOW = NoiseSchedule.flow()


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_measured_order_reaches_the_claim(name: str, schedule: NoiseSchedule) -> None:
    solver = DETERMINISTIC[name]
    for order in solver.orders or (None,):
        options = {"order": order} if order else {}
        enough = solver.claimed_order(order) - 0.2
        measured = measured_order(name, schedule, steps=(24, 48, 96), enough=enough, **options)
        assert measured >= enough, (name, order)


@pytest.mark.parametrize(("variant", "order"), [("released", 2), ("exact", 3)])
@pytest.mark.parametrize("name", ["dpm-3m", "dpmpp-3m"])
def test_the_exact_third_order_rule_is_third_order(name: str, variant: str, order: int) -> None:
    """Local error of one step from exact history, predictions exp(rate * lam): h^(order + 1).

    The global order is 2 either way: the first step, of order 1, costs h^2 once.
    """
    sign = 1 if name == "dpmpp-3m" else -1  # x / sigma grows by exp(lam) data, x / alpha by -exp(-lam) noise
    slopes = []
    for rate in (0.7, -1.3, 2.2):
        errors = []
        for h in (0.04, 0.02, 0.01):
            nodes = VP.nodes(VP.time(np.array([-2.6, -1.4, 0.0, 1.0]) * h))
            prediction = "sample" if sign > 0 else "epsilon"
            last = build_table_on_nodes(name, nodes, prediction_type=prediction, variant=variant).steps[2].next
            outputs = [math.exp(rate * node.lam) for node in (nodes[2], nodes[1], nodes[0])]
            got = sum(w * m for w, m in zip((last.output, *last.history), outputs, strict=True))
            scale = nodes[3].sigma if sign > 0 else -nodes[3].alpha
            power = rate + sign
            exact = scale * (math.exp(power * nodes[3].lam) - math.exp(power * nodes[2].lam)) / power
            errors.append(abs(got - exact))
        slopes.append(math.log2(errors[1] / errors[2]))
    assert max(slopes) == pytest.approx(order + 1, abs=0.3)


def test_fixed_weights_reach_their_order_on_their_own_grid() -> None:
    assert measured_order("plms", VP, steps=(48, 96, 192), order=3) >= 2.8
    assert measured_order("ghvb", VP, steps=(48, 96, 192), order=3, beta=0.9) >= 2.8
    assert sum(adams_weights(5, 0.7)) == pytest.approx(1)
    assert adams_weights(4) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    assert adams_weights(5) == pytest.approx([1901 / 720, -2774 / 720, 2616 / 720, -1274 / 720, 251 / 720])


TABLE = {  # columns of the paper's table of GHVB weights
    1: lambda b: ([1.0], 1.0),
    2: lambda b: ([2 + b, -(2 - b)], 2 * b),
    3: lambda b: ([18 + 5 * b, -(24 - 8 * b), 6 - b], 12 * b),
    4: lambda b: ([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)], 24 * b),
    5: lambda b: ([1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b], 720 * b),
}


def paper_recursion(kind: str, order: int, beta: float, times: list[float], x: float) -> list[float]:
    """GHVB, HB or Nesterov stepped directly in x / alpha, sigma / alpha."""
    alpha, sigma = VP.alpha(times), VP.sigma(times)
    bar, slopes, velocities, results = x / alpha[0], [], [], []
    for n in range(len(times) - 1):
        eps = math.sin(3 * bar * alpha[n]) + 0.2 * n
        slopes.insert(0, eps)
        if kind == "ghvb":
            velocities.insert(0, (1 - beta) * velocities[0] + beta * eps if velocities else eps)
            weights, divisor = TABLE[min(order, len(velocities))](beta)
            slope = sum(w * v for w, v in zip(weights, velocities, strict=False)) / divisor
        else:
            weights, divisor = TABLE[min(order, len(slopes))](1.0)
            p = sum(w * s for w, s in zip(weights, slopes, strict=False)) / divisor
            velocities.insert(0, (1 - beta) * velocities[0] + beta * p if velocities else p)
            slope = velocities[0] if kind == "hb" else (1 - beta) * velocities[0] + beta * p
            if kind == "nesterov" and n == 0:
                slope = p
        bar += (sigma[n + 1] / alpha[n + 1] - sigma[n] / alpha[n]) * slope
        results.append(bar * alpha[n + 1])
    return results


@pytest.mark.parametrize(
    ("kind", "order", "beta"),
    [("ghvb", order, beta) for order in range(1, 6) for beta in (0.2, 0.8, 1.0)]
    + [(kind, order, beta) for kind in ("hb", "nesterov") for order in range(1, 5) for beta in (0.5, 1.0)],
)
def test_momentum_is_the_papers_recursion(kind: str, order: int, beta: float) -> None:
    times = [0.95, 0.9, 0.7, 0.62, 0.5, 0.3, 0.22, 0.1, 0.02]
    table = build_table(kind, VP, times, order=order, beta=beta)
    want = paper_recursion(kind, order, beta, times, 0.7)
    count = [0]

    def model(x: float, node: Node) -> float:
        count[0] += 1
        return math.sin(3 * x) + 0.2 * (count[0] - 1)

    got = run(table, model, 0.7)
    assert got == pytest.approx(want[-1], rel=1e-10)
    assert count[0] == table.nfe == len(times) - 1


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0])
def test_heavy_ball_on_2m_is_the_papers_recursion(beta: float) -> None:
    times = [0.95, 0.9, 0.7, 0.62, 0.5, 0.3, 0.22, 0.1]
    lam, alpha, sigma = VP.lam(times), VP.alpha(times), VP.sigma(times)
    x, previous, velocity = 0.7, None, None
    for n in range(len(times) - 1):
        h = lam[n + 1] - lam[n]
        data = math.cos(2 * x)
        if n == 0:
            direction = data
        else:
            r0 = (lam[n] - lam[n - 1]) / h
            newest = (1 + 1 / (2 * r0)) * data - previous / (2 * r0)
            velocity = newest if velocity is None else (1 - beta) * velocity + beta * newest
            direction = velocity
        x, previous = sigma[n + 1] / sigma[n] * x - alpha[n + 1] * math.expm1(-h) * direction, data
    table = build_table("hb-dpmpp-2m", VP, times, beta=beta, prediction_type="sample")
    got = run(table, lambda x, node: math.cos(2 * x), 0.7)
    assert got == pytest.approx(x, rel=1e-10)


def test_momentum_one_is_the_base_solver() -> None:
    times = np.linspace(0.9, 0.1, 9)
    pairs = (("hb", "plms", {"order": 3}), ("ghvb", "plms", {"order": 4}), ("nesterov", "plms", {"order": 2}))
    for name, base, options in pairs:
        ours = build_table(name, VP, times, beta=1.0, **options).unroll()
        want = build_table(base, VP, times, **options).unroll()
        np.testing.assert_allclose(ours.b, want.b, atol=1e-12)
    ours = build_table("hb-dpmpp-2m", VP, times, beta=1.0).unroll()
    np.testing.assert_allclose(ours.b, build_table("dpmpp-2m", VP, times).unroll().b, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_point_data_is_solved_exactly_onto_sigma_zero(name: str) -> None:
    """A model that always predicts the same data ends on it, from pure noise, on VP and flow."""
    clean, rng = np.array([1.5, -0.5]), np.random.default_rng(0)
    ztsnr = NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
    for schedule in (ztsnr, FLOW) if SOLVERS[name].flow else (ztsnr,):
        table = build_table(name, schedule, time_grid("trailing", schedule, 7), prediction_type="sample")
        got = run(table, lambda x, node: clean, rng.normal(size=2), lambda: rng.normal(size=2))
        np.testing.assert_allclose(got, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("dpmpp-2m-sde", 0.02),
        ("dpmpp-1-sde", 0.08),
        ("dpmpp-3m-sde", 0.02),
        ("dpm-2m-sde", 0.02),
        ("dpmpp-2s-ancestral", 0.03),
        ("dpmpp-sde", 0.065),
        ("accelerated-sde", 0.035),
    ],
)
def test_stochastic_solvers_keep_the_marginal(name: str, bias: float) -> None:
    """Unit Gaussian data stay unit Gaussian, within the bias of 120 steps, and forget where they started: exactly."""
    table = build_table(name, VP, VP.time(np.linspace(VP.lam(1.0), VP.lam(0.01), 121)))
    response = gaussian_response(table, 1.0)
    assert float(np.square(response).sum()) == pytest.approx(1, abs=bias)
    assert abs(float(response[0])) < 0.2  # so the noise was used
