"""Imports run downward only: schedules <- tables <- solvers (NumPy) <- sampling (torch) <- schedulers (diffusers)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastsample"
HOST = {"schedules", "tables", "solvers"}
BELOW = {  # what each part may import of fastsample at module level
    "schedules": {"schedules"},
    "tables": {"schedules", "tables"},
    "solvers": {"schedules", "tables", "solvers"},
    "sampling": {"schedules", "tables", "solvers", "sampling"},
    "schedulers": {"schedules", "tables", "solvers", "sampling", "schedulers"},
    "demo": {"schedules", "tables", "solvers", "sampling", "demo"},
    "bench": {"schedules", "tables", "solvers", "sampling", "schedulers", "demo", "bench", "version"},
}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "matplotlib"}


def imports(source: str, *, everywhere: bool) -> set[str]:
    """Dotted names that a module imports: at module level, or also inside functions."""
    tree = ast.parse(source)
    nodes = ast.walk(tree) if everywhere else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def violations(part: str, source: str) -> list[str]:
    """What a module of `part` imports against the direction."""
    wrong = []
    for name in imports(source, everywhere=True):
        top, _, rest = name.partition(".")
        if top == "triton" or (top == "fastsample_kernels" and part != "sampling"):
            wrong.append(name)
        if part in HOST and top in HEAVY:
            wrong.append(name)
        if top == "fastsample" and rest.startswith(("bench", "cli")) and part not in ("bench", "cli"):
            wrong.append(name)
    for name in imports(source, everywhere=False):
        top, _, rest = name.partition(".")
        if part == "sampling" and top == "diffusers":
            wrong.append(name)
        if top == "fastsample" and rest and part in BELOW and rest.split(".")[0] not in BELOW[part]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(part, path.read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("tables", "import torch"),
        ("schedules", "from fastsample.tables import phi"),
        ("solvers", "def f():\n    import diffusers"),
        ("sampling", "import diffusers"),
        ("schedulers", "def f():\n    from fastsample.bench import cases"),
        ("bench", "import triton"),
        ("solvers", "import fastsample_kernels"),
    ],
)
def test_a_planted_violation_is_seen(part: str, source: str) -> None:
    assert violations(part, source)


def test_kernels_know_nothing_of_fastsample() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "fastsample" for name in imports(path.read_text(), everywhere=True))
