"""What the commands share: the device, the model and its pipeline."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch

from fastsample.bench.quiet import silence
from fastsample.cli import arguments
from fastsample.demo.bundled import MODELS, load_pipeline, model_path
from fastsample.names.options import parse_options
from fastsample.pipelines.request import Request
from fastsample.pipelines.swap import load_pipeline as load_any

DTYPES = ("float32", "float16", "bfloat16")
DEVICES = {"cpu": lambda: 1, "cuda": torch.cuda.device_count, "mps": lambda: int(torch.backends.mps.is_available())}
"""How many of each kind are here."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
OFFLOADS = ("none", "model", "sequential")


def read_request(
    height: int | None, width: int | None, frames: int | None, negative_prompt: str | None, call: list[str] | None
) -> Request:
    """What the options ask of a pipeline; ValueError for what none can be asked."""
    arguments.check_counts(height=height, width=width, frames=frames)
    return Request(height, width, frames, negative_prompt, parse_options(call or [], "--call"))


def placement(model: str | None, device: str | None, dtype: str | None, offload: str = "none") -> tuple[str, str]:
    """Device and dtype: those given, else the GPU where there is one; ValueError for what is not here."""
    if device is None:
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if dtype is None:
        dtype = "float32" if bundled_name(model) or device == "cpu" else "bfloat16"
    check_device(device, dtype)
    if offload not in OFFLOADS:
        raise ValueError(f"--offload = {offload!r}: use one of {', '.join(OFFLOADS)}")
    if offload != "none" and torch.device(device).type == "cpu":
        raise ValueError(
            f"--offload = {offload!r} with --device = {device!r}: it spares the memory of a GPU; use none"
        )
    return device, dtype


def bundled_name(model: str | None) -> str | None:
    """Which bundled model is meant; None where it is another one."""
    if model is None:
        return MODELS[0]
    return model if model in MODELS and not Path(model).exists() else None


def check_device(device: str, dtype: str) -> None:
    """Raise ValueError unless `device` and `dtype` exist here."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype = {dtype!r}: use one of {', '.join(DTYPES)}")
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or where.type not in DEVICES:
        raise ValueError(f"--device = {device!r} is no device: use cpu, cuda, cuda:0 or mps")
    if (where.index or 0) >= DEVICES[where.type]():
        raise ValueError(f"--device = {device!r} is not available here: use cpu, or see `fastsample doctor`")


def check_model(model: str | None) -> None:
    """Raise ValueError when `model` looks like a folder and is none, or the bundled model is missing."""
    if name := bundled_name(model):
        if not (model_path(name) / "model_index.json").is_file():
            raise ValueError(
                f"--model: the bundled model is missing at {model_path(name)}; reinstall, or give another"
            )
        return
    assert model is not None
    if looks_local(model) and not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"--model = {model!r} is no diffusers folder (no model_index.json): give one, or a hub id")


def looks_local(model: str) -> bool:
    """Whether `model` means a folder, not a hub id."""
    return not HUB_ID.fullmatch(model) or Path(model).exists()


def load_model(model: str | None, device: str, dtype: str, offload: str = "none") -> Any:
    """The pipeline of a folder or hub id, or a bundled one."""
    torch_dtype = getattr(torch, dtype)
    if name := bundled_name(model):
        pipe = load_pipeline(torch_dtype, name=name)
    else:
        assert model is not None
        with loading(model):
            pipe = load_any(model, dtype=torch_dtype)
    pipe.set_progress_bar_config(disable=True)
    if isinstance(getattr(pipe, "vae", None), diffusers.AutoencoderKLAllegro):
        pipe.vae.enable_tiling()  # it cannot decode without
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


@contextlib.contextmanager
def loading(model: str | None) -> Iterator[None]:
    """In the block, whatever a broken folder makes of diffusers and transformers is wrong input, in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"--model = {model!r} could not be loaded: {reason[:400]}") from None


@contextlib.contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """In the block, running out of the GPU's memory is wrong input, with a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: {remedy} ({str(error).splitlines()[0]})") from None


def quiet() -> None:
    """No advice from the libraries between our own lines."""
    warnings.filterwarnings("ignore", module=r"(huggingface_hub|diffusers|transformers)\b")
    silence()
