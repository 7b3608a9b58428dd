"""What pip gives a user: the distributions, each extra in a clean environment, the lowest versions declared.

    pip install -e ".[release]"
    python scripts/check_package.py dists              # built, checked for the package index, the same from the sdist
    python scripts/check_package.py extras             # every extra, one by one (minutes, gigabytes)
    python scripts/check_package.py lowest             # the lowest declared version of every dependency
    python scripts/check_package.py extras --python 3.13 notebook

Environments are made by uv, which reads its settings (indexes, caches) from UV_* variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMOKE = (
    "import fastsample as fs; from fastsample.demo.bundled import load_pipeline; pipe = load_pipeline();"
    "pipe.scheduler = fs.GHVBScheduler.from_config(pipe.scheduler.config);"
    "assert pipe('a small red circle', num_inference_steps=2).images[0].size"
)
"""What every environment must run: a sampler of ours in a pipeline of diffusers'."""
PROMISES = {
    "train": "from sklearn.datasets import load_digits; load_digits()",
    "lm-eval": "import lm_eval; from fastsample.bench.harness import harness_model",
    "notebook": "import ipykernel, nbclient, nbformat",
    "docs": "import sphinx",
    "dev": "import hypothesis, mypy, peft, pytest, xdist",
    "release": "import build, twine",
}
"""What each extra is for, as a statement."""
app = typer.Typer(add_completion=False, help=__doc__)
Python = Annotated[str, typer.Option(help="Version of Python, or its path.")]


@app.command()
def dists() -> None:
    """Build the sdist and the wheel, check them, and compare the wheel with the sdist's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)  # the wheel from the sdist
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        direct = out / "direct"
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", direct, ROOT)
        names = [set(zipfile.ZipFile(path).namelist()) for path in (wheel, direct / wheel.name)]
        if names[0] != names[1]:
            raise SystemExit(f"the sdist's wheel differs: {sorted(names[0] ^ names[1])}")
        for path in (wheel, sdist):
            print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


@app.command()
def extras(names: Annotated[list[str] | None, typer.Argument()] = None, python: Python = "3.11") -> None:
    """Install the wheel alone and with each extra, under the constraints, and run what it promises."""
    for name in names or ["", *PROJECT["optional-dependencies"]]:
        with tempfile.TemporaryDirectory() as folder:
            made = environment(folder, python, f"[{name}]" if name else "", "--constraints", ROOT / "constraints.txt")
            smoke(made)
            if name:
                run(made, "-c", PROMISES[name])
        print(f"{name or 'no extra'}: works", flush=True)


@app.command()
def lowest(python: Python = "3.11", tests: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Install the lowest declared versions, and run the smoke test and the files of --tests."""
    with tempfile.TemporaryDirectory() as folder:
        made = environment(
            folder, python, "", "--resolution", "lowest-direct", "--requirements", ROOT / "pyproject.toml"
        )
        run("uv", "pip", "list", "--python", made)
        smoke(made)
        if tests:
            run("uv", "pip", "install", "--python", made, "pytest", "hypothesis", "peft")
            run(made, "-m", "pytest", "-q", *(Path(test).resolve() for test in tests))
    print("the lowest declared versions: work", flush=True)


def environment(folder: str, python: str, extra: str, *options: object) -> Path:
    """A new environment with the wheel of this checkout in it; its interpreter."""
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = Path(folder).glob("*.whl")
    made = Path(folder) / "environment"
    run("uv", "venv", "--quiet", "--python", python, made)
    run("uv", "pip", "install", "--python", made, *options, f"{wheel}{extra}")
    return made / "bin" / "python"


def smoke(python: Path) -> None:
    """Sample an image, and ask the command line for its solvers, away from the checkout."""
    run(python, "-W", "ignore", "-c", SMOKE)
    run(python.with_name("fastsample"), "solvers", "--json")


def run(*command: object) -> None:
    """Run a command outside the repository, its output shown only when it fails."""
    quiet = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    text = [str(part) for part in command]
    done = subprocess.run(
        text, cwd=tempfile.gettempdir(), env={**quiet, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(text)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    app()
