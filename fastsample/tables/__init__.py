"""Coefficient tables: a solver on a grid, as data. NumPy float64, no torch."""

from fastsample.tables.phi import phi
from fastsample.tables.prediction import PREDICTION_TYPES, prediction_weights
from fastsample.tables.row import Row, Weights, ddim_weights
from fastsample.tables.step import Combination, Step
from fastsample.tables.table import Table, Unrolled

__all__ = [
    "PREDICTION_TYPES",
    "Combination",
    "Row",
    "Step",
    "Table",
    "Unrolled",
    "Weights",
    "ddim_weights",
    "phi",
    "prediction_weights",
]
