"""From a solver's name and a grid to its table."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from fastsample.schedules.base import Node, NoiseSchedule, require_falling_noise
from fastsample.solvers.registry import Solver, check_choice, get_solver, log_step
from fastsample.tables.orders import (
    LowerFinal,
    break_long_blocks,
    lower_at_limits,
    lower_at_long_steps,
    multistep_orders,
    singlestep_orders,
)
from fastsample.tables.prediction import check_prediction_type
from fastsample.tables.row import Row
from fastsample.tables.stability import stable
from fastsample.tables.table import Table, compile_rows
from fastsample.tables.transforms import dualfast as apply_dualfast


def build_table(
    name: str,
    schedule: NoiseSchedule,
    times: ArrayLike,
    *,
    prediction_type: str = "epsilon",
    lower_final: LowerFinal = False,
    dualfast: float = 0.0,
    stable_guidance: float | None = None,
    blocks: Sequence[int] | None = None,
    rising: bool = False,
    **options: Any,
) -> Table:
    """The coefficients of solver `name` on a grid.

    `times` are the step boundaries, noisy to clean, the final time included (see `fastsample.time_grid`;
    `schedule.clean_time` as the last one means sigma = 0). A single-step solver adds its stages at fixed
    fractions of each step in log-SNR, so it makes `order` evaluations a step; a step from zero SNR or onto
    sigma = 0 has no stages and is of order 1.

    `lower_final` lowers the order of the last steps: never (False), always (True), or when there are fewer
    evaluations than the given int. `dualfast` in [0, 1) is the strength of DualFast's correction
    (:func:`fastsample.tables.transforms.dualfast`; 0: none). `stable_guidance` is the guidance scale, of at least 1,
    under which every step of a multistep solver shall be stable, at a lower order or one in between where it is not
    (:mod:`fastsample.tables.stability`; None: no such limit). `blocks` gives a single-step solver the order of each
    step, as :func:`fastsample.tables.orders.fast_blocks` does. With `rising` the grid goes from clean to noisy, as
    inversion does; from sigma = 0 on with a solver on noise predictions, "ddim" among them. `options` are the
    solver's own (`fastsample.available_solvers()[name].options`).
    Raises ValueError for unknown names and options, values out of range, and grids whose noise does not fall.
    """
    return build_table_on_nodes(
        name,
        schedule.nodes(times, rising=rising),
        schedule=schedule,
        prediction_type=prediction_type,
        lower_final=lower_final,
        dualfast=dualfast,
        stable_guidance=stable_guidance,
        blocks=blocks,
        rising=rising,
        **options,
    )


def build_table_on_nodes(
    name: str,
    nodes: Sequence[Node],
    *,
    schedule: NoiseSchedule | None = None,
    prediction_type: str = "epsilon",
    lower_final: LowerFinal = False,
    euler_at_final: bool = False,
    dualfast: float = 0.0,
    stable_guidance: float | None = None,
    blocks: Sequence[int] | None = None,
    published: bool = False,
    rising: bool = False,
    **options: Any,
) -> Table:
    """As :func:`build_table`, on given marginals; `euler_at_final` makes a multistep's last update of order 1.

    Without a `schedule` a single-step solver takes its stages from the nodes themselves (every node but the
    last is one evaluation, as diffusers' single-step scheduler does), with it it inserts them. Solvers of whole
    steps, and those that ask for it (`Solver.needs_schedule`), need one: ValueError without. `published` leaves the
    orders of long steps, and how they are made, as the solver's authors have them.
    """
    solver = get_solver(name)
    check_prediction_type(prediction_type)
    if not isinstance(lower_final, int) or lower_final < 0:
        raise ValueError(f"lower_final = {lower_final!r}: use True, False or an integer of at least 0")
    order, options = _check_options(solver, options)
    nodes = tuple(nodes)
    require_falling_noise(nodes, rising=rising)
    if rising:
        _check_rising(solver, nodes[0], options, stable_guidance)
    _check_marginals(solver, nodes)
    _check_stable_guidance(solver, stable_guidance)
    if solver.needs_schedule and schedule is None:
        raise ValueError(
            f"schedule = None: solver {solver.name!r} reads the noise schedule between its nodes; give it"
        )
    if blocks is not None:
        _check_blocks(solver, blocks, len(nodes) - 1, schedule)
    if solver.stages and schedule is not None:
        orders = list(blocks) if blocks else _step_orders(solver, nodes, order, lower_final, published)
        nodes, orders = _with_stages(solver, nodes, schedule, orders, published, {**solver.options, **options})
    elif solver.stages:
        orders = _grid_stages(solver, nodes, order, lower_final)
    else:
        orders = multistep_orders(len(nodes) - 1, order, lower_final)
        if not published:
            longest = solver.longest if solver.limits else (math.inf,)
            orders = lower_at_long_steps(orders, nodes, solver.variable, longest)
        orders = lower_at_limits(orders, nodes, solver.variable)
        if euler_at_final:
            orders[-1] = 1
    table = _assemble(solver, nodes, orders, schedule, published, prediction_type, stable_guidance, options)
    return apply_dualfast(table, dualfast, multistep=not solver.stages) if dualfast else table


def _assemble(
    solver: Solver,
    nodes: Sequence[Node],
    orders: Sequence[int],
    schedule: NoiseSchedule | None,
    published: bool,
    prediction_type: str,
    stable_guidance: float | None,
    options: dict[str, Any],
) -> Table:
    context: dict[str, Callable[[], Sequence[Any]]] = {
        "order": lambda: orders,
        "previous_order": lambda: [0, *orders],
        "started": lambda: list(itertools.accumulate([order > 1 for order in orders], operator.or_, initial=False)),
        "block": lambda: _block_lengths(orders),
        "following": lambda: [*nodes[2:], None],
        "ahead": lambda: _noisy_ahead(nodes),
        "schedule": lambda: [schedule] * len(orders),
        "published": lambda: [published] * len(orders),
    }
    asked = {name: context[name]() for name in solver.context}
    known: list[Node] = []  # one list that grows, as a copy of the past for each step costs the square of the steps
    rows: list[Row] = []
    for index, target in enumerate(nodes[1:]):
        known.append(nodes[index])
        given = {name: values[index] for name, values in asked.items()}
        falling = _falling_orders(solver, known, target, given, options)
        rows.append(next(falling) if stable_guidance is None else stable(falling, stable_guidance))
    return compile_rows(solver.name, rows, solver.space, prediction_type, all(row.exact_variance for row in rows))


def _falling_orders(
    solver: Solver, known: Sequence[Node], target: Node, given: dict[str, Any], options: dict[str, Any]
) -> Iterator[Row]:
    """The row of the order in `given`, then those of lower orders, to 2; each is made when it is asked for."""
    yield solver.rule(known, target, **given, **options)
    for order in range(given.get("order", 1) - 1, 1, -1):
        yield solver.rule(known, target, **{**given, "order": order}, **options)


def _block_lengths(orders: Sequence[int]) -> list[int]:
    """For each evaluation, how many the single-step block has that holds it."""
    lengths: list[int] = []
    for index in range(len(orders) - 1, -1, -1):
        last = index + 1 == len(orders) or orders[index + 1] == 1
        lengths.append(orders[index] if last else lengths[-1])
    return lengths[::-1]


def _noisy_ahead(nodes: Sequence[Node]) -> list[float]:
    """For each evaluation, how many noise levels are still ahead; inf where the grid does not end on clean data."""
    if nodes[-1].sigma > 0:
        return [math.inf] * (len(nodes) - 1)
    ahead = [0.0]
    for source, target in itertools.pairwise(reversed(nodes[:-1])):
        ahead.append(ahead[-1] + (target.lam != source.lam))
    return ahead[::-1]


def _grid_stages(solver: Solver, nodes: Sequence[Node], order: int, lower_final: LowerFinal) -> list[int]:
    """Each node's position in its step, where the stages are nodes of the grid."""
    count, head = len(nodes) - 1, int(not nodes[0].has_signal)
    orders = [1] * head + singlestep_orders(count - head, order, lower_final)
    orders = break_long_blocks(orders, nodes, solver.longest)
    if nodes[-1].sigma == 0:  # onto sigma = 0 the last evaluation stands alone
        orders[-1] = 1
    return orders


def _step_orders(
    solver: Solver, nodes: Sequence[Node], order: int, lower_final: LowerFinal, published: bool
) -> list[int]:
    """The order of each whole step: 1 where it is too long, from zero SNR, and where the last is lowered."""
    steps = len(nodes) - 1
    lowers = lower_final if isinstance(lower_final, bool) else steps * order < lower_final
    longest = math.inf if published else solver.longest[min(solver.evaluations, len(solver.longest)) - 1]
    orders = [
        1 if source.has_signal and log_step(source, target) > longest else solver.evaluations
        for source, target in itertools.pairwise(nodes)
    ]
    if not solver.whole_steps:
        orders[0] = orders[0] if nodes[0].has_signal else 1
        orders[-1] = 1 if lowers else orders[-1]
    if solver.looks_ahead:  # to the end of the next step, which must be noisy
        orders[-1] = min(orders[-1], 2)
        orders[-2:-1] = [min(order, 2 + (nodes[-1].sigma > 0)) for order in orders[-2:-1]]
    return orders


def _with_stages(
    solver: Solver,
    nodes: Sequence[Node],
    schedule: NoiseSchedule,
    blocks: Sequence[int],
    published: bool,
    options: Mapping[str, Any],
) -> tuple[tuple[Node, ...], list[int]]:
    """The evaluation nodes with stages, and each one's position in its step. Onto sigma = 0 or zero SNR no stages."""
    steps = list(itertools.pairwise(nodes))
    blocks = [
        block if target.sigma > 0 and target.alpha > 0 else 1
        for (_, target), block in zip(steps, blocks, strict=True)
    ]
    whole = [solver.whole_steps or block == solver.evaluations for block in blocks]
    shares = [solver.stages[: block - 1] if full else _even(block) for block, full in zip(blocks, whole, strict=True)]
    place = solver.place or _stage_lam
    inner = [
        place(source, target, part, options)
        if source.has_signal or (published and source.alpha > 0)
        else _level_lam(source, target, part)
        for (source, target), parts in zip(steps, shares, strict=True)
        for part in parts
        if part < 1
    ]
    stages = iter(schedule.nodes_at(schedule.time(inner)))
    expanded = [nodes[0]]
    for index, parts in enumerate(shares):  # a whole part is the end of this step, or of one after it
        expanded += [next(stages) if part < 1 else nodes[index + int(part)] for part in parts] + [nodes[index + 1]]
    return tuple(expanded), [position for block in blocks for position in range(1, block + 1)]


def _even(block: int) -> tuple[float, ...]:
    return tuple(part / block for part in range(1, block))


def _check_blocks(solver: Solver, blocks: Sequence[int], steps: int, schedule: NoiseSchedule | None) -> None:
    """Raise ValueError unless `blocks` gives a single-step solver one order for each step of a schedule."""
    possible = solver.stages and not solver.whole_steps and schedule is not None
    if not possible or len(blocks) != steps or not all(1 <= block <= solver.evaluations for block in blocks):
        raise ValueError(
            f"blocks = {list(blocks)!r} with {steps} steps of {solver.name!r}: give build_table one order a step, "
            f"each from 1 to {solver.evaluations}, of a single-step solver such as 'dpm-3s'"
        )


def _stage_lam(source: Node, target: Node, part: float, options: Mapping[str, Any]) -> float:
    """lam at `part` of a step in log-SNR."""
    return source.lam + part * log_step(source, target)


def _level_lam(source: Node, target: Node, part: float) -> float:
    """lam at `part` of a step in sigma / (alpha + sigma), which may begin at zero SNR."""
    level = source.fraction + part * (target.fraction - source.fraction)
    return math.log((1 - level) / level)


def _check_rising(solver: Solver, first: Node, options: Mapping[str, Any], stable_guidance: float | None) -> None:
    """Raise ValueError where a solver has no way back: from clean data, or with noise drawn."""
    if stable_guidance is not None:
        raise ValueError(f"stable_guidance = {stable_guidance!r}: where the grid rises nothing damps; leave it out")
    eta = {**solver.options, **options}.get("eta")
    if solver.stochastic if eta is None else eta:
        raise ValueError(
            f"rising = True: solver {solver.name!r} draws noise, which no step back undoes; use 'ddim' or 'dpm-2m'"
        )
    if first.sigma == 0 and (solver.space == "data" or solver.stages):
        raise ValueError(
            f"times[0] = {first.time:g}: solver {solver.name!r} cannot begin on clean data, where sigma = 0; begin "
            "at the first time of training, or use 'ddim', 'dpm-2m' or 'adams'"
        )


def _check_stable_guidance(solver: Solver, scale: float | None) -> None:
    """Raise ValueError unless it is a guidance scale, or None, and the solver has orders to lower."""
    if scale is None:
        return
    if isinstance(scale, (bool, str)) or not 1 <= scale < math.inf:
        raise ValueError(f"stable_guidance = {scale!r}: give a guidance scale of at least 1, or None for no limit")
    if solver.stages:
        raise ValueError(f"stable_guidance = {scale!r}: {solver.name!r} is single-step: leave it out")


def _check_marginals(solver: Solver, nodes: Sequence[Node]) -> None:
    """Raise ValueError where a solver derived for VP marginals is asked to run on others."""
    if solver.flow:
        return
    for node in nodes:
        if abs(node.alpha**2 + node.sigma**2 - 1) > 1e-9:
            raise ValueError(
                f"solver = {solver.name!r} needs a variance-preserving model (alpha^2 + sigma^2 = 1), but at time "
                f"{node.time:g} alpha = {node.alpha:.4g}, sigma = {node.sigma:.4g}: use 'dpmpp-2m-sde' or 'ddim'"
            )


def _check_options(solver: Solver, options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The order, and the other options; ValueError names what the solver takes."""
    known = solver.options
    for key in options:
        if key not in known:
            takes = ", ".join(known) or "no options"
            raise ValueError(
                f"option {key} = {options[key]!r} is unknown to solver {solver.name!r}: it takes {takes}"
            )
    order = options.get("order", solver.order)
    if solver.orders:
        check_choice("order", order, solver.orders)
    rest = {key: value for key, value in options.items() if key != "order"}
    return int(order), rest
