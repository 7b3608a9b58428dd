"""What cutting guidance and T-GATE save and cost on a bundled model, beside plain guidance with fewer steps.

    python scripts/benchmark_guidance.py quality [--model flow_text_to_image] [--guidance 3]   at equal evaluations
    python scripts/benchmark_guidance.py seconds                                               of interleaved calls

Each prints a table. `quality` compares each way of spending the same evaluations with the converged guided solution
from the same noise, and by what a classifier finds in the images. `seconds` is the wall time of the `with` pattern,
gate put on and taken off, over that of the plain call: calls in turn, median and quartiles of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import fastsample as fs
from fastsample.bench.metrics import decode, rms
from fastsample.demo.bundled import MODELS, load_pipeline, prompt_fidelity
from fastsample.demo.scenes import sample_scenes
from fastsample.pipelines.counting import count

SOLVERS = {"text_to_image": ("hb-dpmpp-2m", {"grid": "quadratic"}), "flow_text_to_image": ("dpmpp-2m", {})}
EXTRA = {"text_to_image": {}, "flow_text_to_image": {"max_sequence_length": 16}}  # the tokens that are there
CONVERGED = 100  # steps


def pipeline(model: str) -> Any:
    """A bundled pipeline with the solver that suits it."""
    pipe = load_pipeline(name=model, device="cuda" if torch.cuda.is_available() else "cpu")
    name, options = SOLVERS[model]
    pipe.scheduler = fs.create_scheduler(name, pipe.scheduler.config, **options)
    return pipe


def sampler(pipe: Any, model: str, prompts: list[str], guidance: float) -> Callable[[int], Tensor]:
    """Latents by the number of steps, from the same noise every time."""

    def sample(steps: int) -> Tensor:
        generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
        call = {"guidance_scale": guidance, "generator": generators, "output_type": "latent", **EXTRA[model]}
        latents: Tensor = pipe(prompts, num_inference_steps=steps, **call)[0]
        return latents.float()

    return sample


def quality(model: str, guidance: float, prompts: int, evaluations: list[int]) -> None:
    """A row for each way of spending so many evaluations an image."""
    pipe = pipeline(model)
    texts = [scene.caption for scene in sample_scenes(prompts, seed=5, held_out=True)]
    sample = sampler(pipe, model, texts, guidance)
    converged = sample(CONVERGED)
    print(f"{model}, guidance {guidance:g}, {prompts} prompts, {SOLVERS[model][0]}\n")
    print(
        "| evaluations | guided steps | steps | RMS to converged | attributes | whole prompts |\n" + "|---" * 6 + "|"
    )
    for spent in evaluations:
        for guided in dict.fromkeys((spent // 2, spent * 2 // 5, spent * 3 // 10, spent // 5, spent // 10)):
            steps = spent - guided
            plain = guided == steps
            with nullcontext() if plain else fs.GuidanceCut(0, guided).apply(pipe), count(pipe, prompts) as ledger:
                latents = sample(steps)
            found = prompt_fidelity(decode(pipe, latents).cpu(), texts)
            error = rms(latents, converged) / float(converged.std())
            print(
                f"| {ledger.model_evaluations:g} | {'all' if plain else guided} | {steps} | {error:.3f} "
                f"| {found['attributes']:.1%} | {found['prompts']:.0%} |"
            )


def seconds(gates: list[int], steps: int, repeats: int) -> None:
    """A row for each gate: cutting guidance, and T-GATE as the authors have it."""
    model, spent = "text_to_image", {}
    pipe = pipeline(model)
    sample = sampler(pipe, model, ["a large red circle at the left on a white background"], 5.0)
    ways: dict[str, Any] = {f"guidance cut {gate}": fs.GuidanceCut(0, gate) for gate in gates}
    ways |= {f"gate {gate}": fs.TGate(gate) for gate in gates}

    def timed(way: Any) -> float:
        begun = time.perf_counter()
        with nullcontext() if way is None else way.apply(pipe):
            sample(steps)
        return time.perf_counter() - begun

    timed(None)
    spent = {name: [timed(way) / timed(None) for _ in range(repeats)] for name, way in ways.items()}
    print(f"{model}, {steps} steps, one image, {torch.get_num_threads()} thread(s), {repeats} calls each in turn\n")
    print("| | seconds / ungated: lower quartile | median | upper quartile |\n|---|---|---|---|")
    for name, ratios in spent.items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {low:.3f} | {middle:.3f} | {high:.3f} |")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "seconds"))
    parser.add_argument("--model", choices=MODELS, default="text_to_image")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--gates", type=int, nargs="+", default=[2, 5, 8, 10, 12, 15, 18, 19])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    if given.what == "quality":
        quality(given.model, given.guidance, given.prompts, given.evaluations)
    else:
        seconds(given.gates, given.steps, given.repeats)


if __name__ == "__main__":
    main()
