"""Imports run downward only: schedules <- tables <- solvers (NumPy) <- sampling (torch) <- schedulers (diffusers).

And no modules import each other, directly or around a corner, at whatever moment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from module_graph import Sources, circles_in, graph_of, sources

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastsample"
HOST = {"schedules", "tables", "solvers"}
BELOW = {  # what each part may import of fastsample, in functions too
    "schedules": {"schedules"},
    "tables": {"schedules", "tables"},
    "solvers": {"schedules", "tables", "solvers"},
    "sampling": {"schedules", "tables", "solvers", "sampling"},
    "fixed_point": {"schedules", "tables", "solvers", "sampling", "fixed_point"},
    "schedulers": {"schedules", "tables", "solvers", "sampling", "schedulers", "names"},
    "decoding": {"sampling", "schedulers", "decoding"},
    "pipelines": {"schedules", "sampling", "fixed_point", "pipelines"},
    "tuning": {
        *("schedules", "tables", "solvers", "schedulers", "pipelines", "names", "cache", "version", "tuning"),
    },
    "caching": {"pipelines"},  # a path that saved pipelines name
    "tarflow": {"sampling", "fixed_point", "tarflow"},
    "names": {"schedules", "solvers", "decoding", "names"},
    "demo": {"schedules", "tables", "solvers", "sampling", "tarflow", "cache", "demo"},
    "interop": {"schedules", "tables", "solvers", "sampling", "names", "interop"},
    "testing": {"schedules", "tables", "solvers", "sampling", "demo"},
    "bench": {
        *("schedules", "tables", "solvers", "sampling", "fixed_point", "pipelines", "decoding", "tarflow"),
        *("schedulers", "names", "demo", "bench", "version", "cache"),
    },
}
EVERYWHERE = {"wording"}
ALSO = {  # single files that reach further than their part
    ("tables", "preset.py"): {"cache"},  # it writes files
    ("pipelines", "swap.py"): {"schedulers", "decoding"},  # the modules that saved pipelines name
    ("pipelines", "recommend.py"): {"names", "tables"},
    ("tarflow", "plans.py"): {"cache"},  # it writes files
    ("pipelines", "recipe.py"): {"cache", "schedulers", "tables"},  # it writes files; a scheduler is part of it
    ("pipelines", "recipe_run.py"): {"tables"},
    ("pipelines", "inversion.py"): {"schedulers"},  # it makes the one that goes the other way
}
TORCH = {"sampling", "fixed_point", "decoding", "tarflow", "interop"}  # diffusers only inside functions
# but for subclasses of diffusers' models and pipelines, in modules that are imported when they are asked for
SUBCLASSES = {("tarflow", "model.py"), ("tarflow", "pipeline.py")}
SUBCLASSES |= {("decoding", "schedulers.py"), ("decoding", "block_refinement.py"), ("decoding", "pipeline.py")}
KERNEL_DOORS = {("sampling", "backend.py"), ("decoding", "statistics.py")}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "matplotlib"}


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import: all but functions, so also what `if`, `try` and classes hold."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from module_level(node)


def imports(source: str, *, everywhere: bool) -> set[str]:
    """Dotted names that a module imports, at module level or everywhere; a relative one starts with a dot."""
    tree = ast.parse(source)
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else module_level(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            # `from fastsample import bench` is an import of fastsample.bench
            found |= {f"fastsample.{alias.name}" for alias in node.names} if name == "fastsample" else {name}
    return found


def violations(part: str, source: str, *, file: str = "module.py") -> list[str]:
    """What the module `file` of `part` imports against the direction."""
    wrong = []
    for name in imports(source, everywhere=True):
        top, _, rest = name.partition(".")
        below = rest.split(".")[0]
        if name.startswith("."):  # the part could not be told: say it in full
            wrong.append(name)
        if top == "triton" or (top == "fastsample_kernels" and (part, file) not in KERNEL_DOORS):
            wrong.append(name)
        if part in HOST and top in HEAVY:
            wrong.append(name)
        if top == "fastsample" and below in ("bench", "cli") and part not in ("bench", "cli", "__main__"):
            wrong.append(name)
    for name in imports(source, everywhere=False):
        top, _, rest = name.partition(".")
        if part in TORCH and top == "diffusers" and (part, file) not in SUBCLASSES:
            wrong.append(name)
    for name in imports(source, everywhere=True):
        top, _, rest = name.partition(".")
        allowed = BELOW.get(part, set()) | ALSO.get((part, file), set()) | EVERYWHERE
        if top == "fastsample" and rest and part in BELOW and rest.split(".")[0] not in allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(part, path.read_text(), file=path.name) == []


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
        ("sampling", "import fastsample_kernels"),
        ("sampling", "try:\n    import diffusers\nexcept ImportError:\n    pass"),
        ("schedules", "if True:\n    from fastsample.tables import phi"),
        ("tables", "from fastsample import bench"),
        ("tables", "from ..sampling import noise"),
    ],
)
def test_a_planted_violation_is_seen(part: str, source: str) -> None:
    assert violations(part, source)


def unexplained(source: str) -> list[int]:
    """The lines of imports in functions without a comment, on a line of theirs or of the imports around them."""
    lines = source.splitlines()
    blocks: list[list[ast.stmt]] = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
            for node in sorted(found, key=lambda node: node.lineno):
                if blocks and (blocks[-1][-1].end_lineno or 0) + 1 == node.lineno:
                    blocks[-1].append(node)
                elif all(node not in block for block in blocks):
                    blocks.append([node])
    text = ["\n".join(lines[block[0].lineno - 1 : block[-1].end_lineno]) for block in blocks]
    return [block[0].lineno for block, own in zip(blocks, text, strict=True) if "# " not in own]


def test_an_import_in_a_function_says_why() -> None:
    for name, source in sources().items():
        assert unexplained(source) == [], name


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import os\ndef f():\n    import torch", [3]),
        ("def f():\n    import torch  # slow to load", []),
        ("def f():\n    import torch  # slow\n    from os import (\n        path,\n    )", []),
        ("def f():\n    import torch  # slow\n    x = 1\n    import os", [4]),
        ("class C:\n    def f(self):\n        def g():\n            import os", [4]),
        ("def f():\n    if True:\n        import os", [3]),
    ],
)
def test_an_unexplained_import_is_seen(source: str, wrong: list[int]) -> None:
    assert unexplained(source) == wrong


def test_the_backend_is_a_door_to_the_kernels() -> None:
    assert violations("sampling", "import fastsample_kernels", file="backend.py") == []
    assert violations("sampling", "import fastsample_kernels", file="noise.py")


def test_kernels_know_nothing_of_fastsample() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "fastsample" for name in imports(path.read_text(), everywhere=True))


def test_parallel_sampling_and_t_gate_do_not_know_of_each_other() -> None:
    """What both need of a pipeline stands beside them."""
    for part, other in (("parallel", "tgate"), ("tgate", "parallel")):
        for path in (PACKAGE / "pipelines" / part).rglob("*.py"):
            found = imports(path.read_text(), everywhere=True)
            assert not any(name.startswith(f"fastsample.pipelines.{other}") for name in found), path


def test_no_circles() -> None:
    assert circles_in(graph_of(sources())) == set()


def test_imports_say_in_full_what_they_mean() -> None:
    """A relative import, or one by a computed name, would be missing from the graph."""
    for name, text in sources().items():
        relative = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, name


IN_A_FUNCTION = "def f():\n    from p import {0}"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.{0} import X"


@pytest.mark.parametrize(
    ("modules", "circle"),
    [
        ({"p.a": "import p.b", "p.b": "import p.a"}, "ab"),
        ({"p.a": "from p.b import x", "p.b": "from p.a import y"}, "ab"),
        ({"p.a": "from p import b", "p.b": "from p import a", "p.c": "from p import a"}, "ab"),
        ({"p.a": "import p.b", "p.b": IN_A_FUNCTION.format("a")}, "ab"),
        ({"p.a": IN_A_FUNCTION.format("b"), "p.b": IN_A_FUNCTION.format("c"), "p.c": "import p.a"}, "abc"),
        ({"p.a": "import p.b", "p.b": FOR_TYPES.format("a")}, "ab"),
        ({"p.a": "class C:\n    def f(self):\n        def g():\n            import p.b", "p.b": "import p.a"}, "ab"),
        ({"p.a": "try:\n    import p.b\nexcept ImportError:\n    pass", "p.b": "from p.a import *"}, "ab"),
        ({"p.a": "import p.b as other", "p.b": "from p import q, a"}, "ab"),
        ({"p.__init__": "from p.b import name", "p.a": "import p.b", "p.b": "from p.a import x"}, "ab"),
    ],
)
def test_a_planted_circle_is_seen(modules: Sources, circle: str) -> None:
    assert circles_in(graph_of(modules)) == {frozenset(f"p.{name}" for name in circle)}


@pytest.mark.parametrize(
    "start",
    ["from p import name", "from p import other", "def f():\n    from p import name"],
    ids=["by its package", "renamed", "in a function"],
)
def test_a_circle_through_what_a_package_gathers_is_seen(start: str) -> None:
    """`p` has `name` from p.b: whoever imports it from p imports p.b."""
    package = "from p.b import name as name\nfrom p.b import thing as other"
    modules = {"p.__init__": package, "p.a": start, "p.b": "import p.a"}
    assert circles_in(graph_of(modules)) == {frozenset({"p.a", "p.b"})}


@pytest.mark.parametrize(
    "modules",
    [
        {"p.a": "import p.b", "p.b": "import p.c", "p.c": "import os"},
        {"p.__init__": "from p.a import x", "p.a": "import p.b", "p.b": "x = 1"},
        {"p.__init__": "from p.a import x\nfrom p.b import y", "p.a": "x = 1", "p.b": "from p import x\ny = x"},
        {"p.a": "import p.b\nimport p.c", "p.b": "import p.d", "p.c": "import p.d", "p.d": ""},
    ],
    ids=["a line", "a package", "a sibling by the package", "a diamond"],
)
def test_what_is_none_is_let_be(modules: Sources) -> None:
    assert circles_in(graph_of(modules)) == set()
