"""The modules that saved pipelines name: they stay, and what was saved loads in a process that is new."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
from decoding_models import bundled_kind
from diffusers import LLaDA2Pipeline
from pipelines import stable_diffusion

import fastsample as fs
from fastsample import schedulers
from fastsample.decoding import schedulers as commit_schedulers

SAVED = {  # what is written into model_index.json, for ever
    "AcceleratedScheduler": "fastsample.schedulers.adams",
    "DEISScheduler": "fastsample.schedulers.adams",
    "IPNDMScheduler": "fastsample.schedulers.adams",
    "DDIMScheduler": "fastsample.schedulers.ddim",
    "LCMScheduler": "fastsample.schedulers.consistency",
    "TCDScheduler": "fastsample.schedulers.consistency",
    "DPMSolverScheduler": "fastsample.schedulers.dpm_solver",
    "DDIMInverseScheduler": "fastsample.schedulers.inverse",
    "DPMSolverInverseScheduler": "fastsample.schedulers.inverse",
    "SolverInverseScheduler": "fastsample.schedulers.inverse",
    "GHVBScheduler": "fastsample.schedulers.momentum",
    "HeavyBallScheduler": "fastsample.schedulers.momentum",
    "SolverScheduler": "fastsample.schedulers.solver",
    "UniPCScheduler": "fastsample.schedulers.unipc",
    "CheckedScheduler": "fastsample.decoding.schedulers",
    "RiskScheduler": "fastsample.decoding.schedulers",
    "EntropyBoundedScheduler": "fastsample.decoding.schedulers",
    "EntropyScheduler": "fastsample.decoding.schedulers",
    "FactorScheduler": "fastsample.decoding.schedulers",
    "HierarchyScheduler": "fastsample.decoding.schedulers",
    "MarginScheduler": "fastsample.decoding.schedulers",
    "ProphetScheduler": "fastsample.decoding.schedulers",
    "ThresholdScheduler": "fastsample.decoding.schedulers",
    "MaskedDiffusionPipeline": "fastsample.decoding.pipeline",
    "MaskedDiffusionLM": "fastsample.demo.language.model",
    "TarFlowPipeline": "fastsample.tarflow.pipeline",
    "TarFlowModel": "fastsample.tarflow.model",
    "TGateGuider": "fastsample.pipelines.tgate.guider",
}
EARLIER = {"TGateGuider": "fastsample.caching.guider"}  # and what was written once


@pytest.mark.parametrize("name", SAVED)
def test_classes_are_where_saved_pipelines_name_them(name: str) -> None:
    assert getattr(importlib.import_module(SAVED[name]), name).__module__ == SAVED[name]


@pytest.mark.parametrize("name", EARLIER)
def test_classes_are_where_they_were_too(name: str) -> None:
    here = getattr(importlib.import_module(SAVED[name]), name)
    assert getattr(importlib.import_module(EARLIER[name]), name) is here
    assert getattr(fs, name) is here


def test_the_list_is_of_all_schedulers_and_pipelines() -> None:
    """Every public class that diffusers saves."""
    kinds = (diffusers.SchedulerMixin, diffusers.ModelMixin, diffusers.DiffusionPipeline)
    public = {name: getattr(fs, name) for name in fs.__all__}
    public |= {name: getattr(schedulers, name) for name in schedulers.__all__}
    public |= {name: value for name, value in vars(commit_schedulers).items() if name.endswith("Scheduler")}
    saved = {
        name
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, kinds) and value.__module__.startswith("fastsample.")
    }
    assert saved - {"CommitScheduler"} <= set(SAVED)


def scheduler_pipeline() -> Any:
    pipe = stable_diffusion()
    pipe.scheduler = fs.GHVBScheduler.from_config(pipe.scheduler.config, order=3)
    return pipe


def text_pipeline() -> Any:
    return LLaDA2Pipeline(model=bundled_kind().float(), scheduler=fs.ProphetScheduler())


def test_saved_pipelines_load_in_a_new_process(tmp_path: Path) -> None:
    """diffusers imports no module of another package; `load_pipeline` imports those of ours that are named."""
    parts = {"scheduler": (scheduler_pipeline, ["scheduler"]), "text": (text_pipeline, ["model", "scheduler"])}
    code, expected = "import sys; import fastsample as fs\n", []
    for name, (make, named) in parts.items():
        pipe = make()
        pipe.save_pretrained(tmp_path / name)
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        for part in named:
            module, kind = index[part]
            assert [module, kind] == [SAVED[kind], type(getattr(pipe, part)).__name__]
            expected.append(kind)
        code += f"assert {index[named[0]][0]!r} not in sys.modules\n"  # loading the one before did not need it
        code += f"pipe = fs.load_pipeline({str(tmp_path / name)!r})\n"
        code += "".join(f"print(type(pipe.{part}).__name__)\n" for part in named)
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert found.stdout.split() == expected, found.stderr


def test_one_scheduler_of_ours_in_use_lets_diffusers_load_any(tmp_path: Path) -> None:
    """Its own `from_pretrained`, in a process that has asked for a class of another module."""
    scheduler_pipeline().save_pretrained(tmp_path)
    code = (
        "import diffusers, fastsample as fs; fs.DDIMScheduler; "
        f"print(type(diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r}).scheduler).__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "GHVBScheduler"


def test_a_guider_saved_under_its_earlier_path_loads(tmp_path: Path) -> None:
    """A modular pipeline's index names the module of each part that is loaded from a folder."""
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    fs.TGateGuider(guidance_scale=4.0, gate_step=3).save_pretrained(tmp_path / "guider")
    pipe = blocks.init_pipeline()
    spec = diffusers.modular_pipelines.ComponentSpec(
        name="guider",
        type_hint=fs.TGateGuider,
        pretrained_model_name_or_path=str(tmp_path),
        subfolder="guider",
        default_creation_method="from_pretrained",
    )
    pipe.update_components(guider=spec.load())
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    index = tmp_path / "modular_model_index.json"
    assert f'"{SAVED["TGateGuider"]}"' in index.read_text()
    for path in (SAVED["TGateGuider"], EARLIER["TGateGuider"]):
        index.write_text(index.read_text().replace(SAVED["TGateGuider"], path))
        again = diffusers.ModularPipeline.from_pretrained(str(tmp_path))
        again.load_components(names=["guider"])
        assert type(again.guider) is fs.TGateGuider
        assert again.guider.config.gate_step == 3
