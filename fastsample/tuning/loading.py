"""Presets read for a pipeline and a guidance, with what they were tuned for compared."""

from __future__ import annotations

import os
import warnings
from typing import Any

from fastsample.pipelines.weights import fingerprint
from fastsample.tables.preset import Preset, read_preset
from fastsample.tuning.target import prediction_of


def load_preset(
    source: Preset | str | os.PathLike[str], pipe: Any = None, *, guidance: float | None = None
) -> Preset:
    """The preset of a file that `tune` wrote, or of a bundled model by its name ("text_to_image", ..).

    Give it to any scheduler: `fastsample.DPMSolverScheduler.from_config(config, preset=..)`. With `guidance` only the
    tables of the nearest scale are kept. Raises ValueError, in one line, where the file is none, a table misses the
    marginals, or `pipe` has another noise schedule or prediction type; warns where its weights, or the guidance, are
    others than the preset was tuned for.
    """
    preset = read_preset(source)
    if pipe is not None:
        preset.check(*prediction_of(pipe))
        if fingerprint(pipe) != preset.model:
            warnings.warn(
                f"preset: it was tuned for other weights ({preset.model_name}) or another dtype than pipe has; what "
                "it gains here is not known",
                stacklevel=2,
            )
    if guidance is None:
        return preset
    if not preset.covers(guidance):
        known = ", ".join(f"{one:g}" for one in preset.guidances)
        warnings.warn(f"preset: guidance {guidance:g} is far from those it was tuned for ({known})", stacklevel=2)
    return preset.at(guidance)
