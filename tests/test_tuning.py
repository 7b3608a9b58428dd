"""Tuning: on mixtures whose ends are known, and on pipelines; the budget, an interrupt, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import pixart, pixart_inputs, quiet, sd3, sd3_inputs, stable_diffusion
from refusal import check_refused
from torch import Tensor

import fastsample as fs
from fastsample.pipelines.serving import serve
from fastsample.solvers.registry import available
from fastsample.tuning.arguments import Arguments
from fastsample.tuning.budget import Sizes
from fastsample.tuning.cell import CellTuner
from fastsample.tuning.check import final_check
from fastsample.tuning.choose import upper_ratio
from fastsample.tuning.geometry import GEOMETRIC
from fastsample.tuning.grid import Base, grid_family
from fastsample.tuning.joint import joint_family
from fastsample.tuning.linear import linear_of
from fastsample.tuning.pairs import Pairs, Purse, loss
from fastsample.tuning.problem import Problem, Start
from fastsample.tuning.rollout import cost, roll_out
from fastsample.tuning.screen import cells, deterministic
from fastsample.tuning.stages import Stages
from fastsample.tuning.teacher import Teacher, teach

VP = fs.NoiseSchedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
FLOW = fs.NoiseSchedule.from_config({"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False})
MIXTURE = fs.GaussianMixture.random(components=5, dims=2, std=0.25, seed=1)


class Mixture:
    """The exact model of the mixture, and how many evaluations it made."""

    def __init__(self, schedule: fs.NoiseSchedule) -> None:
        prediction = "flow_prediction" if schedule.kind == "flow" else "epsilon"
        first, final = schedule.node(schedule.noise_time), schedule.node(schedule.clean_time)
        self.problem = Problem(schedule, prediction, first, final)
        self.model, self.evaluations = MIXTURE.model(schedule, prediction), 0

    def __call__(self, samples: Tensor, times: Sequence[float]) -> Tensor:
        rows, items = samples.shape[:2]
        self.evaluations += rows * items
        told = torch.tensor(times, dtype=torch.float64).repeat_interleave(items)
        return self.model(samples.flatten(0, 1), told).reshape(samples.shape)

    def start(self, count: int, seed: int) -> Start:
        x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).double()
        return Start(x, self.model(x, self.problem.first.time))

    def pairs(self, count: int, seed: int, purse: Purse) -> Pairs:
        schedule, start = self.problem.schedule, self.start(count, seed)
        ends = MIXTURE.reference(schedule, start.sample, schedule.noise_time, schedule.clean_time)
        return Pairs(self, self.problem, start, ends, 1.0, purse)

    def teacher(self, start: Start) -> Teacher:
        schedule = self.problem.schedule
        return teach(self, self.problem, start, schedule.node(schedule.noise_time * 2e-3), 60)


def first(pairs: Pairs, few: int) -> Pairs:
    """The first `few` of them."""
    start = Start(pairs.start.sample[:few], pairs.start.output[:few])
    return dataclasses.replace(pairs, start=start, reference=pairs.reference[:few])


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_every_deterministic_solver_is_a_linear_table(schedule: fs.NoiseSchedule) -> None:
    """Its table, and the table of its linear form, make the same of any outputs."""
    problem = Mixture(schedule).problem
    found = list(cells(problem, 6, [(n, {}) for n, s in available().items() if not s.stochastic]))
    assert {cell.base.solver for cell in found} >= {"dpmpp-2m", "unipc", "deis", "ghvb", "ipndm", "hb", "adams"}
    for cell in found:
        table = cell.base.on(cell.linear.nodes)
        again = cell.linear.table(problem.prediction_type, "linear")
        scale = max(1.0, float(np.abs(table.unroll().b).max()))
        assert np.allclose(table.unroll().a, again.unroll().a, rtol=0, atol=1e-9 * scale)
        assert np.allclose(table.unroll().b, again.unroll().b, rtol=0, atol=1e-9 * scale)


def test_roll_outs_are_what_the_table_makes() -> None:
    """Rows with a shared beginning, evaluated from where they differ, are as rows run by themselves."""
    mixture = Mixture(VP)
    start = mixture.start(5, 0)
    base = Base(mixture.problem, "unipc", {})
    lams = np.array([-1.5, -0.5, 0.5, 1.5])
    family = joint_family(base, 5, 0.1)
    values = np.append(lams, 0.02 * np.arange(len(family.begins) - 4))
    moved = [values, *(values + 0.1 * np.eye(len(values))[k] for k in range(len(values)))]
    tables = [family.build(each) for each in moved]
    begins = [0, *family.begins]
    shared = roll_out(mixture, mixture.problem, tables, start, begins).final
    assert mixture.evaluations == 5 * cost(5, begins)
    for row, table in enumerate(tables):
        alone = fs.integrate(table.table("epsilon", "x"), mixture.model, start.sample)
        assert torch.allclose(shared[row], alone, rtol=0, atol=1e-9)
    assert cost(5, begins) < cost(5, [0] * len(begins)) / 1.7


def test_what_lies_between_the_teachers_points() -> None:
    """Against SciPy's DOP853: the interpolation adds nothing to the teacher's own error."""
    for schedule in (VP, FLOW):
        mixture = Mixture(schedule)
        start = mixture.start(16, 3)
        teacher = mixture.teacher(start)
        for lam in (-1.7, -0.3, 0.9, 2.1):
            node = mixture.problem.nodes([lam])[1]
            exact = MIXTURE.integrate(schedule, start.sample, schedule.noise_time, float(schedule.time(lam)), 1e-9)
            assert float((teacher.at(node) - exact).square().mean().sqrt()) < 2e-3


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_grids_are_grids(name: str) -> None:
    for schedule in (VP, FLOW):
        mixture = Mixture(schedule)
        teacher = mixture.teacher(mixture.start(8, 0))
        for count in (2, 5, 12):
            lams = GEOMETRIC[name](teacher, count)
            assert len(lams) == count - 1
            assert np.all(np.diff(np.append(mixture.problem.first.lam, lams)) > 0)
            assert np.isfinite(lams).all()


@pytest.mark.parametrize(("schedule", "count", "ratio"), [(VP, 5, 0.3), (VP, 8, 0.35), (FLOW, 6, 0.5)])
def test_mixtures_are_tuned(schedule: fs.NoiseSchedule, count: int, ratio: float, tmp_path: Path) -> None:
    """To a fraction of the error of the best untuned solver on any grid, on fresh points."""
    mixture, purse = Mixture(schedule), Purse(10**6)
    tune, validation = mixture.pairs(64, 0, purse), mixture.pairs(64, 1, purse)

    teacher = mixture.teacher(tune.start)

    def tuner() -> CellTuner:
        return CellTuner(
            count=count,
            given=tune.count,
            first=lambda few: first(tune, few),
            validation=validation,
            teacher=teacher,
            stages=Stages(tmp_path, purse, lambda text: None),
            objective="rms",
            weights=True,
            difference=0.03,
            name="cell",
            most=purse.left,
        )

    found = tuner().candidates()
    assert [one.stage for one in found] == ["untuned", "grid", "rows", "joint"]
    chosen = tuner().chosen(found)
    fresh = mixture.pairs(256, 2, Purse(10**9))
    solvers = [(name, {}) for name, _ in deterministic()]
    untuned = loss(fresh.errors([cell.linear for cell in cells(mixture.problem, count, solvers)]), "rms").min()
    table = linear_of(chosen.table(mixture.problem.prediction_type))
    assert loss(fresh.errors([table]), "rms")[0] <= ratio * untuned
    assert [one.to_dict() for one in tuner().candidates()] == [one.to_dict() for one in found]


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize(("given", "validating"), [(3, 8), (8, 9), (16, 8), (40, 21)])
def test_the_least_that_a_cell_takes_is_enough(count: int, given: int, validating: int, tmp_path: Path) -> None:
    """And a little more than that is never overspent."""
    mixture, sizes = Mixture(VP), Sizes(given, validating, 16)
    teacher = mixture.teacher(mixture.start(given, 0))
    for more in (0, 7, 400):
        purse = Purse(sizes.least(count) - sizes.checking(count) + more)
        tune, validation = mixture.pairs(given, 0, purse), mixture.pairs(validating, 1, purse)
        tuner = CellTuner(
            count=count,
            given=given,
            first=partial(first, tune),
            validation=validation,
            teacher=teacher,
            stages=Stages(tmp_path / f"{more}", purse, lambda text: None),
            objective="rms",
            weights=given >= 16,
            difference=0.03,
            name="cell",
            most=purse.left,
        )
        assert tuner.candidates()[0].stage == "untuned"
        assert purse.left >= 0


def test_a_move_never_puts_nodes_out_of_order() -> None:
    family = grid_family(Base(Mixture(VP).problem, "ddim", {}), 3, 0.03)
    values = np.array([-1.0, 0.0, 1.0])
    for moved in ([5.0, -5.0, 0.0], [-9.0, 0.0, 1.0], [np.float64(0.5), 0.4, 0.3]):
        limited = family.limit(values, np.array(moved))
        assert np.all(np.diff(np.append(VP.node(VP.noise_time).lam, limited)) > 0)
    assert np.array_equal(family.limit(values, values + 0.1), values + 0.1)


def test_a_move_never_tells_the_network_times_out_of_order() -> None:
    """Nor other than whole ones where it takes only these: what it is told is then not tuned."""
    problem = Mixture(VP).problem
    family = joint_family(Base(problem, "ddim", {}), 4, 0.03)
    values = np.concatenate([[-1.0, 0.0, 1.0], np.zeros(len(family.begins) - 3)])
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = family.limit(values, values + 3 * rng.standard_normal(len(values)))
        nodes = family.build(values).nodes
        assert np.all(np.diff([node.time for node in nodes]) < 0)
        assert np.all(np.diff([node.lam for node in nodes]) > 0)
    whole = joint_family(Base(dataclasses.replace(problem, whole=True), "ddim", {}), 4, 0.03)
    assert len(whole.begins) == len(family.begins) - 3
    assert all(node.time % 1 == 0 for node in whole.build(np.delete(values, [3, 4, 5])).nodes[:-1])


def test_the_bootstrap_covers_the_ratio() -> None:
    rng = np.random.default_rng(1)
    untuned = 1 + 0.3 * np.abs(rng.normal(size=64))
    assert upper_ratio(0.8 * untuned, untuned) == pytest.approx(0.8)
    assert upper_ratio(untuned * rng.permutation(np.linspace(0.5, 1.5, 64)), untuned) > 1
    assert upper_ratio(np.append(untuned[1:], np.inf), untuned) == np.inf


def test_what_is_not_tuned_is_not_called_so() -> None:
    mixture = Mixture(VP)
    pairs, base = mixture.pairs(16, 0, Purse(10**6)), Base(mixture.problem, "ddim", {})
    coarse, fine = (base.on(mixture.problem.nodes(lams)) for lams in (np.linspace(-2, -1, 9), np.linspace(-2, 3, 9)))
    alone = final_check(pairs, [coarse], None, 2)
    assert not alone.kept
    assert alone.verdict.startswith("untuned: nothing")
    better, worse = final_check(pairs, [coarse], fine, 2), final_check(pairs, [fine], coarse, 2)
    assert (better.kept, worse.kept) == (True, False)
    assert better.verdict.startswith("tuned: ")
    assert worse.verdict.startswith("untuned: ")
    vetoed = final_check(pairs, [coarse], fine, 2, lambda table: [0.0 if table is coarse else -1.0])
    assert not vetoed.kept
    assert "quality" in vetoed.verdict


def test_huber_lets_no_sample_rule() -> None:
    errors = np.append(np.ones(19), 100.0)
    assert loss(errors, "rms") > 20
    assert loss(errors, "huber") < 5


# --- pipelines ---------------------------------------------------------------------------------------------

PROMPTS = [f"a {size} red circle {number}" for size in ("small", "large") for number in range(4)]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return quiet(stable_diffusion())


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trajectories of few steps: of networks that were never trained there is no more to learn."""
    for module in ("budget", "guided"):
        monkeypatch.setattr(f"fastsample.tuning.{module}.TEACHER_STEPS", 12)


@pytest.fixture
def counted(pipe: Any) -> Iterator[list[int]]:
    """The rows that the network has been given."""
    rows = [0]

    def count(module: Any, args: Any, output: Any) -> None:
        rows[0] += len(output[0])

    hook = pipe.unet.register_forward_hook(count)
    yield rows
    hook.remove()


@pytest.mark.parametrize("make", [stable_diffusion, sd3, pixart])
def test_a_pipeline_served_is_the_pipeline(make: Callable[[], Any]) -> None:
    """Tables run over the served denoiser end where the pipeline does with a scheduler of the same table."""
    pipe = quiet(make())
    scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config, timestep_grid="normal")
    arguments: dict[str, Any] = {"prompt": ["a red circle", "a small circle"]}
    if make is pixart:
        arguments = pixart_inputs(2)
    if make is sd3:
        arguments = {name: torch.cat([value] * 2) for name, value in sd3_inputs().items() if "embeds" in name}
    arguments["guidance_scale"] = 3.0
    arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    arguments["output_type"] = "latent"
    table_scheduler = fs.create_scheduler("ghvb", pipe.scheduler.config, grid="trailing", order=2)
    table_scheduler.set_timesteps(4)
    table = table_scheduler.state().table
    with serve(pipe, scheduler, {**arguments, "num_inference_steps": 2}, rows=2) as served:
        x = served.sample
        runner = fs.sampling.Runner(table)
        for index, step in enumerate(table.steps):
            x = runner.step(index, x, served(x[None].expand(3, *x.shape), [step.node.time] * 3)[1])
        assert served.evaluations == 2 * (1 + 1 + 4 * 3)
    arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pipe.scheduler = table_scheduler
    expected = pipe(**arguments, num_inference_steps=4).images
    assert torch.allclose(x, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.usefixtures("coarse")
def test_tune_counts_resumes_and_leaves_the_pipeline(pipe: Any, counted: list[int], tmp_path: Path) -> None:
    before = pipe.scheduler
    settings: dict[str, Any] = {"steps": (2, 3), "guidance": (2.0,), "budget": 1300}
    told: list[str] = []

    def meanwhile(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            with pytest.raises(ValueError, match="another run writes there now"):
                fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "whole")

    whole = fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "whole", report=meanwhile)
    assert told
    evaluations = counted[0] // 2
    assert evaluations <= 1300
    assert evaluations >= sum(one.calls for one in whole.entries)
    assert pipe.scheduler is before
    assert {(one.evaluations, one.guidance) for one in whole.entries} == {(2, 2.0), (3, 2.0)}
    assert {one.tried for one in whole.entries} <= {"untuned", "grid"}  # 8 pairs: the grid alone

    interrupts, counted[0] = 0, 0
    limit = evaluations * 2 // 3
    while True:
        started = counted[0]

        def stop(module: Any, args: Any, output: Any, started: int = started) -> None:
            if counted[0] - started > limit:
                raise KeyboardInterrupt

        hook = pipe.unet.register_forward_hook(stop)
        try:
            resumed = fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "cut")
            break
        except KeyboardInterrupt:
            interrupts += 1
            assert interrupts < 20
        finally:
            hook.remove()
    assert interrupts >= 1
    assert resumed == whole
    counted[0] = 0
    assert fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "cut") == whole
    assert counted[0] == 0  # all of it was on disk
    (stage,) = (tmp_path / "cut").glob("*/timesteps.json")
    stage.write_text(stage.read_text()[:5])  # a crash has cut it: this one is made again
    assert fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "cut") == whole
    (tensors, *_) = (tmp_path / "cut").glob("*/*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:9])
    with pytest.raises(ValueError, match="remove its folder"):
        fs.tune(pipe, PROMPTS, **settings, folder=tmp_path / "cut")


@pytest.mark.usefixtures("coarse")
def test_the_smallest_budget_is_enough_and_one_less_is_refused(pipe: Any, counted: list[int], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": (3, 2), "guidance": (2.0, 1.0), "folder": tmp_path}
    with pytest.raises(ValueError, match="need at least") as caught:
        fs.tune(pipe, PROMPTS, **settings, budget=10)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    check_refused(lambda: fs.tune(pipe, PROMPTS, **settings, budget=least - 1), "need at least")
    assert counted[0] == 0
    preset = fs.tune(pipe, PROMPTS, **settings, budget=least)
    assert len(preset.entries) == 4


def test_few_pairs_leave_the_sampler_as_it_is(pipe: Any, counted: list[int], tmp_path: Path) -> None:
    preset = fs.tune(pipe, PROMPTS[:2], steps=(3,), budget=2000, folder=tmp_path)
    assert [one.stage for one in preset.entries] == ["untuned"]
    assert counted[0] == 0
    fs.DPMSolverScheduler.from_config(pipe.scheduler.config, preset=preset).set_timesteps(3)


@pytest.mark.usefixtures("coarse")
def test_a_quality_that_falls_vetoes(pipe: Any, tmp_path: Path) -> None:
    """Scores that fall with every call: a tuned table is not kept, whatever its error."""
    turns = itertools.count()

    def falling(images: list[Any], prompts: list[str]) -> list[float]:
        assert len(images) == len(prompts)
        return [-float(next(turns))] * len(images)

    preset = fs.tune(pipe, PROMPTS, steps=(3,), guidance=(2.0,), budget=1200, quality=falling, folder=tmp_path)
    assert [one.stage for one in preset.entries] == ["untuned"]


def embedded(count: int) -> list[dict[str, Tensor]]:
    """Prompts as embeddings, each of its own."""
    embeds = {name: value for name, value in sd3_inputs().items() if isinstance(value, Tensor)}
    return [{name: value * (1 + 0.1 * index) for name, value in embeds.items()} for index in range(count)]


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("kind", ["flow", "bfloat16"])
def test_flow_models_and_narrow_dtypes_are_tuned(kind: str, tmp_path: Path) -> None:
    pipe = quiet(sd3() if kind == "flow" else stable_diffusion().to(torch.bfloat16))
    prompts: list[Any] = embedded(6) if kind == "flow" else PROMPTS
    preset = fs.tune(pipe, prompts, steps=(3,), guidance=(2.0,), budget=1000, folder=tmp_path, solver="ghvb")
    assert {one.solver for one in preset.entries} == {"ghvb"}
    pipe.scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config, preset=preset)
    call = prompts[0] if kind == "flow" else {"prompt": prompts[0]}
    latents = pipe(**call, num_inference_steps=3, guidance_scale=2.0, output_type="latent").images
    assert torch.isfinite(latents).all()
    assert preset.entries[0].calls > 0


@pytest.mark.usefixtures("coarse")
def test_networks_that_look_whole_timesteps_up_are_told_these(tmp_path: Path) -> None:
    """One that rounds, and one that fails between: the grid is told in whole timesteps."""
    for fails in (False, True):
        pipe = quiet(stable_diffusion())
        embed = pipe.unet.time_proj.forward

        def looked_up(times: Tensor, embed: Any = embed, fails: bool = fails) -> Tensor:
            if fails and times.is_floating_point():
                raise RuntimeError("expected indices of scalar type Long")
            return embed(times.round())

        pipe.unet.time_proj.forward = looked_up
        preset = fs.tune(pipe, PROMPTS, steps=(3,), guidance=(2.0,), budget=800, folder=tmp_path / f"{fails}")
        told = [step.node.time for step in preset.entries[0].table.steps]
        assert all(time == round(time) for time in told)


def test_wrong_input_is_refused_before_any_evaluation(pipe: Any, counted: list[int], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompts": []}, "prompts"),
        ({"prompts": "a red circle"}, "prompts"),
        ({"prompts": ["a", " "]}, "prompts"),
        ({"prompts": ["a"]}, "at least two"),
        ({"steps": ()}, "steps"),
        ({"steps": (1,)}, "steps = 1"),
        ({"steps": (2.5,)}, "steps = 2.5"),
        ({"guidance": (float("nan"),)}, "guidance"),
        ({"guidance": (3.0, 3.0)}, "twice"),
        ({"seeds": (-1,)}, "seeds = -1"),
        ({"budget": 0}, "budget = 0"),
        ({"budget": 100}, "budget = 100"),
        ({"objective": "lpips"}, "objective"),
        ({"quality": 3}, "quality"),
        ({"solver": "dpmpp-2m-sde"}, "draws noise"),
        ({"solver": "heun"}, "stages"),
        ({"solver": "ghbv"}, "ghvb"),
        ({"batch": 0}, "batch"),
        ({"call": {"num_inference_steps": 3}}, "num_inference_steps"),
    ]
    for changed, words in wrong:
        given = {"prompts": PROMPTS, "folder": tmp_path, **changed}
        prompts = given.pop("prompts")
        check_refused(lambda: fs.tune(pipe, prompts, **given), words)  # noqa: B023
    with fs.TGate(2).apply(pipe):
        check_refused(lambda: fs.tune(pipe, PROMPTS, folder=tmp_path), "T-GATE")
    before = pipe.scheduler
    pipe.scheduler = fs.create_scheduler("dpmpp-2m-sde", before.config)
    try:
        check_refused(lambda: fs.tune(pipe, PROMPTS, folder=tmp_path), "draws noise")
    finally:
        pipe.scheduler = before
    with fs.GuidanceCut(0, 2).apply(pipe):
        check_refused(lambda: fs.tune(pipe, PROMPTS, folder=tmp_path), "guidance cut")
    assert counted[0] == 0
    assert not list(tmp_path.iterdir())


def test_sets_have_no_pair_in_common() -> None:
    for count, seeds in itertools.product((2, 3, 4, 9, 40), ((0,), (0, 5))):
        asked = Arguments(
            tuple(f"prompt {index}" for index in range(count)),
            (5,),
            (3.0,),
            seeds,
            1,
            "rms",
            None,
            False,
            None,
            8,
            None,
        )
        sets = asked.sets
        pairs = [*sets.tune, *sets.validation, *sets.check]
        assert len(set(pairs)) == len(pairs)
        assert min(map(len, (sets.tune, sets.validation, sets.check))) >= 1
        if count >= 4:
            kinds = [{prompt for prompt, _ in part} for part in (sets.tune, sets.validation, sets.check)]
            assert all(not one & other for one, other in itertools.combinations(kinds, 2))


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("coarse")
def test_the_command_writes_a_preset(run: Any, pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    options = ["--steps", "2", "--guidance", "2", "--budget", "800", "--grid-only"]
    options += ["--folder", "stages", "--out", "preset.json"]
    status, out, err = run("tune", "--prompts", "prompts.txt", "--model", str(tmp_path / "model"), *options)
    assert status == 0, err
    assert "2 evaluations" in out
    preset = fs.load_preset(tmp_path / "preset.json", pipe, guidance=2)
    assert [one.evaluations for one in preset.entries] == [2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompts", "one.txt"], "at least two"),
        (["--prompts", "one.txt", "--steps", "5,x"], "--steps"),
        (["--prompts", "one.txt", "--seed", "0", "--seed", "1", "--budget", "9"], "budget = 9"),
        (["--prompts", "one.txt", "--seed", "0", "--seed", "1", "--objective", "l1"], "objective"),
        ([], "prompts"),
    ],
)
def test_the_command_refuses_in_one_line(run: Any, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "one.txt").write_text("a red circle\n")
    status, out, err = run("tune", *arguments)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not out
