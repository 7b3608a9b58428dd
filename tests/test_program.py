"""Programs compute what their tables say, in few operations, and keep no more than is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.sampling import compile_program, run_step
from fastsample.solvers import available
from fastsample.tables import Table

VP = fs.NoiseSchedule.linear_vp()


def tables(name: str) -> list[Table]:
    """At every order, on an uneven grid, for three prediction types."""
    solver = available()[name]
    times = VP.time(np.linspace(-3.0, 2.0, 7) + 0.3 * np.sin(np.arange(7)))
    return [
        fs.build_table(name, VP, times, prediction_type=kind, **({"order": order} if order else {}))
        for kind in ("epsilon", "v_prediction", "sample")
        for order in solver.orders or (None,)
    ]


@pytest.mark.parametrize("name", available())
def test_a_program_computes_its_table(name: str) -> None:
    for table in tables(name):
        generator = np.random.default_rng(0)
        outputs, noises = generator.standard_normal((2, table.nfe))
        want = table._run(0.7, outputs, noises)
        program, values, x = (
            compile_program(table),
            dict[str, torch.Tensor](),
            torch.tensor([0.7], dtype=torch.float64),
        )
        for n, instructions in enumerate(program.steps):
            output, noise = (torch.tensor([value], dtype=torch.float64) for value in (outputs[n], noises[n]))
            x = run_step(instructions, x, output, values, noise)
            assert float(x) == pytest.approx(want[n + 1], rel=1e-9, abs=1e-9)
        assert values == {}  # the last step leaves nothing behind


def test_no_more_is_kept_than_read() -> None:
    times = np.linspace(1, 0.1, 9)
    for name, kept in (("ddim", 0), ("dpmpp-2m", 1), ("dpmpp-3m", 2), ("hb-dpmpp-2m", 2), ("unipc", 2)):
        program, values = compile_program(fs.build_table(name, VP, times)), dict[str, torch.Tensor]()
        for instructions in program.steps[:6]:
            run_step(instructions, torch.zeros(1), torch.zeros(1), values, torch.zeros(1))
        assert len(values) == kept, (name, list(values))


def test_scales_stay_bounded_over_a_thousand_steps() -> None:
    for options in ({"beta": 0.02}, {"beta": 0.98}):
        program = compile_program(fs.build_table("ghvb", VP, np.linspace(1, 1e-3, 1001), **options))
        scales = np.abs(list(program.scales.values()))
        assert scales.min() > 1e-3
        assert scales.max() < 1e3


def test_kept_values_are_the_callers() -> None:
    """A stored entry is never the model's own output: a captured model writes the next one over it."""
    program = compile_program(fs.build_table("plms", VP, np.linspace(1, 0.1, 5)))
    output, values = torch.ones(3), dict[str, torch.Tensor]()
    run_step(program.steps[0], torch.zeros(3), output, values)
    (stored,) = values.values()
    output.zero_()
    assert torch.equal(stored, torch.ones(3))
