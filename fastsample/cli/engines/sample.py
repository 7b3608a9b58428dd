"""Images and videos from prompts: the arguments checked, the pipeline run, the files written."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fastsample.bench.accelerations import Gate, Parallel
from fastsample.bench.cases import Arm, make_cases, parse_arm, recommended_arm
from fastsample.cli import arguments
from fastsample.cli.command import on_interrupt
from fastsample.cli.engines import common
from fastsample.cli.engines.progress import following
from fastsample.cli.files import place
from fastsample.demo.bundled import GUIDANCE
from fastsample.names.options import parse_options
from fastsample.names.recommended import RECOMMENDED
from fastsample.pipelines.configured import Setup
from fastsample.pipelines.counting import count
from fastsample.pipelines.drawing import draw
from fastsample.pipelines.parallel.distributed import collected, own_share
from fastsample.pipelines.rehearsal import rehearse
from fastsample.pipelines.request import Request, check_draws, default_guidance
from fastsample.pipelines.tgate import TGate
from fastsample.schedules import NoiseSchedule
from fastsample.wording import counted

STEPS = 20
"""Where neither the command nor a recipe says how many."""
FRAME = 100
"""Milliseconds a frame of the videos that are written."""


def check(
    solver: str | None,
    options: list[str],
    grid: str | None,
    steps: int | None,
    guidance: float | None,
    seeds: list[int],
) -> Arm | None:
    """The arm that the arguments describe, None for the recommended one; ValueError before anything is loaded."""
    parse_options(options, "--option")
    if solver is None and options:
        raise ValueError(f"--option = {options[0]!r} without --solver: name the solver that it is for")
    text = solver or RECOMMENDED["vp"].solver  # where that is not yet known, for the sake of its grid
    if options:
        text += ("," if ":" in text else ":") + ",".join(options)
    arm = parse_arm(text, grid=grid)
    if arm.recipe and (options or grid):
        given = f"--option = {options[0]!r}" if options else f"--grid = {grid!r}"
        raise ValueError(f"{given} with --solver = {solver!r}: a recipe says that itself; change its file")
    if grid and arm.grid != grid:  # a class of diffusers, or one with its own
        raise ValueError(f"--grid = {grid!r} with --solver = {solver!r}: it does nothing there; leave it out")
    make_cases([Arm("")], [] if steps is None else [steps], [1.0 if guidance is None else guidance], seeds)
    return arm if solver is not None else None


def steps_of(arm: Arm | None, steps: int | None) -> int:
    """The steps asked for, else the recipe's own, else 20."""
    return steps or (arm.steps if arm else None) or STEPS


def check_gate(step: int | None, steps: int, arm: Arm | None) -> Gate | None:
    """The gate, or None; ValueError where it would not close, and beside a recipe."""
    if step is None:
        return None
    _check_alone(arm, f"--tgate = {step}")
    TGate(step).policy.check_steps(steps)
    return Gate(step)


def check_iteration(
    name: str | None, window: int, tolerance: float, gate: int | None, arm: Arm | None
) -> Parallel | None:
    """The parallel iteration of a run, or None; ValueError for wrong settings, and beside a recipe."""
    if name is None:
        return None
    _check_alone(arm, f"--parallel = {name!r}")
    if gate is not None:
        raise ValueError(
            f"--tgate = {gate} with --parallel = {name!r}: T-GATE counts sequential steps; use one of them"
        )
    return Parallel(name, window, tolerance)


def _check_alone(arm: Arm | None, given: str) -> None:
    if arm is not None and arm.recipe:
        raise ValueError(f"{given} with the recipe {arm.name}: it says what is added to its solver; change its file")


def read_texts(prompt: list[str] | None, file: Path | None, model: str | None) -> list[str]:
    """The prompts, or an example that suits the bundled models."""
    if not prompt and file is None and common.bundled_name(model):
        return ["a large red circle at the left on a white background"]
    return arguments.read_prompts(prompt or [], file)


def scale(guidance: float | None, model: str | None) -> float | None:
    """The guidance scale; None for the pipeline's own, which of the bundled ones is that of Stable Diffusion."""
    return GUIDANCE if guidance is None and common.bundled_name(model) else guidance


@dataclass
class Sampler:
    """A pipeline and how it is to sample.

    `arm` None is the recommended one, on `grid` if that is given; `guidance` None is the pipeline's own.
    """

    pipe: Any
    arm: Arm | None
    grid: str | None
    request: Request
    steps: int
    guidance: float | None
    gate: Gate | None
    parallel: Parallel | None

    def __post_init__(self) -> None:
        check_draws(self.pipe)
        own = default_guidance(self.pipe, self.request.negative_prompt)
        self._guidance = own if self.guidance is None else self.guidance
        self._arm = replace(self.arm or self._recommended(), gate=self.gate, parallel=self.parallel)

    def _recommended(self) -> Arm:
        kind = NoiseSchedule.from_config(self.pipe.scheduler.config).kind
        arm = recommended_arm(kind, self._guidance, self.steps)
        return replace(arm, grid=self.grid or arm.grid)

    @property
    def description(self) -> dict[str, Any]:
        """How it samples."""
        return {"sampler": self._arm.label, "steps": self.steps, "guidance": self._guidance}

    def call(self, text: str, seed: int) -> dict[str, Any]:
        """The pipeline's arguments for one image."""
        return self.request.call(self.pipe, [text], self.steps, self._guidance, [seed])

    def set_up(self) -> contextlib.AbstractContextManager[Setup]:
        """The pipeline with scheduler, gate, cut and parallel iteration."""
        return self._arm.set_up(self.pipe, self._guidance)


def generate(sampler: Sampler, prompts: list[str], seeds: list[int], folder: Path) -> list[dict[str, Any]]:
    """Write one image a prompt and seed as they come; what was made, with its cost."""
    jobs = own_share([(i, text, seed) for i, text in enumerate(prompts) for seed in seeds])
    made: list[dict[str, Any]] = []
    remedy = "try --offload model, --dtype bfloat16, or a smaller size"
    with sampler.set_up() as setup, common.out_of_memory(remedy), on_interrupt(lambda: _kept(made, folder)):
        rehearse(sampler.pipe, sampler.call(prompts[0], seeds[0]))
        images = (_image(sampler, setup, job, folder) for job in jobs)
        told = following(images, total=len(jobs), describe=lambda one: f"{one['file']}, {one['seconds']:.2f} s")
        made.extend(images if len(jobs) == 1 else told)
    return made


def _image(sampler: Sampler, setup: Setup, job: tuple[int, str, int], folder: Path) -> dict[str, Any]:
    """The image of a prompt's number, the prompt and a seed, written; what it is and what it took."""
    index, text, seed = job
    before = setup.run.rounds if setup.run else 0
    with count(sampler.pipe, 1) as ledger:
        drawing = draw(sampler.pipe, sampler.call(text, seed), ledger)
    if not drawing.finite:
        raise ValueError(
            f"the image of prompt {index}, seed {seed} is not finite with {sampler.description}: use more "
            "steps, less guidance, or float32"
        )
    cost: dict[str, Any] = {"nfe": ledger.model_evaluations, "seconds": round(ledger.seconds, 3)}
    if setup.gate or setup.cut:
        cost["dropped"] = ledger.dropped
    if setup.run:
        cost |= {"rounds": setup.run.rounds - before, "fallback": setup.run.fallback}
    path = write(drawing.pixels[0], folder, f"prompt{index:03d}-seed{seed}")
    drawn = {"width": drawing.pixels.shape[-1], "height": drawing.pixels.shape[-2]}
    return {"file": str(path), "prompt": text, "seed": seed, **drawn, **sampler.description, **cost}


def _kept(made: list[dict[str, Any]], folder: Path) -> str:
    """What an interrupted run leaves, in words, and how to go on."""
    if not made:
        return "no image was written; the same command begins anew"
    last = made[-1]
    return (
        f"{counted(len(made), 'image')} kept in {folder}, the last of prompt {last['prompt']!r} and seed "
        f"{last['seed']}; go on with the prompts and seeds after it"
    )


def write(pixels: Tensor, folder: Path, name: str) -> Path:
    """An image [c, h, w] as .png, a video [frames, c, h, w] as .webp, both without loss; where it was put."""
    array = (pixels.clamp(0, 1) * 255).round().byte().movedim(-3, -1).numpy()
    pictures = [Image.fromarray(frame.squeeze()) for frame in (array if pixels.ndim == 4 else array[None])]
    if pixels.ndim == 3:
        return place(folder, f"{name}.png", pictures[0].save)
    options: dict[str, Any] = {
        "save_all": True,
        "append_images": pictures[1:],
        "lossless": True,
        "duration": FRAME,
        "loop": 0,
    }
    return place(folder, f"{name}.webp", lambda path: pictures[0].save(path, **options))


def report(made: list[dict[str, Any]], folder: Path, as_json: bool) -> None:
    """Write the contact sheet and say what was made."""
    everything = collected(made)
    if everything is None:
        return  # the first process says it
    made = everything
    sheet = contact_sheet([Path(image["file"]) for image in made], folder)
    if as_json:
        print(json.dumps({"images": made, "contact_sheet": str(sheet)}, indent=2))
        return
    one = made[0]
    print(f"{one['sampler']}, {counted(one['steps'], 'step')}, guidance {one['guidance']:g}")
    for image in made:
        rounds = "".join(f"  {name} {image[name]}" for name in ("rounds", "dropped") if name in image)
        size = f"{image['width']}x{image['height']}"
        print(f"{image['file']}  {size}  NFE {image['nfe']:g}{rounds}  {image['seconds']:.2f} s  {image['prompt']}")
    print(f"contact sheet: {sheet}")


def contact_sheet(files: list[Path], folder: Path, columns: int = 8) -> Path:
    """All images in one, of videos the first frames, small ones enlarged to be seen; where it was put."""
    images = [Image.open(file).convert("RGB") for file in files]
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images), strict=True))
    zoom = max(1, 128 // max(width, height))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width * zoom, rows * height * zoom))
    for index, image in enumerate(images):
        big = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
        sheet.paste(big, (index % columns * width * zoom, index // columns * height * zoom))
    return place(folder, "contact-sheet.png", sheet.save)
