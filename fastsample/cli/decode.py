"""`fastsample decode`: text from a masked diffusion language model, by any commit rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli import arguments
from fastsample.cli.command import check_switches, on_interrupt


def decode(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with one prompt a line.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of transformers, such as GSAI-ML/LLaDA-8B-Instruct.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="low-confidence, margin, entropy, random, origin, threshold, factor, risk, entropy-bounded, "
            "hierarchy, klass, credit, punt or wino; checked+, prophet+, lrd+, prefix+ or dual+ before it. "
            "Options as name:key=value,key=value. Default: factor:factor=0.3."
        ),
    ] = None,
    gen_length: Annotated[int | None, typer.Option(help="Tokens to write; default: 96, or 128 with --model.")] = None,
    block_length: Annotated[int | None, typer.Option(help="Tokens per block; default: one block.")] = None,
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
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Find the rule for this model and these prompts (32 to 64), in place of writing texts."
        ),
    ] = False,
    budget: Annotated[
        float, typer.Option(help="With --plan: the share of texts that may differ from one token a forward.")
    ] = 0.02,
) -> None:
    """Write a text after each prompt, and say how many forwards it took.

    With --plan, find the rule of fewest forwards whose texts are those of decoding one token a forward.

    Example: fastsample decode --prompt 123+45+678+901+234 --rule prophet:thresholds=8/5/3.5+threshold
    """
    check_switches(
        ctx,
        needs={"budget": "plan", "trust_remote_code": "model"},
        excludes={"plan": ("seed", "colours"), "as_json": ("colours",)},
    )
    length = gen_length or (96 if model is None else 128)
    arguments.check_counts(gen_length=gen_length, steps=steps)
    if block_length is not None and block_length > length:
        raise ValueError(f"--block-length = {block_length} with --gen-length = {length}: give at most as much")
    arguments.check_seeds([seed])
    arguments.check_scales(guidance=guidance, temperature=temperature)
    from fastsample.cli.engines import common  # torch and transformers: not for --help
    from fastsample.cli.engines import decode as engine

    if plan and (rule is not None or steps is not None):
        raise ValueError("--rule and --steps with --plan: it finds the rule, leave them out")
    settings = engine.check(rule or engine.RULE, block_length, steps)
    common.check_device(device, dtype)
    if plan and not 0 <= budget < 1:
        raise ValueError(f"--budget = {budget}: give the share of texts that may differ, from 0 to 1")
    texts = engine.read_texts(prompt, prompts, model, plan=plan)
    engine.check_model(model)
    common.quiet()
    pipe = engine.load(model, dtype, device, trust_remote_code)
    settings |= {"gen_length": length, "guidance_scale": guidance, "temperature": temperature}
    if plan:
        engine.show_plan(engine.plan(pipe, texts, budget, settings), as_json)
        return
    written = (engine.write(pipe, text, seed, settings) for text in texts)
    with on_interrupt(lambda: "the texts above are whole; go on with the prompts after them"):
        if as_json:
            engine.show_json(written)
            return
        for one in written:
            engine.show(one, colours)
