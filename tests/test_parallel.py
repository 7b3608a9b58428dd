"""The parallel iterations: exact on every triangular system, never slower than one state a sweep."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from live import Live
from torch import Tensor

import fastsample
from fastsample.demo.mixture import GaussianMixture
from fastsample.fixed_point import integrate_parallel, solve, solve_blocks
from fastsample.fixed_point.trajectory import noise_scales
from fastsample.fixed_point.updates import UPDATES, Jacobi, make_update
from fastsample.sampling import integrate
from fastsample.schedules import NoiseSchedule, time_grid
from fastsample.solvers import build_table
from fastsample.solvers.registry import available

ITERATIONS = list(UPDATES)


class RandomSystem:
    """`x_{i+1} = A_i x_i + B_i tanh(C_i x_i + D_i u_{i-1})`, where u is the tanh: a history of length 1."""

    def __init__(self, length: int, items: int, seed: int, strength: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (length, items, 3, 3)
        self.length, self.evaluations = length, 0
        self.a, self.b, self.c, self.d = (
            strength * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)
        )
        self.start = torch.randn(items, 3, generator=generator, dtype=torch.float64)
        self.seen = torch.zeros(length, items, 3, dtype=torch.float64)
        self.items = torch.arange(items)

    def initial(self) -> Tensor:
        return self.start[None]

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        return states.expand(len(rows), *states.shape)

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        return _times(self.c[rows, self.items], states)

    def step(self, row: Tensor, state: Tensor, output: Tensor) -> Tensor:
        past = self.seen[row - 1, self.items] * (row > 0)[:, None]
        self.seen[row, self.items] = bent = torch.tanh(output + _times(self.d[row, self.items], past))
        return _times(self.a[row, self.items], state) + _times(self.b[row, self.items], bent)

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        return torch.stack([self.step(*each) for each in zip(rows, states, outputs, strict=True)])

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        made = [states[0]]
        slopes = torch.zeros(rows.shape, dtype=torch.float64) if slopes is None else slopes
        for row, guess, output, slope in zip(rows, states, outputs, slopes, strict=True):
            made.append(self.step(row, made[-1], output + slope[:, None] * (made[-1] - guess)))
        return torch.stack(made[1:])

    def gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(rows.shape, 0.5, dtype=torch.float64), torch.ones(rows.shape, dtype=torch.float64)

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return (new - old).abs().amax(-1)

    def commit(self, begin: Tensor) -> None:
        pass

    def sequential(self) -> Tensor:
        states = [self.start]
        for i in range(self.length):
            row = torch.full((len(self.items),), i)
            states.append(self.step(row, states[-1], self.evaluate(row[None], states[-1][None])[0]))
        return torch.stack(states)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("...ij,...j->...i", matrices, vectors)


def updates() -> list[Any]:
    return [Jacobi, *UPDATES.values()]


@pytest.mark.parametrize("update", updates(), ids=lambda update: update.__name__)
@pytest.mark.parametrize("seed", range(12))
def test_random_triangular_systems(update: Any, seed: int) -> None:
    """Exact at tolerance 0, at least one commit a sweep, at most one sweep a state; any window, any strength."""
    rng = np.random.default_rng(seed)
    length, items = int(rng.integers(1, 14)), int(rng.integers(1, 4))
    window = [None, 1, 2, 5, length, length + 3][seed % 6]
    make = lambda: RandomSystem(length, items, seed, strength=[0.3, 0.8, 1.5][seed % 3])  # noqa: E731
    for tolerance in (0.0, 0.1, 1e9):
        found = solve(make(), update(), window=window, tolerance=tolerance, keep=True)
        states, report = found.trajectory, found.report
        assert torch.equal(found.leading, states[-1])
        starts = np.array([(0,) * items, *report.starts])
        unfinished = starts[:-1] < length
        assert (np.diff(starts, axis=0)[unfinished] >= 1).all()
        assert (starts[-1] == length).all()
        assert report.sweeps == len(report.starts) <= length
        assert report.evaluations <= length * items * min(window or length, length)
        if tolerance == 0:
            torch.testing.assert_close(states, make().sequential(), rtol=1e-12, atol=1e-12)
        if tolerance == 1e9:  # everything counts as settled: a window a sweep
            assert report.sweeps == -(-length // min(window or length, length))


@pytest.mark.parametrize("strides", ["auto", (6, 6, 3, 3, 2), (50,)])
@pytest.mark.parametrize("update", updates(), ids=lambda update: update.__name__)
@pytest.mark.parametrize("window", [None, 13])
def test_coarse_sweeps_are_exact_in_the_end(update: Any, window: int | None, strides: Any) -> None:
    """Whatever they leave out: at tolerance 0 the sequential states, and a commit a sweep for every item."""
    found = solve(RandomSystem(24, 3, 5, 0.5), update(), window=window, strides=strides, keep=True)
    torch.testing.assert_close(found.trajectory, RandomSystem(24, 3, 5, 0.5).sequential(), rtol=1e-12, atol=1e-12)
    starts = np.array([(0,) * 3, *found.report.starts])
    assert (np.diff(starts, axis=0)[starts[:-1] < 24] >= 1).all()
    full = solve(RandomSystem(24, 3, 5, 0.5), update(), window=window, strides="none").report
    if strides != "auto" and window is None:
        assert found.report.evaluations / found.report.sweeps < full.evaluations / full.sweeps


def test_coarse_sweeps_commit_as_far_as_states_are_calm() -> None:
    """What is about to settle is evaluated row by row, however coarse the rest is."""
    schedule, prediction = SCHEDULES["vp"]
    table = build_table("ddim", schedule, time_grid("trailing", schedule, 50), prediction_type=prediction)
    _, report = integrate_parallel(table, lambda x, t: 0 * x, torch.ones(1, 2), tolerance=1e-3, strides=(6,) * 50)
    assert report.sweeps <= 4


@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("steps", [25, 50])
def test_coarse_sweeps_save_evaluations_and_never_cost_any(kind: str, solver: str, steps: int) -> None:
    """On easy models and on hard ones, at every tolerance and window; fewer where the steps are many."""
    schedule, prediction = SCHEDULES[kind]
    table = build_table(solver, schedule, time_grid("trailing", schedule, steps), prediction_type=prediction)
    for components, dims in ((5, 2), (20, 64)):
        model = GaussianMixture.random(components=components, dims=dims).model(schedule, prediction)
        x = torch.randn(16, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for window, tolerance in ((None, 0.1), (None, 0.01), (None, 0.001), (16, 0.01)):
            options: dict[str, Any] = {"window": window, "tolerance": tolerance}
            exact = integrate(table, model, x)
            plain, full = integrate_parallel(table, model, x, strides="none", **options)
            found, coarse = integrate_parallel(table, model, x, strides="auto", **options)
            assert coarse.evaluations <= 1.02 * full.evaluations
            if steps == 50 and window is None and tolerance == 0.01:
                assert coarse.evaluations < 0.82 * full.evaluations
            errors = [float((each - exact).square().mean().sqrt()) for each in (found, plain)]
            assert errors[0] < max(2 * errors[1], tolerance)


@pytest.mark.parametrize("update", updates(), ids=lambda update: update.__name__)
@pytest.mark.parametrize("blocks", [[10], [3, 6, 10], [1, 2, 9, 10]])
def test_blocks_are_settled_in_turn(update: Any, blocks: list[int]) -> None:
    """Block Gauss-Seidel: exact, no sweep leaves its block, and no block takes more sweeps than it has states."""
    system = RandomSystem(10, 2, 3, 0.8)
    states, report = solve_blocks(system, update(), blocks)
    torch.testing.assert_close(states, RandomSystem(10, 2, 3, 0.8).sequential(), rtol=1e-12, atol=1e-12)
    begins = [0, *(start[0] for start in report.starts)]
    assert all(len(set(start)) == 1 for start in report.starts)  # all batch items at once
    assert all(new > old for old, new in pairwise(begins))  # what has settled is not evaluated again
    for begin, end in pairwise([0, *blocks]):
        assert end in begins
        assert 1 <= sum(begin <= start < end for start in begins) <= end - begin


def test_blocks_that_are_cut_short_say_so() -> None:
    exact = RandomSystem(8, 2, 0, 1.5).sequential()
    states, report = solve_blocks(RandomSystem(8, 2, 0, 1.5), Jacobi(), [4, 8], max_sweeps=[2, 4])
    assert report.sweeps == 6
    assert report.residuals[1] > 0
    torch.testing.assert_close(states[:3], exact[:3])
    assert not torch.allclose(states[4], exact[4])


class OverflowingSystem(RandomSystem):
    """As its parent, with outputs that are not numbers where a guess is far from the solution."""

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        far = (states - self.sequential_once()[rows[:, 0]]).abs().amax((1, 2)) > 0.5
        return torch.where(far[:, None, None], torch.nan, super().evaluate(rows, states))

    def sequential_once(self) -> Tensor:
        return RandomSystem(self.length, len(self.items), 3, 0.8).sequential()


def test_a_block_that_overflows_is_solved_one_by_one_and_reported() -> None:
    exact = RandomSystem(10, 2, 3, 0.8).sequential()
    states, report = solve_blocks(OverflowingSystem(10, 2, 3, 0.8), Jacobi(), [4, 10])
    torch.testing.assert_close(states, exact, rtol=1e-12, atol=1e-12)
    assert report.substituted
    assert not solve_blocks(RandomSystem(10, 2, 3, 0.8), Jacobi(), [4, 10])[1].substituted


def test_a_window_of_one_is_sequential() -> None:
    report = solve(RandomSystem(7, 3, 1, 0.8), make_update("secant"), window=1).report
    assert (report.sweeps, report.evaluations) == (7, 21)


SCHEDULES = {
    "vp": (NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}), "epsilon"),
    "flow": (NoiseSchedule.flow(3.0), "flow_prediction"),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("solver", available())
def test_every_table_is_integrated_exactly(solver: str, kind: str) -> None:
    """Tolerance 0: the sequential result, in float64 to 1e-12 and in float32 to rounding, the same noise drawn."""
    schedule, prediction = SCHEDULES[kind]
    mixture = GaussianMixture.random(dims=3)
    model = mixture.model(schedule, prediction)
    try:
        table = build_table(solver, schedule, time_grid("linspace", schedule, 12), prediction_type=prediction)
    except ValueError as error:
        pytest.skip(str(error))
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        x = noise.to(dtype)
        expected = integrate(table, model, x, generator=_streams(4))
        for iteration, window in (("picard", None), ("replay", 5), ("secant", 7), ("anderson", None)):
            found, report = integrate_parallel(
                table, model, x, iteration=iteration, window=window, generator=_streams(4)
            )
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound, msg=f"{iteration} {dtype}")
            assert report.sweeps <= table.nfe


def _streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("iteration", ITERATIONS)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "hb-dpmpp-2m", "dpmpp-2m-sde"])
def test_an_image_does_not_depend_on_its_batch(solver: str, iteration: str) -> None:
    """Each has its own window: the same sweeps and the same sample as alone, at a tolerance that stops early."""
    schedule, prediction = SCHEDULES["vp"]
    model = GaussianMixture.random(components=8, dims=4).model(schedule, prediction)
    table = build_table(solver, schedule, time_grid("trailing", schedule, 25), prediction_type=prediction)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options: dict[str, Any] = {"iteration": iteration, "window": 9, "tolerance": 0.05}
    together, report = integrate_parallel(table, model, x, generator=_streams(5), **options)
    starts = np.array(report.starts)
    alone = [
        integrate_parallel(table, model, x[i : i + 1], generator=_streams(5)[i : i + 1], **options) for i in range(5)
    ]
    torch.testing.assert_close(together, torch.cat([sample for sample, _ in alone]), rtol=1e-9, atol=1e-9)
    for i, (_, own) in enumerate(alone):
        assert starts[: own.sweeps, i].tolist() == [start for (start,) in own.starts]
    assert len({tuple(column) for column in starts.T.tolist()}) > 1  # otherwise this says nothing
    assert report.sweeps == max(own.sweeps for _, own in alone) < 25


def test_sweeps_and_errors_fall_with_the_tolerance() -> None:
    """Fewer sweeps for a looser tolerance, and an error within a small multiple of it."""
    schedule, prediction = SCHEDULES["vp"]
    model = GaussianMixture.random(components=1, dims=16).model(schedule, prediction)
    table = build_table("ddim", schedule, time_grid("trailing", schedule, 100), prediction_type=prediction)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = integrate(table, model, x)
    sweeps, errors = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        found, report = integrate_parallel(table, model, x, tolerance=tolerance)
        sweeps.append(report.sweeps)
        errors.append(float((found - exact).square().mean().sqrt()))
    assert sweeps == sorted(sweeps)
    assert sweeps[-1] < 20
    assert all(error < tolerance for error, tolerance in zip(errors, (1e-1, 1e-2, 1e-3, 1e-4), strict=True))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc", "dpmpp-2m-sde"])
def test_what_the_window_comes_to_is_guessed_by_the_solver(solver: str) -> None:
    """With the last output: exact where the output does not change. Picard copies, as published."""
    schedule, prediction = SCHEDULES["vp"]
    table = build_table(solver, schedule, time_grid("trailing", schedule, 12), prediction_type=prediction)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def after_a_sweep(iteration: str) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        integrate_parallel(
            table,
            lambda x, t: output.expand_as(x),
            x,
            iteration=iteration,
            window=3,
            generator=_streams(2),
            on_sweep=lambda fixed: found.append(fixed.trajectory.clone()),
        )
        return found[0], found[-1]

    first, final = after_a_sweep("replay")
    torch.testing.assert_close(first[:5], final[:5])  # the window's three, and the one that came into it
    if solver == "ddim":
        first, final = after_a_sweep("picard")
        assert torch.equal(first[4], first[3])
        assert not torch.allclose(first[4], final[4])


def test_the_noise_scale_is_the_posterior_variance_of_ddpm() -> None:
    """`(1 - abar_t) / (1 - abar_s) (1 - abar_s / abar_t)`; the step to clean data takes the scale before it."""
    schedule, _ = SCHEDULES["vp"]
    nodes = schedule.nodes([900.0, 500.0, 100.0, schedule.clean_time])
    bar = [node.alpha**2 for node in nodes]
    expected = [
        np.sqrt((1 - after) / (1 - before) * (1 - before / after)) for before, after in itertools.pairwise(bar[:-1])
    ]
    scales = noise_scales(nodes)
    np.testing.assert_allclose(scales[1:3], expected, rtol=1e-9)
    assert scales[3] == scales[2]
    assert scales[0] == scales[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iteration": "newton"}, "iteration = 'newton': choose one of picard, replay, secant, anderson"),
        ({"window": 0}, "window = 0"),
        ({"tolerance": -1.0}, "tolerance = -1.0"),
        ({"tolerance": float("nan")}, "tolerance = nan"),
        ({"strides": "fine"}, "strides = 'fine'"),
        ({"strides": (3, 0)}, "strides = .3, 0."),
    ],
)
def test_wrong_arguments_are_refused_before_any_evaluation(change: dict[str, Any], said: str) -> None:
    schedule, prediction = SCHEDULES["vp"]
    table = build_table("ddim", schedule, time_grid("trailing", schedule, 4), prediction_type=prediction)

    def model(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match=said):
        fastsample.integrate_parallel(table, model, torch.zeros(1, 2), **change)


def test_a_model_that_returns_other_shapes_is_refused() -> None:
    schedule, prediction = SCHEDULES["vp"]
    table = build_table("ddim", schedule, time_grid("trailing", schedule, 4), prediction_type=prediction)
    with pytest.raises(ValueError, match="model output has shape"):
        integrate_parallel(table, lambda x, t: x[:1], torch.zeros(2, 2))


class EnoughError(Exception):
    pass


def observed(steps: int, iteration: str, window: int | None, sweeps: int, solver: str = "dpmpp-2m") -> Live:
    """What some sweeps over a table of `steps` take."""
    schedule, prediction = SCHEDULES["vp"]
    table = build_table(solver, schedule, time_grid("linspace", schedule, steps), prediction_type=prediction)
    calls, live = itertools.count(), Live()

    def model(x: Tensor, t: Tensor) -> Tensor:
        if next(calls) == sweeps:
            raise EnoughError
        return torch.tanh(x)

    with live, pytest.raises(EnoughError):
        integrate_parallel(table, model, torch.randn(1, 4, 32, 32), iteration=iteration, window=window)
    return live


@pytest.mark.parametrize(("iteration", "latents"), [("picard", 4.5), ("secant", 5.5), ("anderson", 9.5)])
def test_memory_is_by_the_window(iteration: str, latents: float) -> None:
    """The peak in samples a state of the window, the model's own output among them, whatever the steps."""
    peaks = [observed(steps, iteration, 16, 20).peak / (4 * 4 * 32 * 32 * 16) for steps in (50, 400)]
    assert max(peaks) < latents
    assert peaks[1] < peaks[0] + 0.5


@pytest.mark.parametrize("window", [8, 40, None])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc"])
def test_a_sweep_is_a_few_operations_at_any_window(solver: str, window: int | None) -> None:
    """One product of a matrix with what the steps are given, not a replay of the steps."""
    more, few = (observed(60, "secant", window, sweeps, solver).operations for sweeps in (7, 5))
    assert (more - few) / 2 <= 25


def test_what_is_not_finite_spoils_only_what_follows_from_it() -> None:
    """A guess far out may overflow the model: the states before it are as good as ever."""
    schedule, prediction = SCHEDULES["vp"]
    table = build_table("dpmpp-2m", schedule, time_grid("trailing", schedule, 12), prediction_type=prediction)
    mixture = GaussianMixture.random(dims=3).model(schedule, prediction)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calls = itertools.count()

    def model(x: Tensor, t: Tensor) -> Tensor:
        output = mixture(x, t)
        return torch.where((t < t.max() / 2)[:, None], torch.nan, output) if next(calls) < 4 else output

    for iteration in ITERATIONS:
        calls = itertools.count()
        found, report = integrate_parallel(table, model, x, iteration=iteration)
        torch.testing.assert_close(found, integrate(table, mixture, x), rtol=1e-10, atol=1e-10)
        assert report.sweeps <= 12
