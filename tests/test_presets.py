"""Presets in schedulers: what they sample, what they refuse, and that they travel with a pipeline."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import (
    bundled_folder,
    flux,
    flux_inputs,
    quiet,
    sd3,
    sd3_inputs,
    stable_diffusion,
    stable_diffusion_img2img,
)
from refusal import check_refused

import fastsample as fs
from fastsample.demo.bundled import load_pipeline
from fastsample.tables.preset import BUNDLED, Entry, Preset, read_preset, schedule_digest
from fastsample.tables.table import Table
from fastsample.testing import gaussian_model, run_scheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}


def entry(table: Table, guidance: float = 3.0, **changed: Any) -> Entry:
    values: dict[str, Any] = {
        "evaluations": table.nfe,
        "guidance": guidance,
        "least": 2.0,
        "most": 4.0,
        "solver": table.solver,
        "options": "",
        "grid": "karras",
        "untuned": "dpmpp-2m karras",
        "stage": "grid",
        "tried": "grid",
        **dict.fromkeys(("tune", "validation", "final", "upper", "teacher_error")),
        "calls": 10,
        "verdict": "tuned",
        "table": table,
    }
    return Entry(**{**values, **changed})


def preset_of(config: dict[str, Any], *entries: Entry) -> Preset:
    schedule = fs.NoiseSchedule.from_config(config)
    prediction = entries[0].table.prediction_type
    return Preset(1, schedule.kind, prediction, schedule_digest(schedule), "hash", "tiny", {"torch": "2"}, entries)


def table_on(config: dict[str, Any], steps: int, solver: str = "dpmpp-2m", **options: Any) -> Table:
    """A table on a grid that no name has, between whole timesteps."""
    schedule = fs.NoiseSchedule.from_config(config)
    prediction = "flow_prediction" if schedule.kind == "flow" else "epsilon"
    times = fs.time_grid("log-snr" if schedule.kind == "vp" else "quadratic", schedule, steps)
    times[1:-1] *= 1 + 0.01 * np.sin(np.arange(1, steps))
    return fs.build_table(solver, schedule, times, prediction_type=prediction, **options)


def telling(table: Table) -> Table:
    """The table, with a network that is told other times than those of its marginals."""
    nodes = [step.node for step in table.steps]
    told = [nodes[0], *(dataclasses.replace(node, time=0.97 * node.time) for node in nodes[1:])]
    ends = [*told[1:], table.steps[-1].target]
    steps = zip(table.steps, told, ends, strict=True)
    return dataclasses.replace(
        table, steps=tuple(dataclasses.replace(step, node=node, target=end) for step, node, end in steps)
    )


def written(preset: Preset, folder: Path) -> str:
    preset.save(folder / "preset.json")
    return str(folder / "preset.json")


SCHEDULERS = (fs.DDIMScheduler, fs.DPMSolverScheduler, fs.GHVBScheduler, fs.UniPCScheduler, fs.DEISScheduler)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("config", [SD, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ghvb", "unipc", "ipndm"])
def test_any_scheduler_samples_the_table(kind: Any, config: dict[str, Any], solver: str, tmp_path: Path) -> None:
    table = table_on(config, 6, solver)
    table = telling(table) if solver == "ipndm" else table
    scheduler = kind.from_config(config, preset=written(preset_of(config, entry(table)), tmp_path))
    model = gaussian_model(0.5, scheduler.schedule, table.prediction_type)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = fs.integrate(table, model, x)
    nodes = {float(np.float32(step.node.time)): step.node.time for step in table.steps}
    for _ in range(2):  # and again after another set_timesteps
        got = run_scheduler(scheduler, lambda x, t: model(x, nodes[float(t)]), x, 6)
        assert torch.allclose(got, expected, rtol=0, atol=1e-10)
    assert torch.equal(scheduler.timesteps.double(), torch.tensor(list(nodes), dtype=torch.float64))


def test_a_preset_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    preset = preset_of(SD, entry(table_on(SD, 5)), entry(table_on(SD, 8, "ghvb")))
    path = written(preset, tmp_path)
    again = fs.load_preset(path)
    assert again == preset
    assert again.to_json() == preset.to_json()
    scheduler = fs.DPMSolverScheduler.from_config(SD, preset=path)
    scheduler.save_pretrained(tmp_path / "saved")
    loaded = fs.DPMSolverScheduler.from_pretrained(tmp_path / "saved")
    assert read_preset(loaded.config.preset) == preset


def test_other_evaluations_and_explicit_times_are_untuned_and_say_so(tmp_path: Path) -> None:
    path = written(preset_of(SD, entry(table_on(SD, 5))), tmp_path)
    scheduler, plain = fs.DPMSolverScheduler.from_config(SD, preset=path), fs.DPMSolverScheduler.from_config(SD)
    asked: list[dict[str, Any]] = [
        {"num_inference_steps": 6},
        {"timesteps": [900, 600, 300, 100, 20]},
        {"sigmas": [12.0, 5.0, 2.0, 0.5, 0.1]},
    ]
    for request in asked:
        with pytest.warns(UserWarning, match="sampled untuned"):
            scheduler.set_timesteps(**request)
        plain.set_timesteps(**request)
        assert torch.equal(scheduler.timesteps, plain.timesteps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(5)


def test_a_start_inside_the_grid_is_untuned_and_says_so(tmp_path: Path) -> None:
    table = table_on(SD, 5)
    scheduler = fs.DDIMScheduler.from_config(SD, preset=written(preset_of(SD, entry(table)), tmp_path))
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    model = gaussian_model(0.5, scheduler.schedule)
    with pytest.warns(UserWarning, match="starts at step 2 of 5"):
        got = scheduler.step(model(x, table.steps[2].node.time), scheduler.timesteps[2], x).prev_sample
    source, target = table.steps[2].node, table.steps[2].target
    data = (x - source.sigma * model(x, source.time)) / source.alpha
    expected = target.sigma / source.sigma * x + (target.alpha - source.alpha * target.sigma / source.sigma) * data
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("tells", [False, True])
def test_pipelines_run_and_carry_a_preset(tells: bool, tmp_path: Path) -> None:
    pipe = quiet(stable_diffusion())
    config = dict(pipe.scheduler.config)
    table = telling(table_on(config, 4)) if tells else table_on(config, 4)
    pipe.scheduler = fs.UniPCScheduler.from_config(config, preset=preset_of(config, entry(table)))

    def latents(pipe: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a red circle", num_inference_steps=4, generator=generator, output_type="latent").images

    first = latents(pipe)
    assert torch.equal(latents(pipe), first)
    assert np.allclose(pipe.scheduler.timesteps, [step.node.time for step in table.steps], rtol=1e-6)
    with fs.parallelise(pipe, tolerance=0) as run:
        assert torch.allclose(latents(pipe), first, atol=1e-4)
    assert run.fallback == ""
    pipe.save_pretrained(tmp_path)
    assert torch.equal(latents(quiet(fs.load_pipeline(tmp_path))), first)


@pytest.mark.parametrize(("make", "inputs"), [(sd3, sd3_inputs), (flux, flux_inputs)])
def test_flow_pipelines_that_pass_their_own_sigmas(make: Callable[[], Any], inputs: Callable[[], Any]) -> None:
    pipe = quiet(make())
    config = dict(pipe.scheduler.config)
    table = telling(table_on(config, 3, "ghvb", order=2))
    pipe.scheduler = fs.DDIMScheduler.from_config(config, preset=preset_of(config, entry(table)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(**{**inputs(), "num_inference_steps": 3, "output_type": "latent"})
    told = [step.node.time for step in table.steps]
    assert np.allclose(pipe.scheduler.timesteps, told, rtol=1e-6)


def test_image_to_image_says_that_it_is_untuned() -> None:
    pipe = quiet(stable_diffusion_img2img())
    config = dict(pipe.scheduler.config)
    pipe.scheduler = fs.DDIMScheduler.from_config(config, preset=preset_of(config, entry(table_on(config, 5))))
    with pytest.warns(UserWarning, match="starts at step"):
        pipe("a circle", image=torch.rand(1, 3, 32, 32), strength=0.5, num_inference_steps=5, output_type="latent")


def test_rows_with_times_of_their_own() -> None:
    """One entry of history serves; more is refused."""
    x = torch.randn(2, 4, 8, 8)
    for solver, serves in (("dpmpp-2m", True), ("ipndm", False)):
        table = table_on(SD, 5, solver)
        scheduler = fs.DDIMScheduler.from_config(SD, preset=preset_of(SD, entry(table)))
        scheduler.set_timesteps(5)
        times = scheduler.timesteps[[0, 1]]
        if serves:
            one = scheduler.step(x, times, x).prev_sample
            scheduler.set_timesteps(5)
            first = scheduler.step(x[:1], scheduler.timesteps[0], x[:1]).prev_sample
            assert torch.allclose(one[:1], first, atol=1e-5)
        else:
            check_refused(lambda: scheduler.step(x, times, x), "a value for each row")  # noqa: B023


def test_a_guidance_is_chosen() -> None:
    three, five = entry(table_on(SD, 5)), entry(table_on(SD, 5, "ghvb"), guidance=7.5, least=6.0, most=9.0)
    preset = preset_of(SD, three, five)
    check_refused(lambda: fs.DDIMScheduler.from_config(SD, preset=preset), "preset_guidance")
    scheduler = fs.DDIMScheduler.from_config(SD, preset=preset, preset_guidance=7.5)
    scheduler.set_timesteps(5)
    assert fs.load_preset(preset, guidance=7.5).entries == (five,)
    with pytest.warns(UserWarning, match="guidance 5 is far"):
        assert fs.load_preset(preset, guidance=5).entries == (three,)


def test_a_pipeline_is_compared() -> None:
    pipe = stable_diffusion()
    config = dict(pipe.scheduler.config)
    preset = preset_of(config, entry(table_on(config, 5)))
    with pytest.warns(UserWarning, match="other weights"):
        fs.load_preset(preset, pipe)
    check_refused(lambda: fs.load_preset(preset, sd3()), "preset is of a network that predicts")


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({**SD, "beta_end": 0.02}, {}, "another noise schedule"),
        ({**SD, "prediction_type": "v_prediction"}, {}, "predicts 'epsilon'"),
        (FLOW, {}, "predicts 'epsilon'"),
        (SD, {"dualfast": 0.3}, "dualfast"),
        (SD, {"preset_guidance": "3"}, "preset_guidance"),
    ],
)
def test_another_model_is_refused(config: dict[str, Any], options: dict[str, Any], words: str) -> None:
    preset = preset_of(SD, entry(table_on(SD, 5)))
    check_refused(lambda: fs.DDIMScheduler.from_config(config, preset=preset, **options), words)


def test_solvers_that_a_preset_cannot_stand_in_for_are_refused() -> None:
    preset = preset_of(SD, entry(table_on(SD, 5)))
    for solver in ("dpmpp-2m-sde", "heun"):
        check_refused(
            lambda: fs.schedulers.SolverScheduler.from_config(SD, solver_name=solver, preset=preset),  # noqa: B023
            f"preset with '{solver}'",
        )
    check_refused(lambda: fs.DDIMScheduler.from_config(SD, preset_guidance=3.0), "without a preset")
    scheduler = fs.DDIMScheduler.from_config(SD, preset=preset)
    scheduler.set_timesteps(5)
    x = torch.zeros(1, 4, 8, 8)
    check_refused(lambda: scheduler.step(x, scheduler.timesteps[0], x, eta=0.5), "eta = 0.5 with a preset")


def test_a_solver_by_name_leaves_the_preset_behind() -> None:
    scheduler = fs.DDIMScheduler.from_config(SD, preset=preset_of(SD, entry(table_on(SD, 5))))
    assert fs.create_scheduler("ghvb", scheduler.config).config.preset is None
    assert fs.scheduler_from_name("DPM++ 2M Karras", scheduler.config).config.preset is None
    assert fs.DPMSolverScheduler.from_config(scheduler.config, preset=None).config.preset is None


def test_files_that_are_no_presets_are_refused(tmp_path: Path) -> None:
    preset = preset_of(SD, entry(table_on(SD, 5)))
    text = preset.to_json()
    raw = json.loads(text)

    def changed(**parts: Any) -> str:
        return json.dumps({**raw, **parts})

    moved = json.loads(text)
    moved["entries"][0]["table"]["steps"][2]["next"]["output"] *= 1.01
    wrong = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "bytes": "\x00\x01",
        "other": "{}",
        "none": changed(entries=[]),
        "format": changed(format=99),
        "moved": json.dumps(moved),
        "twice": changed(entries=raw["entries"] * 2),
        "count": changed(entries=[{**raw["entries"][0], "evaluations": 6}]),
        "nan": text.replace('"calls": 10', '"calls": NaN'),
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        check_refused(lambda: fs.load_preset(path), str(path))  # noqa: B023
        check_refused(lambda: fs.DDIMScheduler.from_config(SD, preset=path), str(path))  # noqa: B023
    check_refused(lambda: fs.load_preset(tmp_path / "absent.json"), "is no file")
    check_refused(lambda: fs.load_preset(3), "preset = 3")  # type: ignore[arg-type]


def test_a_step_that_misses_its_marginals_is_refused_though_the_table_does_not() -> None:
    """Two steps whose errors cancel pass the check of the whole table."""
    table = table_on(SD, 5, "ddim")
    a, b = table.steps[1], table.steps[2]
    moved = dataclasses.replace(a, target=dataclasses.replace(a.target, alpha=a.target.alpha * 1.001))
    steps = (*table.steps[:1], moved, b, *table.steps[3:])
    check_refused(lambda: entry(dataclasses.replace(table, steps=steps)), "marginal check failed")


def test_the_commands_take_a_preset(run: Any, tmp_path: Path) -> None:
    """`sample` and `bench` sample by its tables; each guidance has its own."""
    config = fs.load_pipeline(bundled_folder()).scheduler.config
    slow, fast = entry(table_on(config, 3, "ddim"), guidance=1.0), entry(table_on(config, 3, "ghvb"), guidance=3.0)
    written(preset_of(config, slow, fast), tmp_path)
    solver = "dpmpp-2m:preset=preset.json"
    common = ["--steps", "3", "--guidance", "3"]
    status, _, err = run("sample", "--solver", solver, *common, "--out", "images")
    assert status == 0, err
    status, _, err = run("sample", "--solver", "dpmpp-2m", *common, "--out", "plain")
    assert status == 0, err
    pictures = [(tmp_path / name / "prompt000-seed0.png").read_bytes() for name in ("images", "plain")]
    assert pictures[0] != pictures[1]
    for wrong, words in (("absent.json", "no file"), ("preset.json", "takes none")):
        name = "DPMSolverMultistepScheduler" if words == "takes none" else "dpmpp-2m"
        status, _, err = run("sample", "--solver", f"{name}:preset={wrong}", *common)
        assert status == 2
        assert words in err


def test_bundled_presets_are_of_the_bundled_models() -> None:
    """Each that ships is by the name of a model, of its very weights, and no worse than the untuned sampler."""
    for path in sorted(BUNDLED.glob("*.json")):
        pipe = load_pipeline(name=path.stem)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            preset = fs.load_preset(path.stem, pipe)
        for one in preset.entries:
            assert one.upper is not None
            assert one.stage == "untuned" or one.upper <= 1
            scheduler = fs.DPMSolverScheduler.from_config(
                pipe.scheduler.config, preset=preset, preset_guidance=one.guidance
            )
            scheduler.set_timesteps(one.evaluations)


def test_one_preset_serves_schedulers_in_threads() -> None:
    """Each in a thread of its own at another number of evaluations, set anew; as alone, to the last bit."""
    counts = (4, 5, 6, 7)
    preset = preset_of(SD, *(entry(table_on(SD, count, "ghvb")) for count in counts))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def sampled(count: int) -> list[torch.Tensor]:
        scheduler = fs.DDIMScheduler.from_config(SD, preset=preset)
        model = gaussian_model(0.5, scheduler.schedule)
        ends = []
        for steps in (count, 4, count):  # the second is another's
            ends.append(run_scheduler(scheduler, lambda x, t: model(x, float(t)), x, steps))
        return ends

    alone = [sampled(count) for count in counts]
    with ThreadPoolExecutor(len(counts)) as pool:
        together = list(pool.map(sampled, counts * 3))
    for number, ends in enumerate(together):
        assert all(map(torch.equal, ends, alone[number % len(counts)]))


def test_two_pipelines_of_one_class_keep_presets_of_their_own() -> None:
    """In two threads, with tables of the same number of evaluations."""
    pipes = [quiet(stable_diffusion()) for _ in range(2)]
    config = dict(pipes[0].scheduler.config)
    for pipe, solver in zip(pipes, ("ddim", "ghvb"), strict=True):
        pipe.scheduler = fs.UniPCScheduler.from_config(
            config, preset=preset_of(config, entry(table_on(config, 4, solver)))
        )

    def latents(pipe: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a red circle", num_inference_steps=4, generator=generator, output_type="latent").images

    alone = [latents(pipe) for pipe in pipes]
    assert not torch.allclose(*alone, atol=1e-3)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda pipe: [latents(pipe) for _ in range(3)], pipes))
    for ends, expected in zip(together, alone, strict=True):
        assert all(torch.equal(end, expected) for end in ends)
