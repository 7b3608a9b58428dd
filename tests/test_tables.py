"""Tables against the papers' closed formulas, and what the marginal check catches."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import check_refused

from fastsample.schedules import GRIDS, NoiseSchedule, time_grid
from fastsample.solvers import available, build_table, build_table_on_nodes
from fastsample.tables import PREDICTION_TYPES, Row, Table, Weights, phi, prediction_weights
from fastsample.tables.interpolation import interpolation_weights
from fastsample.tables.orders import multistep_orders, singlestep_orders
from fastsample.tables.table import output_of

VP = NoiseSchedule.linear_vp()
TIMES = [1.0, 0.8, 0.55, 0.4, 0.2, 0.05]
SOLVERS = available()


def closed_forms(kind: str, lam: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, i: int) -> dict[str, float]:
    """phi1, phi2, phi3 with their signs as methods papers print them, for the step from i to i + 1."""
    h = lam[i + 1] - lam[i]
    if kind == "noise":
        p1 = math.expm1(h)
        p2 = p1 / h - 1
        return dict(h=h, X=alpha[i + 1] / alpha[i], A=sigma[i + 1], sgn=-1, p1=p1, p2=p2, p3=p2 / h - 0.5)
    p1 = math.expm1(-h)
    p2 = p1 / h + 1
    return dict(h=h, X=sigma[i + 1] / sigma[i], A=alpha[i + 1], sgn=1, p1=p1, p2=p2, p3=p2 / h - 0.5)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_multistep_two_and_three_match_the_formulas(kind: str, solver_type: str) -> None:
    lam, alpha, sigma = VP.lam(TIMES), VP.alpha(TIMES), VP.sigma(TIMES)
    name = "dpm" if kind == "noise" else "dpmpp"
    native = "epsilon" if kind == "noise" else "sample"
    two = build_table(f"{name}-2m", VP, TIMES, prediction_type=native, solver_type=solver_type).steps
    for i in range(1, 5):
        c = closed_forms(kind, lam, alpha, sigma, i)
        r0 = (lam[i] - lam[i - 1]) / c["h"]
        k1 = c["A"] * c["p1"] / (2 * r0) if solver_type == "midpoint" else -c["sgn"] * c["A"] * c["p2"] / r0
        want = (c["X"], -c["A"] * c["p1"] - k1, k1)
        got = two[i].next
        assert (got.sample, got.output, got.history[0]) == pytest.approx(want, rel=1e-12, abs=1e-12)
    for variant, factor in (("released", 1), ("exact", 2)):
        three = build_table(f"{name}-3m", VP, TIMES, prediction_type=native, variant=variant).steps
        for i in range(2, 5):
            c = closed_forms(kind, lam, alpha, sigma, i)
            r0, r1 = (lam[i] - lam[i - 1]) / c["h"], (lam[i - 1] - lam[i - 2]) / c["h"]
            c1, c2 = c["sgn"] * c["A"] * c["p2"], -factor * c["A"] * c["p3"]
            g0 = (c1 * (1 + r0 / (r0 + r1)) + c2 / (r0 + r1)) / r0
            g1 = -(c1 * r0 + c2) / ((r0 + r1) * r1)
            want = (c["X"], -c["A"] * c["p1"] + g0, g1 - g0, -g1)
            got = three[i].next
            assert (got.sample, got.output, *got.history) == pytest.approx(want, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_singlestep_two_and_three_match_the_formulas(kind: str, solver_type: str) -> None:
    lam, alpha, sigma = VP.lam(TIMES), VP.alpha(TIMES), VP.sigma(TIMES)
    name, native = ("dpm", "epsilon") if kind == "noise" else ("dpmpp", "sample")
    c = closed_forms(kind, lam, alpha, sigma, 0)
    two = build_table(f"{name}-2s", VP, TIMES, prediction_type=native, solver_type=solver_type).steps
    assert float(VP.lam(two[1].node.time)) == pytest.approx(lam[0] + 0.5 * c["h"])
    ku = -c["A"] * c["p1"] if solver_type == "midpoint" else c["sgn"] * c["A"] * c["p2"] / 0.5
    got = two[1].next
    want = (c["X"], ku, -c["A"] * c["p1"] - ku)
    assert (got.states["base"], got.output, got.history[0]) == pytest.approx(want, rel=1e-11, abs=1e-12)
    three = build_table(f"{name}-3s", VP, TIMES, prediction_type=native, solver_type=solver_type).steps
    r1, r2 = 1 / 3, 2 / 3
    assert float(VP.lam(three[2].node.time)) == pytest.approx(lam[0] + r2 * c["h"])
    stage = three[2].node
    inner = closed_forms(
        kind,
        np.array([lam[0], stage.lam]),
        np.array([alpha[0], stage.alpha]),
        np.array([sigma[0], stage.sigma]),
        0,
    )
    q = c["sgn"] * (r2 / r1) * inner["A"] * inner["p2"]
    got = three[1].next
    want = (inner["X"], q, -inner["A"] * inner["p1"] - q)
    assert (got.states["base"], got.output, got.history[0]) == pytest.approx(want, rel=1e-11, abs=1e-12)
    c1, c2 = c["sgn"] * c["A"] * c["p2"], -c["A"] * c["p3"]
    k1, k2 = (0.0, c1 / r2) if solver_type == "midpoint" else (
        (c1 * r2 - 2 * c2) / ((r2 - r1) * r1),
        (2 * c2 - c1 * r1) / ((r2 - r1) * r2),
    )  # fmt: skip
    got = three[2].next
    want = (c["X"], k2, k1, -c["A"] * c["p1"] - k1 - k2)
    assert (got.states["base"], got.output, *got.history) == pytest.approx(want, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_sde_matches_the_formulas(solver_type: str) -> None:
    lam, alpha, sigma = VP.lam(TIMES), VP.alpha(TIMES), VP.sigma(TIMES)
    data = build_table("dpmpp-2m-sde", VP, TIMES, prediction_type="sample", solver_type=solver_type).steps
    noise = build_table("dpm-2m-sde", VP, TIMES, solver_type=solver_type).steps
    for i in range(1, 5):
        h = lam[i + 1] - lam[i]
        r0 = (lam[i] - lam[i - 1]) / h
        d0 = alpha[i + 1] * -math.expm1(-2 * h)
        d1 = d0 / 2 if solver_type == "midpoint" else alpha[i + 1] * (-math.expm1(-2 * h) / (-2 * h) + 1)
        got = data[i].next
        want = (
            sigma[i + 1] / sigma[i] * math.exp(-h),
            d0 + d1 / r0,
            -d1 / r0,
            sigma[i + 1] * math.sqrt(-math.expm1(-2 * h)),
        )
        assert (got.sample, got.output, got.history[0], got.noise) == pytest.approx(want, rel=1e-11, abs=1e-12)
        e0 = -2 * sigma[i + 1] * math.expm1(h)
        e1 = e0 / 2 if solver_type == "midpoint" else -2 * sigma[i + 1] * (math.expm1(h) / h - 1)
        got = noise[i].next
        want = (alpha[i + 1] / alpha[i], e0 + e1 / r0, -e1 / r0, sigma[i + 1] * math.sqrt(math.expm1(2 * h)))
        assert (got.sample, got.output, got.history[0], got.noise) == pytest.approx(want, rel=1e-11, abs=1e-12)


def exact_phi(k: int, z: float) -> float:
    return math.fsum(z**j / math.factorial(j + k) for j in range(80))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("z", [-6.0, -0.51, -0.49, -1e-3, 0.0, 1e-9, 0.1, 0.499, 0.501, 5.0])
def test_phi(k: int, z: float) -> None:
    assert phi(k, z) == pytest.approx(exact_phi(k, z), rel=1e-12 if abs(z) < 2 else 1e-10)


@pytest.mark.parametrize("k", range(6))
def test_phi_at_its_ends(k: int) -> None:
    """The limits; e^z / z^k where e^z alone has no float; no jump where the formula changes."""
    assert phi(k, -math.inf) == 0
    assert phi(k, math.inf) == phi(k, 1e308) == math.inf
    assert 0 <= phi(k, -1e308) <= 1e-300 or k == 0
    assert phi(k, 0.0) == 1 / math.factorial(k)
    assert phi(k, 5e-324) == phi(k, -5e-324) == phi(k, 0.0)
    if k:
        assert phi(k, 712.0) == pytest.approx(math.exp(712.0 - k * math.log(712.0)), rel=1e-12)
    for edge in (-1.0, 1.0, 700.0):
        below, above = phi(k, math.nextafter(edge, -math.inf)), phi(k, math.nextafter(edge, math.inf))
        assert below == pytest.approx(above, rel=2e-12)
    with pytest.raises(ValueError, match="k = -1"):
        phi(-1, 0.0)


@given(
    st.lists(st.floats(-4, 1), min_size=1, max_size=4, unique_by=lambda x: round(2 * x)),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_interpolation_weights_solve_their_system(points: list[float], moments: list[float]) -> None:
    """Against NumPy's solve, within its own rounding."""
    system = np.vander(points, increasing=True).T
    want = np.linalg.solve(system, moments[: len(points)])
    got = interpolation_weights(points, moments[: len(points)])
    np.testing.assert_allclose(got, want, atol=1e-13 * np.linalg.cond(system) * (1 + np.abs(want).max()))


@pytest.mark.parametrize("schedule", [VP, NoiseSchedule.flow()])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_recover_data_and_noise(schedule: NoiseSchedule, prediction_type: str) -> None:
    for t in (0.05, 0.5, 0.95):
        node = schedule.node(t)
        data, noise = 1.7, -0.6
        x, output = node.alpha * data + node.sigma * noise, output_of(node, prediction_type, data, noise)
        for space, want in (("data", data), ("noise", noise)):
            a, b = prediction_weights(node, prediction_type, space)  # type: ignore[arg-type]
            assert a * x + b * output == pytest.approx(want, rel=1e-12)


def test_a_planted_wrong_sign_dies_in_the_marginal_check() -> None:
    source, target = VP.node(0.5), VP.node(0.4)
    right = build_table("dpmpp-2m", VP, [0.6, 0.5, 0.4], prediction_type="sample").steps[1].next
    good = Weights(right.sample, history=(right.output, *right.history))
    Row(source, target, good, "data")
    for bad in (
        dataclasses.replace(good, history=(-right.output, *right.history)),
        dataclasses.replace(good, history=(right.output, -right.history[0])),
        dataclasses.replace(good, sample=-right.sample),
        dataclasses.replace(good, noise=0.1),
    ):
        with pytest.raises(ValueError, match="marginal check failed"):
            Row(source, target, bad, "data")
    with pytest.raises(ValueError, match="not finite"):
        Row(source, target, dataclasses.replace(good, sample=math.nan), "data")


def test_a_wrong_history_entry_dies_in_the_table_check() -> None:
    table = build_table("ghvb", VP, TIMES)
    assert table.steps[1].entry is not None
    broken = dataclasses.replace(table.steps[1], entry=dataclasses.replace(table.steps[1].entry, output=0.9))
    with pytest.raises(ValueError, match="constant noise ends at"):
        dataclasses.replace(table, steps=(table.steps[0], broken, *table.steps[2:]))


@pytest.mark.parametrize("name", SOLVERS)
@given(
    grid=st.sampled_from(sorted(GRIDS)),
    steps=st.integers(1, 24),
    flow=st.booleans(),
    shift=st.floats(0.3, 12),
    lower=st.sampled_from([False, True, 10]),
    final=st.sampled_from(["zero", "sigma_min"]),
    pick=st.integers(0, 59),
)
@settings(max_examples=40, deadline=None)
def test_any_grid_gives_a_finite_consistent_table(
    name: str, grid: str, steps: int, flow: bool, shift: float, lower: bool | int, final: str, pick: int
) -> None:
    """At any order; constants are integrated exactly, or the table would not be made. sigma falls at every step."""
    orders = available()[name].orders
    options = {"order": orders[pick % len(orders)]} if orders else {}
    flow = flow and available()[name].flow
    schedule = NoiseSchedule.flow(shift) if flow else NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
    times = time_grid(grid, schedule, steps, final=final)
    if len(times) < 2:
        return
    prediction = "flow_prediction" if flow else "v_prediction"
    table = build_table(name, schedule, times, prediction_type=prediction, lower_final=lower, **options)
    ends = [step.target.sbar for step in table.steps if step.target.time in times]
    assert np.all(np.diff(ends) <= 0) or available()[name].looks_ahead
    assert ends[-1] == min(ends)
    unrolled = table.unroll()
    assert all(np.isfinite(array).all() for array in (unrolled.a, unrolled.b, unrolled.c))
    assert Table.from_json(table.to_json()) == table
    assert np.all(np.triu(unrolled.b[:-1]) == 0)  # x_i depends on outputs before i alone


TEXT = json.loads(build_table("hb-dpmpp-2m", VP, TIMES).to_json())


def changed(*path: Any, **values: Any) -> str:
    """TEXT with `values` set in the object at `path`; ... takes a key away."""
    raw = copy.deepcopy(TEXT)
    place = functools.reduce(lambda inner, key: inner[key], path, raw)
    for key, value in values.items():
        place.pop(key) if value is ... else place.update({key: value})
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "keys missing"),
        ("[]", "Table is"),
        ("null", "Table is None"),
        ("", "text is not JSON"),
        (json.dumps(TEXT)[:-9], "text is not JSON"),
        ("[" * 100_000, "text is not JSON"),
        (None, "text is None"),
        (changed(more=1), "unknown ['more']"),
        (changed(steps=...), "missing ['steps']"),
        (changed(steps=[]), "steps = ()"),
        (changed(steps={}), "Table.steps is {}"),
        (changed(solver=3), "Table.solver is 3"),
        (changed(exact_variance=1), "Table.exact_variance is 1"),
        (changed(prediction_type="noise"), "prediction_type = 'noise'"),
        (changed("steps", 0, data=[1.0]), "steps[0].data has 1 values"),
        (changed("steps", 0, node=None), "steps[0].node is None"),
        (changed("steps", 0, "node", alpha=...), "missing ['alpha']"),
        (changed("steps", 0, "node", alpha=math.nan), "alpha is nan"),
        (changed("steps", 0, "node", alpha=-1.0), "alpha and sigma >= 0"),
        (changed("steps", 0, "next", sample="1"), "next.sample is '1'"),
        (changed("steps", 0, "next", sample=True), "next.sample is True"),
        (changed("steps", 0, "next", sample=math.inf), "next.sample is inf"),
        (changed("steps", 0, "next", sample=10**400), "next.sample is"),
        (changed("steps", 0, "next", history=[[1.0]]), "next.history[0] is"),
        (changed("steps", 0, "next", history=[0.5]), "no step before it has made"),
        (changed("steps", 1, states={}), "no step before it has made"),
        (changed("steps", 2, "next", sample=1e300), "constant data ends at"),
    ],
)
def test_a_wrong_text_of_a_table_is_one_line(text: Any, words: str) -> None:
    check_refused(lambda: Table.from_json(text), words)


def test_compiling_and_checking_are_linear_in_the_steps() -> None:
    """Four times the steps take at most six times as long: quadratic would be sixteen."""

    def seconds(steps: int) -> float:
        nodes = VP.nodes(np.linspace(1, 0.01, steps + 1))
        runs = []
        for _ in range(10):  # the least of them: caches and collections of a busy process come in between
            start = time.process_time()
            build_table_on_nodes("dpmpp-2m", nodes)
            runs.append(time.process_time() - start)
        return min(runs)

    assert seconds(800) < 6 * seconds(200)


def test_unroll_equals_the_recurrence() -> None:
    rng = np.random.default_rng(0)
    for name in ("dpmpp-3m", "ghvb", "hb-dpmpp-2m", "dpm-3s", "nesterov", "dpmpp-2m-sde"):
        table = build_table(name, VP, TIMES)
        outputs, noises = rng.normal(size=(2, table.nfe))
        unrolled = table.unroll()
        samples = table.recurrence(0.3, outputs, noises)
        closed = unrolled.a * 0.3 + unrolled.b @ outputs + unrolled.c @ noises
        np.testing.assert_allclose(samples, closed, rtol=1e-12, atol=1e-12)
        assert name in str(table)


def test_order_plans() -> None:
    assert multistep_orders(6, 3) == [1, 2, 3, 3, 3, 3]
    assert multistep_orders(6, 3, True) == [1, 2, 3, 3, 2, 1]
    assert multistep_orders(6, 3, 6) == [1, 2, 3, 3, 3, 3]
    assert multistep_orders(5, 3, 6) == [1, 2, 3, 2, 1]
    # DPM-Solver-fast: [3]*(K-2)+[2,1], [3]*(K-1)+[1], [3]*(K-1)+[2] with K = NFE // 3 + 1
    assert singlestep_orders(9, 3, True) == [1, 2, 3, 1, 2, 3, 1, 2, 1]
    assert singlestep_orders(10, 3, True) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert singlestep_orders(11, 3, True) == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]
    assert singlestep_orders(6, 2, True) == [1, 2, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dpmp-2m", {}, "solver = 'dpmp-2m' is unknown: did you mean"),
        ("ghvb", {"order": 6}, "order = 6"),
        ("ghvb", {"order": True}, "order = True"),
        ("ghvb", {"beta": 0.0}, "beta = 0.0"),
        ("ghvb", {"beta": 1.5}, "beta = 1.5"),
        ("ghvb", {"betta": 0.5}, "option betta = 0.5"),
        ("hb-dpmpp-2m", {"beta": float("nan")}, "beta = nan"),
        ("hb", {"order": 0}, "order = 0"),
        ("ddim", {"order": 2}, "option order = 2"),
        ("ddim", {"eta": 2.0}, "eta = 2.0"),
        ("dpmpp-2m", {"solver_type": "bh2"}, "solver_type = 'bh2'"),
        ("dpmpp-3m", {"variant": "new"}, "variant = 'new'"),
        ("dpmpp-1-sde", {"solver_type": "heun"}, "option solver_type = 'heun' is unknown"),
        ("er-sde", {"scale": "vp"}, "scale = 'vp'"),
        ("er-sde", {"integral": "sum"}, "integral = 'sum'"),
        ("er-sde", {"order": 4}, "order = 4"),
        ("gradient-estimation", {"gamma": 0.5}, "gamma = 0.5"),
        ("seeds-2", {"solver_type": "bh2"}, "solver_type = 'bh2'"),
        ("seeds-3", {"eta": -0.1}, "eta = -0.1"),
        ("sa-solver", {"corrector_order": 5}, "corrector_order = 5"),
        ("sa-solver-pece", {"predictor_order": 0}, "predictor_order = 0"),
        ("sa-solver", {"eta": 2.0}, "eta = 2.0"),
        ("tcd", {"eta": 1.5}, "eta = 1.5"),
        ("ddim", {"split": "ve", "eta": 1.0}, "split = 've'"),
        ("res-3s", {"order": 2}, "option order = 2"),
        ("dpmpp-2m", {"prediction_type": "noise"}, "prediction_type = 'noise'"),
        ("dpmpp-2m", {"lower_final": -1}, "lower_final = -1"),
        ("dpmpp-2m", {"lower_final": "yes"}, "lower_final = 'yes'"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict, words: str) -> None:
    check_refused(lambda: build_table(name, VP, TIMES, **options), words)


def test_epsilon_at_zero_snr_is_refused() -> None:
    schedule = NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="zero-terminal SNR"):
        build_table("ddim", schedule, [999.0, 500.0, 0.0])
