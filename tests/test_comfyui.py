"""Our nodes in ComfyUI: in its own sampling code where a checkout is at hand, always in a stand-in of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample as fs
import fastsample.interop.comfyui as pack
from fastsample.interop.comfyui.levels import grid_sigmas, preset_sigmas, schedule_of
from fastsample.schedules import DiscreteSchedule, EDMSchedule, FlowSchedule
from fastsample.schedules.grids import grid_names
from fastsample.solvers import available

VARIABLE = "FASTSAMPLE_COMFYUI"
"""Names a checkout of ComfyUI; torchsde, einops, psutil and safetensors must be installed."""


# --- the real one ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no checkout of ComfyUI")
    process = Path(__file__).with_name("comfyui_process.py")
    done = subprocess.run(
        [sys.executable, process, os.environ[VARIABLE]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


APART = {  # by how much more than rounding, and why
    "sa_solver": 2.0,  # ComfyUI draws noise between two percentages of the run, ours all along
    "sa_solver_pece": 2.0,
    "flow res_multistep_ancestral": 2.0,  # there the noise is that of data + sigma noise, which flow models are not
    "flow seeds_3": 3e-3,  # the first step, from sigma = 1
    "flow dpm_2_ancestral": 1e-4,
    "flow dpmpp_2s_ancestral": 1e-4,
}


def test_samplers_give_the_latents_that_comfyui_gives(real: dict[str, Any]) -> None:
    assert len(real["apart"]) > 100
    for case, apart in real["apart"].items():
        kind, name = case.split()
        family = "flow" if kind in ("flow", "flux") else kind
        assert apart < APART.get(name, APART.get(f"{family} {name}", 1e-5)), case


def test_sigmas_and_samplers_work_together_there(real: dict[str, Any]) -> None:
    assert all(real["lands"].values())
    assert real["steps"] == [list(range(6))] * 5
    for case, apart in real["grids"].items():
        kind, grid = case.split()
        if kind in ("eps", "v") or (grid == "simple" and kind != "edm"):
            assert apart < 1e-5, case


# --- a stand-in of what its documents and nodes say of it ----------------------------------------------------


class EPS:
    """x = data + sigma noise."""


class CONST:
    """Flow matching."""


class Discrete(EPS):
    """A model of betas, that is told the index of a sigma."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        bar = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - bar) / bar).sqrt().float()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (self.sigmas.log() - sigma.log()).abs().argmin()

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.sigmas[round((1 - percent) * 999)])


class Continuous(EPS):
    """An EDM model, that is told log(sigma) / 4, or a v model that is told an angle."""

    def __init__(self, angle: bool = False) -> None:
        self.angle = angle
        self.sigmas = torch.linspace(-6.2, 4.78, 1000).exp()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma.atan() / torch.pi * 2 if self.angle else sigma.log() / 4


class Flow(CONST):
    """Flow matching with a shift."""

    def __init__(self, shift: float = 3.0) -> None:
        self.shift = shift
        self.sigmas = self.sigma(torch.arange(1, 1001) / 1000)
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def sigma(self, u: Any) -> Any:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def timestep(self, sigma: Tensor) -> Tensor:
        return 1000 * sigma

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.sigma(1 - percent))


class Patcher:
    """A MODEL."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.sampling


class KSampler:
    """`comfy.samplers.KSAMPLER`: a function and its options, called by position and keyword as there."""

    def __init__(self, function: Any, options: dict[str, Any] | None = None) -> None:
        self.function, self.options = function, options or {}

    def sample(self, sampling: Any, sigmas: Tensor, noise: Tensor, clean: Tensor, steps: list[int]) -> Tensor:
        def model(x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None, **extra: Any) -> Tensor:
            assert model_options == {"kept": True}
            assert seed == 3
            return clean.expand_as(x)

        model.inner_model = types.SimpleNamespace(model_patcher=Patcher(sampling))  # type: ignore[attr-defined]
        flow = isinstance(sampling, CONST)
        x = sigmas[0] * noise if flow else noise * sigmas[0]
        result = self.function(
            model,
            x,
            sigmas,
            extra_args={"model_options": {"kept": True}, "seed": 3, "denoise_mask": None},
            callback=lambda told: steps.append(told["i"]),
            disable=True,
            **self.options,
        )
        return result / (1 - sigmas[-1]) if flow else result


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = types.ModuleType("comfy.samplers")
    samplers.KSAMPLER = KSampler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


MODELS = {
    "discrete": Discrete(),
    "edm": Continuous(),
    "v angle": Continuous(True),
    "flow": Flow(),
    "shift 1": Flow(1.0),
}


def test_schedules_are_those_of_the_models() -> None:
    discrete, edm, angle, flow, plain = map(schedule_of, MODELS.values())
    assert isinstance(discrete, DiscreteSchedule)
    assert discrete.node(500.0).sbar == pytest.approx(float(MODELS["discrete"].sigmas[500]), rel=1e-5)
    assert isinstance(edm, EDMSchedule)
    assert (edm.time_of, angle.time_of) == ("log", "atan")
    assert isinstance(flow, FlowSchedule)
    assert flow.shift == pytest.approx(3.0)
    assert plain.shift == pytest.approx(1.0)


@pytest.mark.parametrize("model", MODELS)
def test_every_grid_is_sigmas_of_the_kind_that_comfyui_takes(model: str) -> None:
    served = 0
    for grid in grid_names():
        node = pack.NODE_CLASS_MAPPINGS["FastsampleGridSigmas"]()
        try:
            (sigmas,) = node.build(model=Patcher(MODELS[model]), grid=grid, steps=6, denoise=1.0, options="")
        except ValueError:  # a grid of another kind of model
            continue
        served += 1
        assert sigmas.dtype == torch.float32
        assert sigmas.device.type == "cpu"
        assert sigmas.shape == (7,)
        assert sigmas[-1] == 0
        assert bool((sigmas.diff() < 0).all())
        assert sigmas[0] <= MODELS[model].sigma_max * (1 + 1e-5)
    assert served > 12


def test_denoise_and_options_of_a_grid() -> None:
    sampling = MODELS["discrete"]
    whole = grid_sigmas(sampling, "karras", 20, 1.0, {})
    torch.testing.assert_close(grid_sigmas(sampling, "karras", 10, 0.5, {}), whole[-11:])
    assert len(grid_sigmas(sampling, "karras", 10, 0.0, {})) == 0
    rho = grid_sigmas(sampling, "karras", 10, 1.0, {"rho": 5.0})
    ramp = torch.linspace(0, 1, 10, dtype=torch.float64)
    low, high = (float(end) ** 0.2 for end in (sampling.sigma_min, sampling.sigma_max))
    torch.testing.assert_close(rho[:-1].double(), (high + ramp * (low - high)) ** 5, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("comfy")
@pytest.mark.parametrize("model", ["discrete", "flow"])
def test_every_solver_on_offer_lands_with_every_option_of_the_node(model: str) -> None:
    node = pack.NODE_CLASS_MAPPINGS["FastsampleSampler"]()
    offered = node.INPUT_TYPES()["required"]["solver"][0]
    assert {"dpmpp-2m", "ghvb", "unipc", "dpmpp_2m_sde", "euler_ancestral"} <= set(offered)
    clean, sampling = torch.full((1, 2, 1, 1), 0.7, dtype=torch.float64), MODELS[model]
    noise = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = grid_sigmas(sampling, "quadratic", 6, 1.0, {})
    for name in offered:
        known = available().get(name)
        if known is not None and not known.flow:
            continue
        (made,) = node.build(solver=name, noise="auto", s_noise=1.0, options="")
        steps: list[int] = []
        got = made.sample(sampling, sigmas, noise, clean, steps)
        torch.testing.assert_close(got, clean.expand_as(got), rtol=1e-6, atol=1e-6)
        assert steps == list(range(6)), name


@pytest.mark.usefixtures("comfy")
def test_the_options_text_reaches_the_solver_and_wrong_ones_are_refused_by_the_node() -> None:
    node = pack.NODE_CLASS_MAPPINGS["FastsampleSampler"]()
    (made,) = node.build(solver="ghvb", noise="auto", s_noise=1.0, options="order=3, beta=0.7")
    assert made.function.__signature__.parameters["beta"].default == 0.7
    with pytest.raises(ValueError, match="option gamma = 1 is unknown to solver 'ghvb'"):
        node.build(solver="ghvb", noise="auto", s_noise=1.0, options="gamma=1")
    with pytest.raises(ValueError, match="write key=value"):
        node.build(solver="ghvb", noise="auto", s_noise=1.0, options="beta")


def test_a_preset_gives_its_sigmas() -> None:
    from fastsample.tables.preset import FORMAT, Entry, Preset

    schedule = schedule_of(MODELS["discrete"])
    table = fs.build_table("dpmpp-2m", schedule, [999.0, 700.0, 400.0, 90.0, schedule.clean_time])
    nothing = dict.fromkeys(["tune", "validation", "final", "upper", "teacher_error"])
    words = {"options": "", "untuned": "", "stage": "grid", "tried": "grid", "verdict": ""}
    entry = Entry(4, 7.5, 5.0, 10.0, solver="dpmpp-2m", grid="", calls=0, table=table, **words, **nothing)
    preset = Preset(FORMAT, "vp", "epsilon", "", "", "a model", {}, (entry,))
    sigmas = preset_sigmas(MODELS["discrete"], preset, 4, 7.0)
    torch.testing.assert_close(
        sigmas, torch.tensor([schedule.node(t).sbar for t in table.times[:-1]] + [0.0]).float()
    )
    node = pack.NODE_CLASS_MAPPINGS["FastsamplePresetSigmas"]()
    (made,) = node.build(model=Patcher(MODELS["discrete"]), preset=preset.to_json(), steps=4, guidance=7.5)
    assert torch.equal(made, sigmas)
    with pytest.raises(ValueError, match="steps = 5: the preset has 4"):
        preset_sigmas(MODELS["discrete"], preset, 5, 7.5)
    with pytest.raises(ValueError, match=r"of a vp model .* and this one is flow"):
        preset_sigmas(MODELS["flow"], preset, 4, 7.5)
    weighed = dataclasses.replace(preset, entries=(dataclasses.replace(entry, stage="joint"),))
    with pytest.warns(UserWarning, match="its weights were tuned with its sigmas"):
        assert torch.equal(preset_sigmas(MODELS["discrete"], weighed, 4, 7.0), sigmas)


def test_the_folder_loads_under_another_name_and_its_nodes_are_whole() -> None:
    folder = Path(pack.__file__).parent
    spec = importlib.util.spec_from_file_location("custom_nodes_x_fastsample", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in module.NODE_CLASS_MAPPINGS.values():
        inputs = kind.INPUT_TYPES()["required"]
        for told in inputs.values():
            assert isinstance(told[0], (str, list))
            assert told[1:] == () or isinstance(told[1], dict)
        assert callable(getattr(kind, kind.FUNCTION))
        assert kind.RETURN_TYPES[0] in ("SAMPLER", "SIGMAS")


def test_the_workflow_of_the_documents_is_of_these_nodes() -> None:
    workflow = json.loads((Path(__file__).parents[1] / "docs" / "comfyui_workflow.json").read_text())
    ours = {node["type"] for node in workflow["nodes"]} & pack.NODE_CLASS_MAPPINGS.keys()
    assert ours == {"FastsampleSampler", "FastsampleGridSigmas"}
    outputs = {node["id"]: [out["type"] for out in node.get("outputs", [])] for node in workflow["nodes"]}
    inputs = {node["id"]: [one["type"] for one in node.get("inputs", [])] for node in workflow["nodes"]}
    for _, source, out, target, into, kind in workflow["links"]:
        assert outputs[source][out] == inputs[target][into] == kind
    for node in workflow["nodes"]:
        if node["type"] in ours:
            required = pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()["required"]
            widgets = [told for told in required.values() if told[0] != "MODEL"]
            assert len(node["widgets_values"]) == len(widgets)
            for value, told in zip(node["widgets_values"], widgets, strict=True):
                assert not isinstance(told[0], list) or value in told[0]
