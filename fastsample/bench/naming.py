"""What a reader calls the arms of a benchmark: published names in place of our ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAMILIES = {
    "adams": "Adams-Bashforth",
    "ddim": "DDIM",
    "deis": "DEIS",
    "dpm": "DPM-Solver",
    "dpmpp": "DPM-Solver++",
    "er": "ER",
    "euler": "Euler",
    "exp": "exponential",
    "ghvb": "GHVB",
    "hb": "heavy-ball",
    "heun": "Heun",
    "heunpp": "Heun++",
    "ipndm": "iPNDM",
    "lcm": "LCM",
    "nesterov": "Nesterov",
    "plms": "PLMS",
    "res": "RES",
    "sa": "SA",
    "sde": "SDE",
    "seeds": "SEEDS",
    "tcd": "TCD",
    "unipc": "UniPC",
}
"""The parts of our ids that stand for a name; others are plain words, and orders ("2m") capitals."""
CLASSES = {
    "DDIM": "DDIM",
    "DDPM": "DDPM",
    "DPMSolverMultistep": "DPM-Solver++ 2M",
    "DPMSolverSinglestep": "DPM-Solver++ 2S",
    "DEISMultistep": "DEIS",
    "EulerDiscrete": "Euler",
    "EulerAncestralDiscrete": "Euler ancestral",
    "FlowMatchEulerDiscrete": "Euler",
    "FlowMatchHeunDiscrete": "Heun",
    "HeunDiscrete": "Heun",
    "LMSDiscrete": "LMS",
    "PNDM": "PNDM",
    "UniPCMultistep": "UniPC",
}
"""What diffusers' classes sample with as `from_config` makes them; others keep the class's name."""


def plain_name(result: Mapping[str, Any]) -> str:
    """The name of a result's arm: solver, options, grid, then what accelerates it.

    A result as :class:`fastsample.bench.runner.Bench` records it; where its label has another form, the label.
    """
    solver, grid, label = result.get("solver"), result.get("grid"), str(result["arm"])
    options: Mapping[str, Any] = result.get("options") or {}
    written = ",".join(f"{key}={value}" for key, value in options.items())
    head = f"{solver}({written})" if written else str(solver)
    head = f"{head} {grid}" if grid else head
    peer = label.startswith("diffusers ")
    own = label.removeprefix("diffusers ")
    if solver is None or not own.startswith(head):
        return label
    name = f"diffusers {CLASSES.get(solver, solver)}" if peer else solver_name(solver)
    words = [name, *(option_words(key, value) for key, value in options.items())]
    words += [f"{grid} grid"] if grid else []
    words += [rest] if (rest := accelerated(own.removeprefix(head).strip(), result)) else []
    return ", ".join(words)


def solver_name(name: str) -> str:
    """A registered solver as its paper calls it: "dpmpp-2m" is DPM-Solver++ 2M."""
    parts = name.split("-")
    return " ".join(FAMILIES.get(part, part.upper() if part[0].isdigit() else part) for part in parts)


def option_words(key: str, value: Any) -> str:
    """An option of a solver or a rule, in words."""
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return f"stable at guidance {number}" if key == "stable_guidance" else f"{key.replace('_', ' ')} {number}"


def accelerated(rest: str, result: Mapping[str, Any]) -> str:
    """What a label says after solver and grid."""
    if result.get("parallel") == rest and rest:
        iteration, window, tolerance = rest.split()
        steps = "all steps" if window == "all" else f"{window} steps"
        return f"{iteration} sweeps, {steps} at once, tolerance {tolerance}"
    if result.get("gate") == rest and rest:
        return f"{'T-GATE' if rest.startswith('gate') else 'no guidance'} from step {rest.split()[-1]}"
    return rest


def rule_name(label: str) -> str:
    """A way to decode, in words: "lrd:mixing=0+threshold:confidence=0.9" is "lrd, mixing 0 + threshold, .."."""
    named = []
    for part in label.split("+"):
        name, _, tail = part.partition(":")
        options = [option_words(*option.partition("=")[::2]) for option in tail.split(",") if tail]
        named.append(", ".join([name.replace("-", " "), *options]))
    return " + ".join(named)
