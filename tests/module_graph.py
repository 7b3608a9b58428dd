"""The graph of which module imports which, read off the syntax trees, and the circles in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"fastsample": ROOT / "fastsample", "fastsample_kernels": ROOT / "kernels" / "fastsample_kernels"}
Sources = Mapping[str, str]
"""The text of each module by its dotted name; a package is named with `.__init__`."""


def sources() -> Sources:
    """All modules of both packages."""
    return {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path.read_text()
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    }


def graph_of(modules: Sources) -> dict[str, set[str]]:
    """Which modules each one imports: when it is loaded, in a function, or for types alone.

    `from package import name` is an import of the module `package.name`, or of the one that the package has `name`
    from, or else of the package itself. That importing a module runs its packages' `__init__` is left out: then
    whatever an `__init__` gathers would be in a circle with it.
    """
    trees = {name: ast.parse(text) for name, text in modules.items()}
    return {name: {found for found in _imported(tree, trees) if found != name} for name, tree in trees.items()}


def _imported(tree: ast.AST, trees: Mapping[str, ast.AST]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (found for alias in node.names if (found := _module(alias.name, trees)))
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (found for alias in node.names if (found := _home(node.module, alias.name, trees)))


def _module(name: str, trees: Mapping[str, ast.AST]) -> str | None:
    return next((known for known in (name, f"{name}.__init__") if known in trees), None)


def _home(module: str, name: str, trees: Mapping[str, ast.AST]) -> str | None:
    """The module that `from module import name` reads."""
    whole, package = _module(f"{module}.{name}", trees), f"{module}.__init__"
    if whole is not None or package not in trees:
        return whole or _module(module, trees)
    for node in ast.walk(trees[package]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(node.module, alias.name, trees)
    return package


def circles_in(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The sets of two or more modules of which each can be reached from each."""
    reached = {name: _reached(name, graph) for name in graph}
    alike = (frozenset(other for other in reached[name] if name in reached[other]) for name in graph)
    return {circle for circle in alike if len(circle) > 1}


def _reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found
