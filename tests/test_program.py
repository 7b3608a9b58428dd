"""The lowered form computes what its table says, in few operations, and keeps no more than is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.sampling import Runner
from fastsample.sampling.executor import BLOCK
from fastsample.solvers import available
from fastsample.tables import Combination, Table
from fastsample.tables.lower import lower

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


def by_definition(table: Table, sample: Any, outputs: Any, noises: Any) -> list[Any]:
    """All samples, straight from the table's rows."""
    samples, history, states = [sample], list[Any](), dict[str, Any]()

    def value(c: Combination, n: int) -> Any:
        total = c.sample * samples[-1] + c.output * outputs[n] + c.noise * noises[n]
        total = total + sum(w * entry for w, entry in zip(c.history, history, strict=False) if w)
        return total + sum(w * states[name] for name, w in c.states.items() if w)

    for n, step in enumerate(table.steps):
        entry = value(step.entry, n) if step.entry is not None else 0.0
        new = {name: value(c, n) for name, c in step.states.items()}
        samples.append(value(step.next, n))
        history.insert(0, entry)
        states.update(new)
    return samples


@pytest.mark.parametrize("name", available())
def test_the_lowered_form_computes_its_table(name: str) -> None:
    for table in tables(name):
        generator = np.random.default_rng(0)
        outputs, noises = generator.standard_normal((2, table.nfe))
        want = by_definition(table, 0.7, outputs, noises)
        assert table.recurrence(0.7, outputs, noises) == pytest.approx(want, rel=1e-9, abs=1e-9)
        runner, x = Runner(table), torch.tensor([0.7], dtype=torch.float64)
        for n in range(table.nfe):
            output, noise = (torch.tensor([value], dtype=torch.float64) for value in (outputs[n], noises[n]))
            x = runner.step(n, x, output, noise)
            assert float(x) == pytest.approx(want[n + 1], rel=1e-9, abs=1e-9)
        assert live(runner) == 0  # the last step leaves nothing behind


@pytest.mark.parametrize("name", available())
def test_the_closed_form_is_the_loop(name: str) -> None:
    """`unroll` on tensors, all of a trajectory's outputs and noises at once."""
    for table in tables(name):
        generator = torch.Generator().manual_seed(1)
        x, *rest = torch.randn(1 + 2 * table.nfe, 2, 3, generator=generator, dtype=torch.float64)
        outputs, noises = torch.stack(rest[: table.nfe]), torch.stack(rest[table.nfe :])
        unrolled = table.unroll()
        a, b, c = (torch.from_numpy(array) for array in (unrolled.a, unrolled.b, unrolled.c))
        closed = a[:, None, None] * x + torch.tensordot(b, outputs, 1) + torch.tensordot(c, noises, 1)
        runner = Runner(table)
        for n in range(table.nfe):
            x = runner.step(n, x, outputs[n], noises[n])
            torch.testing.assert_close(x, closed[n + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", available())
def test_a_matrix_of_a_step_is_its_sums(name: str) -> None:
    """What a kernel or a graph is given, with every slot filled; entries move on, states stay or are made."""
    for table in tables(name):
        lowered, generator = table.lowered, np.random.default_rng(2)
        outputs, noises = generator.standard_normal((2, table.nfe))
        want, x = by_definition(table, 0.7, outputs, noises), 0.7
        stored = np.zeros(len(lowered.empty))
        for n, matrix in enumerate(lowered.dense()):
            x, *made = matrix @ np.array([x, outputs[n], noises[n], *stored])[list(lowered.inputs)]
            entries = [*made[:1], *stored[: lowered.history - 1]] if lowered.history else []
            stored = np.array([*entries, *made[len(entries[:1]) :]])
            assert x == pytest.approx(want[n + 1], rel=1e-9, abs=1e-9)


class Operations(TorchDispatchMode):
    """Counts what computes: not the making of an empty tensor, or of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not str(func).startswith(("aten.empty", "aten.new_ones"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", available())
def test_a_step_is_an_operation_a_term(name: str, dtype: torch.dtype) -> None:
    """At most as many as the rows have terms, written out; rounding to the sample's dtype is none of its own."""
    for table in tables(name):
        runner, x, noise = Runner(table), torch.zeros(8, dtype=dtype), torch.zeros(8)
        for n, (step, lowered) in enumerate(zip(table.steps, table.lowered.steps, strict=True)):
            with Operations() as operations:
                runner.step(n, x, x, noise)
            sums = sum(len(others) + (factor != 1 or not others) for _, others, factor in lowered.sums)
            casts = dtype != torch.float32  # of a sum of one narrow term, of a last sum without a factor
            assert operations.count <= sums + casts
            rows = [c for c in (step.next, step.entry, *step.states.values()) if c is not None]
            assert sums <= sum(terms(c) for c in rows)


def terms(c: Combination) -> int:
    return sum(w != 0 for w in (c.sample, c.output, c.noise, *c.history, *c.states.values()))


@pytest.mark.parametrize(("name", "most"), [("ddim", 2), ("dpmpp-2m", 4), ("dpmpp-3m", 5), ("unipc", 7), ("ghvb", 7)])
def test_the_operations_of_a_middle_step(name: str, most: int) -> None:
    table = fs.build_table(name, VP, np.linspace(1, 0.1, 21))
    runner, x = Runner(table), torch.zeros(8)
    for n in range(10):
        with Operations() as operations:
            runner.step(n, x, x)
        assert operations.count <= most


def live(runner: Runner) -> int:
    return sum(value is not None for value in runner.stored)


def test_no_more_is_kept_than_read() -> None:
    times = np.linspace(1, 0.1, 9)
    for name, kept in (("ddim", 0), ("dpmpp-2m", 1), ("dpmpp-3m", 2), ("hb-dpmpp-2m", 2), ("unipc", 2)):
        runner = Runner(fs.build_table(name, VP, times))
        for n in range(6):
            runner.step(n, torch.zeros(1), torch.zeros(1), torch.zeros(1))
        assert live(runner) == kept, name


def test_scales_stay_bounded_over_a_thousand_steps() -> None:
    for options in ({"beta": 0.02}, {"beta": 0.98}):
        table = fs.build_table("ghvb", VP, np.linspace(1, 1e-3, 1001), **options)
        scales = np.abs([scale for step in table.lowered.steps for scale in step.scales if scale is not None])
        assert scales.min() > 1e-3
        assert scales.max() < 1e3


def test_kept_values_are_the_callers() -> None:
    """A stored entry is never the model's own output: a captured model writes the next one over it."""
    runner = Runner(fs.build_table("plms", VP, np.linspace(1, 0.1, 5)))
    output = torch.ones(3)
    runner.step(0, torch.zeros(3), output)
    (stored,) = [value for value in runner.stored if value is not None]
    output.zero_()
    assert torch.equal(stored, torch.ones(3))


def test_what_is_stored_is_never_written_to() -> None:
    """So that a step may be taken back, and a copy goes its own way."""
    for name in ("unipc", "hb-dpmpp-2m", "dpm-3s"):
        runner = Runner(fs.build_table(name, VP, np.linspace(1, 0.1, 9)))
        x = torch.linspace(-1, 1, 5)
        for n in range(6):
            before = runner.stored
            copies = [None if value is None else value.clone() for value in before]
            new = runner.step(n, x, 0.5 * x)
            for value, copy in zip(before, copies, strict=True):
                assert value is copy is None or torch.equal(value, copy)
            runner.stored = before
            assert torch.equal(runner.step(n, x, 0.5 * x), new)
            x = new


def test_reading_what_was_never_made_is_refused() -> None:
    steps = fs.build_table("dpmpp-2m", VP, np.linspace(1, 0.1, 5)).steps
    with pytest.raises(ValueError, match="step 1 reads 'history 0', which no step before it has made"):
        lower([dataclasses.replace(steps[0], entry=None), *steps[1:]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "hb-dpmpp-2m", "dpm-3s", "dpmpp-2m-sde"])
def test_large_narrow_samples_are_what_their_pieces_are(name: str, dtype: torch.dtype) -> None:
    """Summed block by block where they lie in one order, to the rounding of the result, and stored in float32."""
    table, size = fs.build_table(name, VP, np.linspace(1, 0.1, 7)), 4 * BLOCK * torch.get_num_threads() + 12
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(size, generator=generator) for _ in range(2))
    x = x.to(dtype).reshape(4, -1)
    for noise_dtype in (torch.float32, dtype):
        z = noise.to(noise_dtype).reshape(4, -1)
        for same in (x, x.T.contiguous().T):
            whole, parts, want, got = Runner(table), [Runner(table) for _ in range(4)], x, same
            for n in range(table.nfe):
                pieces = [run.step(n, *(v[i : i + 1] for v in (want, 0.5 * want, z))) for i, run in enumerate(parts)]
                want, got = torch.cat(pieces), whole.step(n, got, 0.5 * got, z)
                assert got.dtype == dtype
                torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
                got = want.clone() if same is x else want.T.contiguous().T
                assert {value.dtype for value in whole.stored if value is not None} <= {torch.float32}


@pytest.mark.parametrize("size", [5, 4 * BLOCK])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradients_flow_through_steps(dtype: torch.dtype, size: int) -> None:
    """Through the samples, and through the outputs where the samples are detached; they are the closed form's."""
    for name in ("ddim", "dpmpp-2m", "unipc", "dpm-3s"):
        table = fs.build_table(name, VP, np.linspace(1, 0.1, 5))
        unrolled = table.unroll()
        start = torch.ones(size, dtype=dtype, requires_grad=True)
        outputs = [torch.ones(size, dtype=dtype, requires_grad=True) for _ in range(table.nfe)]
        for first, weight in ((start, unrolled.a[-1]), (start.detach(), None)):
            x, runner = first, Runner(table)
            for n, output in enumerate(outputs):
                x = runner.step(n, x, output)
            inputs = [*([start] if weight is not None else []), *outputs]
            found = torch.autograd.grad(x.float().sum(), inputs, allow_unused=True)
            want = [*([weight] if weight is not None else []), *unrolled.b[-1]]
            close = 0.05 if dtype == torch.bfloat16 else 1e-4
            assert [0.0 if grad is None else float(grad[0]) for grad in found] == pytest.approx(
                want, rel=close, abs=close
            )
