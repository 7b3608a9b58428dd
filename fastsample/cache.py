"""Where what was computed is kept: references, trajectories, stages of a tuning."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$FASTSAMPLE_CACHE, or ~/.cache/fastsample."""
    return Path(os.environ.get("FASTSAMPLE_CACHE") or Path.home() / ".cache" / "fastsample")
