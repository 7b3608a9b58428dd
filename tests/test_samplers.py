"""The samplers of the programs: each against its recursion written out, and k-diffusion where it is installed.

The recursions hold the sample at a step's start, the corrected sample and the path of the noise, as they are printed;
ours hold none of these. In float64 on a mixture, with the same noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from host_runs import data_prediction, run
from peer_k_diffusion import k_diffusion_sampling
from scipy.integrate import quad

import fastsample as fs
from fastsample.schedules import Node, NoiseSchedule
from fastsample.schedules.base import Array
from fastsample.schedules.edm import EDMSchedule
from fastsample.solvers import available, build_table_on_nodes
from fastsample.tables import phi
from fastsample.tables.gaussian import gaussian_response

VP, FLOW = NoiseSchedule.linear_vp(), NoiseSchedule.flow()
SCHEDULES = {"vp": VP, "flow": FLOW}


def nodes_of(schedule: NoiseSchedule, steps: int = 12, clean: bool = True) -> list[Node]:
    """Uneven in log-SNR, from some noise to clean data or nearly so."""
    lam = np.linspace(-2.2, 2.4, steps) + 0.1 * np.sin(np.arange(steps))
    nodes = list(schedule.nodes(schedule.time(lam)))
    return [*nodes, schedule.node(schedule.clean_time)] if clean else nodes


def data(x: Array, node: Node) -> Array:
    return data_prediction(x, node.alpha, node.sigma)


def start(nodes: Sequence[Node]) -> Array:
    return np.random.default_rng(0).normal(size=(8, 2)) * math.hypot(nodes[0].alpha, nodes[0].sigma)


def draws() -> Callable[[], Array]:
    rng = np.random.default_rng(1)
    return lambda: rng.normal(size=(8, 2))


def ours(name: str, nodes: Sequence[Node], schedule: NoiseSchedule, **options: Any) -> Array:
    """What the table makes; noise is drawn where a row has some."""
    table = build_table_on_nodes(
        name,
        nodes,
        schedule=schedule if available()[name].needs_schedule else None,
        prediction_type="sample",
        **options,
    )
    draw, noisy = draws(), iter([step.next.noise != 0 for step in table.steps])
    return np.asarray(run(table, data, start(nodes), lambda: draw() if next(noisy) else 0.0))


def alike(got: Array, want: Array, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# --- exponential Runge-Kutta -------------------------------------------------------------------------------

Tableau = Callable[[float], tuple[list[float], list[list[float]], list[float]]]


def tableau_2(c2: float, kind: str) -> Tableau:
    def at(h: float) -> tuple[list[float], list[list[float]], list[float]]:
        b2 = phi(2, -h) / c2 if kind == "heun" else phi(1, -h) / (2 * c2)
        return [0.0, c2], [[], [c2 * phi(1, -c2 * h)]], [phi(1, -h) - b2, b2]

    return at


def seeds_3(h: float) -> tuple[list[float], list[list[float]], list[float]]:
    c2, c3 = 1 / 3, 2 / 3
    a32 = c3**2 / c2 * phi(2, -c3 * h)
    b3 = phi(2, -h) / c3
    return [0.0, c2, c3], [[], [c2 * phi(1, -c2 * h)], [c3 * phi(1, -c3 * h) - a32, a32]], [phi(1, -h) - b3, 0.0, b3]


def res_3s(h: float) -> tuple[list[float], list[list[float]], list[float]]:
    c2, c3 = 0.5, 1.0
    g = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
    a32 = g * c2 * phi(2, -c2 * h) + c3**2 / c2 * phi(2, -c3 * h)
    b3 = phi(2, -h) / (g * c2 + c3)
    b = [phi(1, -h) - (1 + g) * b3, g * b3, b3]
    return [0.0, c2, c3], [[], [c2 * phi(1, -c2 * h)], [c3 * phi(1, -c3 * h) - a32, a32]], b


def runge_kutta(nodes: Sequence[Node], schedule: NoiseSchedule, tableau: Tableau, eta: float) -> Array:
    """Every stage from the sample at the step's start, with one path of noise through them."""
    x, draw = start(nodes), draws()
    for source, target in itertools.pairwise(nodes):
        if target.sigma == 0:
            return data(x, source)
        h = target.lam - source.lam
        c, a, b = tableau((1 + eta) * h)
        predictions, noise = [data(x, source)], np.zeros_like(x)
        for i, row in [*enumerate(a[1:], 1), (len(c), b)]:
            part, before = (c[i] if i < len(c) else 1.0), c[i - 1]
            to = schedule.node(float(schedule.time(source.lam + part * h))) if part < 1 else target
            if eta and part > before:
                kept = math.exp(-(part - before) * eta * h)
                noise = kept * noise + math.sqrt(1 - kept**2) * draw()
            moved = to.sigma / source.sigma * math.exp(-eta * part * h) * x + to.sigma * noise
            integral = sum(weight * each for weight, each in zip(row, predictions, strict=True))
            stage = moved + to.alpha * (1 + eta) * h * integral
            if i < len(c):
                predictions.append(data(stage, to))
        x = stage
    return x


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "tableau", "options"),
    [
        ("res-2s", tableau_2(0.5, "heun"), {}),
        ("seeds-2", tableau_2(0.5, "midpoint"), {}),
        ("seeds-2", tableau_2(0.5, "heun"), {"solver_type": "heun"}),
        ("exp-heun", tableau_2(1.0, "heun"), {}),
        ("exp-heun", tableau_2(1.0, "midpoint"), {"solver_type": "midpoint"}),
        ("seeds-3", seeds_3, {}),
        ("res-3s", res_3s, {}),
    ],
)
def test_runge_kutta_is_its_tableau(name: str, tableau: Tableau, options: dict, eta: float, kind: str) -> None:
    nodes = nodes_of(SCHEDULES[kind])
    alike(ours(name, nodes, SCHEDULES[kind], eta=eta, **options), runge_kutta(nodes, SCHEDULES[kind], tableau, eta))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_names_of_tables_that_were_there(kind: str) -> None:
    """res_2s, res_2m, res_multistep, seeds_3 without noise and their kin are tables with other names."""
    schedule, nodes = SCHEDULES[kind], nodes_of(SCHEDULES[kind], 20, clean=False)
    times = [node.time for node in nodes]
    for (one, with_one), (other, with_other) in (
        (("res-2s", {}), ("dpmpp-2s", {"solver_type": "heun"})),
        (("seeds-3", {"eta": 0.0}), ("dpmpp-3s", {})),
        (("seeds-2", {"eta": 0.0}), ("dpmpp-2s-ancestral", {"eta": 0.0})),
        (("seeds-2", {"eta": 0.0, "solver_type": "heun"}), ("res-2s", {})),
        (("res-multistep-ancestral", {"eta": 0.0}), ("dpmpp-2m", {"solver_type": "heun"})),
        (("res-multistep-ancestral", {}), ("dpmpp-2m-sde", {"solver_type": "heun"})),
        (("er-sde", {"order": 1, "scale": "sde"}), ("dpmpp-1-sde", {})),
        (("er-sde", {"order": 1, "scale": "ode"}), ("ddim", {})),
        (("tcd", {"eta": 0.0}), ("ddim", {})),
        (("gradient-estimation", {"gamma": 1.0}), ("ddim", {})),
        (
            ("sa-solver", {"order": 2, "corrector_order": 0, "eta": 0.0}),
            ("dpmpp-2m", {"solver_type": "heun"}),
        ),
        (
            ("sa-solver", {"order": 2, "corrector_order": 0, "start": 1e9, "end": 0.0}),
            ("dpmpp-2m-sde", {"solver_type": "heun"}),
        ),
        (
            ("sa-solver", {"corrector_order": 0, "eta": 0.0}),
            ("dpmpp-3m", {"solver_type": "heun", "variant": "exact"}),
        ),
    ):
        first, second = (
            fs.build_table(name, schedule, times, prediction_type="sample", **options).unroll()
            for name, options in ((one, with_one), (other, with_other))
        )
        for part in ("a", "b", "c"):
            got, want = getattr(first, part)[-1], getattr(second, part)[-1]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-14, err_msg=f"{one} {other}")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_res_3m_reads_its_history_as_stages(kind: str) -> None:
    nodes, x, seen = nodes_of(SCHEDULES[kind], 14), start(nodes_of(SCHEDULES[kind], 14)), list[tuple[float, Array]]()
    for source, target in itertools.pairwise(nodes):
        seen.insert(0, (source.lam, data(x, source)))
        if target.sigma == 0:
            x = seen[0][1]
            continue
        h = target.lam - source.lam
        c = [(lam - source.lam) / h for lam, _ in seen[1:3]]
        b1, b = phi(1, -h), list[float]()
        if len(c) == 1:
            b = [phi(2, -h) / c[0]]
        elif len(c) == 2:
            g = (3 * c[1] ** 2 - 2 * c[1]) / (c[0] * (2 - 3 * c[0]))
            third = phi(2, -h) / (g * c[0] + c[1])
            b = [g * third, third]
        weights = [b1 - sum(b), *b]
        integral = sum(weight * each for weight, (_, each) in zip(weights, seen, strict=False))
        x = target.sigma / source.sigma * x + target.alpha * h * integral
    alike(ours("res-3m", nodes, SCHEDULES[kind]), x)


@pytest.mark.parametrize("split", ["posterior", "rf"])
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_res_multistep_ancestral_goes_down_and_up(kind: str, eta: float, split: str) -> None:
    nodes, draw = nodes_of(SCHEDULES[kind]), draws()
    x, older, before = start(nodes), None, math.nan
    for source, target in itertools.pairwise(nodes):
        newest = data(x, source)
        if target.sigma == 0:
            x = newest
            continue
        down, up = split_of(source, target, eta, split)
        h = math.log(source.sbar) - math.log(down)
        b2 = 0.0 if older is None else phi(2, -h) / (-before / h)
        bar = math.exp(-h) * x / source.alpha + h * ((phi(1, -h) - b2) * newest + (b2 * older if b2 else 0.0))
        x = target.alpha * bar + up * draw()
        older, before = newest, h  # the last prediction lies as far back as it was from its own lower level
    alike(ours("res-multistep-ancestral", nodes, SCHEDULES[kind], eta=eta, split=split), x)


def split_of(source: Node, target: Node, eta: float, split: str) -> tuple[float, float]:
    """sigma / alpha of the lower level, and the noise in the sample."""
    if split == "posterior":
        up = eta * target.sbar * math.sqrt(1 - (target.sbar / source.sbar) ** 2)
        return math.sqrt(target.sbar**2 - up**2), target.alpha * up
    s, t = (node.sigma / (node.alpha + node.sigma) for node in (source, target))
    d = t * (1 + (t / s - 1) * eta)
    down = d / (1 - d)
    return down, target.alpha * math.sqrt(target.sbar**2 - down**2)


# --- ancestral steps on flow models ------------------------------------------------------------------------


def noised(x: Array, d: float, target: Node, z: Array) -> Array:
    """From level d of a rectified flow back onto the target, as printed: scaled, then noise."""
    k = (1 - target.sigma) / (1 - d)
    return np.asarray(k * x + math.sqrt(target.sigma**2 - (k * d) ** 2) * z)


def flow_at(s: float) -> Node:
    return FLOW.node(s)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["euler", "dpm2", "dpmpp-2s-ancestral"])
def test_rectified_flow_s_ancestral_steps(name: str, eta: float) -> None:
    """Euler a RF, DPM2 a RF, DPM++ 2S a RF in the flow's own level s."""
    nodes, draw = nodes_of(FLOW), draws()
    x = start(nodes)
    for source, target in itertools.pairwise(nodes):
        s, newest = source.sigma, data(x, source)
        if target.sigma == 0:
            x = newest
            continue
        d = target.sigma * (1 + (target.sigma / s - 1) * eta)
        if name == "euler":
            lower = d / s * x + (1 - d / s) * newest
        elif name == "dpm2":
            middle = math.sqrt(s * d)
            stage = x + (middle - s) * (x - newest) / s
            lower = x + (d - s) * (stage - data(stage, flow_at(middle))) / middle
        else:
            lam = (math.log((1 - s) / s) + math.log((1 - d) / d)) / 2
            middle = 1 / (1 + math.exp(lam))
            stage = middle / s * x + (1 - middle / s) * newest
            lower = d / s * x + (1 - d / s) * data(stage, flow_at(middle))
        x = noised(lower, d, target, draw())
    alike(ours(name, nodes, FLOW, eta=eta, split="rf"), x)


# --- ER-SDE, gradient estimation, Heun++ -------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("scale", "options"), [("er-sde", {}), ("sde", {"eta": 1.0}), ("sde", {"eta": 0.5}), ("ode", {})]
)
@pytest.mark.parametrize("integral", ["exact", "riemann"])
def test_er_sde_is_the_papers_update(kind: str, order: int, scale: str, options: dict, integral: str) -> None:
    """With SciPy's quadrature, or the released sum."""
    nodes, draw = nodes_of(SCHEDULES[kind], 16), draws()
    x, seen = start(nodes), list[tuple[float, Array]]()

    def f(level: float) -> float:
        power = {"sde": level ** options.get("eta", 0.0), "ode": 1.0}
        return level * (math.exp(level**0.3) + 10 if scale == "er-sde" else power[scale])

    def over(function: Callable[[float], float], low: float, high: float) -> float:
        if integral == "exact":
            return float(quad(function, low, high, epsabs=1e-13, epsrel=1e-13)[0])
        width = (high - low) / 200
        return math.fsum(function(low + i * width) * width for i in range(200))

    for source, target in itertools.pairwise(nodes):
        seen.insert(0, (source.sbar, data(x, source)))
        if target.sigma == 0:
            x = seen[0][1]
            continue
        low, high = target.sbar, source.sbar
        r, change = f(low) / f(high), low - high
        bar = r * x / source.alpha + (1 - r) * seen[0][1]
        slopes = [(d0 - d1) / (l0 - l1) for (l0, d0), (l1, d1) in itertools.pairwise(seen[:3])]
        if order > 1 and slopes:
            bar = bar + (change + f(low) * over(lambda level: 1 / f(level), low, high)) * slopes[0]
        if order > 2 and len(slopes) > 1:
            bend = 2 * (slopes[0] - slopes[1]) / (seen[0][0] - seen[2][0])
            second = over(lambda level, high=high: (level - high) / f(level), low, high)
            bar = bar + (change**2 / 2 + f(low) * second) * bend
        left = max(0.0, low**2 - (r * high) ** 2)
        x = target.alpha * (bar + math.sqrt(left) * (draw() if left > 1e-15 else 0.0))
    got = ours("er-sde", nodes, SCHEDULES[kind], order=order, scale=scale, integral=integral, **options)
    alike(got, x, 1e-9 if integral == "exact" else 1e-11)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_gradient_estimation_takes_the_last_error_out(kind: str) -> None:
    nodes, older = nodes_of(SCHEDULES[kind]), None
    x = start(nodes)
    for source, target in itertools.pairwise(nodes):
        slope = (x - source.alpha * data(x, source)) / source.sigma
        used = slope if older is None or target.sigma == 0 else 2 * slope - older
        x, older = target.alpha * (x / source.alpha + (target.sbar - source.sbar) * used), slope
    alike(ours("gradient-estimation", nodes, SCHEDULES[kind]), x)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_heunpp_weighs_slopes_ahead(kind: str, clean: bool) -> None:
    """On VP models in x / alpha, on flow models in x, over sigma / alpha and sigma."""
    nodes, flow = nodes_of(SCHEDULES[kind], clean=clean), kind == "flow"

    def level(node: Node) -> float:
        return node.sigma if flow else node.sbar

    def slope(bar: Array, node: Node) -> Array:
        x = bar if flow else node.alpha * bar
        return (bar - data(x, node)) / level(node)

    s, x = [level(node) for node in nodes], start(nodes)
    bar = x if flow else x / nodes[0].alpha
    for i in range(len(nodes) - 1):
        first = slope(bar, nodes[i])
        slopes, weights = [first], [1.0]
        if s[i + 1] > 0:
            one = bar + (s[i + 1] - s[i]) * first
            slopes.append(slope(one, nodes[i + 1]))
            weights = [1 - s[i + 1] / (2 * s[0]), s[i + 1] / (2 * s[0])]
            if i + 2 < len(nodes) and s[i + 2] > 0:
                slopes.append(slope(one + (s[i + 2] - s[i + 1]) * slopes[1], nodes[i + 2]))
                late = [s[i + 1] / (3 * s[0]), s[i + 2] / (3 * s[0])]
                weights = [1 - sum(late), *late]
        bar = bar + (s[i + 1] - s[i]) * sum(w * each for w, each in zip(weights, slopes, strict=True))
    alike(ours("heunpp", nodes, SCHEDULES[kind]), bar if flow else nodes[-1].alpha * bar)


# --- SA-Solver ---------------------------------------------------------------------------------------------


def adams(points: Sequence[float], lam_s: float, lam_t: float, k: float) -> list[float]:
    """k int e^(-k (lam_t - lam)) l_j(lam) dlam of the Lagrange polynomials of `points`, by quadrature."""

    def lagrange(j: int, lam: float) -> float:
        return math.prod((lam - other) / (points[j] - other) for i, other in enumerate(points) if i != j)

    def weight(lam: float, j: int) -> float:
        return k * math.exp(-k * (lam_t - lam)) * lagrange(j, lam)

    return [float(quad(weight, lam_s, lam_t, (j,), epsrel=1e-13)[0]) for j in range(len(points))]


@pytest.mark.parametrize("pece", [False, True], ids=["pec", "pece"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(("p", "c", "eta"), [(3, 4, 1.0), (2, 3, 0.6), (3, 1, 1.0), (1, 2, 0.0)])
def test_sa_solver_corrects_and_predicts(pece: bool, kind: str, clean: bool, p: int, c: int, eta: float) -> None:
    """From the corrected sample and the noise of the step before, both kept; orders fall where the end is clean."""
    schedule, noisiest, cleanest = SCHEDULES[kind], 2.5, 0.25
    nodes, draw = nodes_of(schedule, 16, clean), draws()
    n, x, predicted = len(nodes) - 1, start(nodes), start(nodes)
    seen, before = list[tuple[float, Array]](), (0.0, np.zeros_like(x))
    for i in range(n):
        source, target = nodes[i], nodes[i + 1]
        seen.insert(0, (source.lam, data(predicted, source)))
        if i and not (target.sigma == 0 and not pece):
            tau, noise = before
            last, points = nodes[i - 1], [lam for lam, _ in seen[: min(c, i + 1, n - i if clean else 99)]]
            weights = adams(points, last.lam, source.lam, 1 + tau**2)
            kept = source.sigma / last.sigma * math.exp(-(tau**2) * (source.lam - last.lam))
            integral = sum(w * each for w, (_, each) in zip(weights, seen, strict=False))
            x = kept * x + source.alpha * integral + noise
            if pece:
                seen[0] = (source.lam, data(x, source))
        if target.sigma == 0:
            x = seen[0][1]
            break
        h, tau = target.lam - source.lam, eta if cleanest <= target.sbar <= noisiest else 0.0
        points = [lam for lam, _ in seen[: min(p, i + 1, n - 1 - i if clean else 99)]]
        weights = adams(points, source.lam, target.lam, 1 + tau**2)
        integral = sum(w * each for w, (_, each) in zip(weights, seen, strict=False))
        std = target.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
        noise = std * draw() if tau else np.zeros_like(x)
        predicted = target.sigma / source.sigma * math.exp(-(tau**2) * h) * x + target.alpha * integral + noise
        before = tau, noise
    if not clean:
        x = predicted
        if pece:  # a last evaluation there only corrects
            tau, noise = before
            last, end = nodes[-2], nodes[-1]
            seen.insert(0, (end.lam, data(predicted, end)))
            x_before = (predicted - noise - target.alpha * integral) * source.sigma / target.sigma
            x_before = x_before * math.exp(tau**2 * (end.lam - last.lam))
            weights = adams([lam for lam, _ in seen[:c]], last.lam, end.lam, 1 + tau**2)
            integral = sum(w * each for w, (_, each) in zip(weights, seen, strict=False))
            kept = end.sigma / last.sigma * math.exp(-(tau**2) * (end.lam - last.lam))
            x = kept * x_before + end.alpha * integral + noise
    orders = {"predictor_order": p} if pece else {"order": p}
    name = "sa-solver-pece" if pece else "sa-solver"
    got = ours(name, nodes, schedule, corrector_order=c, eta=eta, start=noisiest, end=cleanest, **orders)
    alike(got, x, 1e-10)


def test_sa_solver_s_window_is_of_the_model_s_time() -> None:
    for schedule in (VP, FLOW):
        times = np.linspace(0.95, 0.02, 30)
        table = fs.build_table("sa-solver", schedule, times, prediction_type="sample")
        for step in table.steps:
            assert (step.next.noise > 0) == (0.2 <= step.target.time <= 0.8)


# --- consistency models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_consistency_sampling_is_exact_on_consistency_functions(kind: str, steps: int) -> None:
    """Where the model maps samples of Gaussian data along the ODE, every step makes the marginal again, exactly."""
    schedule, std = SCHEDULES[kind], 0.5
    nodes = schedule.nodes([*np.linspace(1.0, 0.1, steps), 0.0])
    table = build_table_on_nodes("lcm", nodes, prediction_type="sample")
    response = np.array([1.0])
    for step in table.steps:
        marginal = math.hypot(step.node.alpha * std, step.node.sigma)
        response = np.array(
            [*(step.next.sample + step.next.output * std / marginal) * response * 1.0, step.next.noise]
        )
        if step is table.steps[0]:
            response[0] *= marginal
    assert float(np.linalg.norm(response)) == pytest.approx(std, rel=1e-12)


def test_consistency_sampling_noises_the_data() -> None:
    for schedule in (VP, FLOW):
        nodes, draw = nodes_of(schedule), draws()
        x = start(nodes)
        for source, target in itertools.pairwise(nodes):
            noise = draw() if target.sigma else 0.0
            x = target.alpha * data(x, source) + target.sigma * noise
        alike(ours("lcm", nodes, schedule), x)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_strategic_stochastic_sampling(gamma: float) -> None:
    for schedule in (VP, FLOW):
        nodes, draw = nodes_of(schedule), draws()
        x = start(nodes)
        for source, target in itertools.pairwise(nodes):
            beyond = schedule.node((1 - gamma) * target.time)
            clean = data(x, source)
            noise = (x - source.alpha * clean) / source.sigma
            y = beyond.alpha * clean + beyond.sigma * noise
            ratio = target.alpha / beyond.alpha
            left = max(0.0, target.sigma**2 - (ratio * beyond.sigma) ** 2)
            x = ratio * y + math.sqrt(left) * (draw() if left > 1e-15 else 0.0)
        alike(ours("tcd", nodes, schedule, eta=gamma), x, 1e-9)


# --- the package itself ------------------------------------------------------------------------------------

EXPLODING = EDMSchedule(1e-3, 1e3, 1.0)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize(
    ("function", "name", "options"),
    [
        ("sample_euler_ancestral", "euler", {}),
        ("sample_dpm_2_ancestral", "dpm2", {}),
        ("sample_dpmpp_2s_ancestral", "dpmpp-2s-ancestral", {}),
        ("sample_dpmpp_sde", "dpmpp-sde", {}),
        ("sample_dpmpp_2m_sde", "dpmpp-2m-sde", {}),
        ("sample_dpmpp_3m_sde", "dpmpp-3m-sde", {"solver_type": "heun"}),
    ],
)
def test_stochastic_samplers_are_k_diffusion_s(function: str, name: str, options: dict, eta: float) -> None:
    """With the noise of each call handed to both."""
    theirs = getattr(k_diffusion_sampling(), function)
    sigmas = [*np.exp(np.linspace(math.log(14.6), math.log(0.03), 20)).tolist(), 0.0]
    nodes = [Node(EXPLODING.node_at(sigma).time, 1.0, sigma) for sigma in sigmas]
    x, draw = start(nodes), draws()

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(data_prediction(x.numpy(), 1.0, float(sigma[0])))

    def noise(*_: Any) -> torch.Tensor:
        return torch.from_numpy(draw())

    grid = torch.tensor(sigmas, dtype=torch.float64)
    want = theirs(model, torch.from_numpy(x), grid, disable=True, eta=eta, noise_sampler=noise)
    alike(ours(name, nodes, EXPLODING, eta=eta, **options), want.numpy())


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=SCHEDULES)
@pytest.mark.parametrize("name", ["er-sde", "seeds-2", "seeds-3", "sa-solver", "sa-solver-pece"])
def test_the_new_stochastic_ones_keep_the_marginal(name: str, schedule: NoiseSchedule) -> None:
    """Unit Gaussian data stay so within the bias of 120 steps, and samples forget where they started."""
    lam = np.linspace(-4.0, 4.0, 121)
    table = fs.build_table(name, schedule, schedule.time(lam), prediction_type="sample")
    response = gaussian_response(table, 1.0)
    end = table.steps[-1].target
    assert float(np.square(response).sum()) == pytest.approx(end.alpha**2 + end.sigma**2, abs=0.02)
    assert abs(float(response[0])) < 0.9  # the noise was used
