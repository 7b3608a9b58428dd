"""Every notebook runs from top to bottom without a warning, and is stored with what it shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from documents import ROOT, StandIns
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

import fastsample.demo.language.loading  # noqa: F401  transformers is to know the model that stands in

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LAST = "## Now with your own model"
SMALL = {
    "choosing_a_solver": "POINTS, COUNTS, IMAGES, STEPS, CONVERGED = 16, (5, 8), 2, (3, 5), 12",
    "drop_in_in_five_minutes": "IMAGES, COUNTS, CONVERGED = 2, (3, 5), 12",
    "early_commit_decoding": "PROBLEMS, METHODS = 4, ['threshold:confidence=0.9', 'checked', 'prophet', 'lrd']",
    "parallel_sampling": "STEPS, WINDOWS = 8, (4, None)",
    "t_gate": "IMAGES, STEPS, GATES = 4, 6, (3, 5)",
    "tarflow": "BATCH, BLOCKS, REPEATS, POWERS = 4, 16, 1, (2,)",
    "tune_your_model": "STEPS, PROMPTS, CHECKED, BUDGET = (3,), 6, 8, 2500",
}
"""What the tests put after a notebook's sizes, which are those that are stored."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One for all notebooks, of this very Python, whatever kernels the machine has."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    launch = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (spec / "kernel.json").write_text(f'{{"argv": {launch}, "display_name": "Python 3", "language": "python"}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("FASTSAMPLE_CACHE", str(folder / "cache"))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(FOLDER))
        yield manager
        manager.shutdown_kernel(now=True)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    """What all its cells show."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def is_quiet(output: Any) -> bool:
    """Whether it is nothing that a reader sees in red."""
    return output.output_type != "error" and output.get("name") != "stderr"


def test_every_notebook_has_small_sizes() -> None:
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, kernel: KernelManager) -> None:
    notebook = read(path)
    place = next(place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    small = {name.strip() for name in SMALL[path.stem].partition("=")[0].split(",")}
    assert all(name in notebook.cells[place].source for name in small)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL[path.stem]))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    NotebookClient(notebook, timeout=240, km=kernel).execute()
    assert [output for output in outputs(notebook) if not is_quiet(output)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran(path: Path) -> None:
    """Whole, in order, with pictures and text and nothing in red."""
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(is_quiet(output) for output in outputs(notebook))
    shown = [output.data for output in outputs(notebook) if "data" in output]
    assert any("image/png" in data for data in shown)
    assert all("image/png" in data for data in shown if data["text/plain"].startswith("<Figure"))
    assert any(output.output_type == "stream" for output in outputs(notebook))
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_end_is_for_ones_own_model(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its code runs on a small model of the checkpoint's class."""
    last = read(path).cells[-1].source
    assert last.startswith(LAST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(tmp_path))
    Path("prompts.txt").write_text("\n".join(f"a {size} red circle" for size in ("small", "large", "round")))
    stand_ins = StandIns(tmp_path_factory.mktemp("checkpoints"))
    stand_ins.patch(monkeypatch)
    blocks = re.findall(r"```python\n(.*?)```", last, re.DOTALL)
    assert blocks
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        torch.manual_seed(0)
        exec(compile(re.sub(r"torch\.b?float16", "torch.float32", block), str(path), "exec"), names)
    assert stand_ins.asked
