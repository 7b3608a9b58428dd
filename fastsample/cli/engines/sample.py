"""Images from prompts: the arguments checked, the pipeline run, the files written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from fastsample.bench.accelerations import Parallel
from fastsample.bench.cases import Arm, make_cases, parse_arm
from fastsample.cli import arguments
from fastsample.pipelines.configured import configured
from fastsample.pipelines.counting import count
from fastsample.pipelines.parallel.distributed import collected, own_share
from fastsample.pipelines.tgate import TGate


def check(solver: str, options: list[str], grid: str | None, steps: int, guidance: float, seeds: list[int]) -> Arm:
    """The arm that the arguments describe; ValueError before anything is loaded."""
    text = f"{solver}:{','.join(options)}" if options else solver
    arm = parse_arm(text, grid=grid)
    make_cases([arm], [steps], [guidance], seeds)
    return arm


def check_gate(step: int | None, steps: int, guidance: float) -> TGate | None:
    """The T-GATE of a run, or None; ValueError where the gate would not close."""
    if step is None:
        return None
    gate = TGate(step, drop_guidance=guidance > 1)
    gate.policy.check_steps(steps)
    return gate


def check_iteration(name: str | None, window: int, tolerance: float, gate: int | None) -> Parallel | None:
    """The parallel iteration of a run, or None; ValueError for wrong settings."""
    if name is None:
        return None
    if gate is not None:
        raise ValueError(
            f"--tgate = {gate} with --parallel = {name!r}: T-GATE counts sequential steps; use one of them"
        )
    return Parallel(name, window, tolerance)


def read_texts(prompt: list[str] | None, file: Path | None, model: str | None) -> list[str]:
    """The prompts, or an example that suits the bundled model."""
    if not prompt and file is None and model is None:
        return ["a large red circle at the left on a white background"]
    return arguments.read_prompts(prompt or [], file)


def generate(
    pipe: Any,
    arm: Arm,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    guidance: float,
    folder: Path,
    gate: TGate | None = None,
    parallel: Parallel | None = None,
) -> list[dict[str, Any]]:
    """Write one image a prompt and seed as they come; what was made, with its cost."""
    made: list[dict[str, Any]] = []
    jobs = own_share([(i, text, seed) for i, text in enumerate(prompts) for seed in seeds])
    options = parallel.options if parallel else None
    with configured(pipe, arm.scheduler(pipe.scheduler.config), gate=gate, parallel=options) as setup:
        for index, text, seed in tqdm(jobs, desc="images", disable=len(jobs) == 1):
            before = setup.run.rounds if setup.run else 0
            with count(pipe, 1) as ledger:
                pixels = pipe(
                    prompt=text,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=torch.Generator().manual_seed(seed),
                    output_type="pt",
                ).images[0]
            if not torch.isfinite(pixels).all():
                raise ValueError(
                    f"the image of prompt {index}, seed {seed} is not finite at guidance = {guidance}, "
                    f"steps = {steps}: use more steps, less guidance, or float32"
                )
            path = folder / f"prompt{index:03d}-seed{seed}.png"
            array = (pixels.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(array).save(path)
            cost: dict[str, Any] = {"nfe": ledger.model_evaluations, "seconds": round(ledger.seconds, 3)}
            if setup.run:
                cost |= {"rounds": setup.run.rounds - before, "fallback": setup.run.fallback}
            made.append({"file": str(path), "prompt": text, "seed": seed, **cost})
    return made


def report(made: list[dict[str, Any]], folder: Path, as_json: bool) -> None:
    """Write the contact sheet and say what was made."""
    everything = collected(made)
    if everything is None:
        return  # the first process says it
    made = everything
    sheet = contact_sheet([Path(image["file"]) for image in made], folder / "contact-sheet.png")
    if as_json:
        print(json.dumps({"images": made, "contact_sheet": str(sheet)}, indent=2))
        return
    for image in made:
        rounds = f"  rounds {image['rounds']}" if "rounds" in image else ""
        print(f"{image['file']}  NFE {image['nfe']:g}{rounds}  {image['seconds']:.2f} s  {image['prompt']}")
    print(f"contact sheet: {sheet}")


def contact_sheet(files: list[Path], path: Path, columns: int = 8) -> Path:
    """All images in one, small ones enlarged to be seen."""
    images = [Image.open(file) for file in files]
    width, height = images[0].size
    zoom = max(1, 128 // max(width, height))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width * zoom, rows * height * zoom))
    for index, image in enumerate(images):
        big = image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        sheet.paste(big, (index % columns * width * zoom, index // columns * height * zoom))
    sheet.save(path)
    return path
