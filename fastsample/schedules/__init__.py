"""Noise schedules and time grids: NumPy float64, no torch."""

from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.schedules.config import schedule_from_config
from fastsample.schedules.continuous import LinearVPSchedule
from fastsample.schedules.discrete import DiscreteSchedule
from fastsample.schedules.edm import EDMSchedule
from fastsample.schedules.flow import FlowSchedule
from fastsample.schedules.grids import GRIDS, time_grid

__all__ = [
    "GRIDS",
    "DiscreteSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "LinearVPSchedule",
    "Node",
    "NoiseSchedule",
    "schedule_from_config",
    "time_grid",
]
