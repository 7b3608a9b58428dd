"""Solvers: pure rules from a grid to table rows. NumPy float64, no torch. One family a file."""

from fastsample.solvers.build import build_table, build_table_on_nodes
from fastsample.solvers.registry import Solver, available, get_solver

__all__ = ["Solver", "available", "build_table", "build_table_on_nodes", "get_solver"]
