"""The bundled models end to end on the device: both text-to-image pipelines, and the language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from fastsample_kernels import use_backend
from fastsample_kernels.dispatch import Backend

import fastsample as fs
from fastsample.demo import bundled
from gpu_parts import Part, Record, Setting
from gpu_parts.timing import DEVICE, seconds, spread

PROMPTS = ["a small red circle on a white background", "a large blue square on a white background"]
GATED = {"text_to_image": True, "flow_text_to_image": False}
"""The bundled pipelines, and whether they have cross-attention to gate."""

WHERE: dict[str, tuple[Backend, Any]] = {
    "CPU": ("torch", "cpu"),
    "torch": ("torch", DEVICE),
    "kernels": ("triton", DEVICE),
}


def models(setting: Setting) -> Iterator[Record]:
    """Seconds of two images in 20 steps; whether the images are those of the CPU's, and of torch's backend."""
    steps, repeats = (2, 1) if setting.smoke else (20, 3)
    for name, gated in GATED.items():
        images: dict[str, torch.Tensor] = {}
        for where, (backend, device) in WHERE.items():
            pipe = bundled.load_pipeline(device=device, name=name)
            pipe.scheduler = fs.create_scheduler("dpmpp-2m", pipe.scheduler.config)
            run = _pipe_run(pipe, steps)
            with use_backend(backend):
                images[where] = run()
                apart = float((images[where] - images["CPU"]).abs().max())
                if where == "CPU" and not setting.smoke:
                    continue
                record: Record = {"model": name, "steps": steps, "backend": where, "apart": f"{apart:.1e}"}
                yield record | {"arm": "plain", **spread(seconds(run, repeats), "s", 4)}
                if gated:
                    with fs.TGate(steps // 2).apply(pipe):
                        yield record | {"arm": "T-GATE", **spread(seconds(run, repeats), "s", 4)}
        assert apart < 0.02, f"{name}: images are {apart:.1e} from the CPU's"
    yield from _language(setting)


def _pipe_run(pipe: Any, steps: int) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        call = {"guidance_scale": 3.0, "num_inference_steps": steps, "generator": generators, "output_type": "pt"}
        return pipe(PROMPTS, **call).images.float().cpu()

    return run


def _language(setting: Setting) -> Iterator[Record]:
    """A masked language model's answers by both backends, token for token."""
    from fastsample.demo.language.sums import problems

    model, tokenizer = fs.load_language_model(device=DEVICE)
    texts = [problem.prompt for problem in islice(problems(0, test=True), 1 if setting.smoke else 16)]
    pipe = fs.MaskedDiffusionPipeline(model, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    length, found = 2 if setting.smoke else 32, dict[str, Any]()
    backends: tuple[Backend, ...] = ("torch", "triton")
    for backend in backends:
        run = lambda: pipe(texts, gen_length=length, block_length=length).sequences  # noqa: E731
        with use_backend(backend):
            found[backend] = run().cpu()
            record: Record = {"model": "language", "backend": backend, "arm": "plain"}
            yield record | spread(seconds(run, 1 if setting.smoke else 3), "s", 4)
    assert torch.equal(*found.values()), "the backends decode other tokens"


PART = Part(
    "models",
    "Do the bundled models run end to end, and how fast?",
    40,
    models,
    ("model", "steps", "backend", "arm", "s", "apart"),
)
