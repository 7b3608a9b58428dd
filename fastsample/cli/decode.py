"""`fastsample decode`: text from a masked diffusion language model, by any commit rule."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from fastsample.cli import common

EXAMPLE = "123+45+678+901+234"


def decode(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of transformers, such as GSAI-ML/LLaDA-8B-Instruct.")
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="low-confidence, margin, entropy, random, origin, threshold, factor, entropy-bounded or hierarchy; "
            "prophet+, lrd+, prefix+ or dual+ before it. Options as name:key=value,key=value."
        ),
    ] = "threshold",
    gen_length: Annotated[int | None, typer.Option(help="Tokens to write; default: 96, or 128 with --model.")] = None,
    block_length: Annotated[int | None, typer.Option(help="Tokens a block; default: one block.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the schedule of rules that have one.")] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale w of (1 + w) l - w l0; 0 means none.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws, and of random rules.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model (LLaDA, Dream).")
    ] = False,
    colours: Annotated[
        bool | None, typer.Option(help="Tokens from green, committed first, to red. Default: on a terminal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: also when each token was committed.")] = False,
) -> None:
    """Write a text after each prompt, and say how many forwards it took.

    Example: fastsample decode --prompt 123+45+678+901+234 --rule prophet:thresholds=8/5/3.5+threshold
    """
    settings = check(rule, block_length, steps)
    if seed < 0:
        raise ValueError(f"seed = {seed}: give an integer of at least 0")
    common.check_device(device, dtype)
    texts = read_texts(prompt, prompts, model)
    check_model(model)
    common.quiet()
    pipe = load(model, dtype, device, trust_remote_code)
    settings |= {"gen_length": gen_length or (96 if model is None else 128)}
    settings |= {"guidance_scale": guidance, "temperature": temperature}
    written = [write(pipe, text, seed, settings) for text in texts]
    if as_json:
        print(
            json.dumps([{key: value for key, value in one.items() if key != "pieces"} for one in written], indent=2)
        )
        return
    for one in written:
        show(one, colours)


def check(rule: str, block_length: int | None, steps: int | None) -> dict[str, Any]:
    """What the rule and the options beside it mean for the pipeline; ValueError before anything is loaded."""
    from fastsample.names.rules import parse_method

    settings = parse_method(rule).pipeline_settings
    for name, value in (("block_length", block_length), ("num_inference_steps", steps)):
        if value is not None:
            settings[name] = value
    return settings


def read_texts(prompt: list[str] | None, file: Path | None, model: str | None) -> list[str]:
    """The prompts; for the bundled model sums as it reads them, by default an example."""
    if model is not None:
        return common.read_prompts(prompt or [], file)
    from fastsample.demo.language.sums import Sum

    given = common.read_prompts(prompt or [], file) if prompt or file is not None else [EXAMPLE]
    return [Sum.from_text(text).prompt for text in given]


def check_model(model: str | None) -> None:
    """Raise ValueError when `model` looks like a folder and is none."""
    if model is None:
        return
    files = (Path(model) / name for name in ("config.json", "model_index.json"))
    if common.looks_local(model) and not any(file.is_file() for file in files):
        raise ValueError(f"--model = {model!r} is no model's folder (no config.json): give one, or a hub id")


def load(model: str | None, dtype: str, device: str, trust_remote_code: bool) -> Any:
    """The pipeline of a folder or hub id, or of the bundled model."""
    import torch

    from fastsample.decoding.pipeline import MaskedDiffusionPipeline
    from fastsample.demo.language.loading import load_language_model

    torch_dtype = getattr(torch, dtype)
    if model is None:
        pipe = MaskedDiffusionPipeline(*load_language_model(torch_dtype))
    else:
        try:
            pipe = MaskedDiffusionPipeline.from_pretrained(
                model, dtype=torch_dtype, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # whatever a broken folder makes of transformers
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"--model = {model!r} could not be loaded: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def write(pipe: Any, text: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The text that the model writes after `text`, its pieces, a token each, and what it took."""
    import torch

    out = pipe([text], generator=torch.Generator().manual_seed(seed), **settings)
    written, ledger = out.texts[0], out.ledger
    committed = ledger.committed_at[0].tolist()
    ids = [token for token, at in zip(out.sequences[0].tolist(), committed, strict=True) if at]
    return {
        "prompt": text,
        "text": written,
        "forwards": ledger.forward_calls,
        "tokens": ledger.tokens,
        "tokens_per_forward": round(ledger.tokens / ledger.forward_calls, 2),
        "seconds": round(ledger.seconds, 3),
        "committed_at": committed,
        "pieces": pieces(pipe.tokenizer, ids),
    }


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text."""
    texts = [tokenizer.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]


def show(written: dict[str, Any], colours: bool | None) -> None:
    """The text, in colours by when each token was committed where asked for; then what it took."""
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True, force_terminal=True if colours else None)
    line = Text(written["prompt"], style="dim" if colours is not False else "")
    if colours is False or not console.is_terminal:
        line.append(written["text"], style="")
    else:
        last = max(written["committed_at"])
        for piece, at in zip(written["pieces"], filter(None, written["committed_at"]), strict=True):
            late = (at - 1) / max(last - 1, 1)
            line.append(piece, Style.parse(f"not dim rgb({round(220 * late)},{round(200 * (1 - late))},60)"))
    console.print(line)
    cost = f"{written['forwards']} forwards, {written['tokens_per_forward']:g} tokens a forward"
    console.print(f"{cost}, {written['seconds']:.2f} s")
