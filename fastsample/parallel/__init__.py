"""Parallel-in-time sampling: fixed points of triangular systems."""

from __future__ import annotations

from fastsample.parallel.iterations import FixedPoint as FixedPoint
from fastsample.parallel.iterations import ParallelReport as ParallelReport
from fastsample.parallel.iterations import solve as solve
from fastsample.parallel.trajectory import integrate_parallel as integrate_parallel
from fastsample.parallel.triangular import TriangularSystem as TriangularSystem
