"""ComfyUI's own sampling code with our nodes in it: run in a process of its own by test_comfyui.py.

    python tests/comfyui_process.py FOLDER

FOLDER is a checkout of ComfyUI. Prints, as JSON on its last line, the relative difference of the latents by ComfyUI's
sampler and by ours, for each kind of model and name, and what else was seen.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401  before anything stands in for torchvision
from torch import Tensor, nn

import fastsample.interop.comfyui as pack

FOLDER = Path(sys.argv[1])
MODELS = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW", "flux": "FLUX", "edm": "EDM"}
DETERMINISTIC = (
    "euler",
    "heun",
    "dpm_2",
    "lms",
    "dpmpp_2m",
    "res_multistep",
    "ipndm",
    "gradient_estimation",
    "heunpp2",
)
STOCHASTIC = (
    *("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun"),
    *(
        "dpmpp_3m_sde",
        "res_multistep_ancestral",
        "er_sde",
        "seeds_2",
        "seeds_3",
        "sa_solver",
        "sa_solver_pece",
        "lcm",
    ),
)


def prepare() -> None:
    """ComfyUI on the CPU, without torchvision, of which sampling uses nothing."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.path.insert(0, str(FOLDER))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


class Network(nn.Module):
    """A smooth network that depends on sample and time."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor, timesteps: Tensor, context: Any = None, **kwargs: Any) -> Tensor:
        t = timesteps.float().reshape(-1, 1, 1, 1)
        return self.weight * torch.tanh(x + 0.1 * torch.sin(t / 200)) + 0.3 * x.roll(1, -1)


def model_of(kind: str) -> Any:
    """ComfyUI's patcher around a tiny model of this kind."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
        unet_config: dict[str, Any] = {}
        latent_format = comfy.latent_formats.SD15
        sampling_settings = {"shift": 3.0} if kind == "flow" else {}

        def __init__(self) -> None:
            self.unet_config = {"disable_unet_model_creation": True}
            self.latent_format = comfy.latent_formats.SD15()
            self.manual_cast_dtype = None

    device = torch.device("cpu")
    model = comfy.model_base.BaseModel(Config(), getattr(comfy.model_base.ModelType, MODELS[kind]), device)
    torch.manual_seed(0)
    model.diffusion_model = Network()
    return comfy.model_patcher.ModelPatcher(model, device, device)


def sample(patcher: Any, chosen: Any, sigmas: Tensor, seen: list[int] | None = None) -> Tensor:
    """A batch of two latents by `comfy.sample.sample_custom`, with guidance."""
    import comfy.sample

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    cond, uncond = ([[torch.full((1, 77, 768), value), {}]] for value in (0.0, 1.0))
    callback = (lambda step, denoised, x, total: seen.append(step)) if seen is not None else None
    latent = torch.zeros_like(noise)
    return comfy.sample.sample_custom(
        patcher, noise, 2.0, chosen, sigmas, cond, uncond, latent, callback=callback, disable_pbar=True, seed=3
    )


def smooth_noise(sigma: Any, following: Any) -> Tensor:
    """Some noise for a step, which hardly changes where the last digits of its ends do."""
    places = torch.arange(512, dtype=torch.float32).view(2, 4, 8, 8)
    return math.sqrt(2) * torch.sin(37 * places + 3 * float(sigma) ** 0.5 + 2 * float(following) ** 0.5)


def loaded_as_a_pack() -> Any:
    """Our folder as ComfyUI loads what is in `custom_nodes`: under a name made of its path."""
    folder = Path(pack.__file__).parent
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Compare and print."""
    prepare()
    import comfy.samplers

    nodes = loaded_as_a_pack().NODE_CLASS_MAPPINGS
    ours, grid = nodes["FastsampleSampler"](), nodes["FastsampleGridSigmas"]()
    offered = ours.INPUT_TYPES()["required"]["solver"][0]
    found: dict[str, Any] = {"apart": {}, "grids": {}, "lands": {}, "steps": [], "offered": offered}
    for kind in MODELS:
        patcher = model_of(kind)
        sampling = patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
        for name in (*DETERMINISTIC, *STOCHASTIC):
            if name not in offered or name not in comfy.samplers.KSAMPLER_NAMES:
                continue
            options = {"noise_sampler": smooth_noise} if name in STOCHASTIC else {}
            theirs = comfy.samplers.ksampler(name, dict(options))
            (own,) = ours.build(solver=name, noise="auto", s_noise=1.0, options="")
            own.extra_options = dict(options)
            want, got = sample(patcher, theirs, sigmas), sample(patcher, own, sigmas)
            found["apart"][f"{kind} {name}"] = float((want - got).abs().max() / want.abs().max())
        for name, label in (
            ("simple", "simple"),
            ("normal", "normal"),
            ("sgm-uniform", "sgm_uniform"),
            ("karras", "karras"),
        ):
            (made,) = grid.build(model=patcher, grid=name, steps=7, denoise=1.0, options="")
            want = comfy.samplers.calculate_sigmas(sampling, label, 7)
            found["grids"][f"{kind} {name}"] = float(((made - want).abs() / (want + 1e-3)).max())
        seen: list[int] = []
        (own,) = ours.build(solver="dpmpp-2m", noise="auto", s_noise=1.0, options="solver_type=heun")
        (made,) = grid.build(model=patcher, grid="quadratic", steps=6, denoise=0.5, options="")
        found["lands"][kind] = bool(sample(patcher, own, made, seen).isfinite().all()) and len(made) == 7
        found["steps"].append(seen)
        (own,) = ours.build(solver="dpmpp-2m-sde", noise="auto", s_noise=1.0, options="")
        found["lands"][f"{kind} repeats"] = torch.equal(sample(patcher, own, made), sample(patcher, own, made))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
