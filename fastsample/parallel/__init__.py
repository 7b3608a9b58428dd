"""Parallel-in-time sampling: fixed points of triangular systems."""

from __future__ import annotations

from fastsample.parallel.blockwise import BlockIteration as BlockIteration
from fastsample.parallel.blockwise import solve_blocks as solve_blocks
from fastsample.parallel.integration import integrate_parallel as integrate_parallel
from fastsample.parallel.iterations import FixedPoint as FixedPoint
from fastsample.parallel.iterations import ParallelReport as ParallelReport
from fastsample.parallel.iterations import check_settings as check_settings
from fastsample.parallel.iterations import solve as solve
from fastsample.parallel.pipeline import ParallelRun as ParallelRun
from fastsample.parallel.pipeline import ParallelSampler as ParallelSampler
from fastsample.parallel.pipeline import parallelise as parallelise
from fastsample.parallel.text import jacobi_decode as jacobi_decode
from fastsample.parallel.triangular import TriangularSystem as TriangularSystem
