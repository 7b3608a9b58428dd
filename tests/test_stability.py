"""Orders limited by stability under guidance: what the limit is, and that it holds on guided exact models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from laid_grids import grid_of

import fastsample as fs
from fastsample.schedules import Node
from fastsample.solvers import available, build_table_on_nodes
from fastsample.tables.lower import advance
from fastsample.tables.stability import allowed_gain, alternating_gain, stiffness
from fastsample.tables.table import output_of

MULTISTEP = {
    **{name: {} for name in ("dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm", "adams", "accelerated")},
    **{"hb-dpmpp-2m": {}, "hb": {"order": 3}, "nesterov": {"order": 2}, "unipc-noise": {"order": 3}},
}
CASES = [*MULTISTEP.items(), *(("ghvb", {"order": order, "beta": beta}) for order in (2, 4) for beta in (0.5, 0.8))]


def table(
    name: str, nodes: tuple[Node, ...], scale: float | None, options: Mapping[str, object] = MappingProxyType({})
) -> fs.Table:
    lower_final = available()[name].lower_final
    return build_table_on_nodes(
        name, nodes, prediction_type="flow_prediction", lower_final=lower_final, stable_guidance=scale, **options
    )


def uniform(count: int) -> tuple[Node, ...]:
    """Nodes uniform in sigma / alpha."""
    levels = np.linspace(4.0, 1.0, count + 1)
    return tuple(Node(level, 1 / (1 + level), level / (1 + level)) for level in levels)


@pytest.mark.parametrize(("order", "gain"), [(1, 1.0), (2, 2.0), (3, 11 / 3), (4, 20 / 3)])
def test_the_gain_of_adams_methods(order: int, gain: float) -> None:
    """1 / gain of the way to -2 is where their stability ends on the negative axis (Hairer and Wanner, V.1)."""
    nodes = uniform(6)
    row = available()["plms"].rule(nodes[:5], nodes[5], order=order)
    assert alternating_gain(row) == pytest.approx(gain)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_gain_is_what_a_run_makes_of_an_alternation(name: str, options: dict[str, object]) -> None:
    """On predictions +1, -1, .. once the history is full, the change of a step against that on +1, +1, ..."""
    count = 120
    nodes = uniform(count)
    rule, asked = available()[name].rule, {"order": options.get("order", available()[name].order)}
    context = {"previous_order": asked["order"], "started": True, "ahead": math.inf, "published": False}
    known = {key: value for key, value in context.items() if key in available()[name].context}
    row = rule(nodes[:-1], nodes[-1], **asked, **known, **{k: v for k, v in options.items() if k != "order"})

    def change(predictions: np.ndarray) -> float:
        entries, velocity = [predictions[0]] * 8, predictions[0]
        for prediction in predictions:
            read, before = [prediction, *entries[::-1]], velocity

            def mean(
                history: tuple[float, ...], kept: float, read: list[float] = read, before: float = before
            ) -> float:
                return float(np.dot(history, read[: len(history)])) + kept * before

            made = mean(row.next.history, row.next.states.get("velocity", 0.0))
            entries.append(mean(row.entry.history, 0.0) if row.entry else prediction)
            if "velocity" in row.states:
                update = row.states["velocity"]
                velocity = mean(update.history, update.states["velocity"])
        return made

    signs = (-1.0) ** np.arange(count)[::-1]
    assert alternating_gain(row) == pytest.approx(change(signs) / change(np.ones(count)), rel=1e-9)


def test_where_the_limit_is() -> None:
    assert stiffness(0.0, 3.0) == 3.0
    assert stiffness(3.0, 3.0) == stiffness(-3.0, 3.0) < 1.3
    assert stiffness(-math.inf, 5.0) == 1.0
    noisy, middle, clean = (Node(0.0, 1 / (1 + s), s / (1 + s)) for s in (9.0, 1.0, 0.0))
    assert allowed_gain(noisy, middle, 3.0) == pytest.approx(2 / (3 * (1 - 1 / 9)))
    assert allowed_gain(middle, clean, 3.0) == pytest.approx(2 / 3)
    assert allowed_gain(Node(1.0, 0.0, 1.0), middle, 3.0) == math.inf


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("scale", [2.0, 3.0, 5.0])
def test_a_guided_linear_model_is_stable(name: str, options: dict[str, object], scale: float) -> None:
    """D = (1 - m) y with m as supposed: what decays does not grow where a first-order step does not."""
    for grid, steps in itertools.product((None, "trailing", "quadratic"), (5, 8, 10, 20)):
        nodes = grid_of("flow-3", grid, steps)[2]
        first, limited = (grown(table(*one), scale) for one in (("ddim", nodes, None), (name, nodes, scale, options)))
        assert limited <= max(1.0, first) + 1e-9, (grid, steps)


def test_without_the_limit_it_is_not() -> None:
    nodes = grid_of("flow-3", "trailing", 8)[2]
    assert grown(table("ghvb", nodes, None, {"order": 4}), 5.0) > 10


def grown(made: fs.Table, scale: float) -> float:
    """The largest |y| of a run from y = 1 at the first noise level with signal, relative to that."""
    samples, stored = [], made.lowered.empty
    sample = math.hypot(made.steps[0].node.alpha, made.steps[0].node.sigma)
    for step, lowered in zip(made.steps, made.lowered.steps, strict=True):
        node = step.node
        data = (1 - stiffness(node.lam, scale)) * sample / node.alpha if node.has_signal else 0.0
        output = output_of(node, made.prediction_type, data, (sample - node.alpha * data) / node.sigma)
        sample, stored = advance(lowered, sample, output, stored, 0.0)
        samples.append(sample / step.target.alpha)
    return max(map(abs, samples[1:])) / abs(samples[0])


def test_small_steps_keep_their_order() -> None:
    for name, options in CASES:
        nodes = grid_of("flow-1", "log-snr", 160)[2][20:140]
        assert table(name, nodes, 4.0, options) == table(name, nodes, None, options), name


@pytest.mark.parametrize("scale", [0.5, math.nan, math.inf, True, "3"])
def test_what_is_no_guidance_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"stable_guidance = .*: give a guidance scale of at least 1, or None"):
        table("dpmpp-2m", uniform(4), scale)


def test_single_step_solvers_have_no_limit() -> None:
    with pytest.raises(ValueError, match=r"stable_guidance = 3.0: 'dpmpp-2s' is single-step: leave it out"):
        table("dpmpp-2s", uniform(4), 3.0)
