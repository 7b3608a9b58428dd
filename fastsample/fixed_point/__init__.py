"""Fixed points of triangular systems: trajectories, the tokens of a flow's block, texts."""

from __future__ import annotations

from fastsample.fixed_point.blockwise import BlockIteration as BlockIteration
from fastsample.fixed_point.blockwise import solve_blocks as solve_blocks
from fastsample.fixed_point.integration import integrate_parallel as integrate_parallel
from fastsample.fixed_point.iterations import FixedPoint as FixedPoint
from fastsample.fixed_point.iterations import ParallelReport as ParallelReport
from fastsample.fixed_point.iterations import check_settings as check_settings
from fastsample.fixed_point.iterations import solve as solve
from fastsample.fixed_point.text import jacobi_decode as jacobi_decode
from fastsample.fixed_point.triangular import TriangularSystem as TriangularSystem
