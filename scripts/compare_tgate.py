"""Our T-GATE beside the authors' package on a tiny Stable Diffusion: the largest difference of the latents.

    pip install tgate && python scripts/compare_tgate.py

Where the package works (Stable Diffusion, guided, first-order schedulers) both should give the same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tgate import TgateSDLoader

from fastsample import TGate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import pipelines
from test_tgate import PLANS

STEPS = 8


def main() -> None:
    """Print a line for each plan and batch size."""
    for batch in (1, 2):
        for plan in PLANS:
            names = dict(zip(("gate_step", "sp_interval", "fi_interval", "warm_up"), plan, strict=True))
            call: dict[str, Any] = {
                "prompt": ["a small red circle", "a red circle"][:batch],
                "num_inference_steps": STEPS,
                "guidance_scale": 4.0,
                "output_type": "latent",
            }
            pipe = pipelines.stable_diffusion()
            with TGate(**names).apply(pipe):
                ours = pipe(**call, generator=torch.Generator().manual_seed(0)).images
            pipe = TgateSDLoader(pipelines.stable_diffusion(), **names, num_inference_steps=STEPS)
            theirs = pipe.tgate(**call, **names, generator=torch.Generator().manual_seed(0)).images
            print(f"batch {batch}, {names}: {float((ours - theirs).abs().max()):.1e}")


if __name__ == "__main__":
    main()
