"""Texts from prompts: the arguments checked, the model run, the text shown."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fastsample.cli import arguments
from fastsample.cli.engines import common, tables
from fastsample.decoding import KLASS, Checked, Entropy, LowConfidence, Margin, Origin, Prophet, Random
from fastsample.decoding.pipeline import MaskedDiffusionPipeline
from fastsample.decoding.plan import DecodingPlan, Trial, plan_decoding
from fastsample.demo.language.loading import load_language_model
from fastsample.demo.language.sums import Sum, problems
from fastsample.names.rules import parse_method
from fastsample.wording import counted

EXAMPLE = "123+45+678+901+234"
RULE = "factor:factor=0.3"
"""By default: on the bundled model no measured loss at a small part of the forwards (benchmarks/decoding_cpu)."""
SCHEDULED = (LowConfidence, Margin, Entropy, Random, Origin, KLASS, Prophet)
"""Rules to which the number of steps makes a difference."""
PLANNED = 48
"""Problems of the training split from which a plan for the bundled model is made."""


def check(rule: str, block_length: int | None, steps: int | None) -> dict[str, Any]:
    """What the rule and the options beside it mean for the pipeline; ValueError before anything is loaded."""
    method = parse_method(rule)
    decides = method.rule.base if isinstance(method.rule, Checked) else method.rule
    if steps is not None and not isinstance(decides, SCHEDULED):
        raise ValueError(
            f"--steps = {steps} with --rule = {rule!r}, which follows no schedule: leave it out, or give "
            "--rule low-confidence"
        )
    settings = method.pipeline_settings
    for name, value in (("block_length", block_length), ("num_inference_steps", steps)):
        if value is not None:
            settings[name] = value
    return settings


def read_texts(prompt: list[str] | None, file: Path | None, model: str | None, *, plan: bool = False) -> list[str]:
    """The prompts; for the bundled model sums as it reads them, by default an example, or PLANNED with `plan`."""
    if model is not None:
        return arguments.read_prompts(prompt or [], file)
    if plan and not prompt and file is None:
        return [problem.prompt for problem in itertools.islice(problems(0, test=False), PLANNED)]
    given = arguments.read_prompts(prompt or [], file) if prompt or file is not None else [EXAMPLE]
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
    torch_dtype = getattr(torch, dtype)
    if model is None:
        pipe = MaskedDiffusionPipeline(*load_language_model(torch_dtype))
    else:
        with common.loading(model):
            pipe = MaskedDiffusionPipeline.from_pretrained(
                model, dtype=torch_dtype, trust_remote_code=trust_remote_code
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def write(pipe: Any, text: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The text that the model writes after `text`, its pieces, a token each, and what it took."""
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


def show_json(written: Iterable[dict[str, Any]]) -> None:
    """Print the texts as JSON, those that are done where not all of them come."""
    made: list[dict[str, Any]] = []
    try:
        made.extend({key: value for key, value in one.items() if key != "pieces"} for one in written)
    finally:
        if made:
            print(json.dumps(made, indent=2))


def show(written: dict[str, Any], colours: bool | None) -> None:
    """The text, in colours by when each token was committed where asked for; then what it took."""
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
    cost = f"{counted(written['forwards'], 'forward')}, {counted(written['tokens_per_forward'], 'token')} a forward"
    console.print(f"{cost}, {written['seconds']:.2f} s")


def plan(pipe: Any, texts: list[str], budget: float, settings: dict[str, Any]) -> DecodingPlan:
    """The plan for the pipeline's model with these prompts; `settings` but for the rule and its steps."""
    options = {
        name: value
        for name, value in settings.items()
        if name in ("gen_length", "block_length", "guidance_scale", "temperature") and value is not None
    }
    if options.pop("temperature", 0.0):
        raise ValueError("--temperature with --plan: texts are compared, leave it at 0")
    return plan_decoding(pipe, texts, budget, **options)


def show_plan(found: DecodingPlan, as_json: bool) -> None:
    """The trials by rising risk, the choice marked; or JSON."""
    if as_json:
        rows = {"reference": found.reference, "chosen": found.chosen}
        made = {name: _numbers(trial) for name, trial in rows.items()}
        made |= {"trials": [_numbers(trial) for trial in found.trials]}  # type: ignore[dict-item]
        made |= {"budget": found.budget, "prompts": found.prompts}  # type: ignore[dict-item]
        made["information"] = None if math.isnan(found.information) else found.information  # type: ignore[assignment]
        print(json.dumps(made, indent=2))
        return
    table = Table(title=f"{counted(found.prompts, 'prompt')}; at most {found.budget:.1%} of the texts may differ")
    for name in ("rule", "same texts", "95 % interval", "predicted", "risk", "forwards", "evaluated"):
        table.add_column(name, justify="left" if name == "rule" else "right", no_wrap=True)
    for trial in (found.reference, *found.trials):
        low, high = trial.interval
        table.add_row(
            trial.name + (" <-" if trial is found.chosen else ""), f"{trial.agreement:.1%}",
            f"{low:.1%} to {high:.1%}", f"{trial.predicted:.1%}", f"{trial.risk:.3f}", f"{trial.forwards:.2f}",
            f"{trial.evaluated:.2f}",
        )  # fmt: skip
    tables.show(table)
    print(f"--rule {found.chosen.name}: {found.reference.forwards / found.chosen.forwards:.1f} times fewer forwards")
    steps = (8, 16, 32)
    expected = ", ".join(f"{found.expected_wrong(count):.0%}" for count in steps)
    print(
        f"information {found.information:.2f} nats: of an exact model's texts {expected} would differ after "
        f"{', '.join(map(str, steps))} steps in random order; nothing is decided by it"
    )


def _numbers(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in vars(trial).items() if key != "rule"}
