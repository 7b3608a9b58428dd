"""A pipeline's own sampling loop, driven by sweeps over many of its steps."""

from __future__ import annotations

from fastsample.pipelines.parallel.pipeline import ParallelRun as ParallelRun
from fastsample.pipelines.parallel.pipeline import ParallelSampler as ParallelSampler
from fastsample.pipelines.parallel.pipeline import parallelise as parallelise
