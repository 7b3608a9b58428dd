"""From clean to noisy: tables on rising grids, schedulers as diffusers has them, and pictures that come back."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipelines import SD_CONFIG, stable_diffusion_xl
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.demo.bundled import load_pipeline
from fastsample.demo.scenes import render_batch, sample_scenes
from fastsample.pipelines.latents import encode
from fastsample.schedulers.inverse import SolverInverseScheduler
from fastsample.solvers import available
from fastsample.tables.gaussian import gaussian_response

VP = fs.NoiseSchedule.from_config(SD_CONFIG)
FLOW = fs.NoiseSchedule.flow()
STD = 0.5
DETERMINISTIC = [name for name, solver in available().items() if not solver.stochastic]


def error(name: str, schedule: fs.NoiseSchedule, steps: int, begin: float, **options: Any) -> float:
    """How far `name` ends from the exact flow of Gaussian data, up to the noisiest time but one."""
    span = schedule.noise_time - schedule.clean_time
    times = np.linspace(schedule.clean_time + begin * span, schedule.clean_time + 0.9 * span, steps + 1)
    table = fs.build_table(name, schedule, times, rising=True, **options)
    last = table.steps[-1].target
    exact = math.hypot(last.alpha * STD, last.sigma)
    return abs(abs(float(gaussian_response(table, STD)[0])) - exact)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_solver_goes_up_and_converges(name: str, schedule: fs.NoiseSchedule) -> None:
    if schedule is FLOW and not available()[name].flow:
        pytest.skip("not a solver of flow models")
    kind = {"prediction_type": "flow_prediction" if schedule is FLOW else "epsilon"}
    errors = [error(name, schedule, steps, 0.05, **kind) for steps in (30, 60)]
    order = math.log2(errors[0] / errors[1])
    assert order > (1.2 if available()[name].claimed_order() > 1 else 0.7) or errors[1] < 1e-5, errors


@pytest.mark.parametrize(
    "name", ["ddim", "euler", "dpm-2m", "dpm-3m", "deis", "adams", "ipndm", "plms", "ghvb", "hb"]
)
def test_noise_forms_begin_on_clean_data(name: str) -> None:
    errors = [error(name, FLOW, steps, 0.0, prediction_type="flow_prediction") for steps in (40, 160)]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "heun", "dpm-2s"])
def test_others_say_that_they_cannot(name: str) -> None:
    with pytest.raises(ValueError, match=r"times\[0\].*cannot begin on clean data"):
        fs.build_table(name, FLOW, [0.0, 0.5, 1.0], rising=True)


def test_what_makes_no_rising_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="draws noise"):
        fs.build_table("dpmpp-2m-sde", VP, [10, 500, 900], rising=True)
    with pytest.raises(ValueError, match=r"the noise must rise.*sort from clean to noisy"):
        fs.build_table("ddim", VP, [900, 500, 10], rising=True)
    for call in (lambda s: setattr(s, "timesteps", torch.tensor([1, 2])), lambda s: s.step(X, 333, X)):
        scheduler = fs.DDIMInverseScheduler.from_config(SD_CONFIG)
        scheduler.set_timesteps(4)
        with pytest.raises(ValueError, match="inverse scheduler"):
            call(scheduler)
    with pytest.raises(ValueError, match="draws noise"):
        fs.DPMSolverInverseScheduler.from_config(SD_CONFIG, algorithm_type="sde-dpmsolver++")


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def run(scheduler: Any, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    x = X
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x * (1 + t / 1000)), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_inversion_is_that_of_diffusers(spacing: str, prediction_type: str) -> None:
    config = {**SD_CONFIG, "steps_offset": 1, "timestep_spacing": spacing, "prediction_type": prediction_type}
    theirs = diffusers.DDIMInverseScheduler(**config)
    ours = fs.DDIMInverseScheduler.from_config(theirs.config)
    torch.testing.assert_close(run(ours, 10), run(theirs, 10), rtol=1e-5, atol=1e-5)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_inversion_is_that_of_diffusers(order: int, algorithm: str) -> None:
    config = {key: value for key, value in SD_CONFIG.items() if key != "clip_sample"}
    chosen = {"solver_order": order, "algorithm_type": algorithm}
    theirs = diffusers.DPMSolverMultistepInverseScheduler(**config, **chosen)
    ours = fs.DPMSolverInverseScheduler.from_config(theirs.config, **chosen)
    torch.testing.assert_close(run(ours, 20), run(theirs, 20), rtol=1e-5, atol=1e-4)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("config", [SD_CONFIG, {"shift": 3.0, "num_train_timesteps": 1000}], ids=["vp", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "dpm-2m", "dpmpp-2m", "res-2s"])
def test_up_and_down_again_in_a_scheduler_converges(solver: str, config: dict[str, Any]) -> None:
    """With a smooth network that depends on sample and time."""
    down = fs.create_scheduler(solver, config)
    up = SolverInverseScheduler.from_config(config, solver_name=solver)

    def there_and_back(steps: int) -> float:
        x = X.double()
        for scheduler in (up, down):
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(0.5 * torch.sin(x + float(t) / 1000), t, x).prev_sample
        return float((x - X).square().mean().sqrt())

    few, many = there_and_back(10), there_and_back(80)
    assert many < max(few / 2.5, 0.01)  # one begins at the first time of training, the other ends on clean data


@pytest.fixture(scope="module")
def scenes() -> tuple[list[str], Tensor]:
    chosen = sample_scenes(2, 0, held_out=True)
    return [scene.caption for scene in chosen], torch.from_numpy(render_batch(chosen, 0))


@pytest.mark.parametrize("name", ["text_to_image", "flow_text_to_image"])
def test_bundled_pictures_come_back(name: str, scenes: tuple[list[str], Tensor]) -> None:
    prompts, pictures = scenes
    pipe = load_pipeline(name=name)
    clean, height, width = encode(pipe, pictures)
    assert (height, width) == (32, 32)
    own = pipe.scheduler
    errors = []
    for solver, steps in (("ddim", 6), ("dpm-2m", 12)):
        noise = fs.invert(pipe, pictures, prompts, num_inference_steps=steps, solver=solver)
        assert pipe.scheduler is own
        with torch.no_grad():
            pipe.scheduler = fs.create_scheduler(solver, own.config)
            call = {"latents": noise, "guidance_scale": 1.0, "num_inference_steps": steps, "output_type": "latent"}
            again = pipe(prompts, **call)[0]
            pipe.scheduler = own
        errors.append(float((again - clean).square().mean().sqrt() / clean.std()))
    assert errors[1] < 0.06 < 0.5
    assert errors[1] < errors[0] < 0.2


@pytest.mark.parametrize(
    "name", ["stable_diffusion_xl", "pixart_sigma", "stable_diffusion_3", "flux", "lumina_2", "cogview_4"]
)
def test_one_picture_through_pipelines_of_many_families(name: str) -> None:
    """And their own loop starts from what comes back."""
    pipe, inputs = ZOO[name].build(), ZOO[name].inputs()
    size = {key: inputs.pop(key, 16) for key in ("height", "width")}
    picture = np.random.default_rng(0).random((size["height"], size["width"], 3)).astype(np.float32)
    inputs = {key: value for key, value in inputs.items() if key not in ("guidance_scale", "output_type")}
    noise = fs.invert(pipe, picture, num_inference_steps=2, **inputs)
    call = {**inputs, **size, "num_inference_steps": 2, "output_type": "latent"}
    again = pipe(**call, latents=noise)[0]
    assert again.shape == noise.shape
    assert bool(again.isfinite().all())


def test_pipelines_that_cannot_be_inverted_say_so_before_the_network_runs() -> None:
    for name, words in (
        ("dit", "takes no latents"),
        ("flux_inpaint", "a picture of its own"),
        ("stable_diffusion_controlnet", "a picture of its own"),
        ("latte", "none of still pictures"),
        ("wan", "has no vae"),
        ("flux_2", "none of still pictures"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            fs.invert(ZOO[name].build(), torch.zeros(1, 3, 16, 16), "a")
        assert "\n" not in str(caught.value)
    pipe = stable_diffusion_xl()
    pipe.vae = None
    with pytest.raises(ValueError, match="has no vae"):
        fs.invert(pipe, torch.zeros(1, 3, 16, 16), "a")
