"""What a user gets: the wheel, a light import, and no shadow over Hugging Face's `kernels`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastsample

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_both_packages_and_the_models(wheel_names: set[str]) -> None:
    for name in (
        "fastsample/py.typed",
        "fastsample_kernels/py.typed",
        "fastsample_kernels/__init__.py",
        "fastsample/demo/text_to_image/model_index.json",
        "fastsample/demo/text_to_image/unet/diffusion_pytorch_model.safetensors",
        "fastsample/demo/flow_text_to_image/model_index.json",
        "fastsample/demo/flow_text_to_image/transformer/diffusion_pytorch_model.safetensors",
        "fastsample/demo/flow_text_to_image/text_encoder_3/model.safetensors",
        "fastsample/demo/picard/consistency.safetensors",
        "fastsample/demo/language/model.safetensors",
        "fastsample/demo/tarflow/transformer/diffusion_pytorch_model.safetensors",
        "fastsample/demo/tarflow/classifier.safetensors",
        "fastsample/demo/tarflow/gs_jacobi_plan.json",
    ):
        assert name in wheel_names
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastsample", "fastsample_kernels"}


def test_hugging_face_kernels_is_not_shadowed() -> None:
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).parents


def test_import_is_light() -> None:
    """`import fastsample` and the host plane need neither torch nor diffusers, and nothing needs triton."""
    code = (
        "import sys, fastsample; heavy = {'torch', 'diffusers', 'transformers', 'triton', 'matplotlib', 'scipy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "fastsample.build_table('ghvb', fastsample.NoiseSchedule.linear_vp(), [1, .5, .1]);"
        "assert not {'torch', 'diffusers'} & set(sys.modules);"
        "sys.modules['triton'] = None; import fastsample.schedulers, fastsample.cli.main"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_needs_unix() -> None:
    """Every module and public name without what Windows lacks; a ledger then knows no CPU memory.

    In the repository's root, where a package `kernels` would shadow Hugging Face's and break diffusers' pipelines.
    """
    code = """
import importlib, pkgutil, sys
import peft, psutil  # the hub's and transformers' own back ends on Linux need them

class Windows:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}")

for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Windows())
from diffusers import StableDiffusionPipeline
import fastsample, fastsample_kernels
for name in fastsample.__all__:
    getattr(fastsample, name)
for module in pkgutil.walk_packages(fastsample.__path__, "fastsample."):
    if module.name != "fastsample.__main__":
        importlib.import_module(module.name)
with fastsample.Ledger().running() as ledger:
    pass
assert ledger.seconds > 0
assert ledger.peak_memory == 0
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", fastsample.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(fastsample, name) is not None
    assert name in dir(fastsample)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        fastsample.Nope  # noqa: B018
