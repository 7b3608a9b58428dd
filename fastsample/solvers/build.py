"""From a solver's name and a grid to its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from fastsample.schedules.base import Node, NoiseSchedule, require_falling_noise
from fastsample.solvers.registry import Solver, check_choice, get_solver
from fastsample.tables.plan import LowerFinal, lower_at_limits, multistep_orders, singlestep_orders
from fastsample.tables.prediction import check_prediction_type
from fastsample.tables.row import Row
from fastsample.tables.table import Table, compile_rows


def build_table(
    name: str,
    schedule: NoiseSchedule,
    times: ArrayLike,
    *,
    prediction_type: str = "epsilon",
    lower_final: LowerFinal = False,
    **options: Any,
) -> Table:
    """The coefficients of solver `name` on a grid.

    `times` are the step boundaries, noisy to clean, the final time included (see `fastsample.time_grid`;
    `schedule.clean_time` as the last one means sigma = 0). A single-step solver adds its stages at fixed
    fractions of each step in log-SNR, so it makes `order` evaluations a step; a step from zero SNR or onto
    sigma = 0 has no stages and is of order 1.

    `lower_final` lowers the order of the last steps: never (False), always (True), or when there are fewer
    evaluations than the given int. `options` are the solver's own (`fastsample.available_solvers()[name].options`).
    Raises ValueError for unknown names and options, values out of range, and grids whose noise does not fall.
    """
    return build_table_on_nodes(
        name,
        schedule.nodes(times),
        schedule=schedule,
        prediction_type=prediction_type,
        lower_final=lower_final,
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
    **options: Any,
) -> Table:
    """As :func:`build_table`, on given marginals; `euler_at_final` makes a multistep's last update of order 1.

    Without a `schedule` a single-step solver takes its stages from the nodes themselves (every node but the
    last is one evaluation, as diffusers' single-step scheduler does), with it it inserts them.
    """
    solver = get_solver(name)
    check_prediction_type(prediction_type)
    if not isinstance(lower_final, int) or lower_final < 0:
        raise ValueError(f"lower_final = {lower_final!r}: use True, False or an integer of at least 0")
    order, options = _check_options(solver, options)
    nodes = tuple(nodes)
    require_falling_noise(nodes)
    if solver.stages:
        nodes, blocks = _stage_nodes(solver, nodes, order, schedule, lower_final)
        return _assemble(solver, nodes, blocks, prediction_type, options, singlestep=True)
    orders = multistep_orders(len(nodes) - 1, order, lower_final)
    if solver.limits:
        orders = lower_at_limits(orders, nodes)
    if euler_at_final:
        orders[-1] = 1
    return _assemble(solver, nodes, orders, prediction_type, options, singlestep=False)


def _assemble(
    solver: Solver,
    nodes: Sequence[Node],
    orders: Sequence[int],
    prediction_type: str,
    options: Any,
    singlestep: bool,
) -> Table:
    rows: list[Row] = []
    for index, order in enumerate(orders):
        extra = {"block": _block_length(orders, index)} if singlestep else {}
        rows.append(solver.rule(nodes[: index + 1], nodes[index + 1], order=order, **extra, **options))
    return compile_rows(solver.name, rows, solver.space, prediction_type, all(row.exact_variance for row in rows))


def _block_length(orders: Sequence[int], index: int) -> int:
    """The number of evaluations in the single-step block that holds evaluation `index`."""
    rest = orders[index + 1 :]
    end = next((offset for offset, order in enumerate(rest) if order == 1), len(rest))
    return orders[index] + end


def _stage_nodes(
    solver: Solver,
    nodes: tuple[Node, ...],
    order: int,
    schedule: NoiseSchedule | None,
    lower_final: LowerFinal,
) -> tuple[tuple[Node, ...], list[int]]:
    """The evaluation nodes with stages, and each one's position in its step."""
    if schedule is None:
        count, head = len(nodes) - 1, int(nodes[0].alpha == 0)
        orders = [1] * head + singlestep_orders(count - head, order, lower_final)
        if nodes[-1].sigma == 0:  # onto sigma = 0 the last evaluation stands alone
            orders[-1] = 1
        return nodes, orders
    lowers = lower_final if isinstance(lower_final, bool) else (len(nodes) - 1) * order < lower_final
    expanded, orders = [nodes[0]], list[int]()
    for index, target in enumerate(nodes[1:], start=1):
        source, final = nodes[index - 1], index == len(nodes) - 1
        whole = source.alpha > 0 and target.sigma > 0 and not (final and lowers)
        stages = solver.stages if whole else ()
        h = target.lam - source.lam
        expanded += [schedule.node(float(schedule.time(source.lam + r * h))) for r in stages] + [target]
        orders += range(1, len(stages) + 2)
    return tuple(expanded), orders


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
