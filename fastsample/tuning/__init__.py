"""A sampler tuned for a model by forward calls: teacher, screen, grid, rows, joint, choose.

Forward calls in, a preset out.
The stages know no pipeline: :mod:`~fastsample.tuning.oracle` is the one door to it.
"""

from fastsample.tuning.loading import load_preset
from fastsample.tuning.tuner import tune

__all__ = ["load_preset", "tune"]
