"""`fastsample sample`: images from prompts, with any solver."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from fastsample.cli import common


def sample(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file with one prompt a line. Under torchrun or accelerate launch each process samples a part."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Diffusers folder or hub id; default: the bundled model.")] = None,
    solver: Annotated[str, typer.Option(help="A solver's name, see `fastsample solvers`.")] = "dpmpp-2m",
    option: Annotated[list[str] | None, typer.Option(help="A solver option key=value; repeat for several.")] = None,
    steps: Annotated[int, typer.Option(help="Steps: calls of the network.")] = 20,
    grid: Annotated[str | None, typer.Option(help="Time grid; default: the model's own spacing.")] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 means none.")] = 5.0,
    tgate: Annotated[int | None, typer.Option(help="T-GATE's gate step; default: no gate.")] = None,
    parallel: Annotated[
        str | None, typer.Option(help="Make many steps at once: picard, replay, secant or anderson.")
    ] = None,
    window: Annotated[int, typer.Option(help="With --parallel: steps evaluated at once.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="With --parallel: accepted error, relative to a step's noise; 0 is exact.")
    ] = 1e-2,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; repeat for several images a prompt.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("results/sample"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line an image.")] = False,
) -> None:
    """Sample images and write them with a contact sheet.

    Example: fastsample sample --solver ghvb --prompt "a large red circle at the left on a white background"
    """
    seeds = seed or [0]
    arm = check(solver, option or [], grid, steps, guidance, seeds)
    gate = check_gate(tgate, steps, guidance)
    iteration = check_iteration(parallel, window, tolerance, tgate)
    common.check_device(device, dtype)
    common.check_model(model)
    texts = read_texts(prompt, prompts, model)
    folder = common.writable_folder(out)
    common.quiet()
    pipe = common.load_model(model, device, dtype)
    pipe.scheduler = arm.scheduler(pipe.scheduler.config)
    with gate.apply(pipe) if gate else nullcontext(), iteration.apply(pipe) if iteration else nullcontext() as run:
        report(generate(pipe, texts, seeds, steps, guidance, folder, run), folder, as_json)


def read_texts(prompt: list[str] | None, file: Path | None, model: str | None) -> list[str]:
    """The prompts, or an example that suits the bundled model."""
    if not prompt and file is None and model is None:
        return ["a large red circle at the left on a white background"]
    return common.read_prompts(prompt or [], file)


def check(solver: str, options: list[str], grid: str | None, steps: int, guidance: float, seeds: list[int]) -> Any:
    """The arm that the arguments describe; ValueError before anything is loaded."""
    from fastsample.bench.cases import make_cases, parse_arm

    text = f"{solver}:{','.join(options)}" if options else solver
    arm = parse_arm(text, grid=grid)
    make_cases([arm], [steps], [guidance], seeds)
    return arm


def check_gate(step: int | None, steps: int, guidance: float) -> Any:
    """The T-GATE of a run, or None; ValueError where the gate would not close."""
    if step is None:
        return None
    from fastsample.pipelines.tgate import TGate

    gate = TGate(step, drop_guidance=guidance > 1)
    gate.policy.check_steps(steps)
    return gate


def check_iteration(name: str | None, window: int, tolerance: float, gate: int | None) -> Any:
    """The parallel iteration of a run, or None; ValueError for wrong settings."""
    if name is None:
        return None
    if gate is not None:
        raise ValueError(
            f"--tgate = {gate} with --parallel = {name!r}: T-GATE counts sequential steps; use one of them"
        )
    from fastsample.bench.accelerations import Parallel

    return Parallel(name, window, tolerance)


def generate(
    pipe: Any, prompts: list[str], seeds: list[int], steps: int, guidance: float, folder: Path, run: Any = None
) -> list[dict[str, Any]]:
    """Write one image a prompt and seed as they come; what was made, with its cost. `run` counts parallel rounds."""
    import torch
    from PIL import Image
    from tqdm.auto import tqdm

    from fastsample.pipelines.counting import count
    from fastsample.pipelines.parallel.distributed import own_share

    made: list[dict[str, Any]] = []
    jobs = own_share([(i, text, seed) for i, text in enumerate(prompts) for seed in seeds])
    for index, text, seed in tqdm(jobs, desc="images", disable=len(jobs) == 1):
        before = run.rounds if run else 0
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
                f"the image of prompt {index}, seed {seed} is not finite at guidance = {guidance}, steps = {steps}: "
                "use more steps, less guidance, or float32"
            )
        path = folder / f"prompt{index:03d}-seed{seed}.png"
        array = (pixels.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(array).save(path)
        cost = {"nfe": ledger.model_evaluations, "seconds": round(ledger.seconds, 3)}
        if run:
            cost |= {"rounds": run.rounds - before, "fallback": run.fallback}
        made.append({"file": str(path), "prompt": text, "seed": seed, **cost})
    return made


def report(made: list[dict[str, Any]], folder: Path, as_json: bool) -> None:
    """Write the contact sheet and say what was made."""
    from fastsample.pipelines.parallel.distributed import collected

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
    from PIL import Image

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
