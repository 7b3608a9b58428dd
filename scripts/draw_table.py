"""Coefficients of solvers as a picture: what each prediction of the data weighs in the samples after it.

python scripts/draw_table.py    # writes docs/images/table.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fastsample
from fastsample.bench import style

OUT = Path(__file__).parents[1] / "docs" / "images" / "table.png"
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("ddim", {}),
    "DPM-Solver++ 2M": ("dpmpp-2m", {}),
    "heavy ball on 2M": ("hb-dpmpp-2m", {}),
    "UniPC": ("unipc", {}),
}
STEPS = 8


def weights(solver: str, **options: Any) -> NDArray[np.float64]:
    """[step, evaluation]: coefficients of a table on data predictions, over the data's share alpha of the sample."""
    schedule = fastsample.NoiseSchedule.linear_vp()
    times = fastsample.time_grid("quadratic", schedule, STEPS)
    table = fastsample.build_table(solver, schedule, times, prediction_type="sample", **options)
    alphas = np.array([schedule.node(time).alpha for time in times[1:]])
    return table.unroll().b[1:] / alphas[:, None]


@style.applied()
def draw(out: Path) -> None:
    """One square a solver, all on one scale."""
    found = {name: weights(solver, **options) for name, (solver, options) in SOLVERS.items()}
    most = max(float(np.abs(square).max()) for square in found.values())
    figure = Figure(figsize=(style.WIDTH, 2.5), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for axis, (name, square) in zip(axes, found.items(), strict=True):
        above = np.triu_indices(STEPS, 1)
        shown = square.copy()
        shown[above] = np.nan
        image = axis.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most)
        for row, column in zip(*np.tril_indices(STEPS), strict=True):
            value = square[row, column]
            if abs(value) >= 0.05:
                colour = "white" if abs(value) > 0.6 * most else "black"
                axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=6, color=colour)
        ticks = range(STEPS)
        axis.set(title=name, xlabel="evaluation", xticks=ticks, yticks=ticks)
        axis.set_xticklabels([str(tick + 1) for tick in ticks])
        axis.set_yticklabels([str(tick + 1) for tick in ticks])
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)
    axes[0].set_ylabel("sample after step")
    figure.colorbar(image, ax=axes, shrink=0.85, label="weight of the data prediction")
    out.parent.mkdir(parents=True, exist_ok=True)
    style.save(figure, out)


def main(out: Annotated[Path, typer.Option(help="The picture.")] = OUT) -> None:
    """Draw it."""
    draw(out)


if __name__ == "__main__":
    typer.run(main)
